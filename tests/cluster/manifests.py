"""What a cluster would object to in the manifests: schemas of core kinds and CRDs, and references between objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.cluster.schemas import FILES, KUBERNETES, pod_problems, schema_problems

MANIFESTS = Path(__file__).parents[2] / "manifests"
WITHOUT_SCHEMA = {"ClusterQueue", "ResourceFlavor"}
"""Kinds whose CRD is not in `crds`: only references to them and from them are checked."""

Document = dict[str, Any]


class _Unique(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A loader that refuses a key given twice; Kubernetes silently takes the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{node.start_mark}: {', '.join(twice)}: given twice")
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[Document]:
    """The objects of a YAML file."""
    return [document for document in yaml.load_all(text, _Unique) if document]


def read(*folders: str) -> list[Document]:
    """The objects of the YAML files directly in folders of `manifests`, as `kubectl apply -f` finds them."""
    paths = [path for folder in folders for path in sorted((MANIFESTS / folder).glob("*.yaml"))]
    return [document for path in paths for document in documents(path.read_text(encoding="utf-8"))]


def identity(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def pick(objects: Sequence[Document], kind: str, name: str = "hanflow") -> Document:
    """The object of that kind and name."""
    return next(each for each in objects if identity(each) == (kind, name))


def resource_name(resource: str, group: str) -> str:
    """A resource of a rule as kubectl writes it, e.g. trainjobs.trainer.kubeflow.org."""
    kind, slash, part = resource.partition("/")
    return f"{kind}.{group}".rstrip(".") + slash + part


def problems(objects: Sequence[Document]) -> list[str]:
    """Everything that is wrong with objects that are applied together; empty: nothing is."""
    found = [problem for each in objects for problem in _schema_problems(each)]
    if found:
        return found  # the rules below rely on the schema
    seen = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
    found += [f"{key}: is defined twice" for key in set(seen) if seen.count(key) > 1]
    for each in objects:
        found += [f"{each['kind']} {each['metadata']['name']}: {problem}" for problem in _rules(each, objects)]
    return found


def _schema_problems(document: Document) -> list[str]:
    kind = document.get("kind", "")
    if kind in WITHOUT_SCHEMA:
        return [] if document.get("apiVersion") == "kueue.x-k8s.io/v1beta2" else [f"{kind}: apiVersion"]
    if kind in FILES:
        return [f"{kind}: {problem}" for problem in schema_problems(document)]
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.InvalidSchemaError) as error:
        return [f"{kind}: {'.'.join(map(str, getattr(error, 'path', ())))}: {getattr(error, 'message', error)}"[:300]]
    return []


def _rules(each: Document, objects: Sequence[Document]) -> Iterator[str]:
    kind, metadata = each["kind"], each["metadata"]
    if "namespace" in metadata:
        yield "metadata.namespace: kubectl's -n (else the context) gives it; a fixed one may not exist, or be another's"
    if "app.kubernetes.io/name" not in metadata.get("labels", {}):
        yield "metadata.labels: app.kubernetes.io/name is missing"
    if "generateName" in metadata:
        yield "metadata.generateName: applying it twice makes two"
    rules = {
        "Deployment": _deployment,
        "LocalQueue": _local_queue,
        "ClusterQueue": _cluster_queue,
        "NetworkPolicy": _network_policy,
        "Role": _role,
        "RoleBinding": _role_binding,
        "Service": _service,
        "WorkflowTemplate": _workflow_template,
    }
    if kind in rules:
        yield from rules[kind](each, objects)


def _named(objects: Sequence[Document], kind: str, name: str) -> Document | None:
    return next((o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name), None)


def _deployment(each: Document, objects: Sequence[Document]) -> Iterator[str]:
    template = each["spec"]["template"]
    spec = template["spec"]
    yield from pod_problems(template)
    if not _matches(each["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]):
        yield "spec.selector: does not match its own pods"
    if _named(objects, "ServiceAccount", spec.get("serviceAccountName", "")) is None:
        yield f"serviceAccountName: {spec.get('serviceAccountName')!r} does not exist"
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken: the demo does not use the cluster's API"
    for container in spec["containers"]:
        ports = {port["name"] for port in container.get("ports", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if container.get(probe, {}).get("httpGet", {}).get("port") not in ports:
                yield f"{probe}: names no port of the container"
        if set(container["resources"].get("limits", {})) < {"cpu", "memory", "ephemeral-storage"}:
            yield "resources.limits: cpu, memory and ephemeral-storage are needed"
        if not re.search(r":(?!latest$)[^/:]+$", container.get("image", "")):
            yield f"image: {container.get('image')}: has no fixed tag"
        yield from _variables(container, objects)


def _variables(container: Mapping[str, Any], objects: Sequence[Document]) -> Iterator[str]:
    """References to ConfigMaps and Secrets; a secret is never given as a value."""
    for variable in container.get("env", ()):
        reference = variable.get("valueFrom", {}).get("configMapKeyRef")
        if reference:
            held = _named(objects, "ConfigMap", reference["name"])
            if held is None or reference["key"] not in held["data"]:
                yield f"env {variable['name']}: no {reference['key']} in the ConfigMap {reference['name']}"
        if re.search(r"KEY|TOKEN|SECRET|PASSWORD", variable["name"]) and "secretKeyRef" not in variable.get(
            "valueFrom", {}
        ):
            yield f"env {variable['name']}: a secret comes from a Secret"


def _service(each: Document, objects: Sequence[Document]) -> Iterator[str]:
    pods = [
        o["spec"]["template"]
        for o in objects
        if o["kind"] == "Deployment" and _matches(each["spec"]["selector"], o["spec"]["template"]["metadata"]["labels"])
    ]
    ports = {p["name"] for template in pods for c in template["spec"]["containers"] for p in c.get("ports", ())}
    for port in each["spec"]["ports"]:
        if port["targetPort"] not in ports:
            yield f"port {port['port']}: no pod serves {port['targetPort']}"


def _network_policy(each: Document, objects: Sequence[Document]) -> Iterator[str]:
    spec = each["spec"]
    if not spec["podSelector"].get("matchLabels"):
        yield "spec.podSelector: selects every pod of the namespace, also Kubeflow's"
    if sorted(spec["policyTypes"]) != ["Egress", "Ingress"]:
        yield "spec.policyTypes: both directions must be named"
    ports = {(p["port"], p["protocol"]) for rule in spec["egress"] for p in rule.get("ports", ())}
    for port, why in (((53, "UDP"), "names"), ((443, "TCP"), "storage"), ((80, "TCP"), "credentials")):
        if port not in ports:
            yield f"spec.egress: {port[0]}/{port[1]} is closed, which {why} need"
    for rule in (*spec["ingress"], *spec["egress"]):
        if not rule:
            yield "an empty rule lets everything through"


def _role(each: Document, objects: Sequence[Document]) -> Iterator[str]:
    for rule in each["rules"]:
        for key in ("apiGroups", "resources", "verbs"):
            if "*" in rule[key]:
                yield f"rules: {key}: a wildcard is more than any step needs"
        if {"secrets", "pods/exec", "serviceaccounts", "roles", "rolebindings"} & set(rule["resources"]):
            yield f"rules: {', '.join(rule['resources'])}: is more than any step needs"
        if {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"]):
            yield f"rules: {', '.join(rule['verbs'])}: is more than any step needs"


def _role_binding(each: Document, objects: Sequence[Document]) -> Iterator[str]:
    if _named(objects, each["roleRef"]["kind"], each["roleRef"]["name"]) is None:
        yield f"roleRef: {each['roleRef']['name']} does not exist"
    for subject in each["subjects"]:
        if subject["kind"] != "ServiceAccount" or "namespace" in subject:
            yield "subjects: a service account of the same namespace is expected, which needs no name"
    if not any(_named(objects, "ServiceAccount", subject["name"]) for subject in each["subjects"]):
        yield "subjects: none of them exists"


def _local_queue(each: Document, objects: Sequence[Document]) -> Iterator[str]:
    if _named(objects, "ClusterQueue", each["spec"]["clusterQueue"]) is None:
        yield f"spec.clusterQueue: {each['spec']['clusterQueue']} does not exist"


def _cluster_queue(each: Document, objects: Sequence[Document]) -> Iterator[str]:
    if "namespaceSelector" not in each["spec"]:
        yield "spec.namespaceSelector: without it jobs of no namespace are admitted"
    for group in each["spec"]["resourceGroups"]:
        for flavor in group["flavors"]:
            found = _named(objects, "ResourceFlavor", flavor["name"])
            if found is None:
                yield f"flavor {flavor['name']}: does not exist"
            elif not found["spec"]["nodeLabels"]:
                yield f"flavor {flavor['name']}: names no nodes"
            if [r["name"] for r in flavor["resources"]] != group["coveredResources"]:
                yield f"flavor {flavor['name']}: its resources are not those of coveredResources in the same order"


def _matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def workflow_pods(workflow: Document) -> dict[str, Document]:
    """Pod templates of a workflow's steps, as Argo makes them."""
    spec = workflow["spec"]
    pod = {"securityContext": spec.get("securityContext"), "volumes": spec.get("volumes", [])}
    pods = {}
    for step in spec["templates"]:
        if "container" in step:
            main = {"name": "main", **step["container"]}
            for patch in yaml.safe_load(step.get("podSpecPatch", "containers: []"))["containers"]:
                sizes = patch["resources"]  # its values are filled in when the workflow starts
                merged = {
                    side: {**main.get("resources", {}).get(side, {}), **dict.fromkeys(sizes[side], "1")}
                    for side in sizes
                }
                main = {**main, "resources": merged} if patch["name"] == "main" else main
            pods[step["name"]] = {
                "metadata": step.get("metadata", {}),
                "spec": {**pod, "restartPolicy": "Never", "containers": [main]},
            }
    return pods


