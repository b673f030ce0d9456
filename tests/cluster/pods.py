"""What pods that really train need: our image on the node, and a bucket that they and this machine reach."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hanflow.storage.gcs import service
from tests.cluster.machine import __main__ as machine
from tests.cluster.machine import builds, images, node
from tests.cluster.world import PODS, World
from tests.images.containers import image


def require_this_machine() -> None:
    """Skip the test on a cluster whose pods do not run on this machine: images and files would have to be brought there."""
    if node.SERVER not in Path(os.environ["KUBECONFIG"]).read_text(encoding="utf-8"):
        pytest.skip("needs the cluster of `make cluster`, whose pods run on this machine")


def training_image() -> str:
    """Our image for CPUs, given to the node; skips if it is not built from these sources."""
    reference = image("cpu")
    machine.load(reference)
    return reference


@contextlib.contextmanager
def bucket_server(world: World) -> Iterator[str]:
    """fake-gcs-server in a pod of its own; its address, for pods and this machine alike."""
    name = f"gcs-{world.run}"
    body = {
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "server",
                    "image": _server_image(),
                    "imagePullPolicy": "Never",
                    "args": [
                        "-scheme=http",
                        "-port=4443",
                        "-backend=memory",
                        "-public-host=$(ADDRESS):4443",
                        "-external-url=http://$(ADDRESS):4443",
                    ],
                    "env": [{"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                }
            ],
        },
    }
    world.admin.request("POST", PODS, body=body)
    try:
        status: dict[str, Any] = {}

        def running() -> bool:
            status.update(world.admin.request("GET", f"{PODS}/{name}")["status"])
            return status["phase"] == "Running"

        world.wait("a running bucket server", running, 60)
        service._client_of.cache_clear()  # a client keeps its host, and each test has a server of its own
        yield f"http://{status['podIP']}:4443"
    finally:
        world.admin.request("DELETE", f"{PODS}/{name}")


def _server_image() -> str:
    reference = f"hanflow.test/fake-gcs-server:{builds.required('fake-gcs-server')[1]}"
    files = {"bin/server": builds.program("fake-gcs-server")}
    machine.load(images.Image([reference], files, ["/bin/server"], user=65532))
    return reference


def make_bucket(world: World, host: str, name: str) -> None:
    """Make a bucket, once its server answers."""
    data = json.dumps({"name": name}).encode()
    request = urllib.request.Request(f"{host}/storage/v1/b", data, {"Content-Type": "application/json"})

    def made() -> bool:
        try:
            with urllib.request.urlopen(request, timeout=10):
                return True
        except OSError:
            return False

    world.wait("a bucket", made, 60)
