"""What the status of a job and its pods means."""

from __future__ import annotations

from typing import Any

import pytest

from hanflow.cluster import status


def job(*conditions: str, **fields: Any) -> dict[str, Any]:
    held = [{"type": kind, "status": "True", "reason": f"Is{kind}", "message": "m"} for kind in conditions]
    return {"status": {"conditions": held, **fields}}


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ({}, "pending"),
        ({"status": None}, "pending"),
        (job("Created"), "pending"),
        (job("Created", "Running"), "running"),
        (job("Created", "Restarting"), "restarting"),
        (job("RestartingJobSet"), "restarting"),
        (job("Created", "Suspended"), "suspended"),
        (job("Created", "Succeeded"), "succeeded"),
        (job("Created", "Restarting", "Failed"), "failed"),
        (job(terminalState="Completed"), "succeeded"),
        (job(terminalState="Failed"), "failed"),
        (job("Completed"), "succeeded"),
        (job("Complete"), "succeeded"),
        (job("Suspended", jobsStatus=[{"name": "node", "ready": 0, "active": 0}]), "suspended"),
        (job(jobsStatus=[{"name": "node", "ready": 1}]), "running"),
        (job(jobsStatus=[{"name": "node", "active": 1, "ready": 0}]), "pending"),
        (job("Failed", jobsStatus=[{"name": "node", "ready": 1}]), "failed"),
        (job(replicatedJobsStatus=[{"name": "slice", "ready": 1}]), "running"),
        (job(replicatedJobsStatus=[{"name": "slice", "ready": 0}]), "pending"),
        (
            {"status": {"conditions": [{"type": "Running", "status": "False"}, {"type": "Created", "status": "True"}]}},
            "pending",
        ),
    ],
)
def test_the_phase_of_a_job(found: dict[str, Any], name: str) -> None:
    assert status.phase(found).name == name
    assert status.phase(found).finished == (name in ("succeeded", "failed"))


def test_kueue_suspends_a_job_in_the_place_of_its_kind() -> None:
    assert status.suspended({"spec": {"suspend": True}}) and status.suspended(
        {"spec": {"runPolicy": {"suspend": True}}}
    )
    assert not status.suspended({"spec": {"suspend": False}}) and not status.suspended({"spec": {"runPolicy": {}}})


def pod(phase: str, *, code: int | None = None, output: str = "", **fields: Any) -> dict[str, Any]:
    if code is not None:
        terminated = {"exitCode": code, "reason": "OOMKilled" if code == 137 else "Error", "message": output}
        fields["containerStatuses"] = [{"name": "pytorch", "state": {"terminated": terminated}}]
    return {"metadata": {"name": "p"}, "status": {"phase": phase, **fields}}


DISRUPTED = [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "made room"}]


@pytest.mark.parametrize(
    ("found", "kind", "text"),
    [
        (pod("Succeeded", code=0), "succeeded", "succeeded"),
        (pod("Failed", code=1, output="a\nerror: no such\nfolder\n"), "permanent", "exit status 1: error: no such folder"),
        (pod("Failed", code=2, output="usage"), "permanent", "exit status 2: usage"),
        (pod("Failed", code=143), "preempted", "exit status 143"),
        (pod("Failed", code=198, output="lost"), "retryable", "exit status 198: lost"),
        (pod("Failed", code=137), "retryable", "exit status 137 (OOMKilled)"),
        (pod("Failed", code=137, conditions=DISRUPTED), "preempted", "PreemptionByScheduler: made room"),
        (pod("Failed", code=1, conditions=DISRUPTED), "preempted", "PreemptionByScheduler"),
        (pod("Failed", reason="Evicted", message="low on memory"), "preempted", "Evicted: low on memory"),
        (pod("Failed", reason="Terminated", message="Pod was terminated in response to imminent node shutdown."), "preempted", "node shutdown"),
        (pod("Failed", reason="UnexpectedAdmissionError", message="GPU"), "retryable", "UnexpectedAdmissionError: GPU"),
        (pod("Failed"), "retryable", "it failed without giving a reason"),
    ],
)  # fmt: skip
def test_how_a_pod_ended(found: dict[str, Any], kind: str, text: str) -> None:
    ending = status.termination(found)
    assert ending is not None and ending.kind == kind and text in ending.text


def test_a_pod_that_is_gone_without_an_end_was_preempted() -> None:
    assert status.termination(pod("Running")) is None
    ending = status.termination(pod("Running"), deleted=True)
    assert ending is not None and ending.kind == "preempted"
    pending = status.termination(pod("Pending"), deleted=True)
    assert pending is not None and pending.kind == "preempted"


def test_why_a_pod_waits() -> None:
    def waiting(**state: Any) -> status.Waiting | None:
        return status.waiting(pod("Pending", containerStatuses=[{"name": "c", "state": {"waiting": state}}]))

    assert waiting(reason="ContainerCreating") is None and waiting(reason="PodInitializing") is None
    found = waiting(reason="ImagePullBackOff", message="no such image")
    assert found is not None and found.text == "ImagePullBackOff: no such image"
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    found = status.waiting(pod("Pending", conditions=[unschedulable]))
    assert found is not None and found.text == "Unschedulable: 0/3 nodes"
    init = [{"name": "init", "state": {"waiting": {"reason": "ErrImagePull", "message": "alpine"}}}]
    found = status.waiting(pod("Pending", initContainerStatuses=init))
    assert found is not None and found.reason == "ErrImagePull"
    assert status.waiting(pod("Running")) is None and status.waiting(pod("Failed", code=1)) is None


def labelled(created: int, labels: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {"name": f"pod-{created}", "creationTimestamp": str(created), "labels": labels}}


def replica(created: int, index: int, **more: str) -> dict[str, Any]:
    labels = {"training.kubeflow.org/job-name": "j", "training.kubeflow.org/replica-index": str(index)}
    return labelled(created, {**labels, **more})


def host(created: int, job: int, index: int) -> dict[str, Any]:
    places = {"jobset.sigs.k8s.io/job-index": str(job), "batch.kubernetes.io/job-completion-index": str(index)}
    return labelled(created, places)


def test_which_pod_is_rank_zero() -> None:
    master, worker = replica(1, 0, **{"training.kubeflow.org/job-role": "master"}), replica(2, 0)
    assert status.rank_zero([worker, master]) is master and status.rank_zero([worker]) is None
    elastic = [replica(index, index, **{"hanflow/elastic": "true"}) for index in (1, 0)]
    assert status.rank_zero(elastic) is elastic[1]
    hosts = [host(1, job, index) for job in (1, 0) for index in (1, 0)]
    assert status.rank_zero(hosts) is hosts[3]
    newer = host(2, 0, 0)
    assert status.rank_zero([newer, *hosts]) is newer, "after a restart"


def test_the_place_in_a_queue_is_that_of_the_job_and_counts_from_one() -> None:
    def waiting(owner: str, local: int, whole: int) -> dict[str, Any]:
        metadata = {"name": "workload", "ownerReferences": [{"uid": owner}]}
        return {"metadata": metadata, "positionInLocalQueue": local, "positionInClusterQueue": whole}

    queue = [
        {**waiting("x", 0, 0), "metadata": {"name": "without an owner"}},
        waiting("other", 1, 1),
        waiting("own", 2, 4),
    ]
    (event,) = status.place_in_queue(queue, {"metadata": {"uid": "own"}}, "hanflow")
    assert event["message"] == "number 3 in Kueue's queue hanflow, number 5 of all that wait for the same quota"
    assert status.place_in_queue(queue[:2], {"metadata": {"uid": "own"}}, "hanflow") == []
