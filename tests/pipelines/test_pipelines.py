"""The pipelines: compiled as committed, parameters as the settings say, and the whole DAG on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from hanflow.cli.main import main
from hanflow.errors import ConfigError, UserError
from hanflow.experiment import EXPERIMENTS, STEPS, Experiment, load_experiment
from hanflow.experiment.form import form_values, from_form, settings_off_form
from hanflow.images import TAG
from hanflow.pipelines.packages import ANY, PIPELINES, Package
from hanflow.steps.configure import job_namespaces, outputs_of

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "pipelines" / "sample_data" / "petitions.tsv.gz"
TINY = [
    "--limit-rows=60",
    "--set=tokenize.vocabulary_size=600",
    "--set=tokenize.max_source_tokens=64",
    "--set=train.architecture={type: bart, d_model: 16, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
    "decoder_attention_heads: 2, encoder_ffn_dim: 32, decoder_ffn_dim: 32, max_position_embeddings: 64}",
    "--set=train.epochs=1",
    "--set=evaluate.max_new_tokens=8",
]


SECRET = "a-secret-of-the-environment"


def hanflow(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hanflow", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def spec_of(name: str) -> dict[str, Any]:
    return yaml.safe_load(
        (ROOT / "pipelines" / "compiled" / f"{name}.yaml").read_text(encoding="utf-8").split("\n---")[0]
    )


def test_compiled_packages_and_components_are_current(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.compile", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    fresh = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.yaml"))
    assert len(fresh) == len((*PIPELINES, ANY)) + 8
    for path in fresh:
        committed = (ROOT / path).read_text(encoding="utf-8")
        assert (tmp_path / path).read_text(encoding="utf-8") == committed, f"{path}: run `make compile`"


@pytest.mark.parametrize("name", PIPELINES)
def test_compile_gives_the_committed_package(name: str, tmp_path: Path) -> None:
    assert main(["compile", name, "--output", str(tmp_path), "--image-tag", TAG]) == 0
    committed = (ROOT / "pipelines" / "compiled" / f"{name}.yaml").read_text(encoding="utf-8")
    assert (tmp_path / f"{name}.yaml").read_text(encoding="utf-8") == committed


@pytest.mark.parametrize("name", [*PIPELINES, ANY])
def test_the_form_is_short_typed_and_documented(name: str) -> None:
    parameters = spec_of(name)["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 13
    needed = {each for each, parameter in parameters.items() if not parameter.get("isOptional")}
    assert needed == ({"data", "task"} if name == ANY else {"data"})
    for parameter in parameters.values():
        assert len(parameter["description"]) > 20
        # Kubeflow's form shows an empty, zero or false default as missing.
        assert parameter.get("defaultValue", "given") not in ("", 0, [], {}) or parameter["parameterType"] == "BOOLEAN"
    choices = parameters["runtime"]["description"]
    assert all(runtime in choices for runtime in ("local", "auto", "trainjob", "pytorchjob", "tpu"))


def test_the_form_says_every_setting() -> None:
    """Through the form and `settings`, configure makes the experiment that the command line makes."""
    overrides = ["train.seed=7", "evaluate.beams=3", "train.epochs=9", "job.workers=2", "preprocess.source=x.tsv"]
    wanted = load_experiment(EXPERIMENTS / "summarization.yaml", [*overrides, "tokenize.max_target_tokens=30"])
    package = Package.of(wanted)
    arguments = package.arguments(wanted)
    base = next(
        task["inputs"]["parameters"]["base"] for task in package._tasks() if "base" in task["inputs"]["parameters"]
    )
    further = arguments.pop("settings")
    assert from_form("summarization", base["runtimeValue"]["constant"], arguments, further) == wanted


@pytest.mark.parametrize(
    ("form", "settings", "message"),
    [
        ({}, {"train": {"lerning_rate": 1}}, "train.lerning_rate: no such setting; did you mean train.learning_rate"),
        ({}, {"trian": {"seed": 1}}, "trian: no such setting; did you mean train"),
        ({"epochs": 0}, {}, "train.epochs: must be at least 1"),
        ({"epoch": 3}, {}, "epoch: no such parameter"),
        ({"runtime": "tpu", "node_type": "v9-1"}, {}, "job.accelerator"),
        ({"model": "new"}, {"train": {"architecture": {"d_modle": 8}}}, "did you mean d_model"),
        ({"data": ""}, {}, "preprocess.source"),
        ({}, {"task": "classification"}, "task: this pipeline learns summarization"),
        ({}, {"combine": {"members": [{"name": "a"}]}}, "combine.members: this pipeline trains one model"),
        ({"members": [{"name": "a", "architecture": {"d_modle": 8}}]}, {}, "combine.members: a: train.architecture"),
    ],
)
def test_a_wrong_form_is_refused(form: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_form("summarization", {"name": "x"}, {"data": "x.tsv", **form}, settings)


def test_what_stands_in_settings_wins_and_kubeflows_floats_are_numbers() -> None:
    form = {"data": "x.tsv", "epochs": 3.0, "test_data": "none", "model": "new", "node_type": "any"}
    base = {"train": {"seed": 1.0, "log_every": 5.0, "architecture": {"d_model": 16.0}}}
    made = from_form("summarization", base, form, {"train": {"epochs": 4.0}})
    assert (made.train.epochs, made.train.seed, made.train.log_every) == (4, 1, 5)
    assert (made.preprocess.test_source, made.train.pretrained, made.job.accelerator) == ("", "", "")
    tuned = from_form("summarization", {"train": {"architecture": {"d_model": 8}}}, {**form, "model": "a/b"}, {})
    assert (tuned.train.pretrained, tuned.tokenize.tokenizer, tuned.train.architecture) == ("a/b", "a/b", {})
    empty = from_form("summarization", base, form, {"train": None})
    assert empty.train.seed == 1, "nothing was set"


def test_a_model_chosen_in_the_form_brings_its_tokenizer() -> None:
    overrides = ["preprocess.source=x", "train.pretrained=a/model", "tokenize.tokenizer=a/tokenizer"]
    experiment = load_experiment(EXPERIMENTS / "kobart-news.yaml", overrides)
    form = {name: value for name, value in form_values(experiment).items() if name != "settings"}
    base = settings_off_form(experiment, form)
    assert from_form("summarization", base, form, {}) == experiment
    other = from_form("summarization", base, {**form, "model": "another/model"}, {})
    assert other.tokenize.tokenizer == "another/model"
    explicit = {"tokenize": {"tokenizer": "a/third"}}
    assert (
        from_form("summarization", base, {**form, "model": "another/model"}, explicit).tokenize.tokenizer == "a/third"
    )


def test_jobs_are_removed_wherever_a_member_trained() -> None:
    members = [{"name": "a"}, {"name": "b", "job": {"runtime": "pytorchjob", "namespace": "team"}}]
    assert job_namespaces("local", {}, members, None) == ["team"]
    assert job_namespaces("pytorchjob", {"job": {"namespace": "lab"}}, members, {}) == ["lab", "team"]
    assert job_namespaces("local", {}, [], {"job": {"runtime": "tpu"}}) == [""]
    assert job_namespaces("local", {}, ["no mapping"], {"job": 3}) == []


def test_a_bundle_is_named_after_the_experiment_wherever_it_is_made() -> None:
    experiment = load_experiment(EXPERIMENTS / "kobart-news.yaml", ["preprocess.source=x", "name=news"])
    assert outputs_of(experiment)["export"]["title"] == "news"


def test_an_ensemble_of_another_task_is_refused() -> None:
    with pytest.raises(
        UserError, match="hanflow-ensemble trains models of the task classification, the experiment sets task=summ"
    ):
        Package.of(load_experiment(EXPERIMENTS / "summarization.yaml", ["combine.members=[{name: a}]"], require=False))


@pytest.mark.parametrize("name", PIPELINES)
def test_compiled_packages_fit_a_cluster(name: str) -> None:
    text = (ROOT / "pipelines" / "compiled" / f"{name}.yaml").read_text(encoding="utf-8")
    assert str(ROOT) not in text and "/home/" not in text, "no path of one machine"
    assert "pip install" not in text, "nothing is installed when a step starts"
    spec, _ = yaml.safe_load_all(text)
    outer = spec["root"]["dag"]["tasks"]
    assert {task: set(body.get("dependentTasks", [])) for task, body in outer.items()} == {
        "exit-handler-1": set(),
        "remove-jobs": {"exit-handler-1"},
    }
    assert outer["remove-jobs"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}, "after failures, too"
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    export = next(task for task in tasks if task.startswith("condition-"))
    trained = "combine" if name == "ensemble" else "train"
    training = (
        {"train-members": {"tokenize"}, "combine": {"tokenize", "train-members"}}
        if name == "ensemble"
        else {"train": {"tokenize"}}
    )
    waits = {task: set(body.get("dependentTasks", [])) - {"configure"} for task, body in tasks.items()}
    assert waits == {
        "configure": set(),
        "preprocess": set(),
        "tokenize": {"preprocess"},
        **training,
        "evaluate": {"preprocess", "tokenize", trained},
        "good-enough": {"evaluate"},
        export: {"evaluate", "good-enough", "tokenize", trained},
    }
    assert all("configure" in body.get("dependentTasks", ()) for task, body in tasks.items() if task != "configure")


def _tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task of a compiled pipeline that runs a container, by the name of its executor."""
    components = spec["components"]
    dags = [spec["root"]["dag"], *(c["dag"] for c in components.values() if "dag" in c)]
    found = [task for dag in dags for task in dag["tasks"].values()]
    executors = {c["executorLabel"]: name for name, c in components.items() if "executorLabel" in c}
    return {
        label: next(task for task in found if task["componentRef"]["name"] == name) for label, name in executors.items()
    }


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pod_has_its_place_on_a_cluster(name: str) -> None:
    """Resources, no root, nodes, retries and the cache of every task, and each parameter reaches the group it is used in."""
    text = (ROOT / "pipelines" / "compiled" / f"{name}.yaml").read_text(encoding="utf-8")
    spec, platform = yaml.safe_load_all(text)
    executors = spec["deploymentSpec"]["executors"]
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    tasks = _tasks(spec)
    assert set(executors) == set(placed) == set(tasks) and len(tasks) == (9 if name == "ensemble" else 8)
    training, early = "exec-train", ("exec-configure", "exec-remove-jobs")
    for label, executor in executors.items():
        resources = executor["container"]["resources"]
        for kind in ("Cpu", "Memory"):
            assert resources[f"resource{kind}Limit"] == resources[f"resource{kind}Request"] != "", label
        assert placed[label]["securityContext"] == {"runAsNonRoot": True}
        assert len(placed[label].get("tolerations", ())) == (label not in early)
        assert ("nodeSelector" in placed[label]) == (label not in (training, *early)), "a job would inherit it"
        assert tasks[label]["retryPolicy"]["maxRetryCount"] == 2, label
        cached = tasks[label]["cachingOptions"].get("enableCache", False)
        assert cached == (label not in ("exec-preprocess", "exec-remove-jobs")), label
    for label in ("exec-tokenize", training, "exec-evaluate"):
        assert [s["secretName"] for s in placed[label]["secretAsEnv"]] == ["hanflow-wandb", "hanflow-huggingface"]
        assert all(s["optional"] for s in placed[label]["secretAsEnv"]), "a run without them goes on"
    for component in spec["components"].values():
        for task in component.get("dag", {}).get("tasks", {}).values():
            for source in task.get("inputs", {}).get("parameters", {}).values():
                if "componentInputParameter" in source:
                    assert source["componentInputParameter"] in component["inputDefinitions"]["parameters"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cluster.train_memory=lots", "cluster.train_memory: expected a Kubernetes quantity"),
        ("cluster.node_selector={pool: 3}", "cluster.node_selector: pool: expected text"),
        ("cluster.tolerations=[team]", "cluster.tolerations: expected mappings"),
    ],
)
def test_places_that_no_cluster_has_are_reported(text: str, said: str) -> None:
    from hanflow.errors import ConfigError
    from hanflow.experiment import load_experiment

    with pytest.raises(ConfigError, match=re.escape(said)):
        load_experiment(EXPERIMENTS / "sample-summarization.yaml", [text])


