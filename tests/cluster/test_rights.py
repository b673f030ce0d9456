"""The rights of our service account: what the launcher uses of them, and what the API server says that they are."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from hanflow.cluster.cleanup import remove_jobs
from hanflow.cluster.follow import JobFailed
from hanflow.cluster.launcher import launch
from tests.cluster.kubectl import kubectl, new_namespace
from tests.cluster.manifests import MANIFESTS, pick, read, resource_name
from tests.cluster.world import QUICK, World

OF_OTHERS = {
    ("argoproj.io", "workflowtaskresults"),
    ("", "configmaps"),
    ("visibility.kueue.x-k8s.io", "localqueues/pendingworkloads"),
}
"""What is not the launcher's: Argo's executor and Kubeflow's launcher, in the same pods, use it; and where in a queue it waits."""

Right = tuple[str, str, str]
"""API group, resource, verb."""


def rights_of_the_role() -> set[Right]:
    rules = pick(read("."), "Role")["rules"]
    return {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


def right(method: str, path: str, query: Mapping[str, Any]) -> Right | None:
    """What a request in a namespace needs; None: any account may send it."""
    found = re.fullmatch(
        r"/apis?/(?:(?P<group>[^/]+)/)?v\w+/namespaces/[^/]+/(?P<kind>\w+)(/[^/]+(?P<part>/\w+)?)?", path
    )
    if found is None:
        return None
    verbs = {
        "POST": "create",
        "DELETE": "delete",
        "GET": "get" if found[3] else "watch" if "watch" in query else "list",
    }
    return found["group"] or "", found["kind"] + (found["part"] or ""), verbs[method]


@pytest.mark.cluster
def test_the_launcher_uses_each_of_its_rights(faults: World) -> None:
    world, launcher = faults, faults.cluster
    bodies = [world.body("echo done", runtime=runtime) for runtime in ("trainjob", "pytorchjob", "tpu")]
    for body in bodies:
        launch(launcher, *world.objects(body), timing=QUICK)
    nowhere = world.body("echo done", node_selector={"hanflow.test/none": "here"})
    with pytest.raises(JobFailed, match="took longer"):  # while it waits, the launcher looks for reasons
        launch(launcher, *world.objects(nowhere), timing=QUICK, hours=4 / 3600)
    for body in bodies[:2]:  # Trainer makes a JobSet of the TrainJob's name
        world.create(body)
    remove_jobs(world.run, cluster=launcher)
    asked = [urllib.parse.urlsplit(request.partition(" ")[2]) for request, _ in world.proxy.requests]
    methods = [request.partition(" ")[0] for request, _ in world.proxy.requests]
    used = {
        right(method, url.path, dict(urllib.parse.parse_qsl(url.query)))
        for method, url in zip(methods, asked, strict=True)
    }
    used -= {None, ("", "configmaps", "get")}  # that of the operator's version, which Trainer opens to all
    assert used == {each for each in rights_of_the_role() if each[:2] not in OF_OTHERS}


@pytest.fixture
def namespace() -> Iterator[str]:
    with new_namespace() as name:
        kubectl("apply", "-n", name, "-f", str(MANIFESTS / "rbac.yaml"), "-f", str(MANIFESTS / "serviceaccount.yaml"))
        yield name


@pytest.mark.cluster
def test_the_account_has_the_rights_of_its_role_and_no_others(namespace: str) -> None:
    def listed(account: str) -> set[tuple[str, ...]]:
        """Resource, names and verb, as the API server lists them."""
        text = kubectl("auth", "can-i", "--list", "--no-headers", *as_account(account))
        lines = (re.fullmatch(r"(\S*) +\[(.*?)\] +\[(.*?)\] +\[(.*?)\] *", line) for line in text.splitlines())
        return {(line[1], line[3], verb) for line in lines if line for verb in line[4].split()}

    def as_account(account: str) -> tuple[str, ...]:
        return "-n", namespace, f"--as=system:serviceaccount:{namespace}:{account}"

    rules = pick(read("."), "Role")["rules"]
    expected = {
        (resource_name(resource, group), " ".join(rule.get("resourceNames", ())), verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert listed("hanflow") - listed("default") == expected
    assert listed("default") <= listed("hanflow") == listed("pipeline-runner")
