"""The train step as a job, from its arguments to its report: the pods' commands really run here, torchrun included."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from hanflow.cluster import launcher
from hanflow.cluster.follow import JobFailed
from hanflow.cluster.job import Origin, PodExtras
from hanflow.cluster.runtimes import build
from hanflow.config import JobConfig, TrainConfig, to_mapping
from hanflow.config.worker_spec import WorkerSpec
from hanflow.errors import GRACE_SECONDS, UserError
from hanflow.reports.step_report import Report
from hanflow.signals import Terminated
from hanflow.steps import train as train_step
from hanflow.storage import manifest_at
from hanflow.training.workers import torchrun as node
from hanflow.training.workers import worker
from hanflow.training.workers.exits import EXITS_VARIABLE
from tests.cluster.world import World
from tests.support import tasks

TASK = "classification"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tasks.make_shards(tmp_path_factory.mktemp("shards"), TASK, tasks.reviews(120)).shards


class TaskConfig:
    """As kfp hands it over, with a volume in which the test's folder lies."""

    def __init__(self, folder: Path):
        self.env = [{"name": "TZ", "value": "Asia/Seoul"}]
        self.volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
        self.volume_mounts = [{"name": "data", "mountPath": str(folder)}]
        self.node_selector = self.tolerations = self.affinity = self.resources = None


def train(
    world: World, config: TrainConfig, *, shards: Path, output: Path, runtime: str = "pytorchjob", **job: Any
) -> Report:
    """The train step as a job of pods that see the test's folder."""
    return train_step.run(
        config,
        task=TASK,
        output=str(output),
        shards=str(shards),
        job=JobConfig(runtime=runtime, gpus=0, **job),
        run_id=world.run,
        extras=PodExtras.of(TaskConfig(shards.parents[2])),
    )


@pytest.fixture
def free_port(fake: World) -> None:
    assert fake.fake
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        fake.fake.kubelet.port = probe.getsockname()[1]


