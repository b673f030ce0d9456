"""Single objects and listings of them, as the service tells them; small ones written and versions removed."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.api_core import exceptions

from hanflow.storage.gcs import service

WRITER = "hanflow-writer"
"""Metadata key that tells whose an object is, for when the answer to a request is lost."""


@dataclass(frozen=True)
class Object:
    """One version of an object."""

    uri: str
    bytes: int
    generation: int
    crc32c: str
    """Base 64, as the service tells it."""
    blob: Any = field(repr=False, compare=False)

    @property
    def writer(self) -> str:
        """Who wrote it, see `WRITER`; empty: not one of us."""
        return (self.blob.metadata or {}).get(WRITER, "")


def stat(uri: str) -> Object | None:
    """The object of that very name; None: there is none."""
    with service.explained(uri):
        blob = service.bucket(uri).get_blob(service.split(uri)[1], retry=service.retry(), timeout=service.TIMEOUT)
        return None if blob is None else _object(uri, blob)


def check_bucket(uri: str) -> None:
    """Make sure that the bucket is there and can be read.

    Raises:
        UserError: it is not.
    """
    options = {"retry": service.retry(), "timeout": service.TIMEOUT}
    with service.explained(uri):  # to ask for the bucket itself would take another right than to list it
        next(iter(service.client().list_blobs(service.split(uri)[0], max_results=1, **options)), None)


def _object(uri: str, blob: Any) -> Object:
    return Object(uri, int(blob.size or 0), int(blob.generation), blob.crc32c or "", blob)


def listing(uri: str) -> dict[str, Object]:
    """Everything below a folder: name relative to it → object, sorted.

    Raises:
        UserError: the bucket cannot be read.
    """
    bucket, key = service.split(uri)
    prefix = f"{key}/" if key else ""
    options = {"retry": service.retry(), "timeout": service.TIMEOUT}
    found = {}
    with service.explained(uri):
        for blob in service.client().list_blobs(bucket, prefix=prefix, **options):
            name = blob.name.removeprefix(prefix)
            if name and not name.endswith("/"):  # consoles make folders as empty objects
                found[name] = _object(f"{service.SCHEME}{bucket}/{blob.name}", blob)
    return dict(sorted(found.items()))


def put(uri: str, source: Path | bytes) -> None:
    """Write a small object that stands for itself, whatever was there."""
    blob = service.blob(uri)
    options: dict[str, Any] = {"checksum": "crc32c", "retry": service.retry(), "timeout": service.TIMEOUT}
    send: Callable[..., None] = blob.upload_from_filename if isinstance(source, Path) else blob.upload_from_string
    with service.explained(uri):
        send(str(source) if isinstance(source, Path) else source, **options)


def put_if(uri: str, content: bytes, match: int) -> int:
    """Write a small object on condition that its generation is `match` (0: there is none); returns the new one.

    Raises:
        PreconditionFailed: it is another.
    """
    blob, writer = service.blob(uri), uuid.uuid4().hex
    blob.metadata = {WRITER: writer}
    with service.explained(uri):
        try:
            blob.upload_from_string(
                content,
                content_type="application/json",
                if_generation_match=match,
                checksum="crc32c",
                retry=service.retry(),
                timeout=service.TIMEOUT,
            )
        except exceptions.PreconditionFailed as error:
            failure = error
        else:
            return int(blob.generation)
    now = stat(uri)
    if now is not None and now.writer == writer:
        return now.generation  # it was written, only the answer was lost
    raise failure


def delete(uri: str, generation: int, seconds: float = service.RETRY_SECONDS) -> None:
    """Remove one version of an object; it may be gone or replaced already.

    Args:
        seconds: how long that is tried.
    """
    again = service.retry().with_timeout(seconds)
    with contextlib.suppress(exceptions.NotFound, exceptions.PreconditionFailed):
        service.blob(uri).delete(if_generation_match=generation, retry=again, timeout=service.TIMEOUT)
