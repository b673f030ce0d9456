"""Artifacts to write: a local folder that becomes the artifact when it is complete."""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hanflow.errors import UserError, file_error, is_disk_full
from hanflow.progress import log
from hanflow.storage.folders import cache_folder
from hanflow.storage.locks import lock, try_lock, writing
from hanflow.storage.uri import is_remote, local_path


@contextmanager
def staged(uri: str, kind: str = "") -> Iterator[Path]:
    """A local directory to write an artifact into; it becomes `uri` if the block ends without an error.

    A local artifact is written beside its target, then renamed. In a bucket the place is claimed first and committed by
    the manifest last (`hanflow.storage.gcs`). Either way a partial artifact is never taken for a complete one, and after
    an error, a full disk or Ctrl-C nothing of it is left.

    Args:
        uri: of the artifact; must be empty or absent.
        kind: of the artifact, whose manifest the block must write; "": a plain folder, which has to be local.

    Raises:
        UserError: `uri` is not empty, cannot be written to, or the disk is full.
    """
    with writing(uri):
        if is_remote(uri):
            with _staged_remote(uri, kind) as staging:
                yield staging
            return
        target = local_path(uri).absolute()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target}: already exists and is not empty; give another output folder or remove this one")
        for left in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):  # of a killed process
            shutil.rmtree(left, ignore_errors=True)
        staging = target.parent / f".{target.name}.partial-{uuid.uuid4().hex[:8]}"
        try:
            staging.mkdir(parents=True)
            yield staging
            readable_by_umask(staging)
            if target.exists():
                target.rmdir()
            os.replace(staging, target)
        except Exception as error:
            if is_disk_full(error):
                raise UserError(f"{target}: the disk is full; free some space; nothing partial was left") from error
            if isinstance(error, OSError) and (not staging.is_dir() or not os.access(staging, os.W_OK)):
                raise file_error(error, target) from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _staged_remote(uri: str, kind: str) -> Iterator[Path]:
    from hanflow.storage import gcs

    if not kind:
        raise UserError(f"{uri}: is in a bucket; give a local folder and upload it with `gcloud storage cp -r`")
    parent = cache_folder() / "staging"
    parent.mkdir(exist_ok=True)
    _sweep(parent)
    staging = parent / uuid.uuid4().hex
    descriptor = lock(staging.with_suffix(".lock"))
    try:
        staging.mkdir()
        # Only now that the folder exists: an error before leaves no claim behind.
        claimed = gcs.claim(uri, f"{kind}.json")
        try:
            yield staging
            size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
            log.info("uploading %.1f MB to %s", size / 1e6, uri)
            gcs.publish(claimed, staging)
        except BaseException:
            gcs.abandon(claimed)
            raise
    except Exception as error:
        if is_disk_full(error):
            raise UserError(
                f"{parent}: the disk is full; make room, or set HANFLOW_CACHE to a folder on a larger disk"
            ) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        staging.with_suffix(".lock").unlink(missing_ok=True)
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove the staging folders of processes that were killed."""
    for path in parent.glob("*.lock"):
        descriptor = try_lock(path)
        if descriptor is not None:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
            os.close(descriptor)


def readable_by_umask(folder: Path) -> None:
    """Give the files in a folder the permissions that newly created files get by default.

    Some libraries (safetensors) create files that the owner alone can read; on a shared volume others need them, too.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
