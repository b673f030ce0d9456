"""Artifacts and storage: whole or not there, and never taken for what they are not."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest

from hanflow.errors import UserError
from hanflow.storage import artifacts, find_raw, local_path, staged
from hanflow.storage.artifacts import Manifest, check_parent, lineage, read_manifest, read_training, write_manifest
from hanflow.storage.folders import cache_folder


def corpus(folder: Path, text: str = "하나") -> Manifest:
    folder.mkdir(parents=True)
    (folder / "train.parquet").write_text(text, encoding="utf-8")
    return write_manifest(folder, Manifest("corpus", "summarization", {"seed": 1}, {"rows": {"train": 1}}))


def test_a_manifest_reads_back(tmp_path: Path) -> None:
    written = corpus(tmp_path / "a")
    assert read_manifest(tmp_path / "a", "corpus", task="summarization") == written
    assert set(written.files) == {"train.parquet"}


def test_equal_content_has_an_equal_digest(tmp_path: Path) -> None:
    assert corpus(tmp_path / "a").digest == corpus(tmp_path / "b").digest
    assert corpus(tmp_path / "c", "둘").digest != corpus(tmp_path / "d").digest


def test_what_does_not_fit_is_refused_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    corpus(folder)
    with pytest.raises(UserError, match="no such folder; expected a corpus"):
        read_manifest(tmp_path / "nowhere", "corpus")
    with pytest.raises(UserError, match="expected a shards artifact, but this is a corpus artifact"):
        read_manifest(folder, "shards")
    with pytest.raises(UserError, match="made for the task summarization, not for classification"):
        read_manifest(folder, "corpus", task="classification")
    (folder / "train.parquet").write_text("둘이", encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.parquet: was changed or damaged"):
        read_manifest(folder, "corpus")
    (folder / "train.parquet").unlink()
    with pytest.raises(UserError, match=r"train\.parquet: is missing"):
        read_manifest(folder, "corpus")


def test_a_tampered_or_foreign_manifest_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    corpus(folder)
    path = folder / "corpus.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "counts": {"rows": {"train": 9}}}), encoding="utf-8")
    with pytest.raises(UserError, match="was changed after it was written"):
        read_manifest(folder, "corpus")
    path.write_text(json.dumps({**values, "schema": artifacts.SCHEMA + 1}), encoding="utf-8")
    with pytest.raises(UserError, match=f"made with schema {artifacts.SCHEMA + 1}"):
        read_manifest(folder, "corpus")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(folder, "corpus")


def test_another_parent_is_refused(tmp_path: Path) -> None:
    mine, other = corpus(tmp_path / "a"), corpus(tmp_path / "b", "둘")
    shards = Manifest("shards", "summarization", {}, parents=lineage(mine))
    check_parent(shards, mine, "shards", "a")
    with pytest.raises(UserError, match="b: is not the corpus that shards was made from"):
        check_parent(shards, other, "shards", "b")


def test_an_artifact_appears_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with staged(str(target)) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
        private = folder / "y"
        private.write_text("2")
        private.chmod(0o600)
    assert sorted(p.name for p in target.iterdir()) == ["x", "y"]
    assert (target / "x").stat().st_mode == (target / "y").stat().st_mode, "other users of a shared volume read it too"
    assert [p.name for p in target.parent.iterdir()] == ["out"], "nothing is left beside it"


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "the disk is full"),
        (ValueError("x"), ValueError, "x"),
    ],
)
def test_nothing_is_left_after_a_failure(tmp_path: Path, error: BaseException, raised: type, said: str) -> None:
    with pytest.raises(raised, match=said), staged(str(tmp_path / "out")) as folder:
        (folder / "half").write_text("…")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_holds_something_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(UserError, match="already exists and is not empty"), staged(str(tmp_path / "out")):
        raise AssertionError("unreachable")
    assert (tmp_path / "out" / "mine").read_text() == "keep"


def test_raw_files_are_found(tmp_path: Path) -> None:
    for name in ("b.csv", "a.TSV.gz", "sub/c.jsonl", "note.md", ".hidden/d.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    endings = (".csv", ".tsv.gz", ".jsonl")
    assert [Path(p).name for p in find_raw(str(tmp_path), endings)] == ["a.TSV.gz", "b.csv", "c.jsonl"]
    assert [Path(p).name for p in find_raw(f"{tmp_path}/*.csv", endings)] == ["b.csv"]
    assert find_raw(f"file://{tmp_path}/note.md", endings) == [str(tmp_path / "note.md")]


def test_what_is_not_there_is_reported_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the nearest folder that exists is {tmp_path}"):
        find_raw(str(tmp_path / "no" / "such.csv"), (".csv",))
    with pytest.raises(UserError, match="holds no readable file among 0"):
        find_raw(str(tmp_path), (".csv",))
    with pytest.raises(UserError, match="the pattern matches no file"):
        find_raw(str(tmp_path / "*.csv"), (".csv",))
    with pytest.raises(UserError, match="cannot read s3://"):
        local_path("s3://bucket/x")


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"settings": {}, "steps": 1}', '{"members": {"rnn": {"steps": 1}}}']
)
def test_what_reports_no_training_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "training.json").write_text(content, encoding="utf-8")
    with pytest.raises(
        UserError,
        match=r"training\.json: is (damaged|no record of a training) .*give the folder that the train step wrote",
    ):
        read_training(tmp_path)


def test_a_training_is_read(tmp_path: Path) -> None:
    training = {"settings": {}, "steps": 1, "history": {"train": [], "validation": []}}
    for whole in (training, {**training, "members": {"rnn": training}}):
        (tmp_path / "training.json").write_text(json.dumps(whole), encoding="utf-8")
        assert read_training(tmp_path) == whole


def test_the_cache_is_the_user_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared machine somebody else may have made the folder first, or laid a link in its place."""
    monkeypatch.delenv("HANFLOW_CACHE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = tmp_path / f"hanflow-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    mine.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link; remove it"):
        cache_folder()
    mine.unlink()
    mine.mkdir(0o777)
    mine.chmod(0o777)
    assert cache_folder() == mine and mine.stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv("HANFLOW_CACHE", str(shared))
    assert cache_folder() == shared / mine.name and (shared / mine.name).stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        os.chown(mine, 1, 1)
        monkeypatch.delenv("HANFLOW_CACHE")
        with pytest.raises(UserError, match="belongs to another user"):
            cache_folder()
