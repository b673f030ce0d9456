"""The cache: copies on this machine of what lies in buckets."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hanflow.errors import UserError
from hanflow.storage.locks import hold_with_others, lock, try_lock

SPARE_BYTES = 1 << 28
"""What the cache leaves free on its disk."""


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


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Make a folder of the cache and be alone in filling it; it is not cleared away while this process lives."""
    used = folder.with_suffix(".used")
    folder.parent.mkdir(parents=True, exist_ok=True)
    hold_with_others(used)  # not only once: someone may have emptied the cache meanwhile
    os.utime(used)
    folder.mkdir(exist_ok=True)
    descriptor = lock(folder.with_suffix(".filling"))
    try:
        yield
    finally:
        os.close(descriptor)


def make_room(folder: Path, needed: int) -> None:
    """Clear the cache of what nobody uses, longest unused first, until there is room."""
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