def _workflow_template(each: Document, objects: Sequence[Document]) -> Iterator[str]:
    spec = each["spec"]
    steps = {step["name"]: step for step in spec["templates"]}
    for key in ("entrypoint", "onExit"):
        if spec.get(key) not in steps:
            yield f"spec.{key}: no template {spec.get(key)}"
    if _named(objects, "ServiceAccount", spec.get("serviceAccountName", "")) is None:
        yield f"spec.serviceAccountName: {spec.get('serviceAccountName')!r} does not exist"
    declared = set()
    for parameter in spec["arguments"]["parameters"]:
        declared.add(f"workflow.parameters.{parameter['name']}")
        reference = parameter.get("valueFrom", {}).get("configMapKeyRef")
        if reference:
            held = _named(objects, "ConfigMap", reference["name"])
            if held is None or reference["key"] not in held["data"]:
                yield f"parameter {parameter['name']}: no {reference['key']} in the ConfigMap {reference['name']}"
            elif held["metadata"]["labels"].get("workflows.argoproj.io/configmap-type") != "Parameter":
                yield f"parameter {parameter['name']}: Argo reads only ConfigMaps with the label configmap-type=Parameter"
    for text in re.findall(r"\{\{(.*?)\}\}", yaml.safe_dump(spec)):
        known = declared | {"workflow.name", "workflow.uid"}
        task = re.fullmatch(r"tasks\.(.+)\.outputs\.result", text)
        if text.strip() not in known and not (task and task[1] in steps):
            yield f"{{{{{text}}}}}: is not defined"
    for step in steps.values():
        tasks = {task["name"]: task for task in step.get("dag", {}).get("tasks", ())}
        for task in tasks.values():
            if task["template"] not in steps:
                yield f"task {task['name']}: no template {task['template']}"
            for dependency in task.get("dependencies", ()):
                if dependency not in tasks:
                    yield f"task {task['name']}: depends on {dependency}, which does not exist"
        if "container" in step:
            if step.get("retryStrategy", {}).get("retryPolicy") != "Always" or not step["retryStrategy"].get("limit"):
                yield f"template {step['name']}: a lost node would end the run, or it would be retried for ever"
            if set(step["container"].get("resources", {}).get("limits", {})) < {"cpu", "memory", "ephemeral-storage"}:
                yield f"template {step['name']}: has no limits"
            yield from (f"template {step['name']}: {p}" for p in _variables(step["container"], objects))
    for name, template in workflow_pods(each).items():
        yield from (f"template {name}: {problem}" for problem in pod_problems(template))
