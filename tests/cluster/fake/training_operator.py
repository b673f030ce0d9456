"""The training operator, after kubeflow/training-operator v1.9 (pkg/controller.v1/common/pod.go)."""

from __future__ import annotations

import copy
from typing import Any

from tests.cluster.fake.jobs import held, make_pod, pods_of, set_condition
from tests.cluster.fake.store import Store, now


def operate_pytorch_job(store: Store, job: dict[str, Any], admit: bool) -> None:
    """One turn of the training operator."""
    name, spec = job["metadata"]["name"], job["spec"]

    def change(kind: str, message: str) -> None:
        store.update("pytorchjobs", name, lambda j: set_condition(j, kind, f"PyTorchJob{kind}", message))

    pods = {pod["metadata"]["name"]: pod for pod in pods_of(store, job)}
    if held(job, "Succeeded") or held(job, "Failed"):
        if spec["runPolicy"].get("cleanPodPolicy") == "Running":
            for pod in pods.values():
                if pod["status"]["phase"] in ("Running", "Pending"):
                    store.update(
                        "pods", pod["metadata"]["name"], lambda p: p["metadata"].setdefault("deletionTimestamp", now())
                    )
        return
    change("Created", f"PyTorchJob {name} is created.")
    if not admit and not pods:
        change("Suspended", f"PyTorchJob {name} is suspended.")
        return
    nodes = [
        (role, index)
        for role in ("Master", "Worker")
        for index in range(spec["pytorchReplicaSpecs"].get(role, {}).get("replicas", 0))
    ]
    for rank, (role, index) in enumerate(nodes):
        pod_name = f"{name}-{role.lower()}-{index}"
        pod = pods.get(pod_name)
        replica = spec["pytorchReplicaSpecs"][role]
        if pod is None:
            labels = {
                "training.kubeflow.org/job-name": name,
                "training.kubeflow.org/replica-type": role.lower(),
                "training.kubeflow.org/replica-index": str(index),
                **({"training.kubeflow.org/job-role": "master"} if role == "Master" else {}),
            }
            make_pod(
                store, job, pod_name, _with_torchrun_environment(replica["template"], spec, rank, len(nodes)), labels
            )
            continue
        if pod["status"]["phase"] != "Failed":
            continue
        code = 0xBEEF
        for container in pod["status"].get("containerStatuses", ()):
            code = container["state"].get("terminated", {}).get("exitCode", code)
        if replica["restartPolicy"] != "ExitCode" or code >= 128:
            store.delete("pods", pod_name)
            change("Restarting", f"job {name} is restarting because {role} replica(s) failed.")
        else:
            change("Failed", f'job "{name}" is failing because "{role}" replica(s) failed.')
    first = pods.get(f"{name}-{nodes[0][0].lower()}-0", {}).get("status", {}).get("phase")
    if first == "Succeeded":
        change("Succeeded", f"PyTorchJob {name} is successfully completed.")
    elif first == "Running" and not held(job, "Failed"):
        change("Running", f"PyTorchJob {name} is running.")


def _with_torchrun_environment(template: dict[str, Any], spec: dict[str, Any], rank: int, nodes: int) -> dict[str, Any]:
    template = copy.deepcopy(template)
    template["spec"]["containers"][0]["env"] += [
        {"name": "MASTER_ADDR", "value": "127.0.0.1"},
        {"name": "PET_MASTER_ADDR", "value": "127.0.0.1"},
        {"name": "PET_NNODES", "value": str(nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": spec["nprocPerNode"]},
        {"name": "PET_NODE_RANK", "value": str(rank)},
        {"name": "RANK", "value": str(rank)},
        {"name": "WORLD_SIZE", "value": str(nodes)},
    ]
    return template
