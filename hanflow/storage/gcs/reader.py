"""Objects read without a copy on disk: large ones as seekable streams, small ones at once."""

from __future__ import annotations

import contextlib
import io
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import google_crc32c
from google.api_core import exceptions

from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage.gcs import checksums, service
from hanflow.storage.gcs.objects import Object, stat

BLOCK = 8 << 20
"""Bytes that a stream fetches at once, and ahead."""


def read(uri: str) -> tuple[bytes, int] | None:
    """(content, generation) of a small object; None: there is none."""
    for attempt in range(service.ATTEMPTS * 8):
        there = stat(uri)
        if there is None:
            return None
        with contextlib.suppress(Changed):
            return content(there), there.generation
        time.sleep(0.01 * attempt)
    raise UserError(f"{uri}: keeps changing while it is read; wait until no other process writes it, then start again")


def content(there: Object) -> bytes:
    """All bytes of a small object."""
    return Reader(there).readall()


class Changed(UserError):
    """An object is no longer the version that is being read."""


class Reader(io.RawIOBase):
    """An object as a seekable binary file; memory holds two blocks of it.

    The version is pinned: if the object is replaced meanwhile, reading fails. Read from beginning to end, the content is
    verified by the service's CRC-32C.
    """

    def __init__(self, there: Object):
        super().__init__()
        bucket = service.bucket(there.uri)
        self._object, self._blob = there, bucket.blob(service.split(there.uri)[1], generation=there.generation)
        self._at = self._start = 0
        self._block = b""
        self._ahead: tuple[int, Future[bytes]] | None = None
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="gcs-read")
        self._checksum = google_crc32c.Checksum()
        self._checked = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._object.bytes}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._object.bytes:
            return 0
        if not self._start <= self._at < self._start + len(self._block):
            self._load(self._at)
        view = memoryview(self._block)[self._at - self._start :][: len(buffer)]
        buffer[: len(view)] = view
        self._at += len(view)
        return len(view)

    def close(self) -> None:
        self._fetcher.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _load(self, start: int) -> None:
        ahead, self._ahead = self._ahead, None
        self._block = ahead[1].result() if ahead and ahead[0] == start else self._fetch(start)
        self._start = start
        following = start + len(self._block)
        if following < self._object.bytes:
            self._ahead = following, self._fetcher.submit(self._fetch, following)
        self._check(start)

    def _check(self, start: int) -> None:
        if start != self._checked:
            return  # not read in order: parts of a parquet file carry their own checksums
        self._checksum.update(self._block)
        self._checked += len(self._block)
        if self._checked == self._object.bytes and self._object.crc32c:
            found = checksums.encoded(self._checksum)
            if found != self._object.crc32c:
                raise UserError(
                    f"{self._object.uri}: arrived damaged (its CRC-32C differs from the one in the bucket); start again"
                )

    def _fetch(self, start: int) -> bytes:
        wanted = min(BLOCK, self._object.bytes - start)
        for attempt in range(service.ATTEMPTS):
            try:
                with service.explained(self._object.uri):
                    data = self._blob.download_as_bytes(
                        start=start,
                        end=start + wanted - 1,
                        raw_download=True,
                        checksum=None,  # a part has none
                        retry=service.retry(),
                        timeout=service.TIMEOUT,
                        if_generation_match=self._object.generation,
                    )
            except UserError as error:
                if isinstance(error.__context__, (exceptions.NotFound, exceptions.PreconditionFailed)):
                    raise Changed(
                        f"{self._object.uri}: was replaced or removed while it was read; start again"
                    ) from None
                raise
            if len(data) == wanted:
                return data
            log.warning("%s: %d of %d bytes arrived, asking again", self._object.uri, len(data), wanted)
            time.sleep(0.2 * attempt)
        raise UserError(f"{self._object.uri}: arrives cut short every time; check network and proxies")
