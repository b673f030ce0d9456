"""What a cluster would object to in a job: the CRDs' schemas, and the rules of webhooks and controllers beyond them.

The rules are those of kubeflow/training-operator v1.9 (pkg/webhooks/pytorch, pkg/common/util), kubeflow/trainer v2.3
(pkg/webhooks, pkg/runtime/framework/plugins), kubernetes-sigs/jobset v0.12 (pkg/webhooks), Kubernetes' own validation of
batch/v1 Jobs, and its `restricted` pod security profile.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from hanflow.cluster.runtimes import pod_templates

ROOT = Path(__file__).parents[2]
CRDS = Path(__file__).parent / "crds"
FILES = {
    "TrainJob": "trainer.kubeflow.org_trainjobs.yaml",
    "TrainingRuntime": "trainer.kubeflow.org_trainingruntimes.yaml",
    "PyTorchJob": "kubeflow.org_pytorchjobs.yaml",
    "JobSet": "jobset.x-k8s.io_jobsets.yaml",
    "WorkflowTemplate": "argoproj.io_workflowtemplates.yaml",
    "LocalQueue": "kueue.x-k8s.io_localqueues.yaml",
}
KUBERNETES = "1.31"
"""Version of the schemas of the core kinds."""
FAILURE_REASONS = {
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
}


def problems(body: Mapping[str, Any]) -> list[str]:
    """Everything that a cluster would refuse about an object of a job; empty: it accepts the object."""
    found = schema_problems(body)
    if found:
        return found  # the rules below rely on the schema
    found += _metadata_rules(body)
    found += RULES[body["kind"]](body)
    for template in pod_templates(body):
        found += pod_problems(template)
    return found


def schema_problems(body: Mapping[str, Any]) -> list[str]:
    """What the schema of a custom kind forbids; unknown fields too, as under strict field validation."""
    if body.get("kind") not in FILES:
        return [f"kind: {body.get('kind')!r} is none of {', '.join(FILES)}"]
    version, validator = _validator(body["kind"])
    found = [] if body.get("apiVersion") == version else [f"apiVersion: expected {version}"]
    return found + [f"{'.'.join(map(str, e.absolute_path))}: {e.message}"[:500] for e in validator.iter_errors(body)]


@functools.cache
def _validator(kind: str) -> tuple[str, Any]:
    """The stored version of a custom kind, and a validator of its objects."""
    with (CRDS / FILES[kind]).open(encoding="utf-8") as stream:
        crd = yaml.load(stream, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    stored = next(version for version in crd["spec"]["versions"] if version["storage"])
    schema = _strict(stored["schema"]["openAPIV3Schema"], {})
    schema["properties"]["metadata"] = {"type": "object"}  # the API server's own, checked below
    return f"{crd['spec']['group']}/{stored['name']}", jsonschema.Draft202012Validator(schema)


def _strict(schema: Any, done: dict[int, Any]) -> Any:
    """The schema with unknown fields as errors; `done` keeps shared parts shared."""
    if isinstance(schema, list):
        return [_strict(item, done) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if id(schema) not in done:
        strict = {key: _strict(value, done) for key, value in schema.items() if key != "properties"}
        if "properties" in schema:
            strict["properties"] = {name: _strict(value, done) for name, value in schema["properties"].items()}
        if schema.get("type") == "object":
            strict.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
        done[id(schema)] = strict
    return done[id(schema)]


def _name_rules(name: str) -> Iterator[str]:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
        yield f"{name!r}: is not a DNS-1035 label of at most 63 characters"


def _metadata_rules(body: Mapping[str, Any]) -> Iterator[str]:
    metadata = body.get("metadata") or {}
    yield from _name_rules(metadata.get("name", ""))
    for key, value in (metadata.get("labels") or {}).items():
        name = key.rpartition("/")[2]
        if not re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", name):
            yield f"metadata.labels: {key!r} is not the name of a label"
        if not re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value):
            yield f"metadata.labels.{key}: {value!r} is not the value of a label"
    for owner in metadata.get("ownerReferences") or ():
        if not all(owner.get(key) for key in ("apiVersion", "kind", "name", "uid")):
            yield "metadata.ownerReferences: apiVersion, kind, name and uid are needed"


def _train_job_rules(body: Mapping[str, Any]) -> Iterator[str]:
    """A TrainJob that names a TrainingRuntime of its own."""
    spec = body["spec"]
    if spec["runtimeRef"].get("kind") != "TrainingRuntime":
        yield "spec.runtimeRef.kind: the default is a ClusterTrainingRuntime"
    trainer = spec.get("trainer") or {}
    if not all(isinstance(trainer.get(name), int) and trainer[name] > 0 for name in ("numNodes", "numProcPerNode")):
        yield "spec.trainer: without numNodes and numProcPerNode Trainer sets no or other PET_… variables"


def _training_runtime_rules(body: Mapping[str, Any]) -> Iterator[str]:
    spec = body["spec"]["template"]["spec"]
    yield from _job_set_rules({"metadata": body["metadata"], "spec": spec})
    if "ttlSecondsAfterFinished" in spec:
        yield "spec.template.spec.ttlSecondsAfterFinished: Trainer runs a job again whose JobSet is gone"
    for replicated in spec["replicatedJobs"]:
        where, template = f"spec.template.spec.replicatedJobs.{replicated['name']}", replicated["template"]
        labels = (template.get("metadata") or {}).get("labels") or {}
        if labels.get("trainer.kubeflow.org/trainjob-ancestor-step") != "trainer":
            yield f"{where}: without the label of the trainer's step Trainer changes nothing in it"
        if replicated.get("replicas") != 1:
            yield f"{where}.replicas: must be 1"
        if len(replicated["name"]) > 20:
            yield f"{where}: the name has more than 20 characters"
        containers = template["spec"]["template"]["spec"]["containers"]
        if (replicated["name"], [container["name"] for container in containers]) != ("node", ["node"]):
            yield f"{where}: the address of rank 0 and the variables need the name node, of the job and of its container"
        if any(v["name"].startswith("PET_") for c in containers for v in c.get("env") or ()):
            yield f"{where}: PET_… variables are Trainer's"
    if body["spec"].get("mlPolicy", {}).get("torch") is None:
        yield "spec.mlPolicy.torch: without it Trainer sets no PET_… variables"


def _pytorch_rules(body: Mapping[str, Any]) -> Iterator[str]:
    spec = body["spec"]
    replicas = spec.get("pytorchReplicaSpecs") or {}
    if not replicas:
        yield "spec.pytorchReplicaSpecs: is required"
    if spec.get("elasticPolicy"):
        if "Worker" not in replicas:
            yield "spec.elasticPolicy: needs a Worker"
        if "nProcPerNode" in spec["elasticPolicy"] and "nprocPerNode" in spec:
            yield "spec.elasticPolicy.nProcPerNode: must not be used with spec.nprocPerNode"
        least, most = (spec["elasticPolicy"].get(key) for key in ("minReplicas", "maxReplicas"))
        if (least is None) != (most is None) or (least is not None and not 1 <= least <= most):
            yield "spec.elasticPolicy: minReplicas and maxReplicas go together, the one not above the other"
    elif "Master" not in replicas:
        yield "spec.pytorchReplicaSpecs: without elasticPolicy exactly one Master is needed"
    policy = spec.get("runPolicy") or {}
    if policy.get("managedBy") not in (None, "kubeflow.org/training-operator", "kueue.x-k8s.io/multikueue"):
        yield "spec.runPolicy.managedBy: unknown controller"
    if policy.get("cleanPodPolicy") not in (None, "None", "Running", "All"):
        yield "spec.runPolicy.cleanPodPolicy: None, Running or All"
    for role, replica in replicas.items():
        where = f"spec.pytorchReplicaSpecs.{role}"
        if role not in ("Master", "Worker"):
            yield f"{where}: is not a replica type"
        if role == "Master" and replica.get("replicas") != 1:
            yield f"{where}.replicas: must be 1"
        if role == "Worker" and replica.get("replicas", 1) < 1:
            yield f"{where}.replicas: must be at least 1"
        if replica.get("restartPolicy") not in (None, "Always", "OnFailure", "Never", "ExitCode"):
            yield f"{where}.restartPolicy: unknown"
        if "restartPolicy" in replica["template"].get("spec", {}):
            yield f"{where}.template.spec.restartPolicy: is overwritten by the replica's"
        containers = replica["template"].get("spec", {}).get("containers") or ()
        named = [container for container in containers if container["name"] == "pytorch"]
        if len(named) != 1:
            yield f"{where}: exactly one container named pytorch is needed"
        ports = [port for container in named for port in container.get("ports") or ()]
        if not any(port.get("name") == "pytorchjob-port" for port in ports):
            yield f"{where}: container pytorch has no port pytorchjob-port"
        count = replica.get("replicas", 1)
        yield from _name_rules(f"{body['metadata']['name']}-{role.lower()}-{count - 1}")


def _job_set_rules(body: Mapping[str, Any]) -> Iterator[str]:
    spec, name = body["spec"], body["metadata"]["name"]
    known = [replicated["name"] for replicated in spec["replicatedJobs"]]
    if len(set(known)) != len(known):
        yield "spec.replicatedJobs: names are not unique"
    for replicated in spec["replicatedJobs"]:
        where = f"spec.replicatedJobs.{replicated['name']}"
        job = replicated["template"]["spec"]
        replicas, hosts = replicated.get("replicas", 1), job.get("completions") or 1
        yield from _name_rules(f"{name}-{replicated['name']}-{replicas - 1}")
        yield from _name_rules(f"{name}-{replicated['name']}-{replicas - 1}-{hosts - 1}-abcde")
        yield from _job_rules(where, job)
    rules = (spec.get("failurePolicy") or {}).get("rules") or []
    if len({rule["name"] for rule in rules}) != len(rules):
        yield "spec.failurePolicy.rules: names are not unique"
    for rule in rules:
        where = f"spec.failurePolicy.rules.{rule['name']}"
        if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]{0,126}[A-Za-z0-9_])?", rule["name"]):
            yield f"{where}: is not the name of a rule"
        if not set(rule.get("onJobFailureReasons") or ()) <= FAILURE_REASONS:
            yield f"{where}.onJobFailureReasons: unknown reason"
        if not set(rule.get("targetReplicatedJobs") or ()) <= set(known):
            yield f"{where}.targetReplicatedJobs: unknown job"


def _job_rules(where: str, job: Mapping[str, Any]) -> Iterator[str]:
    """Kubernetes' own rules of a batch/v1 Job."""
    pod = job["template"]["spec"]
    policy = pod.get("restartPolicy")
    if policy not in ("Never", "OnFailure"):
        yield f"{where}: restartPolicy of the pods must be Never or OnFailure"
    if job.get("completionMode") == "Indexed" and (job.get("parallelism") or 0) > (job.get("completions") or 0):
        yield f"{where}: more parallelism than completions"
    if "podFailurePolicy" in job and policy != "Never":
        yield f"{where}.podFailurePolicy: needs restartPolicy Never"
    for rule in job.get("podFailurePolicy", {}).get("rules", ()):
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            yield f"{where}.podFailurePolicy: a rule has either onExitCodes or onPodConditions"
        codes = rule.get("onExitCodes")
        if codes:
            if codes.get("containerName") not in [c["name"] for c in pod["containers"]]:
                yield f"{where}.podFailurePolicy: unknown container"
            values = codes["values"]
            if values != sorted(set(values)) or (codes["operator"] == "In" and 0 in values):
                yield f"{where}.podFailurePolicy: exit codes are ordered, unique, and never 0"


