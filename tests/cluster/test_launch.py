"""A job from its submission to its end: every scenario on the cluster in this process, most on a real one too."""

from __future__ import annotations

import copy
import dataclasses
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from hanflow.cluster import status
from hanflow.cluster.cleanup import remove_jobs
from hanflow.cluster.client import Cluster, ClusterError
from hanflow.cluster.follow import JobFailed
from hanflow.cluster.runtimes import choose
from hanflow.config import JobConfig
from hanflow.signals import Terminated, raise_on_sigterm
from tests.cluster.world import World

Messages = pytest.LogCaptureFixture


def meanwhile(action: Callable[[], Any]) -> threading.Thread:
    """Do something while the launcher runs, which needs the main thread."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def see_through(world: World, body: Mapping[str, Any], **options: Any) -> None:
    """Launch; however it ends, nothing may be left."""
    try:
        world.launch(body, **options)
    finally:
        world.assert_nothing_left(body)


def until(moment: int, then: str) -> str:
    """A script that waits, and that SIGTERM stops as it stops a worker."""
    return f"trap 'echo stopping; exit 143' TERM; while [ $(date +%s) -lt {moment} ]; do sleep 0.1; done; {then}"


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob", "tpu"])
def test_success_and_rank_zeros_log(
    world: World, runtime: str, capfd: pytest.CaptureFixture[str], messages: Messages
) -> None:
    script = "for i in 1 2 3; do echo node $NODE line $i; sleep 0.2; done; echo 끝 $NODE"
    see_through(world, world.body(script, runtime=runtime, workers=2))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[rank 0]")]
    assert lines == [f"[rank 0] node 0 line {i}" for i in (1, 2, 3)] + ["[rank 0] 끝 0"], "each once, in order"
    assert "2 pods" in messages.text and "succeeded" in messages.text and "removed job" in messages.text


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob", "tpu"])
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
    script = "echo I am $NODE; if [ $NODE = 1 ]; then sleep 0.5; echo disk is full; exit 2; fi; sleep 300"
    body = world.body(script, workers=2)
    with pytest.raises(JobFailed) as caught:
        see_through(world, body)
    assert f"pod {body['metadata']['name']}-worker-0: exit status 2" in str(caught.value)
    assert "disk is full" in str(caught.value) and "I am 0" in str(caught.value)


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob", "tpu"])
def test_a_requested_stop_restarts_and_does_not_count(world: World, runtime: str, messages: Messages) -> None:
    moment = world.soon()
    script = f"if [ $(date +%s) -lt {moment} ]; then sleep 0.3; echo saved; exit 143; fi; echo resumed"
    see_through(
        world, world.body(script, runtime=runtime, max_restarts=1 if runtime == "pytorchjob" else 0), restarts=0
    )
    assert "failed (preempted): exit status 143" in messages.text


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob", "tpu"])
def test_retryable_failures_are_retried_up_to_the_limit(world: World, runtime: str) -> None:
    body = world.body("sleep 0.2; echo lost a peer; exit 198", runtime=runtime, max_restarts=1)
    with pytest.raises(JobFailed) as caught:
        see_through(world, body, restarts=1)
    if runtime == "pytorchjob":
        assert "it failed 2 times, and job.max_restarts=1" in str(caught.value)
    assert "exit status 198" in str(caught.value)


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob", "tpu"])
def test_an_eviction_is_survived(
    world: World, runtime: str, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    body = world.body(until(world.soon(4), "echo finished"), runtime=runtime, max_restarts=1, accelerator="v4-8" if runtime == "tpu" else "")  # fmt: skip

    def evict() -> None:
        world.wait("the job", world.jobs)
        world.wait_running(body)
        world.evict(body)

    thread = meanwhile(evict)
    see_through(world, body, restarts=0)
    thread.join()
    assert "failed (preempted)" in messages.text
    assert "[rank 0] finished" in capfd.readouterr().err


def test_a_job_that_somebody_deletes_fails_the_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    body = world.body("echo started; sleep 300")
    streamed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", streamed)

    def delete() -> None:
        world.wait("a line of rank 0, while it runs", lambda: "[rank 0] started\n" in streamed.getvalue())
        world.delete(body)

    thread = meanwhile(delete)
    with pytest.raises(JobFailed, match="it was deleted by somebody else") as caught:
        see_through(world, body)
    thread.join()
    assert "  started" in str(caught.value).splitlines()


def test_a_slow_start_is_logged_and_a_secret_never_is(
    world: World, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    name, secret = f"{world.run}-wandb", "local-5d8e1f0a9b7c"
    script = 'test "$WANDB_API_KEY" = ' + secret + " && echo logged in"
    body = world.body(script, secrets={"WANDB_API_KEY": f"{name}/api-key"})

    def create_it() -> None:
        world.wait("the reason", lambda: f'secret "{name}" not found' in messages.text)
        world.create_secret(name, "api-key", secret)

    thread = meanwhile(create_it)
    see_through(world, body)
    thread.join()
    output = capfd.readouterr()
    assert "[rank 0] logged in" in output.err
    assert secret not in messages.text + output.out + output.err


def test_an_unschedulable_job_is_logged_and_ends_at_its_deadline(world: World, messages: Messages) -> None:
    body = world.body("echo never", node_selector={"hanflow.test/nowhere": "true"})
    with pytest.raises(JobFailed, match="took longer than job.deadline_hours"):
        see_through(world, body, hours=2 * world.pace / 3600)
    assert "waits: Unschedulable: 0/" in messages.text


def test_a_missing_image_fails_the_job(world: World) -> None:
    body = world.body("echo never", image="registry.invalid/hanflow:1")
    with pytest.raises(JobFailed, match="cannot start: (ErrImagePull|ImagePullBackOff): .*registry.invalid"):
        see_through(world, body, timing=dataclasses.replace(world.timing, stuck=0.3))


def test_an_invalid_image_name_fails_the_job_at_once(world: World) -> None:
    with pytest.raises(JobFailed, match="cannot start: InvalidImageName"):
        see_through(world, world.body("echo never", image="Not/An:Image:Name"))


def test_sigterm_of_the_launcher_removes_the_job(world: World) -> None:
    body = world.body(until(2**31, ""))
    process = world.start_launcher(body)
    world.wait("the job", world.jobs, 60)
    world.wait_running(body)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    world.assert_nothing_left(body)


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob"])
def test_a_retried_step_adopts_the_running_job(
    world: World, runtime: str, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    body = world.body(until(world.soon(6), "echo finished"), runtime=runtime)
    process = world.start_launcher(body)
    world.wait("the job", world.jobs, 60)
    world.wait_running(body)
    uid = world.job(body)["metadata"]["uid"]
    process.kill()
    process.communicate()
    assert world.job(body)["metadata"]["uid"] == uid
    see_through(world, body)
    assert "adopted job" in messages.text and "submitted" not in messages.text
    assert "[rank 0] finished" in capfd.readouterr().err


def test_a_retried_step_adopts_the_job_that_has_succeeded(world: World, messages: Messages) -> None:
    body = world.body("echo done")
    world.create(body)
    world.wait("success", lambda: status.phase(world.job(body)).name == "succeeded")
    see_through(world, body)
    assert "it is succeeded" in messages.text and "submitted" not in messages.text


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob"])
def test_a_retried_step_replaces_the_job_that_failed(world: World, runtime: str, messages: Messages) -> None:
    moment = world.soon()
    body = world.body(f"if [ $(date +%s) -lt {moment} ]; then exit 1; fi; echo done", runtime=runtime)
    world.create(body)
    world.wait("failure", lambda: status.phase(world.job(body)).name == "failed")
    world.wait("later", lambda: time.time() > moment + 1)
    see_through(world, body)
    assert "replacing job" in messages.text and "it failed" in messages.text and "submitted" in messages.text


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob"])
def test_a_job_of_other_settings_is_replaced(
    world: World, runtime: str, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    world.create(world.body("sleep 300", seed=1, runtime=runtime))
    see_through(world, world.body("echo done", seed=2, runtime=runtime))
    assert "[rank 0] done" in capfd.readouterr().err
    assert "it was made from other settings" in messages.text


def test_a_job_of_another_run_is_left_alone(world: World) -> None:
    other = world.body("sleep 300")
    body = copy.deepcopy(other)
    body["metadata"]["labels"]["hanflow/run"] = "another-run"
    world.create(other)
    with pytest.raises(ClusterError, match="exists already and belongs to another run"):
        world.launch(body)
    assert world.jobs() == [other["metadata"]["name"]]
    world.delete(other)


def test_the_cleanup_removes_a_runs_jobs_and_no_others(world: World) -> None:
    bodies = [world.body("sleep 300", runtime=runtime) for runtime in ("trainjob", "pytorchjob", "tpu")]
    bodies[2]["metadata"]["name"] += "-2"  # Trainer's JobSet has the name of its TrainJob
    bystander = world.body("sleep 300", run="another-run")
    for body in [*bodies, bystander]:
        world.create(body)
    assert sorted(remove_jobs(world.run, cluster=world.cluster)) == sorted(body["metadata"]["name"] for body in bodies)
    assert world.jobs() == []
    assert world.job(bystander)
    assert remove_jobs(world.run, cluster=world.cluster) == [], "a second time does no harm"
    world.delete(bystander)


# What cannot be asked of a real cluster.


def test_an_api_server_that_is_away_is_retried(fake: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert fake.fake
    body = fake.body("for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.2; done")

    def leave() -> None:
        fake.wait("the job", fake.jobs)
        fake.wait_running(body)
        fake.fake.be_away(1.0)

    thread = meanwhile(leave)
    see_through(fake, body)
    thread.join()
    assert fake.fake.turned_away > 0, "the fault happened"
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[rank 0]")]
    assert lines == [f"[rank 0] {i}" for i in range(1, 10)], "no line lost, none twice"


@pytest.mark.parametrize("how", ["event", "status"])
def test_an_expired_version_is_listed_again(fake: World, how: str) -> None:
    assert fake.fake
    fake.fake.watches_gone = how
    body = fake.body("sleep 1")

    def forget() -> None:
        fake.wait("the job", fake.jobs)
        fake.wait_running(body)
        if how == "status":  # only a watch that is opened again gets the status: break the open one first
            fake.fake.be_away(0.1)
        fake.fake.store.forget()

    thread = meanwhile(forget)
    see_through(fake, body)
    thread.join()
    assert fake.fake.count("GET", "watch", 410) > 0 or how == "status"
    lists = [path for method, path, _ in fake.fake.requests if method == "GET" and "pods?labelSelector" in path]
    assert len(lists) > 1


def test_the_token_is_read_again_when_it_is_refused(fake: World) -> None:
    assert fake.fake
    body = fake.body("sleep 1")

    def rotate() -> None:
        fake.wait("the job", fake.jobs)
        fake.wait_running(body)
        fake.fake.rotate_token()

    thread = meanwhile(rotate)
    fake.launch(body)
    thread.join()
    assert fake.fake.count("GET", "", 401) + fake.fake.count("DELETE", "", 401) > 0
    fake.assert_nothing_left(body)


@pytest.mark.parametrize("status", [0, 1])
def test_pods_may_be_reported_late(fake: World, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert fake.fake
    fake.fake.pods_lag = 0.7
    body = fake.body(f"echo first; sleep 0.3; echo last; exit {status}")
    if status:
        with pytest.raises(JobFailed, match="exit status 1: last"):
            see_through(fake, body)
    else:
        see_through(fake, body)
    assert "[rank 0] last" in capfd.readouterr().err


def test_sigterm_while_the_job_is_being_removed_removes_it(fake: World) -> None:
    assert fake.fake
    terminated = threading.Event()

    def terminate() -> None:
        terminated.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)  # the signal arrives before the answer

    fake.fake.before_delete = [terminate]
    before = signal.getsignal(signal.SIGTERM)
    raise_on_sigterm()
    try:
        with pytest.raises(Terminated):
            see_through(fake, fake.body("echo done"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert terminated.is_set()


def test_answers_and_events_that_break_off_are_requested_again(fake: World) -> None:
    assert fake.fake
    fake.fake.cut_answers, fake.fake.cut_events = 2, 3
    see_through(fake, fake.body("sleep 0.5; echo done"))
    assert fake.fake.cuts == 5


def test_a_lost_answer_creates_no_second_job(fake: World) -> None:
    assert fake.fake
    fake.fake.swallowed_posts = 1
    see_through(fake, fake.body("echo done"))
    assert fake.fake.count("POST", status=200) == 1 and fake.fake.count("POST", status=409) == 1


def test_a_server_that_stays_away_ends_the_launcher(fake: World, messages: Messages) -> None:
    assert fake.fake
    body = fake.body("sleep 300")

    def leave() -> None:
        fake.wait("the job", fake.jobs)
        fake.wait_running(body)
        fake.cluster.patience = 0.5
        fake.fake.be_away(4)

    thread = meanwhile(leave)
    with pytest.raises(ClusterError, match="the API server cannot be used"):
        fake.launch(body, timing=dataclasses.replace(fake.timing, remove=0.5))
    thread.join()
    assert "could not be removed" in messages.text and "kubectl delete pytorchjob" in messages.text
    fake.cluster.patience = 30.0
    fake.wait("the server", lambda: not fake.fake.is_away())
    assert remove_jobs(fake.run, cluster=fake.cluster) == [body["metadata"]["name"]], "the exit handler does it"
    fake.assert_nothing_left(body)


def test_sigterm_while_the_api_server_is_away_ends_in_time(fake: World) -> None:
    assert fake.fake
    body = fake.body("sleep 300")
    process = fake.start_launcher(body)
    fake.wait("the job", fake.jobs, 60)
    fake.wait_running(body)
    fake.fake.be_away(300)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143 and "could not be removed" in output
    assert fake.fake.is_away(), "it did not wait for the server"


def test_a_missing_permission_is_reported(fake: World) -> None:
    assert fake.fake
    fake.fake.forbidden = {("POST", "pytorchjobs")}
    with pytest.raises(ClusterError, match="forbidden.*the service account lacks a permission: apply manifests/"):
        see_through(fake, fake.body("echo never"))


@pytest.mark.parametrize(
    ("runtime", "plural"), [("trainjob", "trainingruntimes"), ("pytorchjob", "pytorchjobs"), ("tpu", "jobsets")]
)
def test_a_missing_operator_is_reported(fake: World, runtime: str, plural: str) -> None:
    assert fake.fake
    fake.fake.missing = {plural}
    with pytest.raises(
        ClusterError,
        match="the cluster does not know (TrainJob: install Kubeflow Trainer, 2.1|PyTorchJob: install Kubeflow|JobSet: install the JobSet controller, 0.10)",
    ):
        fake.launch(fake.body("echo never", runtime=runtime))
    assert remove_jobs(fake.run, cluster=fake.cluster) == [], "the cleanup skips a kind that is not installed"


def test_a_refused_job_is_reported(fake: World) -> None:
    body = fake.body("echo never")
    body["spec"]["pytorchReplicaSpecs"]["Master"]["replicas"] = 2
    with pytest.raises(ClusterError, match="replicas: must be 1"):
        see_through(fake, body)


def test_a_field_that_the_operator_does_not_know_is_an_error(fake: World) -> None:
    """JobSet before 0.10. Dropped in silence, the field would turn every requested stop into a failure of the job."""
    assert fake.fake
    fake.fake.unknown_fields = {"onJobFailureMessagePatterns"}
    with pytest.raises(ClusterError, match="unknown field.*onJobFailureMessagePatterns.*update its operator"):
        see_through(fake, fake.body("echo never", runtime="tpu"))


def test_warnings_of_the_api_server_are_logged_once(fake: World, messages: Messages) -> None:
    assert fake.fake
    fake.fake.warnings = ['kubeflow.org/v1 PyTorchJob is "deprecated", use TrainJob', "another one"]
    see_through(fake, fake.body("echo done"))
    lines = [record.getMessage() for record in messages.records if "warning of the API server" in record.getMessage()]
    assert lines == [f"warning of the API server: {text}" for text in fake.fake.warnings]


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob"])
def test_a_job_in_a_queue_is_waited_for(fake: World, runtime: str, messages: Messages) -> None:
    assert fake.fake
    fake.fake.admit = False
    body = fake.body("echo done", queue="training", runtime=runtime)

    def admit() -> None:
        fake.wait("the message", lambda: "suspended, waiting in Kueue's queue training" in messages.text)
        fake.fake.admit = True

    thread = meanwhile(admit)
    see_through(fake, body)
    thread.join()


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob", "tpu"])
def test_a_job_that_kueue_would_not_queue_is_refused(fake: World, runtime: str) -> None:
    """A queue name on a kind whose integration is off is ignored in silence."""
    assert fake.fake
    fake.fake.kueue = False
    body = fake.body("echo never", queue="training", runtime=runtime)
    with pytest.raises(ClusterError, match=r"job.queue=training: Kueue does not manage a .*integrations.frameworks"):
        see_through(fake, body)
    assert all("dryRun=All" in path for method, path, _ in fake.fake.requests if method == "POST" and "jobs" in path)


def test_the_place_in_the_queue_is_reported(fake: World, messages: Messages) -> None:
    assert fake.fake
    fake.fake.admit = False
    body = fake.body("echo done", queue="training", runtime="trainjob")
    for name, text in ((f"trainjob-{body['metadata']['name']}-4e1f2", "2 more needed"), ("trainjob-other", "not mine")):
        event = {
            "metadata": {"name": name},
            "involvedObject": {"kind": "Workload", "name": name},
            "reason": "Pending",
            "message": f"insufficient unused quota for nvidia.com/gpu: {text}",
        }
        fake.cluster.request("POST", "/api/v1/namespaces/{namespace}/events", body=event)

    def admit() -> None:
        fake.wait("the message", lambda: "Pending: insufficient unused quota" in messages.text)
        fake.fake.admit = True  # type: ignore[union-attr]

    thread = meanwhile(admit)
    see_through(fake, body)
    thread.join()
    assert "2 more needed" in messages.text and "not mine" not in messages.text


def test_a_training_runtime_that_is_not_noticed_at_once_is_waited_for(fake: World, messages: Messages) -> None:
    assert fake.fake
    fake.fake.runtimes_unnoticed = 2
    see_through(fake, fake.body("echo done", runtime="trainjob"))
    assert "Trainer has not noticed TrainingRuntime" in messages.text and fake.fake.runtimes_unnoticed == 0
    assert fake.fake.count("POST", "trainingruntimes", 200) == 1, "that of the first attempt is kept"


def test_a_train_job_waits_until_the_job_set_of_an_earlier_one_is_gone(fake: World, messages: Messages) -> None:
    """Trainer finds it by its name, and would copy the end of the earlier job into the new one."""
    assert fake.fake
    body = fake.body("echo done", runtime="trainjob")
    fake.fake.store.create("jobsets", dying := {"metadata": {"name": body["metadata"]["name"]}, "spec": {}})
    dying["spec"]["replicatedJobs"] = []
    fake.fake.store.objects["jobsets", body["metadata"]["name"]]["status"] = {"terminalState": "Failed"}

    def finish() -> None:
        fake.wait("the message", lambda: "JobSet" in messages.text and "is being removed" in messages.text)
        fake.fake.store.delete("jobsets", body["metadata"]["name"])  # type: ignore[union-attr]

    thread = meanwhile(finish)
    see_through(fake, body)
    thread.join()


def test_a_job_of_a_workflow_that_is_gone_is_replaced(fake: World, messages: Messages) -> None:
    """Kubeflow makes the Workflow of a retried run anew once its time to live is over."""
    body = fake.body("echo done", runtime="trainjob")
    for uid in ("old", "new"):
        for each in fake.objects(body):
            each["metadata"]["ownerReferences"] = [  # type: ignore[index]
                {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": uid}
            ]
        if uid == "old":
            fake.create(body)
    see_through(fake, body)
    assert "its Workflow is gone" in messages.text


@pytest.mark.parametrize(
    ("missing", "forbidden", "settings", "runtime", "why"),
    [
        (set(), set(), {}, "trainjob", "as a TrainJob, which this cluster serves"),
        (
            {"trainjobs", "trainingruntimes"},
            set(),
            {},
            "pytorchjob",
            "no TrainJob: the cluster does not serve trainjobs",
        ),
        (set(), {"trainingruntimes"}, {}, "pytorchjob", "may not create trainingruntimes in namespace training"),
        (set(), set(), {"workers": 2, "min_workers": 1}, "pytorchjob", "job.min_workers asks for less"),
        ({"trainjobs", "pytorchjobs"}, set(), {}, "", "does not serve trainjobs .*does not serve pytorchjobs"),
    ],
)
def test_the_cluster_decides_which_kind_of_job_it_is(
    fake: World,
    missing: set[str],
    forbidden: set[str],
    settings: dict[str, Any],
    runtime: str,
    why: str,
    messages: Messages,
) -> None:
    assert fake.fake
    fake.fake.missing, fake.fake.forbidden = missing, {("POST", plural) for plural in forbidden}
    job = JobConfig(runtime="auto", **settings)
    if not runtime:
        with pytest.raises(ClusterError, match=f"job.runtime=auto: .*{why}.*Install Kubeflow Trainer"):
            choose(fake.cluster, job)
        return
    assert choose(fake.cluster, job) == dataclasses.replace(job, runtime=runtime)
    (line,) = [text for text in messages.messages if "job.runtime=auto" in text]
    assert why in line


def test_a_job_that_is_being_deleted_is_waited_for(fake: World, messages: Messages) -> None:
    assert fake.fake
    old = fake.body("sleep 300")
    old["metadata"]["finalizers"] = ["test/slow"]
    fake.create(old)
    fake.delete(old)

    def finish() -> None:
        fake.wait("the message", lambda: "of an earlier attempt is being removed" in messages.text)
        fake.fake.store.delete("pytorchjobs", old["metadata"]["name"])

    thread = meanwhile(finish)
    see_through(fake, fake.body("echo done"))
    thread.join()


def test_warnings_about_the_job_are_logged(fake: World, messages: Messages) -> None:
    assert fake.fake
    fake.fake.admit = False
    body = fake.body("echo done")
    event = {
        "metadata": {"name": "quota"},
        "involvedObject": {"name": body["metadata"]["name"]},
        "type": "Warning",
        "reason": "FailedCreatePod",
        "message": "exceeded quota: gpus",
    }
    fake.cluster.request("POST", "/api/v1/namespaces/{namespace}/events", body=event)

    def admit() -> None:
        fake.wait("the message", lambda: "FailedCreatePod: exceeded quota: gpus" in messages.text)
        fake.fake.admit = True

    thread = meanwhile(admit)
    see_through(fake, body)
    thread.join()


def test_a_missing_cluster_is_reported(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="no Kubernetes cluster.*set KUBECONFIG"):
        Cluster()
