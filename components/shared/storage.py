"""The one door to files: raw data to read, artifacts to fetch and to publish, at local paths and gs:// URIs.

What lies in a bucket is worked on from copies on this machine: `fetched` downloads an artifact's files (in parallel, each
compared with its digest) into a cache, `staged` gives a local folder that is uploaded when whole, its manifest last. Raw
data is not copied: `open_raw` streams it. The cache is `$HANFLOW_CACHE`, else a folder of the user's in the system's
folder for temporary files; what was not used for longest goes when the disk fills.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import glob
import gzip
import hashlib
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

from components.shared.artifacts import (
    KINDS,
    Manifest,
    file_sha256,
    missing_manifest,
    parse_manifest,
    read_manifest,
)
from components.shared.config import UserError
from components.shared.progress import log

REMOTE = "gs://"

SPARE_BYTES = 1 << 28
"""What the cache leaves free on its disk."""


def is_remote(uri: str) -> bool:
    """Whether a URI names something in a bucket."""
    return uri.startswith(REMOTE)


def join(uri: str, name: str) -> str:
    """The URI of something inside a folder."""
    return f"{uri.rstrip('/')}/{name}" if is_remote(uri) else str(local_path(uri) / name)


def local_path(uri: str) -> Path:
    """The path behind a local URI (`/path`, `relative/path`, `file:///path`).

    Raises:
        UserError: the scheme has no reader.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri).expanduser()
    if scheme == "file":
        return Path(rest)
    if scheme == "gs":
        raise UserError(
            f"{uri}: is in a bucket, here a local path is needed; copy it with `gcloud storage cp -r` first"
        )
    raise UserError(f"{uri}: hanflow cannot read {scheme}://; copy the data to a local folder or to gs://")


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
    from components.shared import gcs

    if not uri.endswith("/") and gcs.split(uri)[1] and gcs.stat(uri):
        return [uri]
    if glob.has_magic(uri):
        folder = uri[: re.search(r"[*?[]", uri).start()].rpartition("/")[0]  # type: ignore[union-attr]
        pattern = _pattern(uri.removeprefix(f"{folder}/"))
        matches = [join(folder, name) for name in gcs.listing(folder) if pattern.fullmatch(name)]
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


def _pattern(text: str) -> re.Pattern[str]:
    """A glob as Python's own reads it: `*` and `?` stay within a folder and match no hidden name, `**` is any folders."""
    folders = "(?:[^/.][^/]*/)*"
    *parents, last = text.split("/")
    parts = [folders if segment == "**" else _segment(segment) + "/" for segment in parents]
    return re.compile("".join(parts) + (f"{folders}[^/.][^/]*" if last == "**" else _segment(last)), re.DOTALL)


def _segment(text: str) -> str:
    parts = [r"(?!\.)"] if text[:1] in ("*", "?", "[") else []
    for part in re.findall(r"\*+|\?|\[!?\]?[^\]]*\]|.", text, re.DOTALL):
        if part[0] in "*?":
            parts.append("[^/]*" if part[0] == "*" else "[^/]")
        elif len(part) > 1:
            inner = part[1:-1].replace("\\", r"\\").replace("[", r"\[")
            parts.append(f"[{'^' + inner[1:] if inner[0] == '!' else inner}]")
        else:
            parts.append(re.escape(part))
    return "".join(parts)


def open_raw(path: str) -> BinaryIO:
    """One of the files that `find_raw` found, opened to read bytes; it can be sought in.

    From a bucket it is streamed: nothing is copied to the disk, and memory holds some megabytes of it.

    Raises:
        UserError, OSError: it cannot be read.
    """
    if not is_remote(path):
        return open(path, "rb")
    from components.shared import gcs

    there = gcs.stat(path)
    if there is None:
        raise UserError(f"{path}: no such object in the bucket; check the URI with `gcloud storage ls`")
    stream = io.BufferedReader(gcs.Reader(there), 1 << 20)
    if there.blob.content_encoding == "gzip" and not path.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(stream))  # uploaded with `gcloud storage cp --gzip-local`
    return stream


def exists(uri: str) -> bool:
    """Whether there is a file of that name.

    Raises:
        UserError: its bucket cannot be read.
    """
    if not is_remote(uri):
        return local_path(uri).exists()
    from components.shared import gcs

    if gcs.stat(uri):
        return True
    gcs.check_bucket(uri)
    return False


def fingerprint(path: str) -> dict[str, Any]:
    """What tells whether a raw file is still the same: `path`, `bytes`, and when or as which version it was written."""
    if not is_remote(path):
        told = os.stat(path)
        return {"path": str(Path(path).resolve()), "bytes": told.st_size, "modified_ns": told.st_mtime_ns}
    from components.shared import gcs

    there = gcs.stat(path)
    if there is None:
        raise UserError(f"{path}: no such object in the bucket; check the URI with `gcloud storage ls`")
    return {"path": path, "bytes": there.bytes, "generation": there.generation}


