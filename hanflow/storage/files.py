"""Files that are no artifacts, local or in a bucket: single ones, listings, and raw data to find and to stream."""

from __future__ import annotations

import glob
import gzip
import io
import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from hanflow.errors import UserError
from hanflow.storage.archives import divided, is_archive, member_names, open_archive, open_member
from hanflow.storage.artifacts import file_sha256
from hanflow.storage.uri import is_remote, join, local_path, pattern, shown

if TYPE_CHECKING:
    from hanflow.storage import gcs


def exists(uri: str) -> bool:
    """Whether there is a file at a URI.

    Raises:
        UserError: its bucket cannot be read.
    """
    if not is_remote(uri):
        return local_path(uri).exists()
    from hanflow.storage import gcs

    if gcs.stat(uri):
        return True
    gcs.check_bucket(uri)
    return False


def copy_file(uri: str, target: Path) -> None:
    """Copy one small file to a local path.

    Raises:
        UserError: it is not in its bucket.
    """
    if not is_remote(uri):
        shutil.copyfile(local_path(uri), target)
        return
    from hanflow.storage import gcs

    found = gcs.read(uri)
    if found is None:
        raise UserError(f"{uri}: no such object in the bucket")
    target.write_bytes(found[0])


def refuse_run(uri: str) -> None:
    """Refuse a folder in a bucket that is not empty.

    Raises:
        UserError: it is not empty, or the bucket cannot be read.
    """
    from hanflow.storage import gcs

    if gcs.listing(uri):
        raise UserError(f"{uri}: already holds another run; give another --output, or remove it")


def object_names(uri: str) -> list[str]:
    """Names of the objects below a folder in a bucket, relative to it, sorted.

    Raises:
        UserError: the bucket cannot be read.
    """
    from hanflow.storage import gcs

    return list(gcs.listing(uri))


def publish_file(path: Path, uri: str, *, replace: bool = False) -> None:
    """Upload one whole file into a bucket.

    Raises:
        UserError: the object exists and `replace` is not set, or it cannot be written.
    """
    from hanflow.storage import gcs

    gcs.put_new(uri, path, replace=replace)


def check_output(option: str, output: str, inputs: Iterable[str | os.PathLike[str]], *, force: bool) -> None:
    """Refuse a file to write that is one of those that are read, by whatever path or link, or that exists.

    Args:
        option: that names the file, for messages.
        inputs: local paths and URIs.
        force: whether a file that exists, and is no input, may be replaced.

    Raises:
        UserError: the message says which.
    """
    if is_remote(output):
        if output in inputs:
            raise UserError(f"{option}: {output}: is read as well, and would be replaced; give another")
        if exists(output) and not force:
            raise UserError(f"{option}: {output}: exists already; give another, or replace it with --force")
        return
    path = local_path(output)
    if not path.parent.is_dir():
        raise UserError(f"{option}: {shown(output)}: its folder does not exist; create it first")
    if path.is_dir():
        raise UserError(f"{option}: {shown(output)}: is a folder; give a file in it")
    if not path.exists():
        return
    for given in inputs:
        if not is_remote(os.fspath(given)) and (there := local_path(given)).exists() and there.samefile(path):
            raise UserError(f"{option}: {shown(output)}: is {shown(given)}, which is read; give another")
    if not force:
        raise UserError(f"{option}: {shown(output)}: exists already; give another, or replace it with --force")


def find_raw(uri: str, suffixes: tuple[str, ...]) -> list[str]:
    """The raw files that a file path, a folder or a glob stands for, local or in a bucket, sorted by name.

    Args:
        uri: file, folder (read recursively, without hidden files) or glob (`**` allowed).
        suffixes: endings of the files that can be read; a folder's other files are ignored.

    Raises:
        UserError: no file is there, or none that can be read.
    """
    endings = ", ".join(filter(None, suffixes))  # "": of any file
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
    near = next(p for p in path.absolute().parents if p.exists())
    raise UserError(f"{uri}: no such file or folder (the nearest folder that exists is {near}); check the path")


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
    """One of the files that `find_raw` found, or one in a zip archive (`corpus.zip/1.json`), opened to read bytes; seekable.

    From a bucket it is streamed: nothing is copied to disk, and memory holds some megabytes of it.

    Raises:
        UserError, OSError: it cannot be read.
    """
    archive, member = divided(path)
    if member:
        return open_member(archive, _archive(archive, stamp(archive)), member)
    if not is_remote(path):
        return open(path, "rb")
    from hanflow.storage import gcs

    there = _object(path)
    stream = io.BufferedReader(gcs.Reader(there), 1 << 20)
    if there.blob.content_encoding == "gzip" and not path.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(stream))  # uploaded with `gcloud storage cp --gzip-local`
    return stream


def unpacked(paths: list[str]) -> list[str]:
    """The paths, with those of its files for each zip archive.

    Raises:
        UserError: one is no archive, or cannot be read.
    """
    found = []
    for path in paths:
        if is_archive(path):
            found += [f"{path}/{name}" for name in member_names(_archive(path, stamp(path)))]
        else:
            found.append(path)
    return found


@lru_cache(maxsize=1)
def _archive(path: str, _: tuple[int, ...]) -> zipfile.ZipFile:
    """An archive, which stays open: to read its directory anew for each of many files takes time that grows with their square.

    Args:
        _: its stamp: a replaced archive is opened anew.
    """
    return open_archive(path, open_raw(path))


def containers(paths: Iterable[str]) -> list[str]:
    """The files as they are stored: an archive once, whatever number of its files are among the paths."""
    return list(dict.fromkeys(divided(path)[0] for path in paths))


def fingerprint(path: str) -> dict[str, Any]:
    """What changes when a raw file is replaced: `path`, `bytes`, and `sha256` (local) or `generation` (bucket).

    Reads a local file: size and time stay the same where a file is replaced by `cp -p` or restored from an archive. Files
    in archives have none: see `containers`.
    """
    if not is_remote(path):
        place = local_path(path)
        return {"path": shown(place.resolve()), "bytes": place.stat().st_size, "sha256": file_sha256(place)}
    there = _object(path)
    return {"path": path, "bytes": there.bytes, "generation": there.generation}


def stamp(path: str) -> tuple[int, ...]:
    """What changes, almost always, when a raw file is replaced, without reading it; its first number is the size in bytes."""
    path = divided(path)[0]
    if is_remote(path):
        there = _object(path)
        return there.bytes, there.generation
    found = local_path(path).stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _object(path: str) -> gcs.Object:
    from hanflow.storage import gcs

    there = gcs.stat(path)
    if there is None:
        raise UserError(f"{path}: no such object in the bucket; check the URI with `gcloud storage ls`")
    return there
