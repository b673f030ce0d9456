"""What Kubeflow Pipelines would refuse of a compiled package or get wrong: its API server, compiler to Argo, and driver.

None of them can be had as a package, so these are the rules of their sources (backend/src/apiserver/template and
backend/src/v2, of 2.14 to 2.18 and of what follows), on top of the schemas that kfp-pipeline-spec and kfp-kubernetes have.
"""

from __future__ import annotations

import graphlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec import pipeline_spec_pb2 as schema

ARGUMENT = 128 * 1024
"""Bytes: the longest argument of a program on Linux. The driver gets a task, its component and its container as one each."""
WORKFLOW = 1024 * 1024
"""Bytes of a Workflow's specification: etcd refuses objects of 1.5 MiB, and the status grows beside it."""
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,54}[a-z0-9])?")
"""Of a task: with `-driver` behind it, the name of a template in Argo and the value of a label."""
CHANNEL = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
OF_THE_RUN = {"{{$.pipeline_job_uuid}}", "{{$.pipeline_job_name}}", "{{$.pipeline_task_name}}"}
CONDITION = re.compile(r"inputs\.parameter_values\['([^']+)'\] == (true|false|'[^'\\]*'|[0-9.]+)")
"""The expressions of CEL that kfp makes of a comparison with a constant."""
ARTIFACTS = {
    f"system.{name}"
    for name in ("Artifact", "ClassificationMetrics", "Dataset", "HTML", "Markdown", "Metrics", "Model")
}
KINDS = {bool: "BOOLEAN", int: "NUMBER", float: "NUMBER", str: "STRING", list: "LIST", dict: "STRUCT"}
Task = Mapping[str, Any]
Types = Mapping[str, str]
"""Parameter → STRING, NUMBER, BOOLEAN, LIST or STRUCT."""


def problems(spec: dict[str, Any], platform: dict[str, Any]) -> list[str]:
    """Everything that is wrong with the two parts of a package; empty: nothing is."""
    found = list(_schema_problems(spec, platform))
    return found or list(Rules(spec, platform).problems())  # the rules rely on the schema


def _schema_problems(spec: dict[str, Any], platform: dict[str, Any]) -> Iterator[str]:
    executors = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    parts: list[tuple[str, Any, Message]] = [
        ("pipeline", spec, schema.PipelineSpec()),
        ("deploymentSpec", spec.get("deploymentSpec", {}), schema.PipelineDeploymentConfig()),
        ("platform", platform, schema.PlatformSpec()),
        *((label, config, KubernetesExecutorConfig()) for label, config in executors.items()),
    ]
    for name, part, message in parts:
        try:
            json_format.ParseDict(part, message)
        except json_format.ParseError as error:
            yield f"{name}: {error}"


def _types(definitions: Mapping[str, Any]) -> Types:
    parameters = definitions.get("parameters", {})
    return {name: parameter["parameterType"].partition("_")[0] for name, parameter in parameters.items()}


