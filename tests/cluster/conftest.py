"""The cluster that scenarios are played on."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanflow.cluster.client import Cluster
from hanflow.progress import log
from tests.cluster import world as worlds
from tests.cluster.world import World


@pytest.fixture
def given_cluster() -> None:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("needs a real cluster: set KUBECONFIG")


@pytest.fixture
def world(given_cluster: None, tmp_path: Path) -> Iterator[World]:
    """The cluster of KUBECONFIG; its tests have the marker `cluster`."""
    with worlds.real(tmp_path) as real:
        yield real


@pytest.fixture
def faults(given_cluster: None, tmp_path: Path) -> Iterator[World]:
    """The same, with a proxy between the launcher and the API server, which makes what no server can be asked for."""
    with worlds.real(tmp_path, with_proxy=True) as real:
        yield real


@pytest.fixture
def own_namespace(given_cluster: None, tmp_path: Path) -> Iterator[World]:
    """The same, in a namespace of this test's own."""
    name = f"hanflow-test-{uuid.uuid4().hex[:8]}"
    admin = Cluster()
    admin.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    try:
        with worlds.real(tmp_path, namespace=name) as real:
            accounts = "/api/v1/namespaces/{namespace}/serviceaccounts"  # pods are refused before it exists
            real.wait("the account of its pods", lambda: len(real.admin.request("GET", accounts)["items"]) == 2)
            yield real
    finally:
        admin.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the launcher logs."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, logger=log.name)
    return caplog
