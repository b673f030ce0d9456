"""A job in a queue of a real Kueue: suspended until its quota exists, then run."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from hanflow.cluster.cleanup import remove_jobs
from hanflow.cluster.client import NotFound
from tests.cluster.test_launch import meanwhile, see_through, until
from tests.cluster.world import World

KUEUE = "/apis/kueue.x-k8s.io/v1beta1"

pytestmark = [pytest.mark.cluster, pytest.mark.parametrize("world", ["real"], indirect=True)]


def kueue_object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def queue(world: World) -> Iterator[str]:
    """A queue of this test's own, without the ClusterQueue that it takes its quota from; both have the same name."""
    local, name = f"{KUEUE}/namespaces/{{namespace}}/localqueues", f"test-{uuid.uuid4().hex[:12]}"
    try:
        world.admin.request("POST", local, body=kueue_object("LocalQueue", name, {"clusterQueue": name}))
    except NotFound:
        pytest.skip("needs Kueue")
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


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob", "tpu"])
def test_a_job_waits_for_its_quota(
    world: World, queue: str, runtime: str, messages: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    body = world.body("echo admitted", runtime=runtime, workers=2, queue=queue)

    def admit() -> None:
        world.wait("the message", lambda: f"suspended, waiting in Kueue's queue {queue}" in messages.text)
        assert world.pods(body) == []
        give_quota(world, queue)

    thread = meanwhile(admit)
    see_through(world, body)
    thread.join()
    assert "[rank 0] admitted" in capfd.readouterr().err


@pytest.mark.parametrize("runtime", ["trainjob", "pytorchjob", "tpu"])
def test_a_job_gives_way_to_an_urgent_one_and_comes_back(
    world: World,
    queue: str,
    urgent: str,
    runtime: str,
    messages: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    give_quota(world, queue)
    settings: dict[str, Any] = {"runtime": runtime, "workers": 2, "queue": queue}
    body = world.body(until(world.soon(2), "echo finished"), max_restarts=0, **settings)
    other = world.body("sleep 5", run=f"{world.run}-urgent", priority_class=urgent, **settings)

    def preempt() -> None:
        world.wait_running(body)
        world.create(other)
        world.wait("the message", lambda: f"suspended, waiting in Kueue's queue {queue}" in messages.text)
        world.wait("no pods of the job", lambda: world.pods(body) == [])

    thread = meanwhile(preempt)
    try:
        see_through(world, body, restarts=0)
    finally:
        thread.join()
        remove_jobs(f"{world.run}-urgent", cluster=world.cluster)
    assert "[rank 0] finished" in capfd.readouterr().err