class Rules:
    """A package that has the right schema."""

    def __init__(self, spec: dict[str, Any], platform: dict[str, Any]):
        self.spec, self.components = spec, {**spec["components"], "root": spec["root"]}
        self.executors = spec["deploymentSpec"]["executors"]
        self.placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platform else {}

    def problems(self) -> Iterator[str]:
        if self.spec["schemaVersion"] != "2.1.0":
            yield "schemaVersion: KFP takes 2.1.0 alone"
        if not NAME.fullmatch(self.spec["pipelineInfo"]["name"]):
            yield "pipelineInfo.name: is not a name in Kubernetes"
        labels = [label for _, _, label in self._containers()]
        if sorted(labels) != sorted(self.executors) or not set(self.placed) <= set(labels):
            yield "executors: each belongs to one task, whose inputs its placement refers to"
        for name, component in self.components.items():
            for artifact in component.get("outputDefinitions", {}).get("artifacts", {}).values():
                if artifact["artifactType"]["schemaTitle"] not in ARTIFACTS:
                    yield f"{name}: {artifact['artifactType']['schemaTitle']}: is no type of KFP's artifacts"
            if "dag" in component:
                yield from (f"{name}: {problem}" for problem in self._dag_problems(component))
        for label, executor in self.executors.items():
            yield from (f"{label}: {problem}" for problem in _container_problems(executor["container"]))
        yield from self._too_large()

    def _containers(self) -> Iterator[tuple[Mapping[str, Any], Task, str]]:
        """Each task that runs a container: the component whose task it is, itself, and the label of its executor."""
        for component in self.components.values():
            for task in component.get("dag", {}).get("tasks", {}).values():
                label = self.components[task["componentRef"]["name"]].get("executorLabel")
                if label:
                    yield component, task, label

    def _too_large(self) -> Iterator[str]:
        tasks = [
            task
            for component in self.components.values()
            for task in component.get("dag", {"tasks": {}})["tasks"].values()
        ]
        sizes = [
            len(json.dumps(p))
            for p in (*tasks, *self.components.values(), *self.executors.values(), *self.placed.values())
        ]
        if max(sizes) > ARGUMENT:
            yield f"a part of {max(sizes)} bytes is too long for an argument of the driver"
        if sum(sizes) > WORKFLOW:
            yield f"{sum(sizes)} bytes are too many for a Workflow"

    def _dag_problems(self, component: Mapping[str, Any]) -> Iterator[str]:
        tasks, given = component["dag"]["tasks"], _types(component.get("inputDefinitions", {}))
        try:
            graphlib.TopologicalSorter({name: task.get("dependentTasks", ()) for name, task in tasks.items()}).prepare()
        except graphlib.CycleError as error:
            yield f"{error}"
        for name, task in tasks.items():
            if not NAME.fullmatch(name):
                yield f"task {name}: is not a name in Kubernetes"
            if not set(task.get("dependentTasks", ())) <= set(tasks):
                yield f"task {name}: waits for a task that is not there"
            yield from (f"task {name}: {problem}" for problem in self._task_problems(task, tasks, given))
        for output, source in component["dag"].get("outputs", {}).get("parameters", {}).items():
            place = source["valueFromParameter"]
            made = self._outputs(tasks, place["producerSubtask"]).get(place["outputParameterKey"])
            if made is None:
                yield f"output {output}: nothing makes it"

    def _outputs(self, tasks: Mapping[str, Task], name: str) -> Types:
        """The outputs of a task; none: there is no such task."""
        component = self.components[tasks[name]["componentRef"]["name"]] if name in tasks else {}
        return _types(component.get("outputDefinitions", {}))

    def _task_problems(self, task: Task, tasks: Mapping[str, Task], given: Types) -> Iterator[str]:
        component = self.components[task["componentRef"]["name"]]
        definitions = component.get("inputDefinitions", {})
        wanted, inputs = _types(definitions), task.get("inputs", {}).get("parameters", {})
        types: dict[str, str] = {}
        for name, source in inputs.items():
            try:
                types[name] = self._type(source, task, tasks, given)
            except LookupError as error:
                yield f"input {name}: {error.args[0]}"
        for name, kind in types.items():
            if wanted.get(name, "STRING") not in ("STRING", kind):  # the driver makes text of anything
                yield f"input {name}: is a {kind}, and {wanted[name]} is wanted"
        iterator = task.get("parameterIterator", {})
        for name, parameter in definitions.get("parameters", {}).items():
            optional = parameter.get("isOptional") or "defaultValue" in parameter
            if name not in inputs and not optional and name != iterator.get("itemInput"):
                yield f"input {name}: is missing"
            default = parameter.get("defaultValue")
            if default is not None and KINDS[type(default)] != wanted[name]:
                yield f"input {name}: its default is no {wanted[name]}"
        if iterator and types.get(iterator["items"]["inputParameter"]) != "LIST":
            yield "loops over something that is no list"
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition:
            compared = CONDITION.fullmatch(condition)
            if not compared or types.get(compared[1]) != KINDS[type(yaml.safe_load(compared[2]))]:
                yield f"condition {condition}: compares what is not there, or not with its type"
        for problem in self._placement_problems(task, tasks, given, types):
            yield f"{component['executorLabel']}: {problem}"

    def _type(self, source: Mapping[str, Any], task: Task, tasks: Mapping[str, Task], given: Types) -> str:
        """The type of what an input refers to.

        Raises:
            LookupError: it refers to nothing, or to what the driver does not resolve.
        """
        if "componentInputParameter" in source:
            if source["componentInputParameter"] not in given:
                raise LookupError(f"{source['componentInputParameter']} is no input of the group")
            return given[source["componentInputParameter"]]
        if "taskOutputParameter" in source:
            producer, key = (source["taskOutputParameter"][part] for part in ("producerTask", "outputParameterKey"))
            made = self._outputs(tasks, producer).get(key)
            if made is None or producer not in task.get("dependentTasks", ()):
                raise LookupError(f"there is no {key} of {producer} before it")
            return made
        constant = source["runtimeValue"]["constant"]
        if "{{" not in json.dumps(constant) or str(constant) in OF_THE_RUN:
            return KINDS[type(constant)]
        channel = CHANNEL.fullmatch(constant) if isinstance(constant, str) else None
        if channel is None:  # until 2.13 at random, until 2.18 unescaped in JSON, later the first one's value is all
            raise LookupError(f"{constant!r}: KFP replaces no placeholder with text around it")
        if channel[1] not in task["inputs"]["parameters"]:
            raise LookupError(f"{channel[1]} is no input of the task")
        return self._type(task["inputs"]["parameters"][channel[1]], task, tasks, given)

    def _placement_problems(self, task: Task, tasks: Mapping[str, Task], given: Types, types: Types) -> Iterator[str]:
        """Resources of the pod by the task's inputs; nodes, tolerations and Secrets by those of its group."""
        label = self.components[task["componentRef"]["name"]].get("executorLabel")
        if label is None:
            return
        for name, value in self.executors[label]["container"].get("resources", {}).items():
            channel = CHANNEL.fullmatch(str(value))
            if "{{" in str(value) and (channel is None or types.get(channel[1]) != "STRING"):
                yield f"{name}: {value} is no text among the task's inputs"
        config = self.placed.get(label, {})
        sources = [("nodeSelector", config.get("nodeSelector", {}).get("nodeSelectorJson"), {"STRUCT"})]
        sources += [
            ("tolerations", each.get("tolerationJson"), {"STRUCT", "LIST"}) for each in config.get("tolerations", ())
        ]
        sources += [("secretAsEnv", each["secretNameParameter"], {"STRING"}) for each in config.get("secretAsEnv", ())]
        for name, source, kinds in sources:
            try:
                kind = self._type(source, task, tasks, given) if source else ""
            except LookupError as error:
                yield f"{name}: {error.args[0]}"
            else:
                if source and kind not in kinds:
                    yield f"{name}: is a {kind}"


def _container_problems(container: Mapping[str, Any]) -> Iterator[str]:
    if not re.search(r":(?!latest$)[^/:]+$", container["image"]):
        yield f"image: {container['image']}: has no fixed tag"
    texts = [*container.get("command", ()), *container.get("args", ()), *(v["value"] for v in container.get("env", ()))]
    for text in texts:
        if len(text.encode()) >= ARGUMENT:
            yield "an argument is too long for Linux"
        if re.search(r"\{\{(?!\$)", text):
            yield "Argo replaces {{…}} in commands, also where the source of a component has it"
