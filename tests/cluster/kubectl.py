"""kubectl on the tests' cluster, as a person would type it."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.argo import ROOT

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
"""A label of namespaces that let in no other pods."""


def kubectl(*arguments: str, text: str | None = None) -> str:
    """Output of a command that succeeds without a warning; skips the test where there is no kubectl.

    Args:
        arguments: of kubectl.
        text: its standard input.
    """
    done = run(*arguments, text=text)
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def run(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command that may fail."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    return subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, check=False, cwd=ROOT)


@contextmanager
def new_namespace(*labels: str) -> Iterator[str]:
    """A namespace of a test's own, removed with all that is in it; skips the test where there is no cluster."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("needs a real cluster: set KUBECONFIG")
    name = f"hanflow-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    try:
        for label in labels:
            kubectl("label", "namespace", name, label)
        kubectl("wait", "--for=create", "--timeout=60s", "-n", name, "serviceaccount/default")
        yield name
    finally:
        run("delete", "namespace", name, "--wait=false")
