"""Compiled graphs in a bucket: kept once, there for the next machine, and never in the way of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanflow.progress import log
from hanflow.storage import object_names
from hanflow.storage.gcs import service
from hanflow.training.backends.tpu import CompilationCache
from tests.storage.emulator import Emulator


def test_graphs_go_from_machine_to_machine(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"{bucket}/graphs"
    first = CompilationCache(place, writes=True)
    assert first.folder is not None and not list(first.folder.iterdir())
    (first.folder / "a").write_bytes(b"one")
    first.publish()
    (first.folder / "b").write_bytes(b"two")
    first.publish()
    assert object_names(place) == ["a", "b"]
    monkeypatch.setenv("HANFLOW_CACHE", str(tmp_path / "another machine"))
    second = CompilationCache(place, writes=False)
    assert second.folder is not None and second.folder != first.folder
    assert {path.name: path.read_bytes() for path in second.folder.iterdir()} == {"a": b"one", "b": b"two"}
    (second.folder / "c").write_bytes(b"of a host that does not write")
    second.publish()
    assert object_names(place) == ["a", "b"]


def test_a_bucket_that_goes_away_stops_no_training(
    bucket: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = f"{bucket}/graphs"
    cache = CompilationCache(place, writes=True)
    assert cache.folder is not None
    (cache.folder / "a").write_bytes(b"one")
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.5)
    emulator.order({"kind": "drop", "times": 10_000})
    cache.publish()
    assert emulator.fired[0] >= 2, "it was asked again"
    assert "a compiled graph was not kept: gs://" in caplog.text
    emulator.order()
    assert object_names(place) == []
    cache.publish()
    assert object_names(place) == ["a"], "the next time it is"


def test_a_local_folder_is_the_runtimes_own(tmp_path: Path) -> None:
    cache = CompilationCache(str(tmp_path / "new" / "graphs"), writes=True)
    assert cache.folder == tmp_path / "new" / "graphs" and cache.folder.is_dir()
    cache.publish()
    assert CompilationCache("", writes=True).folder is None
