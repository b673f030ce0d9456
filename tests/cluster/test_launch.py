"""A job's life as the launcher sees it: every scenario on the cluster in this process, most on a real one too."""

from __future__ import annotations

import copy
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from hanflow.cluster import cleanup as reap
from hanflow.cluster import client as kube
from hanflow.cluster import launcher as launch
from hanflow.cluster import status as pods
from hanflow.cluster import waiting as waits
from hanflow.cluster.client import ClusterError
from hanflow.cluster.follow import JobFailed
from hanflow.signals import obey_sigterm
from tests.cluster.world import World

Told = pytest.LogCaptureFixture


def meanwhile(action: Callable[[], Any]) -> threading.Thread:
    """Do something while the launcher, which must have the main thread, is at work."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def see_through(world: World, body: Mapping[str, Any], **options: Any) -> None:
    """Launch, and leave nothing whatever comes."""
    try:
        launch.launch(world.cluster, body, **options)
    finally:
        world.assert_nothing_left(body)


def until(moment: int, then: str) -> str:
    """A script that waits, politely ended by SIGTERM."""
    return f"trap 'echo stopping; exit 143' TERM; while [ $(date +%s) -lt {moment} ]; do sleep 0.1; done; {then}"


@pytest.mark.parametrize("runtime", ["pytorchjob", "tpu"])
def test_success_and_rank_zeros_log(world: World, runtime: str, capfd: pytest.CaptureFixture[str], told: Told) -> None:
    script = "for i in 1 2 3; do echo node $NODE line $i; sleep 0.2; done; echo 끝 $NODE"
    see_through(world, world.body(script, runtime=runtime, workers=2))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[rank 0]")]
    assert lines == [f"[rank 0] node 0 line {i}" for i in (1, 2, 3)] + ["[rank 0] 끝 0"], "each once, in order"
    assert "2 pods" in told.text and "succeeded" in told.text and "removed job" in told.text


@pytest.mark.parametrize("runtime", ["pytorchjob", "tpu"])
def test_a_failed_job_fails_the_step_with_its_reason(world: World, runtime: str) -> None:
    body = world.body("echo loading; echo 'error: shards: no such folder' >&2; exit 1", runtime=runtime, max_restarts=3)
    with pytest.raises(JobFailed) as caught:
        see_through(world, body)
    message = str(caught.value)
    assert f"job {body['metadata']['name']} failed" in message
    assert "exit status 1: error: shards: no such folder" in message
    assert "  loading" in message.splitlines(), "the last lines of the log"
    assert caught.value.exit_status == 1


def test_another_ranks_failure_is_told_with_its_own_lines(world: World) -> None:
    script = "echo I am $NODE; if [ $NODE = 1 ]; then sleep 0.5; echo disk is full; exit 2; fi; sleep 300"
    body = world.body(script, workers=2)
    with pytest.raises(JobFailed) as caught:
        see_through(world, body)
    assert f"pod {body['metadata']['name']}-worker-0: exit status 2" in str(caught.value)
    assert "disk is full" in str(caught.value) and "I am 0" in str(caught.value)


@pytest.mark.parametrize("runtime", ["pytorchjob", "tpu"])
def test_a_polite_stop_restarts_and_does_not_count(world: World, runtime: str, told: Told) -> None:
    moment = world.soon()
    script = f"if [ $(date +%s) -lt {moment} ]; then sleep 0.3; echo saved; exit 143; fi; echo resumed"
    see_through(world, world.body(script, runtime=runtime, max_restarts=0 if runtime == "tpu" else 1), restarts=0)
    assert "failed (preempted): exit status 143" in told.text


@pytest.mark.parametrize("runtime", ["pytorchjob", "tpu"])
def test_failures_that_may_pass_are_tried_again_so_often(world: World, runtime: str) -> None:
    body = world.body("sleep 0.2; echo lost a peer; exit 198", runtime=runtime, max_restarts=1)
    with pytest.raises(JobFailed) as caught:
        see_through(world, body, restarts=1)
    if runtime == "pytorchjob":
        assert "it failed 2 times, and job.max_restarts=1" in str(caught.value)
    assert "exit status 198" in str(caught.value)


@pytest.mark.parametrize("runtime", ["pytorchjob", "tpu"])
def test_an_eviction_is_survived(world: World, runtime: str, told: Told, capfd: pytest.CaptureFixture[str]) -> None:
    body = world.body(until(world.soon(4), "echo finished"), runtime=runtime, max_restarts=1, accelerator="v4-8" if runtime == "tpu" else "")  # fmt: skip

    def evict() -> None:
        world.wait("the job", world.jobs)
        world.wait_running(body)
        world.evict(body)

    thread = meanwhile(evict)
    see_through(world, body, restarts=0)
    thread.join()
    assert "failed (preempted)" in told.text
    assert "[rank 0] finished" in capfd.readouterr().err


def test_a_job_that_vanishes_fails_the_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    body = world.body("echo started; sleep 300")
    streamed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", streamed)

    def vanish() -> None:
        world.wait("rank 0's word, while it runs", lambda: "[rank 0] started\n" in streamed.getvalue())
        world.delete(body)

    thread = meanwhile(vanish)
    with pytest.raises(JobFailed, match="vanished: somebody deleted it") as caught:
        see_through(world, body)
    thread.join()
    assert "  started" in str(caught.value).splitlines()


def test_a_slow_start_is_told_and_a_secret_never_is(
    world: World, told: Told, capfd: pytest.CaptureFixture[str]
) -> None:
    name, secret = f"{world.run}-wandb", "local-5d8e1f0a9b7c"
    script = 'test "$WANDB_API_KEY" = ' + secret + " && echo logged in"
    body = world.body(script, secrets={"WANDB_API_KEY": f"{name}/api-key"})

    def help_it() -> None:
        world.wait("the reason", lambda: f'secret "{name}" not found' in told.text)
        world.create_secret(name, "api-key", secret)

    thread = meanwhile(help_it)
    see_through(world, body)
    thread.join()
    said = capfd.readouterr()
    assert "[rank 0] logged in" in said.err
    assert secret not in told.text + said.out + said.err


def test_an_unschedulable_job_says_so_and_ends_at_its_deadline(world: World, told: Told) -> None:
    body = world.body("echo never", node_selector={"hanflow.test/nowhere": "true"})
    with pytest.raises(JobFailed, match="took longer than job.deadline_hours"):
        see_through(world, body, hours=2 * world.pace / 3600)
    assert "waits: Unschedulable: 0/" in told.text


def test_an_image_that_is_not_there_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "STUCK_SECONDS", 0.3)
    body = world.body("echo never", image="registry.invalid/hanflow:1")
    with pytest.raises(JobFailed, match="cannot start: (ErrImagePull|ImagePullBackOff): .*registry.invalid"):
        see_through(world, body)


def test_an_image_name_that_cannot_be_is_given_up_at_once(world: World) -> None:
    with pytest.raises(JobFailed, match="cannot start: InvalidImageName"):
        see_through(world, world.body("echo never", image="Not/An:Image:Name"))


def test_sigterm_of_the_launcher_removes_the_job(world: World) -> None:
    body = world.body(until(2**31, ""))
    process = world.start_launcher(body)
    world.wait("the job", world.jobs, 60)
    world.wait_running(body)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert time.monotonic() - sent < 3, "a step that is terminated has about a second"
    world.assert_nothing_left(body)


def test_a_retried_step_adopts_the_running_job(world: World, told: Told, capfd: pytest.CaptureFixture[str]) -> None:
    body = world.body(until(world.soon(6), "echo finished"))
    process = world.start_launcher(body)
    world.wait("the job", world.jobs, 60)
    world.wait_running(body)
    uid = world.job(body)["metadata"]["uid"]
    process.kill()
    process.communicate()
    assert world.job(body)["metadata"]["uid"] == uid
    see_through(world, body)
    assert "adopted job" in told.text and "submitted" not in told.text
    assert "[rank 0] finished" in capfd.readouterr().err


def test_a_retried_step_adopts_the_job_that_has_succeeded(world: World, told: Told) -> None:
    body = world.body("echo done")
    world.create(body)
    world.wait("success", lambda: pods.phase(world.job(body)).name == "succeeded")
    see_through(world, body)
    assert "it is succeeded" in told.text and "submitted" not in told.text


def test_a_retried_step_replaces_the_job_that_failed(world: World, told: Told) -> None:
    moment = world.soon()
    body = world.body(f"if [ $(date +%s) -lt {moment} ]; then exit 1; fi; echo done")
    world.create(body)
    world.wait("failure", lambda: pods.phase(world.job(body)).name == "failed")
    world.wait("later", lambda: time.time() > moment + 1)
    see_through(world, body)
    assert "replacing job" in told.text and "it failed" in told.text and "submitted" in told.text


def test_a_job_of_other_settings_is_replaced(world: World, told: Told) -> None:
    world.create(world.body("sleep 300", seed=1))
    see_through(world, world.body("echo done", seed=2))
    assert "it was made from other settings" in told.text


def test_somebody_elses_job_is_left_alone(world: World) -> None:
    other = world.body("sleep 300")
    body = copy.deepcopy(other)
    body["metadata"]["labels"]["hanflow/run"] = "another-run"
    world.create(other)
    with pytest.raises(ClusterError, match="not of this run exists already"):
        launch.launch(world.cluster, body)
    assert world.jobs() == [other["metadata"]["name"]]
    world.delete(other)


def test_the_reaper_removes_a_runs_jobs_and_no_others(world: World) -> None:
    bodies = [world.body("sleep 300"), world.body("sleep 300", runtime="tpu")]
    bystander = world.body("sleep 300", run="another-run")
    for body in [*bodies, bystander]:
        world.create(body)
    assert sorted(reap.reap(world.cluster, world.run)) == sorted(body["metadata"]["name"] for body in bodies)
    assert world.jobs() == []
    assert world.job(bystander)
    assert reap.reap(world.cluster, world.run) == [], "twice does no harm"
    world.delete(bystander)


# What no real cluster can be asked to do.


def test_an_api_server_that_is_away_is_waited_for(fake: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert fake.fake
    body = fake.body("for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.2; done")

    def leave() -> None:
        fake.wait("the job", fake.jobs)
        fake.wait_running(body)
        fake.fake.be_away(1.0)

    thread = meanwhile(leave)
    see_through(fake, body)
    thread.join()
    assert fake.fake.turned_away > 0, "the fault was met"
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[rank 0]")]
    assert lines == [f"[rank 0] {i}" for i in range(1, 10)], "no line lost, none twice"


@pytest.mark.parametrize("how", ["event", "status"])
def test_a_forgotten_version_is_listed_anew(fake: World, how: str) -> None:
    assert fake.fake
    fake.fake.watches_gone = how
    body = fake.body("sleep 1")

    def forget() -> None:
        fake.wait("the job", fake.jobs)
        fake.wait_running(body)
        if how == "status":  # a watch that is opened anew meets it; one that is open is broken first
            fake.fake.be_away(0.1)
        fake.fake.store.forget()

    thread = meanwhile(forget)
    see_through(fake, body)
    thread.join()
    assert fake.fake.count("GET", "watch", 410) > 0 or how == "status"
    lists = [path for method, path, _ in fake.fake.requests if method == "GET" and "pods?labelSelector" in path]
    assert len(lists) > 1


def test_a_new_token_is_taken_when_the_old_one_is_refused(fake: World) -> None:
    assert fake.fake
    body = fake.body("sleep 1")

    def rotate() -> None:
        fake.wait("the job", fake.jobs)
        fake.wait_running(body)
        fake.fake.rotate_token()

    thread = meanwhile(rotate)
    launch.launch(fake.cluster, body)
    thread.join()
    assert fake.fake.count("GET", "", 401) + fake.fake.count("DELETE", "", 401) > 0
    fake.assert_nothing_left(body)


@pytest.mark.parametrize("status", [0, 1])
def test_pods_may_be_told_of_late(fake: World, status: int, capfd: pytest.CaptureFixture[str]) -> None:
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
        time.sleep(0.3)  # the answer is not there yet when the signal comes

    fake.fake.before_delete = [terminate]
    before = signal.getsignal(signal.SIGTERM)
    obey_sigterm()
    try:
        with pytest.raises(launch.Terminated):
            see_through(fake, fake.body("echo done"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert terminated.is_set()


def test_answers_and_events_that_break_off_are_asked_for_again(fake: World) -> None:
    assert fake.fake
    fake.fake.cut_answers, fake.fake.cut_events = 2, 3
    see_through(fake, fake.body("sleep 0.5; echo done"))
    assert fake.fake.cuts == 5


def test_a_lost_answer_makes_no_second_job(fake: World) -> None:
    assert fake.fake
    fake.fake.swallowed_posts = 1
    see_through(fake, fake.body("echo done"))
    assert fake.fake.count("POST", status=200) == 1 and fake.fake.count("POST", status=409) == 1


def test_patience_ends(fake: World, monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    assert fake.fake
    body = fake.body("sleep 300")

    def leave() -> None:
        fake.wait("the job", fake.jobs)
        fake.wait_running(body)
        monkeypatch.setattr(kube, "PATIENCE_SECONDS", 0.5)
        monkeypatch.setattr(launch, "REMOVE_SECONDS", 0.5)
        fake.fake.be_away(4)

    thread = meanwhile(leave)
    with pytest.raises(ClusterError, match="the API server cannot be used"):
        launch.launch(fake.cluster, body)
    thread.join()
    assert "could not be removed" in told.text and "kubectl delete pytorchjob" in told.text
    monkeypatch.setattr(kube, "PATIENCE_SECONDS", 30.0)
    fake.wait("the server", lambda: not fake.fake.is_away())
    assert reap.reap(fake.cluster, fake.run) == [body["metadata"]["name"]], "the exit handler does it"
    fake.assert_nothing_left(body)


def test_sigterm_while_the_api_server_is_away_ends_in_time(fake: World) -> None:
    assert fake.fake
    body = fake.body("sleep 300")
    process = fake.start_launcher(body)
    fake.wait("the job", fake.jobs, 60)
    fake.wait_running(body)
    fake.fake.be_away(8)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 143 and time.monotonic() - sent < 4, output
    assert "could not be removed" in output


def test_a_missing_permission_is_told(fake: World) -> None:
    assert fake.fake
    fake.fake.forbidden = {("POST", "pytorchjobs")}
    with pytest.raises(ClusterError, match="forbidden.*the service account lacks a permission: apply manifests/"):
        see_through(fake, fake.body("echo never"))


@pytest.mark.parametrize(("runtime", "plural"), [("pytorchjob", "pytorchjobs"), ("tpu", "jobsets")])
def test_a_missing_operator_is_told(fake: World, runtime: str, plural: str) -> None:
    assert fake.fake
    fake.fake.missing = {plural}
    with pytest.raises(ClusterError, match="the cluster knows no (PyTorchJob: install Kubeflow|JobSet: install the)"):
        launch.launch(fake.cluster, fake.body("echo never", runtime=runtime))
    assert reap.reap(fake.cluster, fake.run) == [], "the reaper passes over it"


def test_a_refused_job_is_told(fake: World) -> None:
    body = fake.body("echo never")
    body["spec"]["pytorchReplicaSpecs"]["Master"]["replicas"] = 2
    with pytest.raises(ClusterError, match="replicas: must be 1"):
        see_through(fake, body)


def test_a_job_in_a_queue_is_waited_for(fake: World, told: Told) -> None:
    assert fake.fake
    fake.fake.admit = False
    body = fake.body("echo done", queue="training")

    def admit() -> None:
        fake.wait("the word", lambda: "suspended, waiting for Kueue's queue training" in told.text)
        fake.fake.admit = True

    thread = meanwhile(admit)
    see_through(fake, body)
    thread.join()


def test_a_job_that_is_being_deleted_is_waited_for(fake: World, told: Told) -> None:
    assert fake.fake
    old = fake.body("sleep 300")
    old["metadata"]["finalizers"] = ["test/slow"]
    fake.create(old)
    fake.delete(old)

    def finish() -> None:
        fake.wait("the word", lambda: "is being removed; waiting" in told.text)
        fake.fake.store.delete("pytorchjobs", old["metadata"]["name"])

    thread = meanwhile(finish)
    see_through(fake, fake.body("echo done"))
    thread.join()


def test_warnings_about_the_job_are_told(fake: World, told: Told) -> None:
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
        fake.wait("the word", lambda: "FailedCreatePod: exceeded quota: gpus" in told.text)
        fake.fake.admit = True

    thread = meanwhile(admit)
    see_through(fake, body)
    thread.join()


def test_no_cluster_is_told(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="no Kubernetes cluster.*set KUBECONFIG"):
        kube.Cluster()
