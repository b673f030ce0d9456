"""Locks on the places that a process writes: one folder, one run.

The operating system releases a lock when the process that holds it ends, however it ends. Beside it lies a note of who
holds it, for the message to the one who comes second. What is in a bucket is locked on this machine alone; there, of two
machines, claims decide (`hanflow.storage.gcs`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hanflow.errors import UserError, file_error, has_no_locks
from hanflow.own_files import Damaged, parse_json
from hanflow.storage.folders import cache_folder
from hanflow.storage.uri import is_remote, local_path, shown

LOCK = ".lock"
"""Name of the lock in a folder that outlives the runs that write it."""

_PARENT = os.getppid()
"""The process that started this one: asked for later, it may be another, because that one was killed."""

_held: dict[Path, int] = {}
"""Locked file → open descriptor."""


def hold(uri: str) -> None:
    """Lock a folder that outlives the processes that write it (checkpoints, a run), until this process ends.

    Worker processes that were started with `inherited` hold it with their parent.

    Args:
        uri: the folder; created if missing. One in a bucket is locked on this machine.

    Raises:
        UserError: another process has it; the message names that one.
    """
    _take(uri, _inside(uri))


@contextlib.contextmanager
def holding(uri: str) -> Iterator[None]:
    """`hold` until the block ends."""
    path = _inside(uri)
    taken = _take(uri, path)
    try:
        yield
    finally:
        if taken:
            os.close(_held.pop(path))


@contextlib.contextmanager
def writing(uri: str) -> Iterator[None]:
    """Lock a file or folder while the block makes it; several blocks of one process may lie in each other.

    Args:
        uri: need not exist; its parent is created.

    Raises:
        UserError: another process has it; the message names that one.
    """
    path = _remote_lock(uri) if is_remote(uri) else _beside(local_path(uri))
    taken = _take(uri, path)
    try:
        yield
    finally:
        if taken:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(_held.pop(path))


def inherited() -> list[int]:
    """Descriptors of all locks: `pass_fds` of worker processes, which then hold them, too, even if this one is killed."""
    return list(_held.values())


def _take(uri: str, path: Path) -> bool:
    """Whether the lock was taken just now: not where this process has it already, or the file system has none."""
    if path in _held:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = try_lock(path)
        if descriptor is None:
            holder = _note(path)
            if holder.get("pid") == _PARENT and holder.get("host") == socket.gethostname():
                return False  # it has passed its lock on to this process
            raise UserError(_refusal(uri, holder))
        _held[path] = descriptor
        note = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%F %T"),
            "command": _command(),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
        return True
    except OSError as error:
        if has_no_locks(error):
            return False
        raise file_error(error, shown(uri)) from error


def _refusal(uri: str, holder: dict[str, object]) -> str:
    who = "another process"
    if holder:
        who = "process {pid} on {host} (since {since}: {command})".format_map(holder)
    return f"{shown(uri)}: {who} is working there; wait for its end or stop it, or give another folder"


def _note(path: Path) -> dict[str, object]:
    """Who holds a lock; empty where that is not (yet) written."""
    with contextlib.suppress(OSError, Damaged):
        note = parse_json(path.read_bytes(), path, "remove it")
        if note.keys() >= {"pid", "host", "since", "command"}:
            return note
    return {}


def _command() -> str:
    """This process's command line, shortened; settings may be secret, so options' values are left out."""
    words = [os.path.basename(sys.argv[0]), *(word.partition("=")[0] for word in sys.argv[1:3])]
    return shown(shlex.join(words))[:80]


def _inside(uri: str) -> Path:
    return _remote_lock(uri) if is_remote(uri) else Path(os.path.realpath(local_path(uri))) / LOCK


def _beside(path: Path) -> Path:
    real = Path(os.path.realpath(path))  # one lock for every way to a place
    return real.with_name(f".{real.name}{LOCK}")


def _remote_lock(uri: str) -> Path:
    return cache_folder() / "locks" / f"{hashlib.sha256(uri.rstrip('/').encode()).hexdigest()[:32]}{LOCK}"


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
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its holder has removed it meanwhile


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
