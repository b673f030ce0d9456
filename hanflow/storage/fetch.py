"""Artifacts and models to read: local ones in place, those in a bucket as copies in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage.artifacts import KINDS, Manifest, is_whole, missing_manifest, parse_manifest, read_manifest
from hanflow.storage.cache import filling, make_room
from hanflow.storage.folders import cache_folder
from hanflow.storage.uri import is_remote, join, local_path

_Config = TypeVar("_Config")


def manifest_at(uri: str, kind: str, *, task: str | None = None) -> Manifest:
    """The manifest of an artifact, local or in a bucket; its files are not verified.

    Raises:
        UserError: no such artifact is there, it is incomplete, or its kind, schema or task is another one.
    """
    if not is_remote(uri):
        return read_manifest(local_path(uri), kind, task=task, verify=False)
    from hanflow.storage import gcs

    found = gcs.read(join(uri, f"{kind}.json"))
    if found is None:
        raise missing_manifest(uri, kind, gcs.listing(uri))
    return parse_manifest(found[0], uri, kind, task=task)


def nothing(_: Manifest) -> Sequence[str]:
    """For the argument `only` of `fetched`: no file, the manifest alone."""
    return ()


def fetched(
    uri: str, kind: str, *, task: str | None = None, only: Callable[[Manifest], Sequence[str]] | None = None
) -> tuple[Path, Manifest]:
    """A local folder with an artifact, each file verified by its digest, and its manifest.

    Args:
        uri: of the artifact. A local one is used in place; of one in a bucket, the files that the cache does not have yet
            are downloaded into it.
        kind: the kind that the caller needs.
        task: the task it must belong to; None: any.
        only: the files needed of an artifact in a bucket, from its manifest; None: all. A local one is always verified
            completely.

    Raises:
        UserError: no such artifact is there, its kind, schema or task is another one, or a file is missing or damaged.
    """
    if not is_remote(uri):
        folder = local_path(uri)
        return folder, read_manifest(folder, kind, task=task)
    manifest = manifest_at(uri, kind, task=task)
    names = [*manifest.files] if only is None else list(only(manifest))
    if any(name.startswith("/") or ".." in PurePosixPath(name).parts for name in names):
        raise UserError(f"{uri}: its manifest names files outside of it; do not trust it")
    folder = cache_folder() / "artifacts" / f"{kind}-{manifest.digest[:32]}"
    with filling(folder):
        wanted = [name for name in names if not is_whole(folder / name, manifest.files[name])]
        if wanted:
            _fetch(uri, folder, wanted, manifest)
        (folder / f"{kind}.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder, manifest


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
    """A local folder or hub name of a model or tokenizer: those are returned unchanged, a folder in a bucket as its copy.

    Raises:
        UserError: the folder in the bucket is empty, or an incomplete artifact.
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
    """Settings in which the model or tokenizer (the setting `name`) is replaced by `fetched_model` of it."""
    return dataclasses.replace(config, **{name: fetched_model(getattr(config, name))})  # type: ignore[type-var]
