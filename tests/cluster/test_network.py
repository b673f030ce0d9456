"""The network policies, by trying: which connections between pods they let through, and which they do not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.kubectl import kubectl, new_namespace, run
from tests.cluster.machine import node
from tests.cluster.manifests import MANIFESTS
from tests.cluster.world import IMAGE

pytestmark = pytest.mark.cluster

WORKER = {"app.kubernetes.io/name": "hanflow", "app.kubernetes.io/managed-by": "hanflow"}
DEMO = {"app.kubernetes.io/name": "hanflow-demo"}
PODS: dict[str, tuple[dict[str, str], list[int]]] = {
    "rank-0": (WORKER, [29500, 45678]),
    "rank-1": (WORKER, []),
    "demo": (DEMO, [8501, 9000]),
    "other": ({"app": "other"}, [53, 80, 443, 8333, 9000]),
    "metadata": ({"app": "metadata"}, [80, 987, 988, 8080]),
}
"""Pod → its labels, and the ports that it serves. `metadata` stands for the node: it has the metadata server's address."""
METADATA = "169.254.169.254"

Flow = tuple[str, str, int]
"""From a pod to a port of a pod."""
FLOWS: dict[Flow, bool] = {
    # workers of a job meet on any port; nobody else reaches them
    ("rank-1", "rank-0", 29500): True,
    ("rank-1", "rank-0", 45678): True,
    ("other", "rank-0", 29500): False,
    ("demo", "rank-0", 29500): False,
    # workers reach storage, hubs and trackers by HTTPS, and names by TCP too; nothing else
    ("rank-1", "other", 443): True,
    ("rank-1", "other", 53): True,
    ("rank-1", "other", 80): False,
    ("rank-1", "other", 8333): False,
    ("rank-1", "other", 9000): False,
    ("rank-1", "demo", 8501): False,
    # anybody sees the demo's page and no other port of it
    ("other", "demo", 8501): True,
    ("other", "demo", 9000): False,
    ("demo", "other", 443): True,
    ("demo", "other", 53): True,
    ("demo", "other", 80): False,
    ("demo", "other", 9000): False,
    # the metadata server, which gives pods their credentials
    **{(pod, "metadata", port): True for pod in ("rank-1", "demo") for port in (80, 987, 988)},
    ("rank-1", "metadata", 8080): False,
    ("demo", "metadata", 8080): False,
    # pods of others are left alone
    ("other", "metadata", 8080): True,
}
"""What manifests/networkpolicy.yaml lets through."""


def pod(name: str) -> dict[str, Any]:
    labels, ports = PODS[name]
    servers = "".join(f"nc -ll -p {port} -e true & " for port in ports)
    container: dict[str, Any] = {"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent"}
    spec: dict[str, Any] = {"containers": [container], "terminationGracePeriodSeconds": 0}
    if name == "demo":
        container["readinessProbe"] = {"tcpSocket": {"port": 8501}, "periodSeconds": 1, "failureThreshold": 1}
    if name == "metadata":
        servers = (
            f"ip address add {METADATA}/32 dev lo; trap 'ip address del {METADATA}/32 dev lo; exit' TERM; {servers}"
        )
        spec.update(hostNetwork=True, terminationGracePeriodSeconds=10)
        container["securityContext"] = {"capabilities": {"add": ["NET_ADMIN"]}}
    container["command"] = ["sh", "-c", f"{servers}while true; do sleep 1; done"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


@pytest.fixture
def namespace() -> Iterator[str]:
    with new_namespace() as name:
        items = [pod(each) for each in PODS]
        everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        kubectl("apply", "-n", name, "-f", "-", text=everything)
        kubectl("wait", "--for=condition=Ready", "--timeout=60s", "-n", name, "pods", "--all")
        yield name
        kubectl("delete", "-n", name, "pods", "--all")  # while the policies are there still: the address goes


def open_flows(namespace: str) -> set[Flow]:
    """Those of FLOWS that get through now."""
    items = json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
    addresses = {each["metadata"]["name"]: each["status"]["podIP"] for each in items} | {"metadata": METADATA}
    found: set[Flow] = set()
    for source in {flow[0] for flow in FLOWS}:
        flows = [flow for flow in FLOWS if flow[0] == source]
        tries = [
            f"(nc -w 3 {addresses[target]} {port} </dev/null >/dev/null 2>&1 && echo {target} {port}) & "
            for _, target, port in flows
        ]
        script = f"{''.join(tries)} wait"
        for line in kubectl("exec", "-n", namespace, source, "--", "sh", "-c", script).splitlines():
            target, port = line.split()
            found.add((source, target, int(port)))
    return found


def names_are_found(namespace: str, source: str) -> bool:
    """Whether the pod gets the address of a name, by UDP, from the cluster's own server."""
    command = ("nslookup", "kubernetes.default.svc.cluster.local")
    return run("exec", "-n", namespace, source, "--", *command).returncode == 0


def test_the_policies_let_through_what_is_needed_and_no_more(namespace: str) -> None:
    assert open_flows(namespace) == set(FLOWS), "without policies everything is open"
    kubectl("apply", "-n", namespace, "-f", str(MANIFESTS / "networkpolicy.yaml"))
    expected = {flow for flow, allowed in FLOWS.items() if allowed}
    until = time.monotonic() + 60  # a network takes up a policy some time after it was made
    while (found := open_flows(namespace)) != expected and time.monotonic() < until:
        pass
    if found == set(FLOWS) and os.environ["KUBECONFIG"] != str(node.KUBECONFIG):
        pytest.skip("needs a network that enforces policies")
    assert found == expected
    assert names_are_found(namespace, "rank-1") and names_are_found(namespace, "demo")
    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    assert kubectl("get", "pod/demo", "-n", namespace, "-o", ready) == "True", "the node's probes get through"
