"""The workflow for Argo: its commands really run, in the order of its DAG, which is that of Kubeflow's pipeline."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hanflow.cluster.job import RUN_LABEL
from hanflow.cluster.runtimes import KINDS, pod_templates
from hanflow.config import JobConfig
from hanflow.experiment import EXPERIMENTS, settings_of
from hanflow.storage import gcs
from hanflow.storage.gcs import service
from tests.cluster import argo
from tests.cluster.argo import ROOT, step, tasks, workflow
from tests.cluster.manifests import read
from tests.cluster.world import World
from tests.storage.emulator import Emulator
from tests.support.forked import Zygote

BUCKET = "my-project-hanflow"
"""That of the ConfigMap's `root`."""


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        emulator.make_bucket(BUCKET)
        yield emulator


@pytest.fixture
def bucket(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The bucket that the ConfigMap names is in the emulator, also for the steps' processes."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.host)
    monkeypatch.setenv("HANFLOW_CACHE", str(tmp_path / "cache"))
    service._client_of.cache_clear()  # a client keeps its host, and other tests have another emulator
    yield
    service._client_of.cache_clear()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


def test_argos_commands_turn_raw_data_into_a_bundle(bucket: None, tmp_path: Path) -> None:
    """As the template has them: every step in a process of its own."""
    check_chain("summarization", argo.as_process, tmp_path)


@pytest.mark.parametrize("task", ["classification", "language_modeling"])
def test_argos_commands_serve_every_task(
    task: str, emulator: Emulator, bucket: None, zygote: Zygote, tmp_path: Path
) -> None:
    check_chain(task, argo.as_fork_of(zygote, {"STORAGE_EMULATOR_HOST": emulator.host}), tmp_path)


def check_chain(task: str, runner: argo.Runner, folder: Path) -> None:
    """corpus → shards → model → evaluation → bundle, with the settings of the experiment, each from the one before."""
    objects, text, name = read(".", "argo"), argo.small_experiment(task), f"hanflow-{task}"
    source, place = f"gs://{BUCKET}/{task}.tsv", f"gs://{BUCKET}/runs/{name}"
    gcs.put(source, argo.raw_data(task))
    values = argo.values_of(objects, {"source": source, "experiment": text}, name=name, uid="uid-1")
    printed = argo.play(objects, values, folder, runner)
    assert list(printed) == ["preprocess", "tokenize", "train", "evaluate", "gate", "export"]
    assert printed["gate"] == "true\n", "what the condition of export compares"
    argo.check_artifacts(task, text, source, place, folder)
    again = argo.succeed(step(objects, "preprocess"), values, folder / "again", runner)
    assert "was done by an earlier attempt" in again.err, "what a retried pod does if the first was lost after its work"


@pytest.mark.cluster
def test_argos_exit_handler_removes_the_runs_job(
    world: World, bucket: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that a lost train step leaves is found by the run's id; jobs of other runs are not."""
    settings = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text(encoding="utf-8"))
    settings["contexts"][0]["context"]["namespace"] = world.admin.namespace  # that of a pod is its own
    (tmp_path / "step.kubeconfig").write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "step.kubeconfig"))
    objects = read(".", "argo")
    given = {"experiment": argo.small_experiment("summarization"), "runtime": "pytorchjob", "image-tag": "1.2.3"}
    name = f"hanflow-{world.run[-12:]}"
    values = argo.values_of(objects, {"source": "gs://b/raw.tsv", **given}, name=name, uid=world.run)
    train = argo.start(argo.pod_of(step(objects, "train"), values, tmp_path / "train"))
    world.wait("the job", lambda: world.jobs() or train.poll() is not None, 120)
    train.kill()
    _, errors = train.communicate()
    assert world.jobs(), errors
    selector = {"labelSelector": f"{RUN_LABEL}={world.run}"}
    (job,) = world.admin.request("GET", KINDS["PyTorchJob"].path, query=selector)["items"]
    (template,) = pod_templates(job)
    (container,) = template["spec"]["containers"]
    assert container["image"] == "ghcr.io/hanflow/hanflow-gpu:1.2.3"
    assert f"gs://{BUCKET}/runs/{name}/model" in container["command"]
    bystander = world.body("sleep 300", run=f"{world.run}-other")
    world.create(bystander)
    try:
        handler = step(objects, workflow(objects)["onExit"])
        ended = argo.succeed(handler, values, tmp_path / "handler")
        assert ended.out == f"removed 1 jobs of run {world.run}\n"
        assert world.jobs() == [] and world.job(bystander)
    finally:
        world.delete(bystander)


def test_a_wrong_option_of_a_step_is_found(tmp_path: Path) -> None:
    template = copy.deepcopy(step(read("argo"), "gate"))
    template["container"]["args"] = ["--evaluation=x", "--evaluaton=x"]
    with pytest.raises(AssertionError, match="(?s)gate ended with 2: .*unrecognized arguments: --evaluaton=x"):
        argo.succeed(template, {}, tmp_path / "gate")


def test_argos_dag_is_kubeflows() -> None:
    """The same tasks wait for each other, directly or through others. Only `configure` is Kubeflow's: it reads the form."""
    spec, _ = yaml.safe_load_all((ROOT / "pipelines" / "compiled" / "summarization.yaml").read_text(encoding="utf-8"))
    tasks_of_kubeflow = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    rename = {"good-enough": "gate", "condition-2": "export"}
    theirs = {name: set(task.get("dependentTasks", ())) for name, task in tasks_of_kubeflow.items()}
    ours = {task["name"]: set(task.get("dependencies", ())) for task in tasks(read("argo"))}

    def closure(graph: dict[str, set[str]], name: str) -> set[str]:
        return graph[name] | {far for near in graph[name] for far in closure(graph, near)}

    assert set(ours) == {rename.get(name, name) for name in theirs} - {"configure"}
    for name in set(theirs) - {"configure"}:
        kubeflow = {rename.get(each, each) for each in closure(theirs, name)}
        assert closure(ours, rename.get(name, name)) == kubeflow - {"configure"}


def test_a_long_training_is_still_retried() -> None:
    """Argo counts `maxDuration` from the start of the first attempt."""
    for template in workflow(read(".", "argo"))["templates"]:
        if "retryStrategy" in template:
            longest = template["retryStrategy"]["backoff"]["maxDuration"]
            assert int(longest.removesuffix("h")) > JobConfig().deadline_hours, template["name"]


def test_argos_default_experiment_is_the_bundled_one() -> None:
    parameters = {p["name"]: p for p in workflow(read("argo"))["arguments"]["parameters"]}
    bundled = (EXPERIMENTS / "summarization.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(parameters["experiment"]["value"]) == yaml.safe_load(bundled)


def test_argos_job_settings_exist() -> None:
    known = {f"--job-{s.name.replace('_', '-')}" for s in settings_of("job")}
    given = {
        text.split("=")[0] for text in step(read("argo"), "train")["container"]["args"] if text.startswith("--job")
    }
    assert given and given <= known
