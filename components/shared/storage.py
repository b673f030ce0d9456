"""The one door to files: raw data to read, artifacts to fetch and to publish, whatever the scheme of their URI.

Local paths so far; every step goes through these functions, so another scheme is added here and nowhere else.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.shared.config import UserError


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
    raise UserError(f"{uri}: hanflow cannot read {scheme}:// yet; copy the data to a local folder and give its path")


def find_raw(uri: str, suffixes: tuple[str, ...]) -> list[str]:
    """The raw files behind a file path, a folder or a glob, sorted by name.

    Args:
        uri: file, folder (read recursively; hidden files are passed over) or glob (`**` allowed).
        suffixes: endings of the files that a reader exists for; a folder's other files are passed over.

    Raises:
        UserError: nothing is there, or nothing readable.
    """
    path = local_path(uri)
    endings = ", ".join(suffixes)
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


@contextmanager
def staged(uri: str) -> Iterator[Path]:
    """A local directory to write an artifact into; it becomes `uri` only if the block ends without an error.

    Written beside the target, then renamed: nobody ever sees a half-written artifact, and after an error, a full
    disk or Ctrl-C nothing of it is left.

    Raises:
        UserError: `uri` already holds something, or the disk is full.
    """
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
