"""The cache: local copies of what lies in buckets; and the file locks that protect it and other local folders.

The operating system releases a lock when the process that holds it ends, however it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hanflow.errors import UserError

SPARE_BYTES = 1 << 28
"""Bytes that the cache leaves free on its disk."""

_held: dict[Path, int] = {}
"""Locked file → open descriptor, until the process ends."""


def cache_folder() -> Path:
    """The folder for local copies: this user's own, no link, closed to all others; created if missing.

    Where HANFLOW_CACHE names a folder that others can write, or that is not this user's, it is a folder of this user's in
    there.

    Raises:
        UserError: it cannot be created, is a link, or belongs to another user.
    """
    mine = f"hanflow-{os.getuid()}"
    chosen = os.environ.get("HANFLOW_CACHE")
    if not chosen:
        return _own(Path(tempfile.gettempdir()) / mine)
    folder = Path(chosen).expanduser().resolve()
    if not folder.is_dir():
        return _own(folder)
    found = folder.stat()
    return folder if found.st_uid == os.getuid() and not found.st_mode & 0o022 else _own(folder / mine)


def _own(folder: Path) -> Path:
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            if found.st_mode & 0o077:
                folder.chmod(0o700)
            return folder
    except OSError as error:
        raise UserError(
            f"{folder}: the folder for copies of gs:// data cannot be created ({error.strerror}); set HANFLOW_CACHE to one"
        ) from None
    problem = "is a link" if stat.S_ISLNK(found.st_mode) else "belongs to another user"
    raise UserError(f"{folder}: {problem}; remove it, or set HANFLOW_CACHE to a folder of your own")


def work_folder(uri: str) -> Path:
    """The local folder with the working copy of a folder in a bucket; created if missing."""
    folder = cache_folder() / "work" / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Create a folder of the cache and lock it against other writers; it is not evicted while this process lives."""
    used = folder.with_suffix(".used")
    folder.parent.mkdir(parents=True, exist_ok=True)
    hold_with_others(used)  # each time: the cache may have been emptied meanwhile
    os.utime(used)
    folder.mkdir(exist_ok=True)
    descriptor = lock(folder.with_suffix(".filling"))
    try:
        yield
    finally:
        os.close(descriptor)


def make_room(folder: Path, needed: int) -> None:
    """Remove copies that no process uses, the least recently used first, until `needed` bytes fit.

    Raises:
        UserError: they do not fit even then.
    """
    for path in sorted(folder.parent.glob("*.used"), key=lambda path: path.stat().st_mtime):
        if shutil.disk_usage(folder).free >= needed + SPARE_BYTES:
            return
        descriptor = try_lock(path)
        if descriptor is not None:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            os.close(descriptor)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder.parent}: needs {needed / 1e9:.1f} GB for a copy of gs:// data, {free / 1e9:.1f} GB are free; set "
            "HANFLOW_CACHE to a folder on a larger disk"
        )


def hold(path: Path) -> bool:
    """Lock a file (created if missing) until this process ends; False: another process holds the lock."""
    if path not in _held:
        descriptor = try_lock(path)
        if descriptor is None:
            return False
        _held[path] = descriptor
    return True


def hold_with_others(path: Path) -> None:
    """Hold a shared lock on a file (created if missing, even if removed meanwhile) until this process ends."""
    if path not in _held or not path.exists():
        _held[path] = lock(path, fcntl.LOCK_SH)


def lock(path: Path, how: int = fcntl.LOCK_EX) -> int:
    """Wait for the lock on a file (created if missing); it is held until the returned descriptor is closed."""
    descriptor = _opened(path)
    fcntl.flock(descriptor, how)
    return descriptor


def try_lock(path: Path) -> int | None:
    """As `lock`, exclusive and without waiting; None: another process holds it."""
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
