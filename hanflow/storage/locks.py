"""Locks between the processes of one machine; the system opens them when their process ends, however it does."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_held: dict[Path, int] = {}
"""Locks that are held until the process ends."""


def hold(path: Path) -> bool:
    """Lock a file (made if missing) until this process ends; False: another process has it."""
    if path not in _held:
        descriptor = try_lock(path)
        if descriptor is None:
            return False
        _held[path] = descriptor
    return True


def hold_with_others(path: Path) -> None:
    """Share the lock of a file (made if missing, also when it was removed meanwhile) until this process ends."""
    if path not in _held or not path.exists():
        _held[path] = lock(path, fcntl.LOCK_SH)


def lock(path: Path, how: int = fcntl.LOCK_EX) -> int:
    """Wait for the lock of a file (made if missing); returns a descriptor that locks it until it is closed."""
    descriptor = _opened(path)
    fcntl.flock(descriptor, how)
    return descriptor


def try_lock(path: Path) -> int | None:
    """As `lock`, for this process alone and without waiting; None: another process has it."""
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
