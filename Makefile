# Two commands matter: `make run` (the summarization DAG on the bundled sample) and `make test`.
# Needs Python 3.11 or newer and nothing else. Environments are made by uv where it is installed (UV_PYTHON chooses the
# Python), else by venv and pip (PYTHON chooses).
PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test fuzz sbom lock verified test-images test-xla cluster cluster-down test-cluster lint format compile images bench docs wheel clean

run: $(INSTALLED)
	$(BIN)/hanflow run summarization

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not podman"  # more threads than cores would wait for each other

# The steps and the demo in the images that `make images` built, as restricted as the strictest cluster runs them.
test-images: $(INSTALLED)
	HANFLOW_IMAGES=required $(BIN)/python -m pytest -m podman tests/images

# The properties of `make test` with many more cases: minutes.
fuzz: $(INSTALLED)
	HANFLOW_FUZZ=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m fuzz

# The TPU backend on virtual devices of this machine, in an environment of its own: torch_xla 2.9 wants torch 2.9
# (7 GB, a few minutes to install).
VENV_XLA ?= .venv-xla
INSTALLED_XLA := $(VENV_XLA)/.installed

test-xla: $(INSTALLED_XLA)
	PJRT_DEVICE=CPU OMP_NUM_THREADS=1 $(VENV_XLA)/bin/python -m pytest -p no:cacheprovider -m xla tests/xla

# A Kubernetes of one machine with the operators, as root on Linux: 25 minutes the first time (it is built from source),
# then half a minute. A machine that has a cluster sets KUBECONFIG (and HANFLOW_TEST_NAMESPACE) instead.
# OPERATORS=oldest: the oldest supported operators, in a cluster of their own; HANFLOW_CLUSTER=NAME: one more cluster.
# TEST_WORKERS: more than cores, since scenarios mostly wait.
OPERATORS ?= newest
TEST_WORKERS ?= 6
SCENARIOS ?= tests/cluster$(if $(filter-out newest,$(OPERATORS)),/test_operators.py $(if $(filter oldest,$(OPERATORS)),tests/cluster/test_launch.py))
cluster cluster-down test-cluster: export HANFLOW_OPERATORS := $(OPERATORS)

cluster: $(INSTALLED)
	$(BIN)/python -m tests.cluster.machine up

cluster-down: $(INSTALLED)
	$(BIN)/python -m tests.cluster.machine down

test-cluster: $(INSTALLED)
	eval "$$($(BIN)/python -m tests.cluster.machine environment)" && \
		HANFLOW_TEST_NAMESPACE=$${HANFLOW_TEST_NAMESPACE:-hanflow-test} \
		$(BIN)/python -m pytest -n $(TEST_WORKERS) -m cluster $(SCENARIOS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The packages that `kfp run create -f` takes; a test keeps them current.
compile: $(INSTALLED)
	$(BIN)/python -m pipelines.compile

# The diagram of the rooms, then the site with the API reference, in build/site. Any warning is an error.
docs: $(INSTALLED)
	$(BIN)/python tools/imports.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

wheel: $(INSTALLED)
	$(BIN)/hatchling build -t wheel

# $(call environment,FOLDER,CONSTRAINTS,REQUIREMENTS)
ifneq ($(UV),)
define environment
	$(UV) venv --quiet --allow-existing --python '>=3.11' $(1)
	$(UV) pip install --quiet --python $(1) -c $(2) $(3)
endef
else
define environment
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hanflow needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) $(3)
endef
endif

$(INSTALLED): pyproject.toml constraints.txt
	$(call environment,$(VENV),constraints.txt,-e '.[dev]')
	@touch $@

$(INSTALLED_XLA): pyproject.toml constraints.txt
	@mkdir -p $(VENV_XLA) && grep -v '^torch==' constraints.txt > $(VENV_XLA)/constraints.txt
	@# not the tpu extra: its libtpu is for TPU hosts
	$(call environment,$(VENV_XLA),$(VENV_XLA)/constraints.txt,torch==2.9.0 torch_xla==2.9.0 -e . hypothesis pytest)
	@touch $@

# checkov's dependencies do not go with ours, so it has an environment of its own; the manifests' tests find it there.
.checkov:
	$(call environment,$@,/dev/null,checkov==3.3.30)

# The environment of `make test` from files whose sha256 is in requirements.txt, and from no other.
verified:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -e .
	@touch $(INSTALLED)

# requirements.txt anew, after a change of constraints.txt; needs uv.
lock:
	(sed -n '/^#/p' requirements.txt; $(UV) pip compile --quiet --no-header --no-annotate --generate-hashes \
		--python-version 3.11.7 --extra dev -c constraints.txt -c images/gpu/constraints.txt pyproject.toml) > requirements.new
	mv requirements.new requirements.txt

# What the environment is made of, as CycloneDX JSON: build/hanflow.cdx.json.
CYCLONEDX := .cyclonedx

sbom: $(INSTALLED)
	$(call environment,$(CYCLONEDX),/dev/null,cyclonedx-bom==7.5.0)
	@mkdir -p build
	$(CYCLONEDX)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible \
		--of JSON -o build/hanflow.cdx.json $(BIN)/python

# Container images with podman or docker; `make images IMAGES='gpu tpu' BUILDER=docker IMAGE_REPOSITORY=… IMAGE_TAG=…`.
# BASE: another Debian 12 image; BUILD_FLAGS: of `podman build`. PIP_EXTRA_INDEX_URL and the like reach the build.
IMAGES ?= cpu demo
images: $(INSTALLED)
	$(BIN)/python images/build.py $(IMAGES) $(if $(BUILDER),--builder $(BUILDER)) $(if $(BASE),--base $(BASE)) \
		$(if $(IMAGE_REPOSITORY),--image-repository $(IMAGE_REPOSITORY)) $(if $(IMAGE_TAG),--image-tag $(IMAGE_TAG)) \
		$(if $(BUILD_FLAGS),--flags='$(BUILD_FLAGS)')

# The README's table; one row with ONLY=name. About 20 minutes on 2 cores.
bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks $(ONLY)

clean:
	rm -rf $(VENV) $(VENV_XLA) $(CYCLONEDX) .checkov build dist *.egg-info