RULES = {
    "PyTorchJob": _pytorch_rules,
    "JobSet": _job_set_rules,
    "TrainJob": _train_job_rules,
    "TrainingRuntime": _training_runtime_rules,
}


def pod_problems(template: Mapping[str, Any]) -> list[str]:
    """What Kubernetes and its `restricted` profile forbid in a pod template."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "checked", **copy.deepcopy(dict(template.get("metadata") or {}))},
        "spec": template["spec"],
    }
    try:
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"pod {'.'.join(map(str, error.path))}: {error.message}"[:500]]
    return [*_pod_rules(template["spec"]), *_restricted(template["spec"])]


def _pod_rules(spec: Mapping[str, Any]) -> Iterator[str]:
    volumes = [volume["name"] for volume in spec.get("volumes") or ()]
    if len(set(volumes)) != len(volumes):
        yield "pod: two volumes of one name"
    for container in spec["containers"]:
        if not container.get("image"):
            yield f"container {container['name']}: image is required"
        mounts = container.get("volumeMounts") or ()
        if not {mount["name"] for mount in mounts} <= set(volumes):
            yield f"container {container['name']}: mounts a volume that is not there"
        if len({mount["mountPath"] for mount in mounts}) != len(mounts):
            yield f"container {container['name']}: two volumes at one path"
        names = [variable["name"] for variable in container.get("env") or ()]
        if len(set(names)) != len(names):
            yield f"container {container['name']}: a variable is set twice"
        resources = container.get("resources") or {}
        for device, count in (resources.get("limits") or {}).items():
            if "/" in device and (resources.get("requests") or {}).get(device) != count:
                yield f"container {container['name']}: requests and limits of {device} differ"


def _restricted(spec: Mapping[str, Any]) -> Iterator[str]:
    """The `restricted` pod security standard, and two rules of ours: a read-only root file system, limits on scratch space."""
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for volume in spec.get("volumes") or ():
        if not set(volume) - {"name"} <= allowed:
            yield f"volume {volume['name']}: its type is not restricted"
        if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit"):
            yield f"volume {volume['name']}: has no size limit"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"pod: {key}"
    pod = spec.get("securityContext") or {}
    for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
        own, name = container.get("securityContext") or {}, container["name"]
        if not own.get("runAsNonRoot", pod.get("runAsNonRoot")):
            yield f"container {name}: may run as root"
        if own.get("runAsUser", pod.get("runAsUser")) in (None, 0):
            yield f"container {name}: names no user other than root"
        if (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type") not in (
            "RuntimeDefault",
            "Localhost",
        ):
            yield f"container {name}: has no seccomp profile"
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"container {name}: may gain privileges"
        capabilities = own.get("capabilities") or {}
        if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
            yield f"container {name}: keeps capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"container {name}: may write to its root file system"
        if any(port.get("hostPort") for port in container.get("ports") or ()):
            yield f"container {name}: takes a port of its node"
