"""The train step as a job, and what one of its pods does; whole trainings on a cluster are in test_training_on_pods.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hanflow.cluster import launcher
from hanflow.cluster.client import Cluster
from hanflow.cluster.job import RUN_LABEL, PodExtras
from hanflow.config import JobConfig, TrainConfig
from hanflow.config.worker_spec import WorkerSpec
from hanflow.errors import GRACE_SECONDS, UserError
from hanflow.signals import Terminated
from hanflow.steps import train as train_step
from hanflow.storage import manifest_at
from hanflow.training.workers import torchrun as node
from hanflow.training.workers import worker
from hanflow.training.workers.exits import EXITS_VARIABLE
from tests.cluster.pods import require_this_machine, training_image
from tests.cluster.world import PODS, World
from tests.support import tasks

TASK = "classification"


@pytest.fixture
def no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster by its kubeconfig alone: nothing answers there."""
    context = {"cluster": "none", "user": "none", "namespace": "training"}
    settings = {
        "clusters": [{"name": "none", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "none", "user": {}}],
        "contexts": [{"name": "none", "context": context}],
        "current-context": "none",
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(settings), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return Cluster()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tasks.make_shards(tmp_path_factory.mktemp("shards"), TASK, tasks.reviews(120)).shards


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


def test_the_command_line_refuses_what_no_job_can_do(no_server: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["--task", TASK, "--output", "gs://b/model", "--shards", "/here/shards", "--run", "r-1"]
    assert train_step.command([*command, "--job-runtime", "pytorchjob", "--epochs", "2"]) == 1
    assert "shards=/here/shards: the job's pods cannot see that path" in capfd.readouterr().err
    assert train_step.command([*command, "--job-runtime", "tpu", "--job-accelerator", "v4-31"]) == 1
    assert "no slice has that size" in capfd.readouterr().err
    assert train_step.command([*command, "--job-workers", "none"]) == 1
    assert "job.workers: expected a whole number" in capfd.readouterr().err
    assert train_step.command(["--help"]) == 0
    assert "--job-accelerator" in capfd.readouterr().out


def test_the_workflow_owns_the_job(no_server: Cluster) -> None:
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u", "controller": True}
    pod = {
        "metadata": {
            "name": "step",
            "namespace": "training",
            "labels": {"pipeline/runid": "r-1", "workflows.argoproj.io/workflow": "w"},
            "ownerReferences": [owner],
        }
    }
    assert launcher.workflow_of(pod, no_server) == {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
    assert launcher.run_of(pod) == "r-1"
    pod["metadata"]["namespace"] = "elsewhere"
    assert launcher.workflow_of(pod, no_server) is None, "an owner in another namespace would be collected with the job"
    assert launcher.own_pod(no_server) is None, "outside of a cluster there is none"


OWN_POD = """
from hanflow.cluster import launcher
from hanflow.cluster.client import Cluster
own = launcher.own_pod(Cluster())
print("found", own and own["metadata"]["labels"])
"""


@pytest.mark.cluster
@pytest.mark.parametrize("account", ["hanflow", "default"])
def test_the_own_pod_is_found_inside_a_cluster(world: World, account: str) -> None:
    """In a pod, with the account that may read pods and with one that may not."""
    require_this_machine()
    path = f"{PODS}/step-{world.run}"
    name = {"name": "KFP_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    container = {
        "name": "main",
        "image": training_image(),
        "imagePullPolicy": "Never",
        "command": ["python", "-c", OWN_POD],
        "env": [name],
    }
    pod = {
        "metadata": {"name": f"step-{world.run}", "labels": {RUN_LABEL: world.run}},
        "spec": {"serviceAccountName": account, "restartPolicy": "Never", "containers": [container]},
    }
    world.admin.request("POST", PODS, body=pod)
    try:
        ends = ("Succeeded", "Failed")
        world.wait("its end", lambda: world.admin.request("GET", path)["status"]["phase"] in ends, 120)
        with world.admin.stream(f"{path}/log", query={}) as lines:
            text = "\n".join(line.decode() for line in lines)
    finally:
        world.admin.request("DELETE", path)
    if account == "hanflow":
        assert f"found {{'{RUN_LABEL}': '{world.run}'}}" in text
    else:
        assert "found None" in text and "the job gets no owner" in text and "forbidden" in text


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


def test_a_pod_that_cannot_reach_the_others_is_retried() -> None:
    """The pod in which all meet is preempted: not a mistake of the settings."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    ended = in_a_pod(
        "pass",
        PET_NNODES="2",
        PET_RDZV_BACKEND="c10d",
        PET_RDZV_ENDPOINT=address,
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
