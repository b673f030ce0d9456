"""The versions of the operators that hanflow supports: `make cluster OPERATORS=oldest` has the oldest ones."""

from __future__ import annotations

import re

import pytest

from hanflow.cluster.client import ClusterError, NotFound
from tests.cluster.machine import builds
from tests.cluster.world import ROOT, World

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/jobsets.jobset.x-k8s.io"
PUBLISHED = "/api/v1/namespaces/kubeflow-system/configmaps/kubeflow-trainer-public"


def version(module: str, folder: str = "") -> str:
    """Of a module in tests/cluster/machine/modules, without the v."""
    found = re.search(r"^require \S+ v(\S+)$", (builds.MODULES / module / folder / "go.mod").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("operator", "module"),
    [("Kubeflow Trainer", "trainer"), ("JobSet", "jobset"), ("Training operator", "training-operator")],
)
def test_the_guide_names_the_versions_that_are_tried(operator: str, module: str) -> None:
    guide = (ROOT / "manifests" / "README.md").read_text(encoding="utf-8")
    assert f"| {operator} | {version(module, 'oldest')} | {version(module)} |" in guide


@pytest.mark.cluster
def test_the_version_of_trainer_is_logged(world: World, messages: pytest.LogCaptureFixture) -> None:
    try:
        installed = world.admin.request("GET", PUBLISHED)["data"]["kubeflow_trainer_version"]
    except NotFound:
        pytest.skip("this Trainer does not publish its version: it is older than 2.2")
    world.launch(world.body("true", runtime="trainjob"))
    assert f"for Kubeflow Trainer {installed}: 1 pods" in messages.text


@pytest.mark.cluster
def test_a_job_set_controller_that_is_too_old_refuses_the_job(world: World) -> None:
    versions = world.admin.request("GET", CRD)["spec"]["versions"]
    if "onJobFailureMessagePatterns" in str(versions):
        pytest.skip("this JobSet is not too old: make cluster OPERATORS=refused has one")
    body = world.body("exit 143", runtime="tpu")
    with pytest.raises(ClusterError, match="unknown field.*onJobFailureMessagePatterns.*update its operator"):
        world.launch(body)
    world.assert_nothing_left(body)
