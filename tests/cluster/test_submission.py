"""How a job is got and what kind it is, without a cluster: from what the API server has to what is to be done."""

from __future__ import annotations

from typing import Any

import pytest

from hanflow.cluster.client import ClusterError
from hanflow.cluster.follow import Plan, events_about, may_remove, past_the_queue, plan, same_settings
from hanflow.cluster.runtimes import AUTOMATIC, RUNTIMES, first_choice, obstacle

LATER = {"deletionTimestamp": "2026-11-25T00:00:00Z"}
SERVED = {
    "trainer.kubeflow.org/v1alpha1": ["trainjobs", "trainjobs/status", "trainingruntimes"],
    "kubeflow.org/v1": ["pytorchjobs", "notebooks"],
}


def body(
    kind: str = "TrainJob", *conditions: str, run: str = "r", digest: str = "d", owner: str = "", **metadata: Any
) -> dict[str, Any]:
    if owner:
        metadata["ownerReferences"] = [{"kind": "Workflow", "name": "w", "uid": owner}]
    labels, annotations = {"hanflow/run": run}, {"hanflow/digest": digest}
    return {
        "kind": kind,
        "metadata": {"name": "j", "uid": "1", "labels": labels, "annotations": annotations, **metadata},
        "status": {"conditions": [{"type": condition, "status": "True"} for condition in conditions]},
    }


@pytest.mark.parametrize(
    ("found", "made", "expected"),
    [
        (None, None, Plan("create")),
        (None, body("JobSet"), Plan("wait", "JobSet j of an earlier attempt is being removed")),
        (body(), None, Plan("adopt")),
        (body("TrainJob", "Suspended"), None, Plan("adopt")),
        (body("TrainJob", "Complete"), body("JobSet", "Completed"), Plan("adopt")),
        (body("TrainJob", "Failed"), None, Plan("replace", "it failed")),
        (body(digest="other"), None, Plan("replace", "it was made from other settings")),
        (body(annotations={}), None, Plan("replace", "it was made from other settings")),
        (body(**LATER), None, Plan("wait", "TrainJob j of an earlier attempt is being removed")),
        (body("TrainJob", "Failed", **LATER), None, Plan("wait", "TrainJob j of an earlier attempt is being removed")),
        (body(run="other", **LATER), None, Plan("wait", "TrainJob j of an earlier attempt is being removed")),
        (
            body("TrainJob", "Failed", run="other"),
            None,
            Plan("refuse", "TrainJob j exists already and belongs to another run; rename or remove it"),
        ),
        (body(labels={}), None, Plan("refuse", "TrainJob j exists already and belongs to another run; rename or remove it")),
    ],
)  # fmt: skip
def test_how_a_job_is_got(found: dict[str, Any] | None, made: dict[str, Any] | None, expected: Plan) -> None:
    assert plan(body(), found, made) == expected


@pytest.mark.parametrize(
    ("theirs", "own", "replaced"),
    [("old", "new", True), ("same", "same", False), ("", "new", False), ("old", "", False)],
)
def test_a_job_of_a_workflow_that_is_gone_is_replaced(theirs: str, own: str, replaced: bool) -> None:
    """Kubeflow makes the Workflow of a retried run anew once its time to live is over; the cluster deletes the old job soon."""
    expected = Plan("replace", "its Workflow is gone") if replaced else Plan("adopt")
    assert plan(body(owner=own), body(owner=theirs)) == expected


@pytest.mark.parametrize(
    ("uid", "found", "may"),
    [
        ("1", body(), True),
        ("", body(), True),  # submitting was interrupted: perhaps it was created
        ("", body(digest="other"), True),
        ("1", None, True),  # gone, and what it referred to may be left
        ("0", body(), False),  # a later attempt has replaced it
        ("", body(run="other"), False),
        ("1", body(run="other"), False),
    ],
)
def test_what_a_launcher_may_remove(uid: str, found: dict[str, Any] | None, may: bool) -> None:
    assert may_remove(body(), uid, found) == may


def test_settings_are_the_same_by_their_digest() -> None:
    assert same_settings(body(), body()) and not same_settings(body(digest="other"), body())
    assert not same_settings(body(annotations={}), body())


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_a_job_that_kueue_does_not_suspend_would_run_past_the_queue(runtime: str) -> None:
    kind = RUNTIMES[runtime]
    answer = body(kind.kind, labels={"kueue.x-k8s.io/queue-name": "training"})
    run_policy = runtime == "pytorchjob"
    answer["spec"] = {"runPolicy": {"suspend": True}} if run_policy else {"suspend": True}
    assert past_the_queue(kind, answer) == ""
    answer["spec"] = {"runPolicy": {}} if run_policy else {}
    why = past_the_queue(kind, answer)
    assert f"job.queue=training: Kueue does not manage a {kind.kind} on this cluster" in why
    assert f"add {kind.integration} to integrations.frameworks" in why


def test_events_of_other_jobs_do_not_matter() -> None:
    names = ["j", "j-node-0", "trainjob-j-4e1f2", "trainjob-other-4e1f2", "pytorchjob-j-4e1f2", "i"]
    events = [{"involvedObject": {"name": name}} for name in names]
    assert [e["involvedObject"]["name"] for e in events_about(body(), events)] == ["j", "j-node-0", "trainjob-j-4e1f2"]


@pytest.mark.parametrize(
    ("runtime", "served", "forbidden", "elastic", "expected"),
    [
        ("trainjob", SERVED, [], False, ""),
        ("pytorchjob", SERVED, [], False, ""),
        ("trainjob", {**SERVED, "trainer.kubeflow.org/v1alpha1": []}, [], False,
         "the cluster does not serve trainjobs (trainer.kubeflow.org/v1alpha1)"),
        ("trainjob", {**SERVED, "trainer.kubeflow.org/v1alpha1": ["trainjobs"]}, [], False,
         "the cluster does not serve trainingruntimes (trainer.kubeflow.org/v1alpha1)"),
        ("pytorchjob", {"kubeflow.org/v1": ["notebooks"]}, [], False,
         "the cluster does not serve pytorchjobs (kubeflow.org/v1)"),
        ("trainjob", SERVED, ["trainingruntimes"], False, "this account may not create trainingruntimes in namespace n"),
        ("trainjob", SERVED, [], True, "it needs all its pods, and job.min_workers asks for less"),
        ("pytorchjob", SERVED, [], True, ""),
    ],
)  # fmt: skip
def test_what_keeps_jobs_from_a_kind(
    runtime: str, served: dict[str, list[str]], forbidden: list[str], elastic: bool, expected: str
) -> None:
    found = obstacle(RUNTIMES[runtime], served, forbidden, elastic=elastic, namespace="n")
    assert found == expected


def test_the_first_kind_without_an_obstacle_is_taken() -> None:
    first, second = AUTOMATIC
    assert first_choice({first: ""}) == (first, "training runs as a TrainJob, which this cluster serves")
    why = "training runs as a PyTorchJob, which this cluster serves; no TrainJob: not there"
    assert first_choice({first: "not there", second: ""}) == (second, why)
    with pytest.raises(ClusterError, match=r"TrainJob: not there; PyTorchJob: nor this\. Install Kubeflow Trainer"):
        first_choice({first: "not there", second: "nor this"})
