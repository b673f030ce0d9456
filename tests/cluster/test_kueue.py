"""Jobs in a queue of a real Kueue: they wait their turn and say where, give way, and are refused where it ignores them."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from hanflow.cluster.cleanup import remove_jobs
from hanflow.cluster.client import Cluster, ClusterError, NotFound
from hanflow.cluster.job import Origin
from hanflow.cluster.launcher import launch
from hanflow.cluster.runtimes import build
from hanflow.config import JobConfig, TrainConfig
from hanflow.config.worker_spec import WorkerSpec
from tests.cluster.kubectl import kubectl, new_namespace
from tests.cluster.test_launch import meanwhile, see_through
from tests.cluster.world import ORDERS, World

Messages = pytest.LogCaptureFixture
KUEUE = "/apis/kueue.x-k8s.io/v1beta2"

pytestmark = pytest.mark.cluster


def kueue_object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def queue(world: World) -> Iterator[str]:
    """A queue of this test's own, without the ClusterQueue that it takes its quota from; both have the same name."""
    local, name = f"{KUEUE}/namespaces/{{namespace}}/localqueues", f"test-{uuid.uuid4().hex[:12]}"
    try:
        world.admin.request("POST", local, body=kueue_object("LocalQueue", name, {"clusterQueue": name}))
    except NotFound:
        pytest.skip("needs Kueue 0.15 or newer")
    yield name
    for path in (f"{local}/{name}", f"{KUEUE}/clusterqueues/{name}", f"{KUEUE}/resourceflavors/{name}"):
        with contextlib.suppress(NotFound):
            world.admin.request("DELETE", path)


def give_quota(world: World, name: str) -> None:
    """Enough for one job of two pods at a time; one of a higher priority takes the place of another."""
    world.admin.request("POST", f"{KUEUE}/resourceflavors", body=kueue_object("ResourceFlavor", name, {}))
    resources = [{"name": "cpu", "nominalQuota": "100m"}, {"name": "memory", "nominalQuota": "128Mi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": resources}]}
    spec = {
        "namespaceSelector": {},
        "resourceGroups": [group],
        "preemption": {"withinClusterQueue": "LowerPriority"},
    }
    world.admin.request("POST", f"{KUEUE}/clusterqueues", body=kueue_object("ClusterQueue", name, spec))


@pytest.fixture
def urgent(world: World) -> Iterator[str]:
    """A PriorityClass above the default."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    body = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}}
    world.admin.request("POST", path, body={**body, "value": 1000, "preemptionPolicy": "Never"})
    yield name
    world.admin.request("DELETE", f"{path}/{name}")


def orders(runtime: str) -> tuple[str, int]:
    """A script for a job of two pods, and how many of them wait for orders.

    A PyTorchJob has succeeded as soon as its master has, and its worker is removed before it gets an order.
    """
    return ("[ $NODE = 0 ] || exit 0\n" + ORDERS, 1) if runtime == "pytorchjob" else (ORDERS, 2)


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob", "tpu"])
def test_a_job_waits_for_its_quota_and_says_where(
    world: World, queue: str, runtime: str, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"runtime": runtime, "workers": 2, "queue": queue}
    give_quota(world, queue)
    script, pods = orders(runtime)
    first = world.body(script, run=f"{world.run}-first", **settings)
    second = world.body("sleep 600", run=f"{world.run}-second", **settings)
    body = world.body("echo admitted", **settings)

    def leave() -> None:
        try:
            world.wait("its place", lambda: f"number 2 in Kueue's queue {queue}, number 2 of all" in messages.text)
            world.wait("the reason", lambda: "insufficient unused quota for cpu" in messages.text)
            assert world.pods(body) == []
            remove_jobs(f"{world.run}-second", cluster=world.admin)
            world.wait("its new place", lambda: f"number 1 in Kueue's queue {queue}, number 1 of all" in messages.text)
        finally:
            world.order(first, "exit 0", pods=pods)

    world.create(first)
    world.wait_running(first)
    world.create(second)
    time.sleep(1.1)  # Kueue orders by the second in which jobs were created
    thread = meanwhile(leave)
    try:
        see_through(world, body)
    finally:
        thread.join()
        for other in ("first", "second"):
            remove_jobs(f"{world.run}-{other}", cluster=world.admin)
    assert "[rank 0] admitted" in capfd.readouterr().err


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob", "tpu"])
def test_a_job_gives_way_to_an_urgent_one_and_comes_back(
    world: World, queue: str, urgent: str, runtime: str, messages: Messages, capfd: pytest.CaptureFixture[str]
) -> None:
    give_quota(world, queue)
    settings: dict[str, Any] = {"runtime": runtime, "workers": 2, "queue": queue}
    script, pods = orders(runtime)
    body = world.body(script, max_restarts=0, **settings)
    other = world.body(script, run=f"{world.run}-urgent", priority_class=urgent, **settings)
    suspended = f"suspended, waiting in Kueue's queue {queue}"

    def preempt() -> None:
        world.wait_running(body)
        before = messages.text.count(suspended)  # when it was created
        world.create(other)
        world.wait("the message", lambda: messages.text.count(suspended) > before)
        world.order(other, "exit 0", pods=pods)
        world.order(body, "echo finished; exit 0", pods=pods)

    thread = meanwhile(preempt)
    try:
        see_through(world, body, restarts=0)
    finally:
        thread.join()
        remove_jobs(f"{world.run}-urgent", cluster=world.admin)
    assert "failed (preempted)" in messages.text
    assert "[rank 0] finished" in capfd.readouterr().err


def test_a_job_that_kueue_would_not_hold_back_is_refused(given_cluster: None) -> None:
    """Kueue's webhooks leave out a namespace, which has the effect of an integration that is switched off."""
    configuration = "mutatingwebhookconfiguration/kueue-mutating-webhook-configuration"
    hooks = json.loads(kubectl("get", configuration, "-o", "json"))["webhooks"]
    names = [hook["name"] for hook in hooks]

    def set_selector(kind: str, selector: Mapping[str, Any]) -> None:
        path = f"/webhooks/{names.index(f'm{kind}.kb.io')}"
        test = {"op": "test", "path": f"{path}/name", "value": f"m{kind}.kb.io"}
        change = {"op": "replace", "path": f"{path}/namespaceSelector", "value": selector}
        kubectl("patch", configuration, "--type=json", "--patch", json.dumps([test, change]))

    with new_namespace() as namespace:
        others = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [namespace]}
        for runtime, kind in (("trainjob", "trainjob"), ("pytorchjob", "pytorchjob"), ("tpu", "jobset")):
            job = JobConfig(runtime=runtime, queue="hanflow", gpus=0, accelerator="v4-8" if runtime == "tpu" else "")
            objects = build(job, WorkerSpec("summarization", TrainConfig(), "gs://b/s", "gs://b/m"), Origin("run"))
            set_selector(kind, {"matchExpressions": [others]})
            try:
                with pytest.raises(
                    ClusterError, match=f"Kueue does not manage a {objects[-1]['kind']} on this cluster"
                ):
                    launch(Cluster(namespace), *objects)
            finally:
                set_selector(kind, {})
            assert (
                kubectl("get", "pods,trainjobs,pytorchjobs,jobsets,trainingruntimes", "-n", namespace, "-o", "name")
                == ""
            )
