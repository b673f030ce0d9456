"""The folders of this user on this machine for copies of what lies in buckets."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from hanflow.errors import UserError


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
