"""Single files at a place, and what a folder in a bucket holds."""

from __future__ import annotations

import shutil
from pathlib import Path

from hanflow.errors import UserError
from hanflow.storage.uri import is_remote, local_path


def exists(uri: str) -> bool:
    """Whether there is a file of that name.

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
    """Make sure that a folder in a bucket holds nothing yet.

    Raises:
        UserError: it does, or the bucket cannot be read.
    """
    from hanflow.storage import gcs

    if gcs.listing(uri):
        raise UserError(f"{uri}: already holds another run; give another --output or remove it")


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
        UserError: there is one already and it is not to be replaced, or it cannot be written.
    """
    from hanflow.storage import gcs

    gcs.put_new(uri, path, replace=replace)