@pytest.mark.slow
def test_components_serve_other_peoples_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each component.yaml loads, and two of them run in a pipeline that is not ours."""
    from kfp import components, dsl, local

    files = sorted((ROOT / "components").glob("*/component.yaml"))
    loaded = {path.parent.name: components.load_component_from_file(str(path)) for path in files}
    assert set(loaded) == {"configure", *STEPS, "predict"}
    for path in files:
        assert (path.parent / "README.md").is_file()

    @dsl.pipeline(name="theirs")
    def theirs():
        corpus = loaded["preprocess"](task="summarization", settings={"source": str(SAMPLE), "limit_rows": 40})
        loaded["tokenize"](task="summarization", corpus=corpus.outputs["Output"], settings={"vocabulary_size": 600})

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path))
    theirs()
    (shards,) = tmp_path.rglob("shards.json")
    assert json.loads(shards.read_text(encoding="utf-8"))["config"]["vocabulary_size"] == 600


def test_bundled_experiments_load() -> None:
    for path in EXPERIMENTS.glob("*.yaml"):
        from hanflow.experiment import load_experiment

        experiment = load_experiment(path, require=False)
        assert Package.of(experiment).arguments(experiment)["data"] == experiment.preprocess.source


def test_unknown_things_are_reported(tmp_path: Path) -> None:
    run = hanflow("run", "summarization", "--experiment", "sample-sumarization", cwd=tmp_path)
    assert run.returncode == 1
    assert "no such experiment file" in run.stderr and "sample-summarization" in run.stderr
    run = hanflow("run", "summarization", "--set", "train.epoch=3", "--set", "train.seed=x", cwd=tmp_path)
    assert run.returncode == 1
    assert "2 problems" in run.stderr and "did you mean train.epochs?" in run.stderr
    run = hanflow("run", "summarization", "--set", "train.architecture.d_modle=3", cwd=tmp_path)
    assert run.returncode == 1
    assert "did you mean d_model?" in run.stderr
    assert hanflow("compile", "summarisation", "--output", "x", cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("python3.11")  # kfp's local runner would replace the word in any path
    with pytest.MonkeyPatch.context() as patched:
        for variable in ("WANDB_API_KEY", "HF_TOKEN"):
            patched.setenv(variable, SECRET)
        return folder / "out", hanflow("run", "summarization", "--output", "out", *TINY, cwd=folder)


def test_secrets_are_in_no_log_and_no_artifact(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    output, done = finished
    assert SECRET not in done.stdout + done.stderr
    written = [path for path in output.rglob("*") if path.is_file()]
    assert output / "run.log" in written
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


def test_the_dag_runs_and_tells(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    output, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "succeeded"
    assert [step["name"] for step in record["steps"]] == ["preprocess", "tokenize", "train", "evaluate", "export"]
    for step in record["steps"]:
        assert step["seconds"] > 0 and step["figures"]
        assert Path(step["artifact"]).is_dir()
        assert step["name"] in done.stdout
    evaluation = next(step for step in record["steps"] if step["name"] == "evaluate")
    assert "rougeL_morpheme" in evaluation["figures"]
    assert "KFP Executor" not in done.stdout, "the executor's chatter goes to the log"
    assert "KFP Executor" in (output / "run.log").read_text(encoding="utf-8")


def test_the_run_leaves_what_the_readme_says(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    output, _ = finished
    for name in (
        "corpus/corpus.json",
        "corpus/report.html",
        "shards/train.arrow",
        "model/model.safetensors",
        "evaluation/predictions.csv",
        "evaluation/report.html",
        "bundle/huggingface/config.json",
        "bundle/README.md",
        "checkpoints/metrics.jsonl",
        "experiment.yaml",
        "run.log",
    ):
        assert (output / name).is_file(), name
    report = (output / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "trained model" in report and "untrained model" in report and "lead-1" in report
    assert not re.search(r'(src|href)="https?://', report), "readable without the network"


def test_the_experiment_that_was_run_can_be_run_again(finished: tuple[Path, Any]) -> None:
    from hanflow.experiment import load_experiment

    output, _ = finished
    again = load_experiment(output / "experiment.yaml")
    assert isinstance(again, Experiment)
    assert again.train.epochs == 1 and again.preprocess.source.endswith("petitions.tsv.gz")
    assert not again.train.checkpoints, "in another folder it must not resume from these"


def test_another_runs_folder_is_not_touched(finished: tuple[Path, Any]) -> None:
    output, _ = finished
    before = sorted(output.rglob("*"))
    run = hanflow("run", "summarization", "--output", str(output), cwd=output.parent)
    assert run.returncode == 1
    assert "already holds another run" in run.stderr
    assert sorted(output.rglob("*")) == before


def test_a_failed_step_says_why(tmp_path: Path) -> None:
    (tmp_path / "few.tsv").write_text("news\tsummary\n시청 앞 광장\t광장\n", encoding="utf-8")
    run = hanflow("run", "summarization", "--output", "out", "--set", "preprocess.source=few.tsv", cwd=tmp_path)
    assert run.returncode == 1
    assert "run.log" in run.stderr and "executor_input" not in run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("error: preprocess failed: preprocess.source: 1 distinct source text"), (
        "the reason stands last"
    )
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "failed" and "1 distinct source text" in record["error"]
    assert [step["status"] for step in record["steps"]] == ["failed", "waiting", "waiting", "waiting", "waiting"]
    log = (tmp_path / "out" / "run.log").read_text(encoding="utf-8")
    assert log.count("Looking for component `preprocess`") == 1, "retries, with their pauses, are for clusters"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, signum: signal.Signals) -> None:
    arguments = [*TINY, "--set=train.epochs=500", "--output=out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hanflow", "run", "summarization", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    metrics = tmp_path / "out" / "checkpoints" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signum)
    reported, _ = process.communicate(timeout=300)
    assert process.returncode == 130, reported
    assert "interrupted" in reported
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "interrupted"
    assert [step["status"] for step in record["steps"]][:2] == ["done", "done"]
    assert not list((tmp_path / "out").rglob("*.partial-*")) and not (tmp_path / "out" / "model").exists()
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False).stdout
    assert left == "", "no step outlives its run"


def test_a_killed_run_is_taken_up_again(tmp_path: Path) -> None:
    """Finished steps are kept, training goes on from its checkpoint; other settings are refused."""
    run = ["run", "summarization", *TINY, "--set=train.epochs=40", "--set=train.save_every=5", "--output=out"]
    process = subprocess.Popen([sys.executable, "-m", "hanflow", *run], cwd=tmp_path, stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / "out" / "checkpoints"
    deadline = time.monotonic() + 300
    while not list(checkpoints.glob("step-*/commit.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(checkpoints.glob("step-*/commit.json")), "else it is not killed in its training"
    steps = psutil.Process(process.pid).children(recursive=True)
    for step in steps:
        step.suspend()
    process.kill()  # alone: what it started stays
    process.wait()
    refused = hanflow(*run, cwd=tmp_path)
    assert refused.returncode == 1
    assert "a step of a killed run is working there" in refused.stderr
    for step in steps:
        step.kill()
    psutil.wait_procs(steps, timeout=60)
    other = hanflow(*run, "--set=train.learning_rate=1e-4", cwd=tmp_path)
    assert other.returncode == 1
    assert "differs in train.learning_rate" in other.stderr
    done = hanflow(*run, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preprocess: kept" in done.stdout and "tokenize: kept" in done.stdout
    assert "train: kept" not in done.stdout
    assert "resuming from" in (tmp_path / "out" / "run.log").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert [step["status"] for step in record["steps"]] == ["done"] * 5
    assert not list((tmp_path / "out").rglob("*.partial-*"))
