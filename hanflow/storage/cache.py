"""The cache: local copies of what lies in buckets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hanflow.errors import UserError
from hanflow.storage.locks import hold_with_others, lock, try_lock

SPARE_BYTES = 1 << 28
"""Bytes that the cache leaves free on its disk."""


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
