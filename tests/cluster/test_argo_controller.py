"""The WorkflowTemplate under Argo's own controller and executor, on a real cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hanflow.cluster.client import ClusterError, NotFound
from hanflow.storage import gcs
from hanflow.storage.gcs import service
from tests.cluster import argo
from tests.cluster.argo import step, workflow
from tests.cluster.manifests import Document, pick, read
from tests.cluster.pods import bucket_server, make_bucket, require_this_machine, training_image
from tests.cluster.world import IMAGE, PODS, World

pytestmark = pytest.mark.cluster

OBJECTS = "/apis/argoproj.io/v1alpha1/namespaces/{namespace}"
CONFIG_MAPS = "/api/v1/namespaces/{namespace}/configmaps"
SMALL = {"cpu": "20m", "memory": "64Mi", "ephemeral-storage": "1Gi"}  # its executor is a file of 110 MB in the pod
ENDED = ("Succeeded", "Failed", "Error")
EXPERIMENT = "name: 실험\ntask: summarization\nevaluate: {minimum: {rougeL_morpheme: 0.1}}  # {not: 'Argo''s'}\n"
EVERY_STEP = ["preprocess", "tokenize", "train", "evaluate", "gate", "export", "remove-jobs"]
GOOD = "case $2 in *.gate) echo true;; esac"
LONG = "case $2 in *.train) echo training; sleep 600;; esac"


class Argo:
    """A copy of our template for one test, and a workflow of it.

    Args:
        commands: what stands for `python` in busybox's shell, with the arguments of the template; empty: our image has Python.
        patch: of the pods; here, for what the node of a test has, and for the stand-in.
    """

    def __init__(self, world: World, commands: str = "", patch: Mapping[str, Any] | None = None):
        self.world, self.name = world, f"argo-{world.run[-12:]}"
        main: dict[str, Any] = {"name": "main", "resources": {"requests": SMALL, "limits": SMALL}, **(patch or {})}
        self.patch: dict[str, Any] = {"containers": [main]}
        if commands:
            self.stand_in(commands)
            main |= {
                "env": [{"name": "PATH", "value": "/stand-in:/bin"}],
                "volumeMounts": [{"name": "stand-in", "mountPath": "/stand-in"}],
            }
            self.patch["volumes"] = [{"name": "stand-in", "configMap": {"name": self.name, "defaultMode": 0o755}}]

    def stand_in(self, commands: str) -> None:
        """From now on, started pods run other commands."""
        data = {"python": f"#!/bin/sh\n{commands}\n"}
        self._apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": self.name}, "data": data})

    def _apply(self, body: Mapping[str, Any]) -> None:
        groups = {"ConfigMap": CONFIG_MAPS, "WorkflowTemplate": f"{OBJECTS}/workflowtemplates"}
        path = f"{groups[body['kind']]}/{body['metadata']['name']}"
        with contextlib.suppress(NotFound):
            old = self.world.admin.request("GET", path)
            version = {"resourceVersion": old["metadata"]["resourceVersion"]}
            self.world.admin.request("PUT", path, body={**body, "metadata": {**body["metadata"], **version}})
            return
        self.world.admin.request("POST", path.rpartition("/")[0], body=body)

    def submit(self, *, pause: str = "5", **parameters: str) -> None:
        """Start a workflow, as `argo submit --from workflowtemplate/…` does.

        Args:
            pause: seconds before a step is tried again, instead of the template's.
        """
        objects = read("base", "argo")
        configuration, template = pick(objects, "ConfigMap"), pick(objects, "WorkflowTemplate")
        for each in (configuration, template):
            each["metadata"].pop("namespace", None)
        template["metadata"]["name"] = self.name
        for each in template["spec"]["templates"]:
            if "retryStrategy" in each:
                each["retryStrategy"]["backoff"]["duration"] = pause
        self._apply(configuration)
        self._apply(template)
        values = {"image": IMAGE, "train-cpu": "30m", "train-memory": "96Mi", **parameters}
        body = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"name": self.name},
            "spec": {
                "workflowTemplateRef": {"name": self.name},
                "arguments": {"parameters": [{"name": name, "value": value} for name, value in values.items()]},
                "podSpecPatch": json.dumps(self.patch),
            },
        }

        def accepted() -> bool:
            made = self.world.admin.request("POST", f"{OBJECTS}/workflows", body=body)
            self.world.wait("the controller", lambda: self.status().get("phase"))
            self.values = argo.values_of(read("base", "argo"), values, name=self.name, uid=made["metadata"]["uid"])
            unknown = "workflowtemplates.argoproj.io" in self.status().get("message", "")
            if unknown:  # the controller has not seen it yet
                self.world.admin.request("DELETE", f"{OBJECTS}/workflows/{self.name}")
            return not unknown

        self.world.wait("the template in the controller's eyes", accepted)

    def status(self) -> dict[str, Any]:
        return self.world.admin.request("GET", f"{OBJECTS}/workflows/{self.name}").get("status", {})

    def stop(self) -> None:
        """As `argo stop` does; `argo terminate` would run no exit handler."""
        body = self.world.admin.request("GET", f"{OBJECTS}/workflows/{self.name}")
        body["spec"]["shutdown"] = "Stop"
        self.world.admin.request("PUT", f"{OBJECTS}/workflows/{self.name}", body=body)

    def finish(self, seconds: float = 300) -> str:
        """How it ended."""
        self.world.wait("the end of the workflow", lambda: self.status().get("phase") in ENDED, seconds)
        return self.status()["phase"]

    def nodes(self, kind: str, name: str = "") -> list[dict[str, Any]]:
        """Its nodes of a type (Pod, Retry, …), of one template or all, in the order in which they started."""
        nodes = sorted(
            self.status().get("nodes", {}).values(), key=lambda node: (node["startedAt"] or "~", node["name"])
        )
        return [node for node in nodes if node["type"] == kind and name in ("", node["templateName"])]

    def pods(self, name: str) -> list[dict[str, Any]]:
        """The pods of a template."""
        nodes = [node["id"] for node in self.nodes("Pod", name)]
        query = {"labelSelector": f"workflows.argoproj.io/workflow={self.name}"}
        pods = self.world.admin.request("GET", PODS, query=query)["items"]
        return [pod for pod in pods if pod["metadata"]["annotations"]["workflows.argoproj.io/node-id"] in nodes]

    def log(self, name: str) -> str:
        """What the only pod of a template printed, and the executor's own messages; empty: it does not run yet."""
        (pod,) = self.pods(name) or [None]
        if pod is None or pod["status"]["phase"] == "Pending":
            return ""
        path = f"{PODS}/{pod['metadata']['name']}/log"
        with (
            contextlib.suppress(ClusterError),  # its container starts
            self.world.admin.stream(path, query={"container": "main"}) as lines,
        ):
            return "".join(f"{line.decode()}\n" for line in lines)
        return ""

    def remove(self) -> None:
        for path in (f"{OBJECTS}/workflows", f"{OBJECTS}/workflowtemplates", CONFIG_MAPS):
            with contextlib.suppress(NotFound):
                self.world.admin.request("DELETE", f"{path}/{self.name}", body={"propagationPolicy": "Background"})


