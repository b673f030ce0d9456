"""Zip archives of many files: what is asked of the archive is asked once, and anew when it was replaced."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from hanflow.config import PreprocessConfig
from hanflow.data.readers import raw_files
from hanflow.steps.preprocess import _described, _sources
from hanflow.storage import containers, files, open_raw


def archive(path: Path, texts: dict[str, str]) -> Path:
    fresh = path.with_suffix(".new")
    with zipfile.ZipFile(fresh, "w") as opened:
        for name, text in texts.items():
            opened.writestr(name, text)
    os.replace(fresh, path)
    return path


def test_an_archives_directory_is_read_once_for_all_its_files(tmp_path: Path) -> None:
    texts = {f"part/{number}.jsonl": f'{{"text": "{number}"}}' for number in range(20)}
    path = archive(tmp_path / "corpus.zip", texts)
    before = files._archive.cache_info().misses
    paths = raw_files(str(path))
    assert sorted(open_raw(file).read().decode() for file in paths) == sorted(texts.values())
    assert len(paths) == 20 and files._archive.cache_info().misses == before + 1
    archive(path, {"part/3.jsonl": "other"})
    assert open_raw(f"{path}/part/3.jsonl").read() == b"other"


def test_an_archive_is_one_source_whatever_number_of_files_it_holds(tmp_path: Path) -> None:
    path = archive(tmp_path / "corpus.zip", {f"{number}.jsonl": "{}" for number in range(20)})
    assert containers([f"{path}/1.jsonl", f"{path}/2.jsonl", "other.csv"]) == [str(path), "other.csv"]
    (described,) = _described(_sources(PreprocessConfig(source=str(path))))
    assert (described["file"], described["bytes"]) == (str(path), path.stat().st_size)
