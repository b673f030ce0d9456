"""What pods that really train need: our image on the node, and a bucket that they and this machine reach."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machine import __main__ as machine
from tests.cluster.machine import builds, images, node
from tests.cluster.world import PODS, World
from tests.images.containers import image


def require_this_machine() -> None:
    """Skip the test on a cluster whose pods do not run on this machine: images and files would have to be brought there."""
    if node.SERVER not in Path(os.environ["KUBECONFIG"]).read_text(encoding="utf-8"):
        pytest.skip("needs the cluster of `make cluster`, whose pods run on this machine")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of the node's images: of several test processes one gives an image, the others wait for it."""
    with (node.STATE / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def training_image() -> str:
    """Our image for CPUs, given to the node (6 GB with torch's CUDA build: minutes, once); skips if it is not built."""
    reference = image("cpu")
    with _alone():
        if not machine.has_image(reference):
            _pipe(["podman", "save", "--quiet", reference])
    return reference


def _pipe(saves: list[str]) -> None:
    """Give the node what a command writes to its standard output: a file between them would take gigabytes."""
    with subprocess.Popen(saves, stdout=subprocess.PIPE) as saving:
        command = ["ctr", "--namespace=k8s.io", "images", "import", "--all-platforms", "-"]
        subprocess.run(machine.inside(*command), stdin=saving.stdout, stdout=subprocess.DEVNULL, check=True)
    assert saving.returncode == 0, f"{saves} ended with status {saving.returncode}"


@contextlib.contextmanager
def bucket_server(world: World, folder: Path) -> Iterator[str]:
    """fake-gcs-server in a pod of its own; its address, for pods and this machine alike."""
    name = f"gcs-{world.run}"
    body = {
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "server",
                    "image": _server_image(folder),
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
        yield f"http://{status['podIP']}:4443"
    finally:
        world.admin.request("DELETE", f"{PODS}/{name}")


def _server_image(folder: Path) -> str:
    path = builds.program("fake-gcs-server")
    reference = f"hanflow.test/fake-gcs-server:{builds.required('fake-gcs-server')[1]}"
    with _alone():
        if not machine.has_image(reference):
            archive = folder / "image.tar"
            images.write(images.Image([reference], {"bin/server": path}, ["/bin/server"], user=65532), archive)
            machine.load(archive)
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
