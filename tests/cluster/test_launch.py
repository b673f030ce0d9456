"""A job from its submission to its end, on a real cluster."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hanflow.cluster import status
from hanflow.cluster.cleanup import find, remove, remove_jobs
from hanflow.cluster.client import Cluster, ClusterError
from hanflow.cluster.follow import JobFailed
from hanflow.cluster.launcher import launch
from hanflow.cluster.runtimes import choose
from hanflow.config import JobConfig
from hanflow.signals import Terminated, handled, terminate
from tests.cluster.world import ORDERS, QUICK, World

pytestmark = pytest.mark.cluster

Messages = pytest.LogCaptureFixture
RUNTIMES = ("trainjob", "pytorchjob", "tpu")


class meanwhile(threading.Thread):
    """Do something while the launcher runs, which needs the main thread; what goes wrong there fails the test."""

    def __init__(self, action: Callable[[], Any]):
        super().__init__(daemon=True)
        self._action, self._error = action, None
        self.start()

    def run(self) -> None:
        try:
            self._action()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # the launcher's error comes first
            self.join()
        if self._error is not None:
            raise self._error


def see_through(world: World, body: Mapping[str, Any], **options: Any) -> None:
    """Launch; however it ends, nothing may be left."""
    try:
        world.launch(body, **options)
    finally:
        world.assert_nothing_left(body)


def one_pod(runtime: str) -> dict[str, str]:
    """Settings of a job with a single pod."""
    return {"runtime": runtime, "accelerator": "v4-8" if runtime == "tpu" else ""}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_success_and_rank_zeros_log(
    world: World, runtime: str, capfd: pytest.CaptureFixture[str], messages: Messages
) -> None:
    script = "for i in 1 2 3; do echo node $NODE line $i; sleep 0.2; done; echo 끝 $NODE"
    see_through(world, world.body(script, runtime=runtime, workers=2))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[rank 0]")]
    assert lines == [f"[rank 0] node 0 line {i}" for i in (1, 2, 3)] + ["[rank 0] 끝 0"], "each once, in order"
    assert "2 pods" in messages.text and "succeeded" in messages.text and "removed job" in messages.text


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_failed_job_fails_the_step_with_its_reason(world: World, runtime: str) -> None:
    body = world.body("echo loading; echo 'error: shards: no such folder' >&2; exit 1", runtime=runtime, max_restarts=3)
    with pytest.raises(JobFailed) as caught:
        see_through(world, body)
    message = str(caught.value)
    assert f"job {body['metadata']['name']} failed" in message
    assert "exit status 1: error: shards: no such folder" in message
    assert "  loading" in message.splitlines(), "the last lines of the log"
    assert caught.value.exit_status == 1


def test_another_ranks_failure_is_reported_with_its_own_lines(world: World) -> None:
    body = world.body(f"echo I am $NODE\n{ORDERS}", workers=2)
    fail = "if [ $NODE = 1 ]; then echo disk is full; exit 2; fi; while true; do sleep 0.2; done"
    with meanwhile(lambda: world.order(body, fail, pods=2)), pytest.raises(JobFailed) as caught:
        see_through(world, body)
    assert f"pod {body['metadata']['name']}-worker-0: exit status 2" in str(caught.value)
    assert "disk is full" in str(caught.value) and "I am 0" in str(caught.value)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_requested_stop_restarts_and_does_not_count(world: World, runtime: str, messages: Messages) -> None:
    body = world.body(ORDERS, max_restarts=1 if runtime == "pytorchjob" else 0, **one_pod(runtime))

    def stop_and_resume() -> None:
        world.order(body, "echo saved; exit 143")
        world.order(body, "echo resumed; exit 0")

    with meanwhile(stop_and_resume):
        see_through(world, body, restarts=0)
    assert "failed (preempted): exit status 143" in messages.text


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_retryable_failures_are_retried_up_to_the_limit(world: World, runtime: str) -> None:
    body = world.body("echo lost a peer; exit 198", max_restarts=1, **one_pod(runtime))
    with pytest.raises(JobFailed) as caught:
        see_through(world, body, restarts=1)
    if runtime == "pytorchjob":
        assert "it failed 2 times, and job.max_restarts=1" in str(caught.value)
    assert "exit status 198" in str(caught.value)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_eviction_is_survived(
    world: World, runtime: str, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    body = world.body(ORDERS, max_restarts=1, **one_pod(runtime))

    def evict() -> None:
        world.wait_running(body)
        world.evict(body)
        world.order(body, "echo finished; exit 0")

    with meanwhile(evict):
        see_through(world, body, restarts=0)
    assert "failed (preempted)" in messages.text
    assert "[rank 0] finished" in capfd.readouterr().err


def test_a_job_that_somebody_deletes_fails_the_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    body = world.body(f"echo started\n{ORDERS}")
    streamed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", streamed)

    def delete() -> None:
        world.wait("a line of rank 0, while it runs", lambda: "[rank 0] started\n" in streamed.getvalue())
        world.delete(body)

    with meanwhile(delete), pytest.raises(JobFailed, match="it was deleted by somebody else") as caught:
        see_through(world, body)
    assert "  started" in str(caught.value).splitlines()


def test_a_job_goes_with_its_owner(world: World) -> None:
    """As with the Workflow of its step; nothing is left of it, nor of what it refers to."""
    body, name = world.body(ORDERS, runtime="trainjob"), f"{world.run}-owner"
    path = "/api/v1/namespaces/{namespace}/configmaps"
    owner = world.admin.request("POST", path, body={"metadata": {"name": name}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": owner["metadata"]["uid"]}
    for each in world.objects(body):
        each["metadata"]["ownerReferences"] = [reference]  # type: ignore[index]

    def delete_owner() -> None:
        world.wait_running(body)
        world.admin.request("DELETE", f"{path}/{name}")

    with meanwhile(delete_owner), pytest.raises(JobFailed, match="together with its Workflow"):
        see_through(world, body)


def test_a_slow_start_is_logged_and_a_secret_never_is(
    world: World, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    name, secret = f"{world.run}-wandb", "local-5d8e1f0a9b7c"
    script = 'test "$WANDB_API_KEY" = ' + secret + " && echo logged in"
    body = world.body(script, secrets={"WANDB_API_KEY": f"{name}/api-key"})

    def create_it() -> None:
        world.wait("the reason", lambda: f'secret "{name}" not found' in messages.text)
        world.create_secret(name, "api-key", secret)

    with meanwhile(create_it):
        see_through(world, body)
    output = capfd.readouterr()
    assert "[rank 0] logged in" in output.err
    assert secret not in messages.text + output.out + output.err


def test_an_unschedulable_job_is_logged_and_ends_at_its_deadline(world: World, messages: Messages) -> None:
    body = world.body("echo never", node_selector={"hanflow.test/nowhere": "true"})
    with pytest.raises(JobFailed, match="took longer than job.deadline_hours"):
        see_through(world, body, hours=15 / 3600)
    assert "waits: Unschedulable: 0/" in messages.text


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob"])
def test_a_quota_that_is_exceeded_is_reported_until_it_is_raised(
    own_namespace: World, runtime: str, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    world, path = own_namespace, "/api/v1/namespaces/{namespace}/resourcequotas"
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"requests.cpu": "10m"}}}
    world.admin.request("POST", path, body=quota)
    body = world.body("echo done", runtime=runtime)

    def raise_it() -> None:
        world.wait("the reason", lambda: "exceeded quota: few" in messages.text)
        assert world.pods(body) == []
        world.admin.request("DELETE", f"{path}/few")

    with meanwhile(raise_it):
        see_through(world, body)
    assert "[rank 0] done" in capfd.readouterr().err


def test_a_missing_image_fails_the_job(world: World) -> None:
    body = world.body("echo never", image="registry.invalid/hanflow:1")
    with pytest.raises(JobFailed, match="cannot start: (ErrImagePull|ImagePullBackOff): .*registry.invalid"):
        see_through(world, body, timing=dataclasses.replace(QUICK, stuck=0.3))


def test_an_invalid_image_name_fails_the_job_at_once(world: World) -> None:
    with pytest.raises(JobFailed, match="cannot start: InvalidImageName"):
        see_through(world, world.body("echo never", image="Not/An:Image:Name"))


def test_sigterm_of_the_launcher_removes_the_job(world: World) -> None:
    body = world.body(ORDERS)
    launcher = world.start_launcher(body)
    world.wait_running(body)
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.ended() == 143, launcher.output()
    world.assert_nothing_left(body)


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob"])
def test_a_retried_step_adopts_the_running_job(
    world: World, runtime: str, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    body = world.body(ORDERS, runtime=runtime)
    launcher = world.start_launcher(body)
    world.wait_running(body)
    uid = world.job(body)["metadata"]["uid"]
    launcher.process.kill()
    launcher.ended()
    assert world.job(body)["metadata"]["uid"] == uid

    def finish() -> None:
        world.wait("the adoption", lambda: f"adopted {body['kind']}" in messages.text)
        world.order(body, "echo finished; exit 0")

    with meanwhile(finish):
        see_through(world, body)
    assert "submitted" not in messages.text
    assert "[rank 0] finished" in capfd.readouterr().err


def test_a_retried_step_adopts_the_job_that_has_succeeded(world: World, messages: Messages) -> None:
    body = world.body("echo done")
    world.create(body)
    world.wait("success", lambda: status.phase(world.job(body)).name == "succeeded")
    see_through(world, body)
    assert "it is succeeded" in messages.text and "submitted" not in messages.text


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob"])
def test_a_retried_step_replaces_the_job_that_failed(world: World, runtime: str, messages: Messages) -> None:
    body = world.body(ORDERS, runtime=runtime)
    world.create(body)
    world.order(body, "exit 1")
    world.wait("failure", lambda: status.phase(world.job(body)).name == "failed")
    with meanwhile(lambda: world.order(body, "exit 0")):
        see_through(world, body)
    assert "replacing" in messages.text and "it failed" in messages.text and "submitted" in messages.text


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob"])
def test_a_job_of_other_settings_is_replaced(
    world: World, runtime: str, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    world.create(world.body(ORDERS, seed=1, runtime=runtime))
    see_through(world, world.body("echo done", seed=2, runtime=runtime))
    assert "[rank 0] done" in capfd.readouterr().err
    assert "it was made from other settings" in messages.text


def test_a_job_that_is_being_deleted_is_waited_for(world: World, messages: Messages) -> None:
    old = world.body(ORDERS)
    old["metadata"]["finalizers"] = ["hanflow.test/slow"]
    world.create(old)
    world.delete(old)

    def finish() -> None:
        world.wait("the message", lambda: "of an earlier attempt is being removed" in messages.text)
        free = ["--type=merge", "--patch", '{"metadata": {"finalizers": null}}']
        world.kubectl("patch", "pytorchjob", old["metadata"]["name"], *free)

    with meanwhile(finish):
        see_through(world, world.body("echo done"))


def test_a_train_job_waits_until_the_job_set_of_an_earlier_one_is_gone(world: World, messages: Messages) -> None:
    """Trainer finds it by its name, and would copy the end of the earlier job into the new one."""
    body, earlier = world.body("echo done", runtime="trainjob"), world.body("exit 1", runtime="tpu")
    earlier["metadata"]["name"] = body["metadata"]["name"]
    world.create(earlier)

    def finish() -> None:
        world.wait("the message", lambda: "JobSet" in messages.text and "is being removed" in messages.text)
        world.delete(earlier)

    with meanwhile(finish):
        see_through(world, body)


def test_a_job_of_another_run_is_left_alone(world: World) -> None:
    other = world.body(ORDERS)
    body = copy.deepcopy(other)
    body["metadata"]["labels"]["hanflow/run"] = "another-run"
    world.create(other)
    with pytest.raises(ClusterError, match="exists already and belongs to another run"):
        world.launch(body)
    assert world.jobs() == [other["metadata"]["name"]]


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob"])
def test_two_launchers_of_one_job_share_it(world: World, runtime: str) -> None:
    """An attempt whose pod was believed lost, and the one after it: one job, and both see its success."""
    body = world.body(f"echo started\n{ORDERS}", runtime=runtime)
    launchers = [world.start_launcher(body) for _ in range(2)]
    world.wait("both", lambda: all("[rank 0] started" in launcher.output() for launcher in launchers))
    world.order(body, "echo trained; exit 0")
    assert [launcher.ended() for launcher in launchers] == [0, 0], [launcher.output() for launcher in launchers]
    assert sum("submitted" in launcher.output() for launcher in launchers) == 1
    assert all(launcher.output().count("[rank 0] trained") == 1 for launcher in launchers)
    world.assert_nothing_left(body)


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob"])
def test_a_launcher_whose_job_was_replaced_says_so_and_leaves_the_other_alone(
    world: World, runtime: str, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    """The later attempt has other settings, such as another image, while the earlier one still follows its job."""
    earlier, later = (world.body(ORDERS, seed=seed, runtime=runtime) for seed in (1, 2))
    launcher = world.start_launcher(earlier)
    world.wait_running(earlier)

    def finish() -> None:
        assert launcher.ended() == 1 and "another attempt of this step" in launcher.output(), launcher.output()
        world.order(later, "echo done; exit 0")

    with meanwhile(finish):
        see_through(world, later)
    assert "it was made from other settings" in messages.text and "[rank 0] done" in capfd.readouterr().err


@pytest.mark.parametrize("seed", [1, 2], ids=["same settings", "other settings"])
def test_an_earlier_attempt_removes_nothing_of_a_later_one(world: World, seed: int) -> None:
    earlier, later = (world.body(ORDERS, seed=number, runtime="trainjob") for number in (1, seed))
    world.create(earlier)
    job = world.job(earlier)
    remove(world.cluster, world.objects(earlier), job, 30.0)
    world.assert_nothing_left(earlier)
    world.create(later)
    remove(world.cluster, world.objects(earlier), job, 30.0)
    assert world.job(later)["metadata"]["uid"] != job["metadata"]["uid"]
    left = [find(world.admin, each) for each in world.objects(later)]
    assert all(each is not None and "deletionTimestamp" not in each["metadata"] for each in left)


def test_the_cleanup_removes_a_runs_jobs_and_no_others(world: World) -> None:
    bodies = [world.body(ORDERS, runtime=runtime) for runtime in RUNTIMES]
    bodies[2]["metadata"]["name"] += "-2"  # Trainer's JobSet has the name of its TrainJob
    bystander = world.body(ORDERS, run=f"{world.run}-other")
    for body in [*bodies, bystander]:
        world.create(body)
    assert sorted(remove_jobs(world.run, cluster=world.cluster)) == sorted(body["metadata"]["name"] for body in bodies)
    world.wait("no jobs", lambda: world.jobs() == [], 60)
    assert world.job(bystander)
    assert remove_jobs(world.run, cluster=world.cluster) == [], "a second time does no harm"
    world.delete(bystander)


def test_a_refused_job_is_reported(world: World) -> None:
    body = world.body("echo never")
    body["spec"]["pytorchReplicaSpecs"]["Master"]["replicas"] = 2
    with pytest.raises(ClusterError, match="replicas.*must be 1"):
        see_through(world, body)


def test_a_field_that_the_operator_does_not_know_is_an_error(world: World) -> None:
    """As a JobSet before 0.10 does not know our failure policy. Dropped in silence, the run would end at a requested stop."""
    body = world.body("echo never", runtime="tpu")
    body["spec"]["failurePolicy"]["rules"][0]["onJobFailureColours"] = ["red"]
    with pytest.raises(ClusterError, match="unknown field.*onJobFailureColours.*update its operator"):
        see_through(world, body)


def test_a_missing_permission_is_reported(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(world.kubeconfig_of("default", tmp_path / "default.kubeconfig")))
    cluster, body = Cluster(world.cluster.namespace), world.body("echo never")
    with pytest.raises(ClusterError, match="forbidden.*the service account lacks a permission: apply manifests/"):
        launch(cluster, *world.objects(body))
    with pytest.raises(ClusterError, match="this account may not create trainjobs .*may not create pytorchjobs"):
        choose(cluster, JobConfig(runtime="auto"))


def test_the_cluster_decides_which_kind_of_job_it_is(faults: World, messages: Messages) -> None:
    job = JobConfig(runtime="auto")
    assert choose(faults.cluster, job) == dataclasses.replace(job, runtime="trainjob")
    faults.proxy.inject("answer", "GET /apis/trainer", status=404, times=math.inf)
    assert choose(faults.cluster, job) == dataclasses.replace(job, runtime="pytorchjob")
    assert "no TrainJob: the cluster does not serve trainjobs" in messages.text


# Faults that no cluster can be asked for.


def test_an_api_server_that_is_away_is_retried(faults: World, capfd: pytest.CaptureFixture[str]) -> None:
    body = faults.body(ORDERS)

    def leave() -> None:
        faults.order(body, "for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.3; done; exit 0")
        with faults.proxy.away():
            faults.wait("requests that are turned away", lambda: faults.proxy.count("", 0) > 5)

    with meanwhile(leave):
        see_through(faults, body)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[rank 0]")]
    assert lines == [f"[rank 0] {i}" for i in range(1, 10)], "no line lost, none twice"


@pytest.mark.parametrize("how", ["event", "status"])
def test_an_expired_version_is_listed_again(faults: World, how: str) -> None:
    body, proxy = faults.body(ORDERS), faults.proxy

    def forget() -> None:
        faults.wait("both watches", lambda: len(proxy.watches()) == 2)
        if how == "event":
            proxy.expire_watches()
        else:  # a watch that is opened again gets the status
            proxy.inject("answer", "GET .*/pods.*watch=true", status=410)
            proxy.break_connections()
        lists = 2 if how == "event" else 3
        faults.wait("lists", lambda: proxy.count(r"GET \S*/pods\?labelSelector=[^&]*$") >= lists)
        faults.order(body, "exit 0")

    with meanwhile(forget):
        see_through(faults, body)


def test_the_token_is_read_again_when_it_is_refused(faults: World) -> None:
    body = faults.body(ORDERS)

    def rotate() -> None:
        faults.wait_running(body)
        faults.proxy.rotate_token()
        faults.wait("a refusal", lambda: faults.proxy.count("", 401) > 0)
        faults.order(body, "exit 0")

    with meanwhile(rotate):
        see_through(faults, body)


@pytest.mark.parametrize("status", [0, 1])
def test_pods_may_be_reported_late(faults: World, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    faults.proxy.inject("slow", "GET .*/pods.*watch=true", times=math.inf, seconds=0.7)
    body = faults.body(f"echo first; sleep 0.3; echo last; exit {status}")
    if status:
        with pytest.raises(JobFailed, match="exit status 1: last"):
            see_through(faults, body)
    else:
        see_through(faults, body)
    assert "[rank 0] last" in capfd.readouterr().err


def test_sigterm_while_the_job_is_being_removed_removes_it(faults: World) -> None:
    slow = faults.proxy.inject("slow", "DELETE", seconds=2.0)

    def stop() -> None:
        faults.wait("the removal", lambda: slow.happened)
        os.kill(os.getpid(), signal.SIGTERM)  # arrives before the answer

    with handled(terminate, signal.SIGTERM), meanwhile(stop), pytest.raises(Terminated):
        see_through(faults, faults.body("echo done"))


def test_answers_and_events_that_break_off_are_requested_again(faults: World) -> None:
    body = faults.body(ORDERS)
    answers = faults.proxy.inject("cut", r"GET (?!.*(watch|/log))", times=2)
    events = faults.proxy.inject("cut", "GET .*watch=true", times=3)

    def all_cut() -> bool:
        change = f"hanflow.test/change={uuid.uuid4()}"
        faults.kubectl("annotate", "pytorchjob", body["metadata"]["name"], change, "--overwrite", check=False)
        return (answers.happened, events.happened) == (2, 3)

    def finish() -> None:
        faults.wait("the cuts", all_cut)
        faults.order(body, "exit 0")

    with meanwhile(finish):
        see_through(faults, body)


def test_a_lost_answer_creates_no_second_job(faults: World) -> None:
    faults.proxy.inject("lose", "POST .*/pytorchjobs")
    see_through(faults, faults.body("echo done"))
    assert [code for request, code in faults.proxy.requests if request.startswith("POST")] == [0, 409]


def test_an_overloaded_server_is_asked_again(faults: World, messages: Messages) -> None:
    inject = faults.proxy.inject
    made = [
        inject("answer", "POST .*/pytorchjobs", status=429, headers={"Retry-After": "1"}, times=2),
        inject("answer", "POST .*/pytorchjobs", status=500, message="etcdserver: request timed out"),
        inject("answer", "GET .*/pytorchjobs", status=503, times=3),
        inject("answer", "GET .*/log", status=500, times=2),
        inject("answer", "DELETE", status=504),
        inject("slow", "GET .*/pods", seconds=1.0),
    ]
    see_through(faults, faults.body("echo done"))
    assert [fault.happened for fault in made] == [2, 1, 3, 2, 1, 1]
    assert faults.proxy.count("POST .*/pytorchjobs", 201) == 1


def test_a_server_that_stays_away_ends_the_launcher(faults: World, messages: Messages) -> None:
    body = faults.body(ORDERS)

    def leave() -> None:
        faults.wait_running(body)
        faults.cluster.patience = 0.5
        faults.proxy.gone.set()
        faults.proxy.break_connections()

    with meanwhile(leave), pytest.raises(ClusterError, match="the API server cannot be used"):
        faults.launch(body, timing=dataclasses.replace(QUICK, remove=0.5))
    assert "could not be removed" in messages.text and "kubectl delete pytorchjob" in messages.text
    faults.proxy.gone.clear()
    faults.cluster.patience = 30.0
    assert remove_jobs(faults.run, cluster=faults.cluster) == [body["metadata"]["name"]], "the exit handler does it"
    faults.assert_nothing_left(body)


def test_sigterm_while_the_api_server_is_away_ends_in_time(faults: World) -> None:
    body = faults.body(ORDERS)
    launcher = faults.start_launcher(body)
    faults.wait_running(body)
    with faults.proxy.away():
        launcher.process.send_signal(signal.SIGTERM)
        assert launcher.ended() == 143, "it does not wait for the server"
    assert "could not be removed" in launcher.output()


@pytest.mark.parametrize(
    ("runtime", "plural", "operator"),
    [
        ("trainjob", "trainingruntimes", "TrainJob: install Kubeflow Trainer, 2.1"),
        ("pytorchjob", "pytorchjobs", "PyTorchJob: install Kubeflow's training operator"),
        ("tpu", "jobsets", "JobSet: install the JobSet controller, 0.10"),
    ],
)
def test_a_missing_operator_is_reported(faults: World, runtime: str, plural: str, operator: str) -> None:
    faults.proxy.inject("answer", f"/{plural}", status=404, times=math.inf)
    with pytest.raises(ClusterError, match=f"the cluster does not know {operator}"):
        faults.launch(faults.body("echo never", runtime=runtime))
    assert remove_jobs(faults.run, cluster=faults.cluster) == [], "the cleanup skips a kind that is not installed"


def test_warnings_of_the_api_server_are_logged_once(faults: World, messages: Messages) -> None:
    faults.proxy.warnings += ['kubeflow.org/v1 PyTorchJob is "deprecated", use TrainJob', "another one"]
    see_through(faults, faults.body("echo done"))
    lines = [record.getMessage() for record in messages.records if "warning of the API server" in record.getMessage()]
    assert lines == [f"warning of the API server: {text}" for text in faults.proxy.warnings]


def test_a_job_that_kueue_would_not_queue_is_refused(faults: World) -> None:
    """A queue name on a kind whose integration is off is ignored in silence."""
    body = faults.body("echo never", queue="training")
    faults.proxy.inject("answer", "POST .*dryRun=All", status=201, body=body)
    with pytest.raises(ClusterError, match=r"job.queue=training: Kueue does not manage a .*integrations.frameworks"):
        see_through(faults, body)
    assert faults.proxy.count("POST") == 1, "nothing was created"


def test_a_training_runtime_that_is_not_noticed_at_once_is_waited_for(faults: World, messages: Messages) -> None:
    refusal = (
        'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: specified trainingRuntime must be '
        "created before the TrainJob is created"
    )
    faults.proxy.inject("answer", "POST .*/trainjobs", status=403, message=refusal, times=2)
    see_through(faults, faults.body("echo done", runtime="trainjob"))
    assert "has not noticed TrainingRuntime" in messages.text
    assert faults.proxy.count("POST .*/trainingruntimes", 201) == 1, "that of the first attempt is kept"