def check_pod(found: Document, template: Document, values: Mapping[str, str]) -> None:
    """A pod is what the template says, and holds what Argo adds."""
    spec, container = found["spec"], template["container"]
    assert spec["serviceAccountName"] == "hanflow"
    assert spec["securityContext"] == workflow(read("argo"))["securityContext"]
    assert found["metadata"]["labels"]["app.kubernetes.io/name"] == "hanflow-step"
    (main,) = [each for each in spec["containers"] if each["name"] == "main"]
    assert main["image"] == values["workflow.parameters.image"]
    executor, _, command = " ".join(main["command"]).partition(" -- ")
    assert executor.startswith("/var/run/argo/argoexec emissary")
    assert command.split() == container["command"]
    assert main["args"] == [argo.filled(text, values) for text in container["args"]]
    assert main["securityContext"] == container["securityContext"]
    given = {variable["name"]: variable for variable in main["env"]}
    for variable in container["env"]:
        if "value" in variable:
            assert given[variable["name"]]["value"] == argo.filled(variable["value"], values)
        else:
            assert given[variable["name"]] == variable
    assert {"name": "scratch", "mountPath": "/tmp"} in main["volumeMounts"]
    assert {"name": "scratch", "emptyDir": {"sizeLimit": "100Gi"}} in spec["volumes"]


@pytest.fixture
def submitted(world: World) -> Iterator[list[Argo]]:
    made: list[Argo] = []
    yield made
    for each in made:
        each.remove()


def test_every_pod_is_what_the_template_says(world: World, submitted: list[Argo]) -> None:
    commands = f"[ -e /etc/hanflow/experiment.yaml ] && cat /etc/hanflow/experiment.yaml >&2; {GOOD}"
    run = Argo(world, commands)
    submitted.append(run)
    run.submit(source="gs://a/r.tsv,gs://b/*.gz", experiment=EXPERIMENT, root="gs://bucket/runs", queue="team")
    assert run.finish() == "Succeeded", run.status()
    assert [node["templateName"] for node in run.nodes("Pod")] == EVERY_STEP, "one after the other"
    for name in EVERY_STEP:
        (pod,) = run.pods(name)
        template = step(read("argo"), name)
        check_pod(pod, template, run.values)
        if "inputs" in template:
            assert EXPERIMENT in run.log(name), "the experiment came to the step's file unchanged"
    (main,) = [each for each in run.pods("train")[0]["spec"]["containers"] if each["name"] == "main"]
    assert main["resources"]["requests"] == {**SMALL, "cpu": "30m", "memory": "96Mi"}, (
        "the parameters of the installation"
    )


