"""Parallel uploads of files and parts of files, repeated until each has arrived undamaged or another writer was first."""

from __future__ import annotations

import io
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.api_core import exceptions
from google.cloud.storage import transfer_manager
from google.cloud.storage.exceptions import DataCorruption

from hanflow.errors import UserError
from hanflow.storage.gcs import checksums, service
from hanflow.storage.gcs.claims import Claim, TakenOver, check
from hanflow.storage.gcs.objects import WRITER, delete, stat


@dataclass
class Job:
    """The upload of one file, or of a part of one."""

    uri: str
    source: Path
    match: int
    """Generation that the object must still have; 0: it must not exist."""
    start: int = 0
    bytes: int = -1
    """-1: the whole file."""
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)
    generation: int = 0
    overtaken: bool = False
    """Whether the last attempt failed because another writer had changed the object."""

    def __post_init__(self) -> None:
        self.blob = service.blob(self.uri)
        self.blob.metadata = {WRITER: self.writer}

    def content(self) -> Any:
        """The argument of the client library: a file name, or a stream, to be closed by the caller."""
        return str(self.source) if self.bytes < 0 else Slice(self.source, self.start, self.bytes)


class Slice(io.RawIOBase):
    """A part of a file as a binary stream."""

    def __init__(self, path: Path, start: int, size: int):
        super().__init__()
        self._stream, self._start, self._size = path.open("rb", buffering=0), start, size
        self._stream.seek(start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell() - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        self._stream.seek(self._start + base + offset)
        return self.tell()

    def read(self, size: int | None = -1) -> bytes:
        left = self._size - self.tell()
        return self._stream.read(left if size is None or size < 0 else min(size, left)) or b""

    def close(self) -> None:
        self._stream.close()
        super().close()


def upload(jobs: Sequence[Job], claimed: Claim) -> None:
    """Upload files and parts in parallel.

    Raises:
        UserError: one arrives damaged every time, or another writer has taken over.
    """
    pending, attempt = list(jobs), 0
    while attempt < service.ATTEMPTS:
        time.sleep(0.5 * attempt)
        failed = []
        for match in sorted({job.match for job in pending}):
            group = [job for job in pending if job.match == match]
            contents = [job.content() for job in group]
            try:
                results = transfer_manager.upload_many(
                    [(content, job.blob) for content, job in zip(contents, group, strict=True)],
                    upload_kwargs={
                        "if_generation_match": match,
                        "checksum": "crc32c",
                        "retry": service.retry(),
                        "timeout": service.TIMEOUT,
                    },
                    worker_type=transfer_manager.THREAD,
                    max_workers=service.WORKERS,
                )
            finally:
                for content in contents:
                    if not isinstance(content, str):
                        content.close()
            for job, result in zip(group, results, strict=True):
                if result is None:
                    _done(job, int(job.blob.generation), claimed)
                elif not _settled(job, result, claimed):
                    failed.append(job)
        pending = failed
        if not pending:
            return
        attempt += not all(job.overtaken for job in pending)
    raise UserError(f"{pending[0].uri}: arrives damaged every time; check network and proxies")


def _done(job: Job, generation: int, claimed: Claim) -> None:
    job.generation = generation
    claimed.written.append((job.uri, generation))


AGAIN = (
    DataCorruption,
    exceptions.BadRequest,  # the service refuses a wrong checksum with 400
    exceptions.NotFound,  # the session of a resumable upload has expired (404, or 410)
)
"""Errors after which a file is uploaded again."""


def _settled(job: Job, error: BaseException, claimed: Claim) -> bool:
    """Whether an upload that ended in an error has arrived nevertheless; False: it has to be repeated."""
    if not isinstance(error, (exceptions.PreconditionFailed, *AGAIN)) and getattr(error, "code", 0) != 410:
        raise error
    now, job.overtaken = stat(job.uri), False
    if now is not None and now.writer == job.writer:
        # Ours: an earlier request succeeded and its answer was lost.
        if now.crc32c == _crc32c_of(job):
            _done(job, now.generation, claimed)
            return True
        job.match = now.generation
    elif isinstance(error, exceptions.PreconditionFailed):
        if not claimed.record:
            raise TakenOver(claimed.uri)
        # The claim still stands: the writer that we took over from was faster here, which it can be only once.
        check(claimed)
        job.match = now.generation if now else 0
        job.overtaken = True
    return False


def _crc32c_of(job: Job) -> str:
    with Slice(job.source, job.start, job.source.stat().st_size if job.bytes < 0 else job.bytes) as content:
        return checksums.crc32c(content)


def compose(job: Job, pieces: Sequence[Job], claimed: Claim) -> None:
    """Combine the uploaded parts of a file into its object, and remove them."""
    job.blob.content_type = "application/octet-stream"
    while not job.generation:
        try:
            job.blob.compose(
                [piece.blob for piece in pieces],
                if_generation_match=job.match,
                if_source_generation_match=[piece.generation for piece in pieces],
                retry=service.retry(),
                timeout=service.TIMEOUT,
            )
            _done(job, int(job.blob.generation), claimed)
        except exceptions.NotFound:
            check(claimed)  # a writer that takes over removes the parts that it finds
            raise
        except exceptions.PreconditionFailed as error:
            if not _settled(job, error, claimed) and not job.overtaken:
                break
    if not job.generation or job.blob.crc32c not in (None, checksums.file_crc32c(job.source)):
        raise UserError(
            f"{job.uri}: was combined wrongly from its parts (its CRC-32C differs); start the same command again"
        )
    with ThreadPoolExecutor(service.WORKERS) as pool:
        list(pool.map(lambda piece: delete(piece.uri, piece.generation), pieces))
