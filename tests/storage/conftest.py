"""A bucket in an emulator process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanflow.storage.gcs import service
from tests.storage.emulator import Emulator

_numbers = itertools.count()


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def bucket(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a new bucket; the cache is empty, and no fault is ordered."""
    name = f"hanflow-{next(_numbers)}"
    emulator.order()
    emulator.make_bucket(name)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.host)
    monkeypatch.setattr(service, "RETRY_DELAY", 0.05)
    monkeypatch.setenv("HANFLOW_CACHE", str(tmp_path / "cache"))
    return f"gs://{name}"
