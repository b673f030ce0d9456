"""The launcher's decisions, without a cluster: from what the API server reports to what is to be done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from hanflow.cluster.follow import Decision, JobFollower, Timing

TIMING = Timing(repeat=300.0, stuck=600.0, incident=400.0, events=10.0)


def job(*conditions: str, uid: str = "1", queue: str = "") -> dict[str, Any]:
    labels = {"kueue.x-k8s.io/queue-name": queue} if queue else {}
    held = [{"type": kind, "status": "True"} for kind in conditions]
    return {"metadata": {"name": "j", "uid": uid, "labels": labels}, "status": {"conditions": held}}


def pod(name: str, phase: str, *, uid: str = "", code: int | None = None, **fields: Any) -> dict[str, Any]:
    state = {"running": {}} if code is None else {"terminated": {"exitCode": code, "message": f"lines of {name}"}}
    if phase != "Pending":
        fields["containerStatuses"] = [{"name": "pytorch", "state": state}]
    role = {"training.kubeflow.org/job-name": "j"}
    if name == "master":
        role["training.kubeflow.org/job-role"] = "master"
    return {"metadata": {"name": name, "uid": uid or name, "labels": role}, "status": {"phase": phase, **fields}}


def waiting(name: str, reason: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": "a message"}}
    return pod(name, "Pending", containerStatuses=[{"name": "pytorch", "state": state}])


def follower(restarts: int | None = 1, hours: float = 1.0) -> JobFollower:
    return JobFollower(job(), hours=hours, restarts=restarts, started=0.0, timing=TIMING)


def texts(decision: Decision) -> list[str]:
    return [text for _, text in decision.messages]


def test_a_new_phase_is_reported_once() -> None:
    follow = follower()
    first = follow.on_job("LIST", [job("Suspended", queue="training")], 1.0)
    assert texts(first) == ["job j is suspended, waiting in Kueue's queue training"]
    assert follow.on_job("MODIFIED", [job("Suspended", queue="training")], 2.0) == Decision([])
    assert texts(follow.on_job("MODIFIED", [job("Running")], 3.0)) == ["job j is running"]
    assert follow.on_job("MODIFIED", [job("Succeeded")], 4.0) == Decision([]) and follow.phase.finished


@pytest.mark.parametrize(("kind", "jobs"), [("DELETED", [job()]), ("LIST", []), ("LIST", [job(uid="2")])])
def test_a_job_that_is_gone_or_replaced_is_given_up(kind: str, jobs: Sequence[dict[str, Any]]) -> None:
    assert "deleted by somebody else" in follower().on_job(kind, jobs, 1.0).failure


def test_news_of_an_earlier_job_of_the_same_name_do_not_matter() -> None:
    follow = follower()
    assert follow.on_job("DELETED", [job(uid="0")], 1.0) == Decision([])
    assert follow.on_job("MODIFIED", [job("Failed", uid="0")], 2.0) == Decision([]) and not follow.phase.finished


def test_the_deadline_counts_from_the_jobs_creation() -> None:
    follow = follower(hours=2.0)
    follow.on_job("LIST", [job("Running")], 7000.0)
    assert follow.on_quiet(7200.0).failure == ""
    assert follow.on_quiet(7200.1).failure == "it took longer than job.deadline_hours=2; it was running"
    assert follow.on_pods("LIST", [], 7200.1).failure and follow.on_job("MODIFIED", [job()], 7200.1).failure
    assert follow.on_job("MODIFIED", [job("Succeeded")], 7300.0).failure == "", "it has ended all the same"


def test_pods_that_end_together_are_one_incident() -> None:
    follow = follower(restarts=1)
    lost = [pod("master", "Failed", code=198), pod("worker-0", "Failed", code=198)]
    decision = follow.on_pods("LIST", lost, 10.0)
    assert decision.failure == "" and len(decision.messages) == 2
    again = follow.on_pods("ADDED", [pod("worker-0", "Failed", uid="new", code=198)], 20.0)
    assert again.failure == "it failed 2 times, and job.max_restarts=1", "the same pod again is another incident"


def test_incidents_are_apart_after_a_while() -> None:
    follow = follower(restarts=1)
    follow.on_pods("ADDED", [pod("master", "Failed", code=198)], 0.0)
    assert follow.on_pods("ADDED", [pod("worker-0", "Failed", code=198)], 399.0).failure == ""
    assert follow.on_pods("ADDED", [pod("worker-1", "Failed", code=198)], 401.0).failure


@pytest.mark.parametrize(
    ("restarts", "code", "counted"),
    [(0, 198, True), (0, 143, False), (0, 1, False), (None, 198, False)],
    ids=["retryable", "requested stop", "permanent: the job fails by itself", "the controller counts"],
)
def test_what_counts_against_the_restarts(restarts: int | None, code: int, counted: bool) -> None:
    follow = follower(restarts=restarts)
    assert bool(follow.on_pods("ADDED", [pod("master", "Failed", code=code)], 1.0).failure) == counted


def test_a_pod_that_a_list_lacks_was_preempted() -> None:
    follow = follower()
    follow.on_pods("LIST", [pod("master", "Running"), pod("worker-0", "Running")], 1.0)
    decision = follow.on_pods("LIST", [pod("master", "Running")], 2.0)
    assert decision.messages == [(logging.WARNING, "pod worker-0 failed (preempted): it was deleted while it ran")]
    assert follow.on_pods("LIST", [pod("master", "Running")], 3.0).messages == [], "reported once"


def test_the_log_of_the_newest_rank_zero_is_streamed() -> None:
    follow = follower()
    assert follow.on_pods("ADDED", [pod("master", "Pending")], 1.0).streams == [], "it has no log yet"
    running = pod("master", "Running")
    assert follow.on_pods("MODIFIED", [running], 2.0).streams == [running]
    assert follow.on_pods("ADDED", [pod("worker-0", "Running")], 3.0).streams == [running]
    (gone,) = follow.on_pods("DELETED", [running], 4.0).streams
    assert gone["metadata"] == running["metadata"] and gone["status"] == {"phase": "Failed"}, "no more lines will come"


def test_reasons_for_waiting_are_repeated_now_and_then() -> None:
    follow = follower()
    follow.on_pods("LIST", [waiting("master", "ImagePullBackOff")], 0.0)
    assert texts(follow.on_quiet(1.0)) == ["pod master waits: ImagePullBackOff: a message"]
    assert texts(follow.on_quiet(300.0)) == []
    assert texts(follow.on_quiet(301.0)) == ["pod master waits: ImagePullBackOff: a message"]


def test_waiting_in_vain_fails_the_job() -> None:
    follow = follower()
    follow.on_pods("LIST", [waiting("master", "ErrImagePull")], 0.0)
    assert follow.on_quiet(1.0).failure == "" and follow.on_quiet(601.0).failure == ""
    assert follow.on_quiet(601.5).failure == "pod master cannot start: ErrImagePull: a message"
    invalid = follower()
    invalid.on_pods("LIST", [waiting("master", "InvalidImageName")], 0.0)
    assert "InvalidImageName" in invalid.on_quiet(0.1).failure, "at once"


def test_a_reason_that_went_away_starts_anew() -> None:
    follow = follower()
    follow.on_pods("LIST", [waiting("master", "ErrImagePull")], 0.0)
    follow.on_quiet(1.0)
    follow.on_pods("MODIFIED", [pod("master", "Pending")], 300.0)
    follow.on_quiet(301.0)
    follow.on_pods("MODIFIED", [waiting("master", "ErrImagePull")], 650.0)
    assert follow.on_quiet(651.0).failure == ""


def test_events_are_read_while_the_job_does_not_run() -> None:
    follow = follower()
    follow.on_job("LIST", [job("Created")], 0.0)
    assert [follow.on_quiet(now).read_events for now in (1.0, 5.0, 11.5)] == [True, False, True]
    event = {"reason": "FailedCreatePod", "message": "exceeded quota"}
    assert texts(follow.on_events([event, event], 12.0)) == ["FailedCreatePod: exceeded quota"]
    follow.on_job("MODIFIED", [job("Running")], 13.0)
    assert not follow.on_quiet(60.0).read_events


def test_a_job_of_which_the_controller_can_make_nothing_fails_in_the_end() -> None:
    """Trainer gives a TrainJob whose JobSet is refused no condition, only an event."""
    event = {"reason": "TrainJobResourcesCreationFailed", "message": "field not declared in schema"}
    follow = follower()
    follow.on_job("LIST", [job()], 0.0)
    assert texts(first := follow.on_events([event], 1.0)) == [f"{event['reason']}: {event['message']}"]
    assert first.failure == "" and follow.on_events([event], 601.0).failure == ""
    assert follow.on_events([event], 602.0).failure == f"it cannot start: {event['reason']}: {event['message']}"
    follow.on_pods("ADDED", [pod("master", "Pending")], 603.0)
    assert follow.on_events([event], 1300.0).failure == "", "an old event: it has started"


def test_the_error_names_the_pods_and_quotes_their_logs() -> None:
    follow = follower()
    pods = [pod("master", "Failed", code=143), pod("worker-0", "Failed", code=2), pod("worker-1", "Succeeded", code=0)]
    follow.on_pods("LIST", pods, 1.0)
    assert [end.pod for end in follow.failures()] == ["worker-0"], "a preempted pod is not the cause"
    message = str(follow.failure("its reason", ["first", "last"], {"worker-0": ["disk is full"], "worker-1": []}))
    assert message.splitlines() == [
        "job j failed: its reason",
        "pod worker-0: exit status 2: lines of worker-0",
        "last lines of rank 0:",
        "  first",
        "  last",
        "last lines of pod worker-0:",
        "  disk is full",
    ]


def test_the_pods_are_settled_when_they_explain_the_jobs_end() -> None:
    follow = follower()
    follow.on_job("LIST", [job("Failed")], 1.0)
    follow.on_pods("LIST", [pod("master", "Running")], 1.0)
    assert not follow.settled
    follow.on_pods("MODIFIED", [pod("master", "Failed", code=1)], 2.0)
    assert follow.settled
