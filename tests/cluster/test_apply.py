"""manifests/ on a real cluster: from nothing, again, in any order, in any namespace, and away again."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanflow.cluster.trainjob import not_noticed
from tests.cluster.kubectl import RESTRICTED, kubectl, new_namespace, run
from tests.cluster.manifests import MANIFESTS, read

pytestmark = pytest.mark.cluster
KINDS = "serviceaccounts,roles,rolebindings,configmaps,networkpolicies,deployments,services"


@pytest.fixture
def namespace() -> Iterator[str]:
    with new_namespace(RESTRICTED) as name:
        yield name


def results(output: str) -> dict[str, set[str]]:
    """What kubectl says that it did → the objects."""
    found: dict[str, set[str]] = {}
    for line in output.splitlines():
        name, _, what = line.partition(" ")
        found.setdefault(what, set()).add(name)
    return found


def ours(namespace: str) -> set[str]:
    """Objects of the namespace that bear our label."""
    selector = "app.kubernetes.io/name in (hanflow,hanflow-demo)"
    return set(kubectl("get", KINDS, "-n", namespace, "-l", selector, "-o", "name").split())


def test_from_nothing_twice_and_away_again(namespace: str) -> None:
    apply = ("apply", "-n", namespace, "-f", "manifests")
    [(what, objects)] = results(kubectl(*apply, "--dry-run=server")).items()
    assert what == "created (server dry run)" and len(objects) == len(read(".")) and ours(namespace) == set()
    assert results(kubectl(*apply)) == {"created": objects}
    assert results(kubectl(*apply)) == {"unchanged": objects}
    assert kubectl("diff", "-n", namespace, "-f", "manifests") == ""
    kubectl("create", "configmap", "of-somebody-else", "-n", namespace)
    kubectl("delete", "-n", namespace, "-f", "manifests")
    assert ours(namespace) == set()
    assert kubectl("get", "configmap/of-somebody-else", "-n", namespace, "-o", "name")
    assert kubectl("get", f"namespace/{namespace}", "-o", "jsonpath={.status.phase}") == "Active"


def test_in_the_opposite_order(namespace: str) -> None:
    for path in sorted(MANIFESTS.glob("*.yaml"), reverse=True):
        assert set(results(kubectl("apply", "-n", namespace, "-f", str(path)))) == {"created"}
    assert len(ours(namespace)) == len(read("."))


def test_the_overlays_and_what_goes_with_operators(namespace: str) -> None:
    """One after the other: a ClusterQueue is one for all namespaces."""
    for overlay in ("gpu", "tpu"):
        steps = (
            ("-k", f"manifests/overlays/gke-{overlay}"),
            ("-f", f"manifests/kueue/{overlay}"),
            ("-f", "manifests/argo"),
        )
        try:
            for step in steps:
                kubectl("apply", "-n", namespace, "--dry-run=server", *step)
                kubectl("apply", "-n", namespace, *step)
                assert set(results(kubectl("apply", "-n", namespace, *step))) == {"unchanged"}
        finally:
            for step in reversed(steps):
                run("delete", "-n", namespace, "--ignore-not-found", *step)


NOT_HERE = r"https://|github\.com|port-forward|crd/|namespace hanflow|-n hanflow|manifests/kueue|clusterqueue| POD "
"""In commands of the guide that need other projects' files, or that other tests run: those of a queue, the demo."""


def test_the_commands_of_the_guide(namespace: str, tmp_path: Path) -> None:
    """As they stand there, one after the other, on a copy of the files; only the namespace is this test's."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests", symlinks=True)
    for name in ("key.txt", "token.txt"):
        (tmp_path / name).write_text("nothing", encoding="utf-8")
    guide = (MANIFESTS / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^ *((?:kubectl|sed) .+)$|`(kubectl (?:apply|get|scale|auth) [^`]+)`", guide, re.MULTILINE)
    commands = [block or inline for block, inline in found if not re.search(NOT_HERE, block or inline)]
    assert len(commands) > 15
    for command in commands:
        here = re.sub(r"-n kubeflow|serviceaccount:kubeflow", lambda it: it[0].replace("kubeflow", namespace), command)
        for _ in range(5):
            done = subprocess.run(
                ["bash", "-c", f"PROJECT=another RUN=none; {here}"],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            if not not_noticed(done.stderr):  # Trainer has to notice a TrainingRuntime first
                break
        assert done.returncode == 0 and "Warning" not in done.stderr, f"{here}\n{done.stderr}"
    root = kubectl("get", "-n", namespace, "configmap/hanflow", "-o", "jsonpath={.data.root}")
    assert "another" in root


@pytest.mark.parametrize("path", sorted((MANIFESTS / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_job_by_hand_gets_its_pods(namespace: str, path: Path) -> None:
    """They wait for accelerators that this cluster does not have."""
    kubectl(
        "apply", "-n", namespace, "-f", str(MANIFESTS / "configmap.yaml"), "-f", str(MANIFESTS / "serviceaccount.yaml")
    )
    for _ in range(5):  # README: Trainer refuses a TrainJob until it has noticed its TrainingRuntime
        done = run("apply", "-n", namespace, "-f", str(path))
        if done.returncode == 0:
            break
        assert not_noticed(done.stderr), done.stderr
    else:
        pytest.fail(done.stderr)
    name = read("jobs")[0]["metadata"]["name"]
    selector = f"hanflow/job={name}"
    kubectl("wait", "--for=create", "--timeout=60s", "-n", namespace, "pods", "-l", selector)
    kubectl("delete", "-n", namespace, "-f", str(path))
    kubectl("wait", "--for=delete", "--timeout=120s", "-n", namespace, "pods", "-l", selector)
