"""A job in a queue of a real Kueue: suspended until its quota exists, then run."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from hanflow.cluster.client import NotFound
from tests.cluster.test_launch import meanwhile, see_through
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
    world.admin.request("POST", f"{KUEUE}/resourceflavors", body=kueue_object("ResourceFlavor", name, {}))
    resources = [{"name": "cpu", "nominalQuota": "1"}, {"name": "memory", "nominalQuota": "1Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": resources}]}
    spec = {"namespaceSelector": {}, "resourceGroups": [group]}
    world.admin.request("POST", f"{KUEUE}/clusterqueues", body=kueue_object("ClusterQueue", name, spec))


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
