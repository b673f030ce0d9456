"""Publishing folders and files, and removing folders, so that a partial one is never taken for complete."""

from __future__ import annotations

import uuid
from pathlib import Path

from google.api_core import exceptions

from hanflow.errors import UserError
from hanflow.storage.gcs import service
from hanflow.storage.gcs.claims import Claim, TakenOver, check
from hanflow.storage.gcs.objects import delete, listing, put_if, stat
from hanflow.storage.gcs.uploads import Job, compose, upload

MOST_PARTS = 32
"""Limit of one compose request; larger files get larger parts."""


def publish(claimed: Claim, folder: Path) -> None:
    """Upload a folder to a claimed URI, its record last.

    Raises:
        UserError: it cannot be uploaded, or another writer has taken over the URI; then nothing is committed.
    """
    uri, record = claimed.uri, folder / claimed.record
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != record]
    there = listing(uri)
    # After the listing: a writer that takes over from now on overwrites what was listed, not the other way round.
    check(claimed)
    for name in there:
        if name.split("/")[-2:-1] and name.split("/")[-2].startswith(".parts-"):
            delete(there[name].uri, there[name].generation)  # left by a killed writer
    jobs, composed = [], []
    for path in files:
        name = path.relative_to(folder).as_posix()
        match = there[name].generation if name in there else 0
        size = path.stat().st_size
        if size <= service.PART:
            jobs.append(Job(service.join(uri, name), path, match))
            continue
        length = max(service.PART, -(-size // MOST_PARTS))
        parts = f"{service.join(uri, name).rpartition('/')[0]}/.parts-{uuid.uuid4().hex}"
        starts = range(0, size, length)
        pieces = [Job(f"{parts}/{i:02d}", path, 0, start, min(length, size - start)) for i, start in enumerate(starts)]
        jobs += pieces
        composed.append((Job(service.join(uri, name), path, match), pieces))
    with service.explained(uri):
        upload(jobs, claimed)
        for job, pieces in composed:
            compose(job, pieces, claimed)
        try:
            claimed.generation = put_if(service.join(uri, claimed.record), record.read_bytes(), claimed.generation)
        except exceptions.PreconditionFailed:
            raise TakenOver(uri) from None


def remove(uri: str, record: str) -> None:
    """Remove a committed folder, its record first, so that the rest is never taken for complete."""
    there = listing(uri)
    with service.explained(uri):
        for name in sorted(there, key=lambda name: name != record):
            delete(there[name].uri, there[name].generation)


def put_new(uri: str, source: Path, *, replace: bool) -> None:
    """Upload one file.

    Args:
        replace: whether an existing object is replaced; else it is an error.

    Raises:
        UserError: the object exists, or it cannot be written.
    """
    there = stat(uri)
    if there is not None and not replace:
        raise UserError(f"{uri}: already exists; give another URI, or replace it with --force")
    job = Job(uri, source, there.generation if there else 0)
    with service.explained(uri):
        upload([job], Claim(uri, "", 0))
