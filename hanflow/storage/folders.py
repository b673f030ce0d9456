"""The folders of this user on this machine for copies of what lies in buckets."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from hanflow.errors import UserError


def cache_folder() -> Path:
    """The folder for local copies; created if missing, readable by this user alone.

    Raises:
        UserError: it cannot be created, or belongs to another user.
    """
    chosen = os.environ.get("HANFLOW_CACHE")
    folder = Path(chosen).expanduser() if chosen else Path(tempfile.gettempdir()) / f"hanflow-{os.getuid()}"
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: the folder for copies of gs:// data cannot be created ({error.strerror}); set HANFLOW_CACHE to one"
        ) from None
    if not chosen and folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set HANFLOW_CACHE to a folder of your own")
    return folder


def work_folder(uri: str) -> Path:
    """The local folder with the working copy of a folder in a bucket; created if missing."""
    folder = cache_folder() / "work" / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
