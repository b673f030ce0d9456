"""Artifacts and models to read: local ones where they are, those in a bucket as copies in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage.artifacts import (
    KINDS,
    Manifest,
    file_sha256,
    missing_manifest,
    parse_manifest,
    read_manifest,
)
from hanflow.storage.cache import cache_folder, filling, make_room
from hanflow.storage.uri import is_remote, join, local_path

_Config = TypeVar("_Config")


def manifest_at(uri: str, kind: str, *, task: str | None = None) -> Manifest:
    """The manifest of an artifact, local or in a bucket; its files are not looked at.

    Raises:
        UserError: no such artifact there, an unfinished one, or another kind, schema or task; says which.
    """
    if is_remote(uri):
        return _remote_manifest(uri, kind, task)
    return read_manifest(local_path(uri), kind, task=task, verify=False)


def _remote_manifest(uri: str, kind: str, task: str | None) -> Manifest:
    from hanflow.storage import gcs

    found = gcs.read(join(uri, f"{kind}.json"))
    if found is None:
        raise missing_manifest(uri, kind, gcs.listing(uri))
    return parse_manifest(found[0], uri, kind, task=task)


def nothing(_: Manifest) -> Sequence[str]:
    """For `fetched`: no file, only the manifest."""
    return ()


def fetched(
    uri: str, kind: str, *, task: str | None = None, only: Callable[[Manifest], Sequence[str]] | None = None
) -> tuple[Path, Manifest]:
    """A local folder with an artifact, every file of it compared with its digest, and its manifest.

    Args:
        uri: of the artifact. A local one is used where it is; one in a bucket is downloaded into the cache, what is there
            already is not downloaded again.
        kind: the kind that the caller needs.
        task: the task it must belong to; None: any.
        only: tells the files that are needed of an artifact in a bucket; None: all. A local one is always checked whole.

    Raises:
        UserError: no such artifact there, another kind, schema or task, a missing or damaged file; says which.
    """
    if not is_remote(uri):
        folder = local_path(uri)
        return folder, read_manifest(folder, kind, task=task)
    manifest = _remote_manifest(uri, kind, task)
    names = [*manifest.files] if only is None else list(only(manifest))
    if any(name.startswith("/") or ".." in PurePosixPath(name).parts for name in names):
        raise UserError(f"{uri}: its manifest names files outside of it; do not trust it")
    folder = cache_folder() / "artifacts" / f"{kind}-{manifest.digest[:32]}"
    with filling(folder):
        wanted = [name for name in names if not _is_whole(folder / name, manifest.files[name])]
        if wanted:
            _fetch(uri, folder, wanted, manifest)
        (folder / f"{kind}.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder, manifest


def _is_whole(path: Path, expected: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == expected["bytes"] and file_sha256(path) == expected["sha256"]


def _fetch(uri: str, folder: Path, names: list[str], manifest: Manifest) -> None:
    from hanflow.storage import gcs

    there = gcs.listing(uri)
    absent = next((name for name in names if name not in there), None)
    if absent:
        again = f"run the {KINDS[manifest.artifact]} step again"
        raise UserError(f"{join(uri, absent)}: is missing from the {manifest.artifact} artifact; {again}")
    size = sum(manifest.files[name]["bytes"] for name in names)
    make_room(folder, size)
    log.info("fetching %d files (%.1f MB) of %s", len(names), size / 1e6, uri)
    digests = {folder / name: manifest.files[name]["sha256"] for name in names}
    gcs.download([(there[name], folder / name) for name in names], digests)


def fetched_model(name: str) -> str:
    """A model or tokenizer that can be loaded: local folders and hub names as they are, a folder in a bucket as its copy.

    Raises:
        UserError: there is nothing, or an artifact that was never finished.
    """
    if not is_remote(name):
        return name
    from hanflow.storage import gcs

    there = gcs.listing(name)
    kind = next((kind for kind in ("bundle", "model") if f"{kind}.json" in there), None)
    if kind:
        return str(fetched(name, kind)[0])
    if not there:
        raise UserError(f"{name}: no such folder in the bucket; give one with a model in Hugging Face format")
    versions = "".join(f"{one.uri} {one.generation}\n" for one in there.values())
    folder = cache_folder() / "artifacts" / f"folder-{hashlib.sha256(versions.encode()).hexdigest()[:32]}"
    with filling(folder):
        wanted = [
            (one, folder / n)
            for n, one in there.items()
            if not ((folder / n).is_file() and gcs.file_is(folder / n, one))
        ]
        make_room(folder, sum(one.bytes for one, _ in wanted))
        gcs.download(wanted)
    return str(folder)


def with_fetched_model(config: _Config, name: str) -> _Config:
    """Settings whose model or tokenizer (the setting `name`) is no longer in a bucket; see `fetched_model`."""
    return dataclasses.replace(config, **{name: fetched_model(getattr(config, name))})  # type: ignore[type-var]
