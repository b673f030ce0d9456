"""Metadata of objects and listings; writing small objects, removing versions."""

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
"""Metadata key with the id of a write, to recognise it when the answer to the request was lost."""


@dataclass(frozen=True)
class Object:
    """One version of an object."""

    uri: str
    bytes: int
    generation: int
    crc32c: str
    """Base 64."""
    blob: Any = field(repr=False, compare=False)

    @property
    def writer(self) -> str:
        """The id of the write, see `WRITER`; "": not written by hanflow."""
        return (self.blob.metadata or {}).get(WRITER, "")


def stat(uri: str) -> Object | None:
    """The object with exactly that name; None: there is none."""
    with service.explained(uri):
        blob = service.bucket(uri).get_blob(service.split(uri)[1], retry=service.retry(), timeout=service.TIMEOUT)
        return None if blob is None else _object(uri, blob)


def check_bucket(uri: str) -> None:
    """Refuse a bucket that does not exist or cannot be read.

    Raises:
        UserError: it does not exist or cannot be read.
    """
    options = {"retry": service.retry(), "timeout": service.TIMEOUT}
    with service.explained(uri):  # reading the bucket's own metadata needs another permission than listing it
        next(iter(service.client().list_blobs(service.split(uri)[0], max_results=1, **options)), None)


def _object(uri: str, blob: Any) -> Object:
    return Object(uri, int(blob.size or 0), int(blob.generation), blob.crc32c or "", blob)


def listing(uri: str) -> dict[str, Object]:
    """All objects below a folder: name relative to it → object, sorted.

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
            if name and not name.endswith("/"):  # consoles create folders as empty objects
                found[name] = _object(f"{service.SCHEME}{bucket}/{blob.name}", blob)
    return dict(sorted(found.items()))


def put(uri: str, source: Path | bytes) -> None:
    """Write one object unconditionally."""
    blob = service.blob(uri)
    options: dict[str, Any] = {"checksum": "crc32c", "retry": service.retry(), "timeout": service.TIMEOUT}
    send: Callable[..., None] = blob.upload_from_filename if isinstance(source, Path) else blob.upload_from_string
    with service.explained(uri):
        send(str(source) if isinstance(source, Path) else source, **options)


def put_if(uri: str, content: bytes, match: int) -> int:
    """Write a small object if its generation is `match` (0: it does not exist); returns the new generation.

    Raises:
        PreconditionFailed: it is another one.
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
        return now.generation  # it was written; only the answer was lost
    raise failure


def delete(uri: str, generation: int, seconds: float = service.RETRY_SECONDS) -> None:
    """Remove one version of an object, if it still exists.

    Args:
        seconds: how long to retry.
    """
    again = service.retry().with_timeout(seconds)
    with contextlib.suppress(exceptions.NotFound, exceptions.PreconditionFailed):
        service.blob(uri).delete(if_generation_match=generation, retry=again, timeout=service.TIMEOUT)
