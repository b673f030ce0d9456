"""The two clusters that scenarios are played on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanflow.cluster import client as kube
from hanflow.cluster import follow as life
from hanflow.cluster import log_stream as follow
from hanflow.cluster import submission, watch
from hanflow.cluster import waiting as waits
from hanflow.progress import log
from tests.cluster import world as worlds
from tests.cluster.world import World


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of the launcher that are made for real clusters, shortened."""
    monkeypatch.setattr(life, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(life, "DRAIN_SECONDS", 3.0)
    monkeypatch.setattr(submission, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(waits, "EVENTS_SECONDS", 0.5)
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(kube, "_PAUSES", (0.05, 0.1, 0.2, 0.3))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurry: None) -> Iterator[World]:
    """The cluster in this process, for what no real one can be asked to do."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "cluster" / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with worlds.in_process(tmp_path / "cluster") as world:
        yield world


@pytest.fixture(params=["in process", pytest.param("real", marks=pytest.mark.cluster)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Both clusters, one after the other."""
    if request.param == "in process":
        yield request.getfixturevalue("fake")
    elif not os.environ.get("KUBECONFIG"):
        pytest.skip("needs a real cluster: set KUBECONFIG")
    else:
        with worlds.real() as real:
            yield real


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the launcher says."""
    log.addHandler(caplog.handler)
    level = log.level
    log.setLevel(logging.INFO)
    yield caplog
    log.removeHandler(caplog.handler)
    log.setLevel(level)
