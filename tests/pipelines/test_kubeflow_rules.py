"""The compiled packages keep the rules of Kubeflow Pipelines' backend; no real one has run them (docs/cluster.md)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from hanflow.experiment import EXPERIMENTS, load_experiment
from hanflow.pipelines.packages import ANY, PIPELINES, Package
from tests.pipelines.kubeflow_rules import ARGUMENT, problems
from tests.pipelines.test_pipelines import ROOT

Spec = dict[str, Any]


@functools.cache
def parts(name: str) -> tuple[Spec, Spec]:
    """The pipeline and the platform's part of a committed package."""
    text = (ROOT / "pipelines" / "compiled" / f"{name}.yaml").read_text(encoding="utf-8")
    spec, platform = yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return spec, platform


@pytest.mark.parametrize("name", [*PIPELINES, ANY])
def test_committed_packages_keep_the_rules(name: str) -> None:
    assert problems(*parts(name)) == []


def test_what_an_experiment_makes_of_them_does_too() -> None:
    for path in EXPERIMENTS.glob("*.yaml"):
        package = Package.of(load_experiment(path, require=False))
        assert problems(package.spec, *package.platform) == [], path.name


def inner(spec: Spec) -> Spec:
    """The tasks inside the exit handler."""
    return spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]


def inputs(spec: Spec, task: str) -> Spec:
    return inner(spec)[task]["inputs"]["parameters"]


def text(value: str) -> Spec:
    return {"runtimeValue": {"constant": value}}


def output(task: str, key: str) -> Spec:
    return {"taskOutputParameter": {"producerTask": task, "outputParameterKey": key}}


CHANNEL = "{{$.inputs.parameters['pipelinechannel--configure-train_cpu']}}"
BROKEN: dict[str, tuple[Callable[[Spec, Spec], Any], str]] = {
    "unknown field": (lambda s, p: inner(s)["train"].update(retries=3), 'no field named "retries"'),
    "unknown field of a container": (
        lambda s, p: s["deploymentSpec"]["executors"]["exec-train"]["container"].update(imagePullPolicy="Never"),
        'no field named "imagePullPolicy"',
    ),
    "unknown field of Kubernetes": (
        lambda s, p: p["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"].update(runAsUser=1),
        'no field named "runAsUser"',
    ),
    "another schema": (lambda s, p: s.update(schemaVersion="2.0.0"), "KFP takes 2.1.0 alone"),
    "a name with capitals": (lambda s, p: s["pipelineInfo"].update(name="Hanflow"), "pipelineInfo.name"),
    "a name too long": (lambda s, p: inner(s).update({"a" * 57: inner(s)["train"]}), "is not a name in Kubernetes"),
    "text around a placeholder": (
        lambda s, p: inputs(s, "train").update(run_id=text(f"run {CHANNEL}")),
        "no placeholder with text around it",
    ),
    "a placeholder in a mapping": (
        lambda s, p: inputs(s, "configure").update(base={"runtimeValue": {"constant": {"a": CHANNEL}}}),
        "no placeholder with text around it",
    ),
    "a placeholder of nothing": (
        lambda s, p: inputs(s, "train").pop("pipelinechannel--configure-train_cpu"),
        "pipelinechannel--configure-train_cpu is no input of the task",
    ),
    "no such output": (lambda s, p: inputs(s, "train").update(shards=output("tokenize", "URI")), "no URI of tokenize"),
    "an output of a later task": (
        lambda s, p: inputs(s, "train").update(shards=output("evaluate", "Output")),
        "no Output of evaluate before it",
    ),
    "an input that the group lacks": (
        lambda s, p: inputs(s, "train").update(shards={"componentInputParameter": "shards"}),
        "shards is no input of the group",
    ),
    "another type": (lambda s, p: inputs(s, "train").update(settings=text("{}")), "is a STRING, and STRUCT is wanted"),
    "a missing input": (lambda s, p: inputs(s, "train").pop("shards"), "input shards: is missing"),
    "a default of another type": (
        lambda s, p: s["components"]["comp-configure"]["inputDefinitions"]["parameters"]["epochs"].update(
            defaultValue="3"
        ),
        "its default is no NUMBER",
    ),
    "a circle": (lambda s, p: inner(s)["preprocess"].update(dependentTasks=["train"]), "cycle"),
    "an exit task that needs a result": (
        lambda s, p: s["root"]["dag"]["tasks"]["remove-jobs"]["inputs"]["parameters"].update(
            runtime=output("exit-handler-1", "Output")
        ),
        "no Output of exit-handler-1",
    ),
    "a condition on text": (
        lambda s, p: inner(s)["condition-2"]["triggerPolicy"].update(
            condition="inputs.parameter_values['pipelinechannel--good-enough-Output'] == 'true'"
        ),
        "not with its type",
    ),
    "a condition in Python": (
        lambda s, p: inner(s)["condition-2"]["triggerPolicy"].update(condition="good is True"),
        "condition good is True",
    ),
    "no type of artifact": (
        lambda s, p: s["components"]["comp-train"]["outputDefinitions"]["artifacts"]["model"]["artifactType"].update(
            schemaTitle="hanflow.Model"
        ),
        "is no type of KFP's artifacts",
    ),
    "nodes from elsewhere": (
        lambda s, p: p["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-export"].update(
            nodeSelector={"nodeSelectorJson": output("configure", "node_selector")}
        ),
        "nodeSelector: there is no node_selector of configure",
    ),
    "resources of nothing": (
        lambda s, p: s["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"].update(
            resourceCpuLimit="{{$.inputs.parameters['cpus']}}"
        ),
        "is no text among the task's inputs",
    ),
    "an executor of nobody": (lambda s, p: inner(s).pop("evaluate"), "executors: each belongs to one task"),
    "braces in a command": (
        lambda s, p: s["deploymentSpec"]["executors"]["exec-train"]["container"]["command"].append("f'{{x}}'"),
        "Argo replaces {{…}}",
    ),
    "too long an argument": (
        lambda s, p: inputs(s, "configure").update(settings={"runtimeValue": {"constant": {"a": "x" * ARGUMENT}}}),
        "too long for an argument of the driver",
    ),
    "another image": (
        lambda s, p: s["deploymentSpec"]["executors"]["exec-train"]["container"].update(image="hanflow:latest"),
        "has no fixed tag",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found(name: str) -> None:
    spec, platform = copy.deepcopy(parts("summarization"))
    change, message = BROKEN[name]
    change(spec, platform)
    found = problems(spec, platform)
    assert any(message in problem for problem in found), found