def test_the_workflow_turns_raw_data_into_a_bundle(
    world: World, submitted: list[Argo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our image, our commands, a bucket: nothing stands for anything."""
    require_this_machine()
    image, text = training_image(), argo.small_experiment("classification")
    with bucket_server(world) as host:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
        monkeypatch.setenv("HANFLOW_CACHE", str(tmp_path / "cache"))
        service._client_of.cache_clear()  # a client keeps its host, and other tests have another server
        make_bucket(world, host, "argo")
        gcs.put("gs://argo/raw.tsv", argo.raw_data("classification"))
        environment = {"STORAGE_EMULATOR_HOST": host, "OMP_NUM_THREADS": "1"}
        run = Argo(
            world,
            patch={
                "env": [{"name": name, "value": value} for name, value in environment.items()],
                "resources": {
                    "requests": {**SMALL, "memory": "512Mi"},
                    "limits": {**SMALL, "cpu": "1", "memory": "2Gi"},
                },
            },
        )
        submitted.append(run)
        parameters = {"train-cpu": "500m", "train-memory": "2Gi", "root": "gs://argo/runs", "image": image}
        run.submit(pause="20", source="gs://argo/raw.tsv", experiment=text, **parameters)
        assert run.finish(900) == "Succeeded", [(n["templateName"], n.get("message")) for n in run.nodes("Pod")]
        assert list(dict.fromkeys(node["templateName"] for node in run.nodes("Pod"))) == EVERY_STEP
        place = f"gs://argo/runs/{run.name}"
        argo.check_artifacts("classification", text, "gs://argo/raw.tsv", place, tmp_path)


def test_a_model_that_is_not_good_enough_is_not_exported(world: World, submitted: list[Argo]) -> None:
    run = Argo(world, "case $2 in *.gate) echo false;; esac")
    submitted.append(run)
    run.submit(source="x")
    assert run.finish() == "Succeeded"
    assert [node["templateName"] for node in run.nodes("Pod")] == [name for name in EVERY_STEP if name != "export"]
    (skipped,) = run.nodes("Skipped")
    assert skipped["templateName"] == "export" and "false == true" in skipped["message"]


def test_a_failed_step_and_a_lost_pod_are_tried_again(world: World, submitted: list[Argo]) -> None:
    run = Argo(world, "case $2 in *.preprocess) exit 7;; esac")
    submitted.append(run)
    run.submit(source="x")
    world.wait("a failed pod", lambda: any(n["phase"] == "Failed" for n in run.nodes("Pod", "preprocess")))
    run.stand_in(LONG)
    world.wait("a running train step", lambda: "training" in run.log("train"))
    run.stand_in(GOOD)
    (lost,) = run.pods("train")
    world.admin.request("DELETE", f"{PODS}/{lost['metadata']['name']}", body={"gracePeriodSeconds": 0})
    assert run.finish() == "Succeeded", run.status()
    first, *_, last = run.nodes("Pod", "preprocess")
    assert (first["phase"], first["outputs"]["exitCode"], last["phase"]) == ("Failed", "7", "Succeeded")
    # Argo 4 starts a pod that vanished soon after its start again by itself; a later one is an error, and tried again
    assert run.nodes("Pod", "train")[-1]["phase"] == "Succeeded"
    assert run.pods("train")[-1]["metadata"]["uid"] != lost["metadata"]["uid"]
    assert run.nodes("Pod", "export") and run.nodes("Pod", "remove-jobs")


def test_a_stopped_run_still_removes_its_jobs(world: World, submitted: list[Argo]) -> None:
    run = Argo(world, LONG)
    submitted.append(run)
    run.submit(source="x")
    world.wait("a running train step", lambda: "training" in run.log("train"))
    run.stop()
    assert run.finish() == "Failed"
    assert [node["templateName"] for node in run.nodes("Pod")] == ["preprocess", "tokenize", "train", "remove-jobs"]
    assert [node["phase"] for node in run.nodes("Pod")][2:] == ["Failed", "Succeeded"]


def test_the_exit_handler_runs_after_a_failure(world: World, submitted: list[Argo]) -> None:
    run = Argo(world, "case $2 in *.train) exit 1;; esac")
    submitted.append(run)
    run.submit(source="x")
    assert run.finish() == "Failed"
    assert [node["phase"] for node in run.nodes("Pod", "train")] == ["Failed"] * 3, "limit: 2"
    assert not run.pods("evaluate")
    (handler,) = run.nodes("Pod", "remove-jobs")
    assert handler["phase"] == "Succeeded"
