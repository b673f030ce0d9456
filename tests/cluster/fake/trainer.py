"""The controller of TrainJobs, after kubeflow/trainer v2.3 (pkg/runtime/framework/plugins/{torch,jobset})."""

from __future__ import annotations

import copy
from typing import Any

from hanflow.cluster import status
from tests.cluster.fake.jobs import set_condition
from tests.cluster.fake.store import Store


def operate_train_job(store: Store, job: dict[str, Any], admit: bool) -> None:
    """One turn of the controller: a JobSet of the job's name, found by its name alone, and the status copied from it."""
    name = job["metadata"]["name"]
    child = store.objects.get(("jobsets", name))
    if child is None:
        runtime = store.objects.get(("trainingruntimes", name))
        if status.phase(job).finished or runtime is None:
            return
        if not admit:
            message = "TrainJob is suspended"
            store.update("trainjobs", name, lambda j: set_condition(j, "Suspended", "Suspended", message))
            return
        store.create("jobsets", _job_set(job, runtime))
        return

    def copy_status(job: dict[str, Any]) -> None:
        held = job.setdefault("status", {})
        held["conditions"] = [c for c in held.get("conditions", ()) if c["type"] != "Suspended"]
        for condition in child.get("status", {}).get("conditions", ()):
            kind = {"Completed": "Complete", "Failed": "Failed"}.get(condition["type"])
            if kind:
                set_condition(job, kind, condition["reason"], condition["message"])
        held["jobsStatus"] = copy.deepcopy(child.get("status", {}).get("replicatedJobsStatus", []))

    store.update("trainjobs", name, copy_status)


def _job_set(job: dict[str, Any], runtime: dict[str, Any]) -> dict[str, Any]:
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    spec = copy.deepcopy(runtime["spec"]["template"]["spec"])
    batch = spec["replicatedJobs"][0]["template"]["spec"]
    batch.update(parallelism=trainer["numNodes"], completions=trainer["numNodes"])
    batch["template"]["spec"]["containers"][0]["env"] += [
        {"name": "PET_NNODES", "value": str(trainer["numNodes"])},
        {"name": "PET_NPROC_PER_NODE", "value": str(trainer["numProcPerNode"])},
        {"name": "PET_MASTER_ADDR", "value": "127.0.0.1"},
        # By a reference to the pod's annotation there.
        {"name": "PET_NODE_RANK", "value": "$(JOB_COMPLETION_INDEX)"},
    ]
    owner = {"apiVersion": job["apiVersion"], "kind": "TrainJob", "name": name, "uid": job["metadata"]["uid"]}
    return {"kind": "JobSet", "metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec}
