"""The images at work: real data, an ordinary user, a read-only root file system, no network."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanflow.cluster.job import USER
from hanflow.experiment import EXPERIMENTS, load_experiment
from hanflow.storage.artifacts import KINDS, read_manifest
from images.pins import normalized, pinned
from tests.images.containers import ROOT, SAMPLE_DATA, image, locked_up, podman, run_in, writable_by

pytestmark = pytest.mark.podman

ARCHITECTURE = {
    "type": "bart",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}
SETTINGS = {
    "preprocess": {"limit_rows": 60},
    "tokenize": {"vocabulary_size": 600, "max_source_tokens": 64, "max_target_tokens": 24},
    "train": {"architecture": ARCHITECTURE, "epochs": 1},
    "evaluate": {"max_new_tokens": 8, "untrained": True},
    "export": {"check_rows": 2},
}
"""Small enough for seconds; the data are the bundled petitions."""
INPUTS = {
    "preprocess": (),
    "tokenize": ("corpus",),
    "train": ("shards",),
    "evaluate": ("model", "shards", "corpus"),
    "export": ("model", "evaluation", "shards"),
}


@pytest.fixture(scope="module")
def cpu() -> str:
    return image("cpu")


@pytest.fixture(scope="module")
def work(cpu: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume in which each step has left its artifact, run by its command line in a container of its own."""
    folder = writable_by(tmp_path_factory.mktemp("volume") / "work")
    for kind, step in KINDS.items():
        settings = {**SETTINGS[step], **({"source": "/data/petitions.tsv.gz"} if step == "preprocess" else {})}
        options = [
            word
            for key, value in settings.items()
            for word in (f"--{key.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value))
        ]
        inputs = [word for name in INPUTS[step] for word in (f"--{name}", name)]
        run_in(cpu, folder, "python", "-m", f"hanflow.steps.{step}", "--output", kind, *inputs, *options)
    return folder


def test_the_steps_leave_whole_artifacts(work: Path) -> None:
    for kind in KINDS:
        manifest = read_manifest(work / kind, kind, task="summarization", verify=True)
        assert manifest.files
        assert (work / kind).stat().st_uid == USER
    assert not [path.name for path in work.iterdir() if path.name.startswith(".")], "nothing half-written is left"
    with (work / "evaluation" / "predictions.csv").open(encoding="utf-8-sig", newline="") as stream:
        assert len(list(csv.DictReader(stream))) > 0
    assert (work / "bundle" / "ctranslate2").is_dir() and (work / "bundle" / "huggingface" / "config.json").is_file()


def test_a_bundle_predicts(cpu: str, work: Path) -> None:
    with gzip.open(SAMPLE_DATA / "petitions.tsv.gz", "rt", encoding="utf-8") as stream:
        (work / "rows.tsv").write_text(
            "".join(line for line, _ in zip(stream, range(4), strict=False)), encoding="utf-8"
        )
    run_in(cpu, work, "hanflow", "predict", "bundle", "--input", "rows.tsv", "--output", "predictions.csv")
    with (work / "predictions.csv").open(encoding="utf-8-sig", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3


def test_a_failed_step_fails_its_container(cpu: str, work: Path) -> None:
    done = run_in(
        cpu, work, "python", "-m", "hanflow.steps.tokenize", "--corpus", "model", "--output", "x", check=False
    )
    assert done.returncode == 1 and "expected a corpus artifact" in done.stderr
    assert not (work / "x").exists()


def test_nothing_but_tmp_and_the_volume_is_writable(cpu: str, work: Path) -> None:
    code = (
        "import json, os\n"
        "def writable(folder):\n"
        "    try:\n"
        "        open(os.path.join(folder, 'probe'), 'w').close(); os.remove(os.path.join(folder, 'probe')); return True\n"
        "    except OSError:\n"
        "        return False\n"
        "folders = ['/', '/opt/hanflow', '/usr', '/etc', '/var/tmp', '/root', '/tmp', '/work']\n"
        "print(json.dumps([os.getuid(), os.getgid(), [f for f in folders if writable(f)]]))\n"
    )
    found = json.loads(run_in(cpu, work, "python", "-c", code).stdout)
    assert found == [USER, USER, ["/tmp", "/work"]]


@pytest.mark.parametrize("user", [f"{USER}:{USER}", "54321:0"])
def test_caches_need_no_home_and_no_account(cpu: str, work: Path, user: str) -> None:
    """Matplotlib, Hugging Face, torch's compiler and MeCab: for any user, whatever HOME was."""
    code = (
        "import getpass, os, warnings; warnings.simplefilter('error', UserWarning)\n"
        "getpass.getuser()\n"
        "import matplotlib, huggingface_hub.constants as hub\n"
        "for folder in (matplotlib.get_cachedir(), matplotlib.get_configdir(), hub.HF_HUB_CACHE, os.path.expanduser('~')):\n"
        "    os.makedirs(folder, exist_ok=True); open(os.path.join(folder, 'probe'), 'w').close(); print(folder)\n"
        "from matplotlib.figure import Figure; Figure().savefig('/tmp/figure.svg')\n"
        "from torch._inductor.runtime.cache_dir_utils import cache_dir; print(cache_dir())\n"
    )
    done = run_in(cpu, work, "python", "-c", code + MECAB, user=user)
    lines = done.stdout.splitlines()
    assert all(line.startswith("/tmp") for line in lines[:-1]), done.stdout
    assert lines[-1] == "안녕 하 세요"


MECAB = "from mecab import MeCab; print(' '.join(MeCab().morphs('안녕하세요')))\n"


@pytest.mark.parametrize("kind", ["cpu", "demo"])
def test_an_image_holds_what_it_should_and_no_more(kind: str) -> None:
    reference = image(kind)
    code = (
        "import importlib.metadata as m, json, pathlib, shutil, hanflow\n"
        "root = pathlib.Path(hanflow.__path__[0]).parent\n"
        "files = [p.relative_to(root).as_posix() for n in ('hanflow',) for p in (root / n).rglob('*')]\n"
        "tools = [t for t in ('pip', 'pip3', 'gcc', 'cc', 'g++', 'make', 'git', 'curl') if shutil.which(t)]\n"
        "left = [p.name for f in ('/opt', '/run/secrets', '/root', '/work') if pathlib.Path(f).is_dir() and f != '/root'\n"
        "        for p in pathlib.Path(f).iterdir()]\n"
        "packages = {d.metadata['Name']: d.version for d in m.distributions()}\n"
        "print(json.dumps([files, tools, left, packages]))\n"
    )
    files, tools, left, packages = json.loads(
        podman("run", "--rm", "--network", "none", reference, "python", "-c", code).stdout
    )
    tracked = subprocess.run(
        ["git", "ls-files", "hanflow"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(tracked) - set(files) <= {name for name in tracked if not (ROOT / name).exists()}, (
        "data files are missing"
    )
    assert tools == []
    assert left == ["hanflow"], "a build's mounts and secrets leave nothing"
    files = (ROOT / "constraints.txt", ROOT / "images" / "gpu" / "constraints.txt")
    pins = pinned([line for file in files for line in file.read_text(encoding="utf-8").splitlines()])
    packages.pop("hanflow")
    assert {normalized(name): version.split("+")[0] for name, version in packages.items()}.items() <= pins.items()
    assert ("streamlit" in packages) == (kind == "demo") and "pip" not in packages and "pytest" not in packages


@pytest.mark.parametrize("kind", ["cpu", "demo"])
def test_an_image_says_what_it_is(kind: str) -> None:
    inspected = json.loads(podman("image", "inspect", image(kind)).stdout)[0]
    labels = {
        name.removeprefix("org.opencontainers.image."): value for name, value in inspected["Config"]["Labels"].items()
    }
    assert labels["title"] == f"hanflow-{kind}" and labels["licenses"] == "Apache-2.0"
    assert labels["version"] == image(kind).rsplit(":", 1)[1] and labels["revision"] not in ("", "unknown")
    assert labels["base.name"] and inspected["Config"]["User"] == f"{USER}:{USER}"
    history = json.dumps(inspected["History"])
    assert "pip.conf" not in history and "simple" not in history, "the image must not reveal where packages came from"
    cuda = "import torch; print(bool(torch.version.cuda))"
    for_cuda = podman("run", "--rm", "--network", "none", image(kind), "python", "-c", cuda).stdout.strip() == "True"
    # No compiler; CI takes torch's CUDA build where no index has the one for CPUs.
    assert inspected["Size"] < (7e9 if for_cuda else 2.5e9), "about 2 GB, with the CUDA build of torch about 6"


def test_the_demo_serves_its_page(work: Path) -> None:
    reference = image("demo")
    options = [option for option in locked_up(work) if option != "--rm"]
    name = podman("run", "--detach", *options, "--volume", f"{work / 'bundle'}:/bundle:ro", reference).stdout.strip()
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8501{}', timeout=5).read().decode()[:2000])"
    try:
        deadline = time.monotonic() + 120
        while True:
            health = podman("exec", name, "python", "-c", ask.format("/_stcore/health"), check=False)
            if health.returncode == 0 or time.monotonic() > deadline:
                break
            assert podman("inspect", "--format", "{{.State.Running}}", name).stdout.strip() == "true", podman(
                "logs", name
            )
            time.sleep(1)
        assert health.stdout.strip() == "ok", podman("logs", name)
        assert "<!doctype html>" in podman("exec", name, "python", "-c", ask.format("/")).stdout.lower()
    finally:
        podman("rm", "--force", "--time", "0", name, check=False)


@pytest.fixture
def socket(cpu: str, tmp_path: Path) -> Iterator[str]:
    """Podman's Docker-compatible socket."""
    address = f"unix://{tmp_path}/podman.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time=0", address])
    try:
        while not (tmp_path / "podman.sock").exists():
            assert service.poll() is None, "podman system service ended"
            time.sleep(0.05)
        yield address
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=30)


DOCKER_RUN = """
import sys
from kfp import components, local
from hanflow.experiment import load_experiment
from hanflow.pipelines.packages import Package

experiment = load_experiment(sys.argv[1])
runner = local.DockerRunner(
    read_only=True, user=sys.argv[3], tmpfs={"/tmp": "size=1g"}, cap_drop=["ALL"], network_mode="none",
    security_opt=["no-new-privileges"],
)
local.init(runner, pipeline_root=sys.argv[2])
package = Package.of(experiment)
package.without_retries()
components.load_component_from_text(package.text())(**package.arguments(experiment))
"""


def docker_run(socket: str, folder: Path, *overrides: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The summarization pipeline by kfp's DockerRunner: (its root, how it ended)."""
    import yaml

    from hanflow.config import to_mapping

    root = writable_by(folder / "root")
    (root / "petitions.tsv.gz").write_bytes((SAMPLE_DATA / "petitions.tsv.gz").read_bytes())
    flat = [
        f"{step}.{key}={json.dumps(value)}" for step, settings in SETTINGS.items() for key, value in settings.items()
    ]
    paths = [f"preprocess.source={root}/petitions.tsv.gz", f"train.checkpoints={root}/checkpoints"]
    experiment = load_experiment(EXPERIMENTS / "sample-summarization.yaml", [*flat, *paths, *overrides])
    (folder / "experiment.yaml").write_text(yaml.safe_dump(to_mapping(experiment)), encoding="utf-8")
    command = [sys.executable, "-c", DOCKER_RUN, str(folder / "experiment.yaml"), str(root), f"{USER}:{USER}"]
    environment = {**os.environ, "DOCKER_HOST": socket}
    return root, subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def test_kubeflows_docker_runner_runs_the_pipeline(socket: str, tmp_path: Path) -> None:
    root, done = docker_run(socket, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in KINDS:
        # The artifacts, not the runner's status: that is "success" also for a container that disappeared.
        (manifest,) = root.rglob(f"{kind}.json")
        read_manifest(manifest.parent, kind, verify=True)
        assert manifest.stat().st_uid == USER
    assert list((root / "checkpoints").rglob("metrics.jsonl"))


def test_kubeflows_docker_runner_reports_a_failure(socket: str, tmp_path: Path) -> None:
    root, done = docker_run(socket, tmp_path, f"preprocess.source={tmp_path}/nowhere.csv")
    # Without the reason: a container that ends at once is gone before kfp asks for its status, and kfp takes that for success.
    assert done.returncode != 0
    assert not list(root.rglob("corpus.json")) and not list(root.rglob("shards.json"))
