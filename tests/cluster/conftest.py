"""The two clusters that scenarios are played on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanflow.progress import log
from tests.cluster import world as worlds
from tests.cluster.world import World


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The cluster in this process, for what cannot be asked of a real one."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "cluster" / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with worlds.in_process(tmp_path / "cluster") as world:
        yield world


@pytest.fixture(params=["in process", pytest.param("real", marks=pytest.mark.cluster)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Both clusters, one after the other."""
    if request.param == "in process":
        yield request.getfixturevalue("fake")
    elif not os.environ.get("KUBECONFIG"):
        pytest.skip("needs a real cluster: set KUBECONFIG")
    else:
        with worlds.real(tmp_path) as real:
            yield real


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the launcher logs."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, logger=log.name)
    return caplog
