"""The JobSet and the Job controllers, after kubernetes-sigs/jobset v0.12."""

from __future__ import annotations

import copy
import re
import uuid
from typing import Any

from tests.cluster.fake.jobs import make_pod, pods_of, set_condition
from tests.cluster.fake.store import NAMESPACE, Store, now


def operate_job_set(store: Store, job: dict[str, Any], admit: bool) -> None:
    """One turn of the JobSet and the Job controllers."""
    name, spec = job["metadata"]["name"], job["spec"]
    pods = pods_of(store, job)
    if job.get("status", {}).get("terminalState"):
        return

    def end(state: str, kind: str, reason: str, message: str) -> None:
        def change(j: dict[str, Any]) -> None:
            set_condition(j, kind, reason, message)
            j["status"]["terminalState"] = state

        store.update("jobsets", name, change)

    (replicated,) = spec["replicatedJobs"]
    batch = replicated["template"]["spec"]
    wanted = [(s, h) for s in range(replicated["replicas"]) for h in range(batch["completions"])]
    if any(pod["metadata"].get("deletionTimestamp") for pod in pods):
        return  # a restart under way
    failed = [pod for pod in pods if pod["status"]["phase"] == "Failed"]
    if failed:
        reason, message = _job_failure(batch, failed[0])
        rule = next(
            (r for r in spec["failurePolicy"]["rules"] if _applies(r, reason, message)), {"action": "RestartJobSet"}
        )
        restarts = job.get("status", {}).get("restartsCountTowardsMax", 0)
        counted = rule["action"] == "RestartJobSet"
        if rule["action"] == "FailJobSet" or (counted and restarts >= spec["failurePolicy"]["maxRestarts"]):
            end("Failed", "Failed", "FailedJobs" if not counted else "ReachedMaxRestarts", f"jobset failed: {message}")
            return
        for pod in pods:
            store.update(
                "pods", pod["metadata"]["name"], lambda p: p["metadata"].setdefault("deletionTimestamp", now())
            )
        store.update(
            "jobsets",
            name,
            lambda j: j.setdefault("status", {}).update(
                restarts=j["status"].get("restarts", 0) + 1, restartsCountTowardsMax=restarts + counted
            ),
        )
        return
    if not pods:
        for s, h in wanted:
            labels = {
                "jobset.sigs.k8s.io/jobset-name": name,
                "jobset.sigs.k8s.io/job-index": str(s),
                "batch.kubernetes.io/job-completion-index": str(h),
            }
            template = copy.deepcopy(batch["template"])
            template["spec"]["containers"][0]["env"].insert(0, {"name": "JOB_COMPLETION_INDEX", "value": str(h)})
            make_pod(store, job, f"{name}-{replicated['name']}-{s}-{h}-{uuid.uuid4().hex[:5]}", template, labels)
        return
    ready = sum(pod["status"]["phase"] == "Running" for pod in pods)
    if len(pods) == len(wanted) and all(pod["status"]["phase"] == "Succeeded" for pod in pods):
        end("Completed", "Completed", "AllJobsCompleted", "jobset completed successfully")
    else:
        status = [{"name": replicated["name"], "ready": int(ready == len(wanted))}]
        store.update("jobsets", name, lambda j: j.setdefault("status", {}).update(replicatedJobsStatus=status))


def _job_failure(batch: dict[str, Any], pod: dict[str, Any]) -> tuple[str, str]:
    where = f"pod {NAMESPACE}/{pod['metadata']['name']}"
    code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
    conditions = {c["type"] for c in pod["status"].get("conditions", ())}
    for index, rule in enumerate(batch["podFailurePolicy"]["rules"]):
        if code in rule.get("onExitCodes", {}).get("values", ()):
            container = rule["onExitCodes"]["containerName"]
            message = (
                f"Container {container} for {where} failed with exit code {code} matching FailJob rule at index {index}"
            )
            return "PodFailurePolicy", message
        if any(pattern["type"] in conditions for pattern in rule.get("onPodConditions", ())):
            return (
                "PodFailurePolicy",
                f"P{where[1:]} has condition DisruptionTarget matching FailJob rule at index {index}",
            )
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def _applies(rule: dict[str, Any], reason: str, message: str) -> bool:
    patterns = rule.get("onJobFailureMessagePatterns") or [""]
    reasons = rule.get("onJobFailureReasons") or [reason]
    return reason in reasons and any(re.search(pattern, message) for pattern in patterns)