def cache_folder() -> Path:
    """The folder for copies of what lies in buckets; made if missing, for this user alone.

    Raises:
        UserError: it cannot be had.
    """
    chosen = os.environ.get("HANFLOW_CACHE")
    folder = Path(chosen).expanduser() if chosen else Path(tempfile.gettempdir()) / f"hanflow-{os.getuid()}"
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: the folder for copies of gs:// data cannot be made ({error.strerror}); set HANFLOW_CACHE to one"
        ) from None
    if not chosen and folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to someone else; set HANFLOW_CACHE to a folder of your own")
    return folder


def work_folder(uri: str) -> Path:
    """The folder on this machine that stands for a folder in a bucket; made if missing."""
    folder = cache_folder() / "work" / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_held: dict[Path, int] = {}
"""Locks that are held until the process ends."""


def hold(path: Path) -> bool:
    """Lock a file (made if missing) until this process ends; False: another process has it."""
    if path not in _held:
        descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is None:
            return False
        _held[path] = descriptor
    return True


def _lock(path: Path, how: int = fcntl.LOCK_EX) -> int | None:
    """A descriptor that locks a file (made if missing) until it is closed; None: it cannot be had without waiting."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remote_manifest(uri: str, kind: str, task: str | None) -> Manifest:
    from components.shared import gcs

    found = gcs.read(join(uri, f"{kind}.json"))
    if found is None:
        raise missing_manifest(uri, kind, gcs.listing(uri))
    return parse_manifest(found[0], uri, kind, task=task)


def manifest_at(uri: str, kind: str, *, task: str | None = None) -> Manifest:
    """The manifest of an artifact, local or in a bucket; its files are not looked at.

    Raises:
        UserError: no such artifact there, an unfinished one, or another kind, schema or task; says which.
    """
    if is_remote(uri):
        return _remote_manifest(uri, kind, task)
    return read_manifest(local_path(uri), kind, task=task, verify=False)


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
    with _filling(folder):
        wanted = [name for name in names if not _is_whole(folder / name, manifest.files[name])]
        if wanted:
            _fetch(uri, folder, wanted, manifest)
        (folder / f"{kind}.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder, manifest


def _is_whole(path: Path, expected: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == expected["bytes"] and file_sha256(path) == expected["sha256"]


def _fetch(uri: str, folder: Path, names: list[str], manifest: Manifest) -> None:
    from components.shared import gcs

    there = gcs.listing(uri)
    absent = next((name for name in names if name not in there), None)
    if absent:
        again = f"run the {KINDS[manifest.artifact]} step again"
        raise UserError(f"{join(uri, absent)}: is missing from the {manifest.artifact} artifact; {again}")
    size = sum(manifest.files[name]["bytes"] for name in names)
    _make_room(folder, size)
    log.info("fetching %d files (%.1f MB) of %s", len(names), size / 1e6, uri)
    digests = {folder / name: manifest.files[name]["sha256"] for name in names}
    gcs.download([(there[name], folder / name) for name in names], digests)


@contextmanager
def _filling(folder: Path) -> Iterator[None]:
    """Make a folder of the cache and be alone in filling it; it is not cleared away while this process lives."""
    used = folder.with_suffix(".used")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if used not in _held or not used.exists():  # someone may have emptied the cache meanwhile
        descriptor = _lock(used, fcntl.LOCK_SH)
        assert descriptor is not None
        _held[used] = descriptor
    os.utime(used)
    folder.mkdir(exist_ok=True)
    filling = _lock(folder.with_suffix(".filling"))
    assert filling is not None
    try:
        yield
    finally:
        os.close(filling)


def _make_room(folder: Path, needed: int) -> None:
    """Clear the cache of what nobody uses, longest unused first, until there is room."""
    for path in sorted(folder.parent.glob("*.used"), key=lambda path: path.stat().st_mtime):
        if shutil.disk_usage(folder).free >= needed + SPARE_BYTES:
            return
        descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is not None:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            os.close(descriptor)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder.parent}: needs {needed / 1e9:.1f} GB for a copy of gs:// data, {free / 1e9:.1f} GB are free; set "
            "HANFLOW_CACHE to a folder on a larger disk"
        )


def fetched_model(name: str) -> str:
    """A model or tokenizer that can be loaded: local folders and hub names as they are, a folder in a bucket as its copy.

    Raises:
        UserError: there is nothing, or an artifact that was never finished.
    """
    if not is_remote(name):
        return name
    from components.shared import gcs

    there = gcs.listing(name)
    kind = next((kind for kind in ("bundle", "model") if f"{kind}.json" in there), None)
    if kind:
        return str(fetched(name, kind)[0])
    if not there:
        raise UserError(f"{name}: no such folder in the bucket; give one with a model in Hugging Face format")
    versions = "".join(f"{one.uri} {one.generation}\n" for one in there.values())
    folder = cache_folder() / "artifacts" / f"folder-{hashlib.sha256(versions.encode()).hexdigest()[:32]}"
    with _filling(folder):
        wanted = [
            (one, folder / n)
            for n, one in there.items()
            if not ((folder / n).is_file() and gcs.file_is(folder / n, one))
        ]
        _make_room(folder, sum(one.bytes for one, _ in wanted))
        gcs.download(wanted)
    return str(folder)


_Config = TypeVar("_Config")


def nothing(_: Manifest) -> Sequence[str]:
    """For `fetched`: no file, only the manifest."""
    return ()


def with_fetched_model(config: _Config, name: str) -> _Config:
    """Settings whose model or tokenizer (the setting `name`) is no longer in a bucket; see `fetched_model`."""
    return dataclasses.replace(config, **{name: fetched_model(getattr(config, name))})  # type: ignore[type-var]


def copy_file(uri: str, target: Path) -> None:
    """Copy one small file to a local path.

    Raises:
        UserError: it is not in its bucket.
    """
    if not is_remote(uri):
        shutil.copyfile(local_path(uri), target)
        return
    from components.shared import gcs

    found = gcs.read(uri)
    if found is None:
        raise UserError(f"{uri}: no such object in the bucket")
    target.write_bytes(found[0])


def refuse_run(uri: str) -> None:
    """Make sure that a folder in a bucket holds nothing yet.

    Raises:
        UserError: it does, or the bucket cannot be read.
    """
    from components.shared import gcs

    if gcs.listing(uri):
        raise UserError(f"{uri}: already holds another run; give another --output or remove it")


def object_names(uri: str) -> list[str]:
    """Names of the objects below a folder in a bucket, relative to it, sorted.

    Raises:
        UserError: the bucket cannot be read.
    """
    from components.shared import gcs

    return list(gcs.listing(uri))


def publish_file(path: Path, uri: str, *, replace: bool = False) -> None:
    """Upload one whole file into a bucket.

    Raises:
        UserError: there is one already and it is not to be replaced, or it cannot be written.
    """
    from components.shared import gcs

    gcs.put_new(uri, path, replace=replace)


@contextmanager
def _staged_remote(uri: str, kind: str) -> Iterator[Path]:
    from components.shared import gcs

    if not kind:
        raise UserError(f"{uri}: is in a bucket; give a local folder and upload it with `gcloud storage cp -r`")
    claimed = gcs.claim(uri, f"{kind}.json")
    parent = cache_folder() / "staging"
    parent.mkdir(exist_ok=True)
    _sweep(parent)
    staging = parent / uuid.uuid4().hex
    descriptor = _lock(staging.with_suffix(".lock"))
    assert descriptor is not None
    try:
        staging.mkdir()
        yield staging
        size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
        log.info("uploading %.1f MB to %s", size / 1e6, uri)
        gcs.publish(claimed, staging)
    except BaseException as error:
        gcs.abandon(claimed)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{parent}: the disk is full; make room, or set HANFLOW_CACHE to a folder on a larger disk"
            ) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        staging.with_suffix(".lock").unlink(missing_ok=True)
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove what killed processes left."""
    for path in parent.glob("*.lock"):
        descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is not None:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
            os.close(descriptor)