@pytest.mark.parametrize(
    ("runtime", "plural", "worker"),
    [("auto", "trainjobs", "-node-0-1-"), ("pytorchjob", "pytorchjobs", "-worker-0")],
)
def test_an_evicted_job_of_two_pods_resumes_and_its_model_is_the_steps(
    runtime: str,
    plural: str,
    worker: str,
    fake: World,
    free_port: None,
    shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert fake.fake
    fake.fake.kubelet.grace = 60.0
    streamed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", streamed)
    output = tmp_path_factory.mktemp("job") / "model"
    config = tasks.settings(TASK, epochs=1000, max_steps=150, save_every=0, validate_every=150)
    metrics = Path(f"{output}.checkpoints") / "metrics.jsonl"
    *_, body = build(
        JobConfig(runtime=runtime.replace("auto", "trainjob"), gpus=0, workers=2),
        WorkerSpec(TASK, config, str(shards), str(output)),
        Origin(fake.run),
    )

    def evict() -> None:
        fake.wait("some steps", lambda: metrics.is_file() and metrics.read_text().count("\n") > 3, 120)
        pod = next(pod for pod in fake.pods(body) if worker in pod["metadata"]["name"])
        with fake.fake.store.changed:  # type: ignore[union-attr]
            fake.fake.kubelet.evict(pod)  # type: ignore[union-attr]

    thread = threading.Thread(target=evict, daemon=True)
    thread.start()
    report = train(fake, config, shards=shards, output=output, workers=2, runtime=runtime)
    thread.join(1)
    assert report.figures["steps"] == 150 and report.html == "report.html"
    output_text = streamed.getvalue()
    assert "resuming from" in output_text and "[rank 0]" in output_text
    fake.assert_nothing_left(body)
    before = fake.fake.count("POST", plural)
    again = train(fake, config, shards=shards, output=output, workers=2, runtime=runtime)
    assert before == 1 and again.figures == report.figures
    assert fake.fake.count("POST", plural) == before, "a step retried after its success trains nothing"


def test_a_mistake_in_the_settings_fails_the_component_with_the_workers_message(
    fake: World, free_port: None, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("job")
    arguments = {
        "task": TASK,
        "settings": to_mapping(tasks.settings(TASK, architecture={"type": "cnn", "n_filtres": 3})),
        "shards": str(shards),
        "model": dsl.Model(uri=str(folder / "model")),
        "metrics": dsl.Metrics(uri=str(folder / "metrics")),
        "report": dsl.HTML(uri=str(folder / "report")),
        "job": to_mapping(JobConfig(runtime="pytorchjob", gpus=0)),
        "member": "",
        "run_id": fake.run,
        "task_config": TaskConfig(shards.parents[2]),
    }
    with pytest.raises(JobFailed) as caught:
        train_step.in_pipeline(arguments)
    assert "exit status 1: error: " in str(caught.value) and "did you mean n_filters" in str(caught.value)
    assert "ChildFailedError" not in str(caught.value), "torchrun's own report helps nobody"
    assert fake.jobs() == [] and fake.fake and fake.fake.count("POST", "pytorchjobs") == 1


def test_a_local_run_needs_no_cluster(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    config = tasks.settings(TASK, max_steps=1)
    report = train_step.run(config, task=TASK, output=str(tmp_path / "model"), shards=str(shards), job=JobConfig())
    assert report.figures["steps"] == 1
    work = WorkerSpec(TASK, config, str(shards), str(tmp_path / "model"))
    assert train_step._report(manifest_at(work.output, "model")).figures == report.figures
    done = train_step._already_done(work)
    assert done is not None and done.figures == report.figures
    slice_ = WorkerSpec(
        TASK, tasks.settings(TASK, max_steps=1, backend="xla", topology="2x2x4"), str(shards), work.output
    )
    assert train_step._already_done(slice_) is not None, "where it ran does not matter"
    other = WorkerSpec(TASK, tasks.settings(TASK, max_steps=2), str(shards), str(tmp_path / "model"))
    assert train_step._already_done(other) is None, "of other settings"


def test_paths_that_pods_cannot_see_are_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    def check(**changes: str) -> None:
        values = {"shards": "gs://b/shards", "output": "gs://b/model", "checkpoints": "", **changes}
        config = TrainConfig(checkpoints=values.pop("checkpoints"), pretrained="gogamza/kobart-base-v2")
        mounts = PodExtras(volume_mounts=[{"name": "data", "mountPath": "/data/"}])
        launcher.check_paths(WorkerSpec(TASK, config, **values), mounts)

    check()
    check(shards="/data/shards", output="file:///data/model", checkpoints="/data/checkpoints")
    for name, uri in (("shards", "/database/x"), ("output", "runs/model"), ("checkpoints", str(tmp_path))):
        with pytest.raises(UserError, match=f"{name}={uri}: the job's pods cannot see that path"):
            check(**{name: uri})


def test_the_command_line_launches(fake: World, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["--task", TASK, "--output", "gs://b/model", "--shards", "/here/shards", "--run", fake.run]
    assert train_step.command([*command, "--job-runtime", "pytorchjob", "--epochs", "2"]) == 1
    assert "shards=/here/shards: the job's pods cannot see that path" in capfd.readouterr().err
    assert train_step.command([*command, "--job-runtime", "tpu", "--job-accelerator", "v4-31"]) == 1
    assert "no slice has that size" in capfd.readouterr().err
    assert train_step.command([*command, "--job-workers", "none"]) == 1
    assert "job.workers: expected a whole number" in capfd.readouterr().err
    assert train_step.command(["--help"]) == 0
    assert "--job-accelerator" in capfd.readouterr().out


def test_the_workflow_owns_the_job(fake: World) -> None:
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u", "controller": True}
    pod = {
        "metadata": {
            "name": "step",
            "namespace": fake.cluster.namespace,
            "labels": {"pipeline/runid": "r-1", "workflows.argoproj.io/workflow": "w"},
            "ownerReferences": [owner],
        }
    }
    assert launcher.workflow_of(pod, fake.cluster) == {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
    assert launcher.run_of(pod) == "r-1"
    pod["metadata"]["namespace"] = "elsewhere"
    assert launcher.workflow_of(pod, fake.cluster) is None, (
        "an owner in another namespace would be collected with the job"
    )
    assert launcher.own_pod(fake.cluster) is None, "outside of a cluster there is none"


def test_the_own_pod_is_found_inside_a_cluster(
    fake: World, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    assert fake.fake
    fake.fake.store.create(
        "pods", {"metadata": {"name": "step-1"}, "spec": {"nodeSelector": {"hanflow.test/nowhere": ""}}}
    )
    monkeypatch.setattr(fake.cluster, "inside", True)
    monkeypatch.setenv("KFP_POD_NAME", "step-1")
    own = launcher.own_pod(fake.cluster)
    assert own is not None and own["metadata"]["name"] == "step-1"
    fake.fake.forbidden = {("GET", "pods")}
    assert launcher.own_pod(fake.cluster) is None
    assert "the job gets no owner" in messages.text


STOP, LOST = node.Torchrun(1, stop_requested=True), node.Torchrun(1, lost="RendezvousTimeoutError")


@pytest.mark.parametrize(
    ("torchrun", "endings", "status"),
    [
        (node.Torchrun(), {0: 0, 1: 0}, 0),
        (node.Torchrun(1), {0: 1, 1: 143}, 1),  # the mistake of one makes torchrun stop the others
        (STOP, {0: 143, 1: 2}, 2),
        (STOP, {0: 143, 1: 143}, 143),
        (STOP, {}, 143),  # killed at the end of the grace period
        (node.Torchrun(1), {0: 143, 1: 143}, 143),  # another pod was asked to stop
        (node.Torchrun(1), {0: 70, 1: 143}, 198),  # a lost peer
        (node.Torchrun(1), {0: 143}, 137),  # one was killed and reported nothing
        (node.Torchrun(1), {}, 137),
        (node.Torchrun(1), {0: 0, 1: 0}, 198),  # torchrun itself
        (LOST, {}, 198),  # no worker has begun
        (LOST, {0: 143, 1: 143}, 198),
        (LOST, {0: 1, 1: 143}, 1),
    ],
)
def test_a_pods_exit_status_names_the_cause(torchrun: node.Torchrun, endings: dict[int, int], status: int) -> None:
    assert node.pod_status(torchrun, endings, 2) == status
    retried = status >= 128  # the operator's rule
    assert retried == (status not in (0, 1, 2))


def in_a_pod(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the pod's process does with `code` in place of `python -m hanflow.training.workers.worker`."""
    preface = f"import sys\nfrom hanflow.training.workers import torchrun as node\ntorchrun = node._torchrun\ncode = {code!r}\n"
    patched = "node._torchrun = lambda _: torchrun(['--no-python', sys.executable, '-c', code])\n"
    return subprocess.run(
        [sys.executable, "-c", f"{preface}{patched}sys.exit(node.main([]))"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PET_NPROC_PER_NODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_workers_get_the_pods_grace_to_save() -> None:
    ended = in_a_pod("import os; print('grace', os.environ['TORCH_ELASTIC_SHUTDOWN_TIMEOUT'])")
    assert ended.returncode == 0, ended.stderr
    assert f"grace {GRACE_SECONDS - 10}" in ended.stdout


def test_a_pod_that_cannot_reach_the_others_is_retried(free_port: None, fake: World) -> None:
    """The pod in which all meet is preempted: not a mistake of the settings."""
    assert fake.fake
    ended = in_a_pod(
        "pass",
        PET_NNODES="2",
        PET_RDZV_BACKEND="c10d",
        PET_RDZV_ENDPOINT=f"127.0.0.1:{fake.fake.kubelet.port}",
        PET_RDZV_CONF="is_host=0,read_timeout=1",
    )
    assert ended.returncode == node.TRANSIENT, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: the other workers cannot be reached")


def test_a_worker_that_is_killed_is_reported_with_the_cure() -> None:
    ended = in_a_pod("import os; os.kill(os.getpid(), 9)")
    assert ended.returncode == 137
    assert "error: 1 of 1 workers were killed without an error" in ended.stderr.splitlines()[-1]


def test_unexpected_errors_are_retryable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXITS_VARIABLE, str(tmp_path))
    monkeypatch.setenv("RANK", "3")

    def fail(error: BaseException) -> int:
        def train(_: WorkerSpec) -> None:
            raise error

        monkeypatch.setattr(worker, "train", train)
        return worker.main(["--task", TASK, "--shards", "s", "--output", "o"])

    assert fail(RuntimeError("connection closed by peer")) == 70
    assert (tmp_path / "3").read_text() == "70\nRuntimeError: connection closed by peer"
    assert fail(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")) == 1
    assert fail(SystemExit(2)) == 2
    assert Terminated.exit_status == signal.SIGTERM + 128
