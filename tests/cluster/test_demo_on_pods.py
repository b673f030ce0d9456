"""The demo on a real cluster: a bundle from a claim, as the guide says, to a page that answers."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from hanflow.images import DEFAULT
from tests.cluster.kubectl import RESTRICTED, kubectl, new_namespace
from tests.cluster.machine import __main__ as machine
from tests.cluster.machine import node
from tests.cluster.manifests import MANIFESTS
from tests.images.containers import image
from tests.serving.test_task_bundles import make_bundle

pytestmark = pytest.mark.cluster


def claim(folder: Path, namespace: str) -> list[dict[str, Any]]:
    """A claim `hanflow-bundle`, and a volume for it: a folder of this machine, which is the node."""
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    volume = {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(folder)}, **common}
    wanted = {"resources": {"requests": {"storage": "1Gi"}}, "volumeName": namespace, **common}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "hanflow-bundle"}, "spec": wanted},
    ]


def overlay(folder: Path, reference: str) -> Path:
    """The manifests with the component and the image, as somebody would write them."""
    name, tag = reference.rsplit(":", 1)
    kustomization = {
        "resources": [os.path.relpath(MANIFESTS / "base", folder)],
        "components": [os.path.relpath(MANIFESTS / "components" / "demo-claim", folder)],
        "images": [{"name": DEFAULT.demo.rsplit(":", 1)[0], "newName": name, "newTag": tag}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return folder


@pytest.fixture
def demo_image() -> str:
    """Our image, given to the node."""
    if os.environ.get("KUBECONFIG") != str(node.KUBECONFIG):
        pytest.skip("needs the cluster of `make cluster`: its node has the folders of this machine")
    reference = image("demo")
    machine.load(reference)
    return reference


def test_the_demo_shows_a_bundle_from_a_claim(demo_image: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "classification")
    with new_namespace(RESTRICTED) as namespace:
        try:
            kubectl("apply", "-n", namespace, "-f", "-", text=yaml.safe_dump_all(claim(bundle, namespace)))
            kubectl("apply", "-n", namespace, "-k", str(overlay(tmp_path, demo_image)))
            kubectl("rollout", "status", "-n", namespace, "deployment/hanflow-demo", "--timeout=600s")
            command = ["kubectl", "port-forward", "-n", namespace, "svc/hanflow-demo", ":80"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forwarding:
                try:
                    assert forwarding.stdout
                    address = re.search(r"127\.0\.0\.1:\d+", forwarding.stdout.readline())
                    assert address
                    with urllib.request.urlopen(f"http://{address[0]}/", timeout=60) as page:
                        assert "<title>" in page.read().decode()
                finally:
                    forwarding.terminate()
        finally:
            kubectl("delete", "-n", namespace, "--ignore-not-found", "deployment/hanflow-demo")
            kubectl("delete", "--wait=false", "persistentvolume", namespace)