@contextmanager
def staged(uri: str, kind: str = "") -> Iterator[Path]:
    """A local directory to write an artifact into; it becomes `uri` only if the block ends without an error.

    Locally it is written beside the target, then renamed. In a bucket the place is claimed first and committed by the
    manifest last (`components.shared.gcs`). Either way nobody ever takes a half-written artifact for whole, and after an
    error, a full disk or Ctrl-C nothing of it is left.

    Args:
        uri: where the artifact is to be; must not hold anything yet.
        kind: of the artifact, whose manifest the block must write; empty: a plain folder, which has to be local.

    Raises:
        UserError: `uri` already holds something, cannot be written to, or the disk is full.
    """
    if is_remote(uri):
        with _staged_remote(uri, kind) as staging:
            yield staging
        return
    target = local_path(uri).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: already exists and is not empty; give another output folder or remove this one")
    staging = target.parent / f".{target.name}.partial-{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir(parents=True)
        yield staging
        readable_by_umask(staging)
        if target.exists():
            target.rmdir()
        os.replace(staging, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{target}: the disk is full; free some space, nothing half-written was left") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR) and not staging.is_dir():
            raise UserError(f"{target}: cannot be written ({error.strerror}); give another output folder") from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def readable_by_umask(folder: Path) -> None:
    """Give the files in a folder the permissions that plainly created ones have.

    Some libraries (safetensors) create theirs readable by the owner alone; other users of a shared volume need them.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
