"""Raw data where it lies: found, streamed, and told apart from what was there before."""

from __future__ import annotations

import glob
import gzip
import io
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, cast

from hanflow.errors import UserError
from hanflow.storage.uri import is_remote, join, local_path, pattern


def find_raw(uri: str, suffixes: tuple[str, ...]) -> list[str]:
    """The raw files behind a file path, a folder or a glob, local or in a bucket, sorted by name.

    Args:
        uri: file, folder (read recursively; hidden files are passed over) or glob (`**` allowed).
        suffixes: endings of the files that a reader exists for; a folder's other files are passed over.

    Raises:
        UserError: nothing is there, or nothing readable.
    """
    endings = ", ".join(suffixes)
    if is_remote(uri):
        return _find_objects(uri, suffixes, endings)
    path = local_path(uri)
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        files = sorted(
            p
            for p in path.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
        )
        readable = [str(p) for p in files if p.name.lower().endswith(suffixes)]
        if not readable:
            raise UserError(f"{uri}: the folder holds no readable file among {len(files)}; readable endings: {endings}")
        return readable
    if glob.has_magic(uri):
        matches = [str(p) for p in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(p)]
        if not matches:
            raise UserError(f"{uri}: the pattern matches no file; quote it in the shell and check the folder part")
        return matches
    near = _nearest_existing(path)
    raise UserError(f"{uri}: no such file or folder (the nearest folder that exists is {near}); check the path")


def _nearest_existing(path: Path) -> Path:
    return next(p for p in path.absolute().parents if p.exists())


def _find_objects(uri: str, suffixes: tuple[str, ...], endings: str) -> list[str]:
    from hanflow.storage import gcs

    if not uri.endswith("/") and gcs.split(uri)[1] and gcs.stat(uri):
        return [uri]
    if glob.has_magic(uri):
        folder = uri[: re.search(r"[*?[]", uri).start()].rpartition("/")[0]  # type: ignore[union-attr]
        wanted = pattern(uri.removeprefix(f"{folder}/"))
        matches = [join(folder, name) for name in gcs.listing(folder) if wanted.fullmatch(name)]
        if not matches:
            raise UserError(f"{uri}: the pattern matches no object; quote it in the shell and check the folder part")
        return matches
    there = gcs.listing(uri)
    if not there:
        raise UserError(f"{uri}: no such object or folder in the bucket; check the URI with `gcloud storage ls`")
    seen = [name for name in there if not any(part.startswith(".") for part in name.split("/"))]
    readable = [join(uri, name) for name in seen if name.lower().endswith(suffixes)]
    if not readable:
        raise UserError(f"{uri}: the folder holds no readable file among {len(seen)}; readable endings: {endings}")
    return readable


def open_raw(path: str) -> BinaryIO:
    """One of the files that `find_raw` found, opened to read bytes; it can be sought in.

    From a bucket it is streamed: nothing is copied to the disk, and memory holds some megabytes of it.

    Raises:
        UserError, OSError: it cannot be read.
    """
    if not is_remote(path):
        return open(path, "rb")
    from hanflow.storage import gcs

    there = gcs.stat(path)
    if there is None:
        raise UserError(f"{path}: no such object in the bucket; check the URI with `gcloud storage ls`")
    stream = io.BufferedReader(gcs.Reader(there), 1 << 20)
    if there.blob.content_encoding == "gzip" and not path.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(stream))  # uploaded with `gcloud storage cp --gzip-local`
    return stream


def fingerprint(path: str) -> dict[str, Any]:
    """What tells whether a raw file is still the same: `path`, `bytes`, and when or as which version it was written."""
    if not is_remote(path):
        told = os.stat(path)
        return {"path": str(Path(path).resolve()), "bytes": told.st_size, "modified_ns": told.st_mtime_ns}
    from hanflow.storage import gcs

    there = gcs.stat(path)
    if there is None:
        raise UserError(f"{path}: no such object in the bucket; check the URI with `gcloud storage ls`")
    return {"path": path, "bytes": there.bytes, "generation": there.generation}
