"""Parallel downloads of objects to files; a file is either complete or absent."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google.cloud.storage import transfer_manager
from google.cloud.storage.exceptions import DataCorruption

from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage.gcs import service
from hanflow.storage.gcs.checksums import file_is
from hanflow.storage.gcs.objects import Object


class Damaged(UserError):
    """An object in the bucket does not have the content that was written."""

    def __init__(self, uri: str):
        self.name = uri.rpartition("/")[2]
        super().__init__(f"{uri}: was changed or damaged after it was written (its digest differs); write it again")


def download(wanted: Iterable[tuple[Object, Path]], sha256: Mapping[Path, str] | None = None) -> None:
    """Download objects to files, several objects and parts in parallel; a file appears under its name when complete.

    Args:
        wanted: (object, file to write); folders are created.
        sha256: file → expected hex digest; files without one are verified by the object's CRC-32C.

    Raises:
        UserError: an object cannot be downloaded, arrives damaged every time, or the disk is full.
    """
    digests = sha256 or {}
    pending = [(there, path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")) for there, path in wanted]
    staged = [staging for _, _, staging in pending]
    try:
        for attempt in range(service.ATTEMPTS):
            time.sleep(0.5 * attempt)
            _fetch_files([(there, staging) for there, _, staging in pending])
            with ThreadPoolExecutor(service.WORKERS) as pool:
                whole = list(pool.map(lambda p: file_is(p[2], p[0], digests.get(p[1], "")), pending))
            for (_, path, staging), good in zip(pending, whole, strict=True):
                if good:
                    os.replace(staging, path)
            pending = [one for one, good in zip(pending, whole, strict=True) if not good]
            for there, _, staging in pending:
                if file_is(staging, there):
                    raise Damaged(there.uri)  # not in transit: this is the content in the bucket
                log.warning("%s: arrived damaged; downloading it again", there.uri)
            if not pending:
                return
        raise UserError(f"{pending[0][0].uri}: arrives damaged every time; check network and proxies")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{staged[0].parent}: the disk is full; make room, or set HANFLOW_CACHE to another folder"
            ) from error
        raise
    finally:
        for staging in staged:
            staging.unlink(missing_ok=True)


def _fetch_files(wanted: Sequence[tuple[Object, Path]]) -> None:
    options = {"retry": service.retry(), "timeout": service.TIMEOUT, "raw_download": True}
    small = []
    for there, path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not there.bytes:
            path.touch()
        elif there.bytes <= service.PART:
            small.append((there, path))
    pairs = [(there.blob, str(path)) for there, path in small]
    results = transfer_manager.download_many(
        pairs, {**options, "checksum": None}, worker_type=transfer_manager.THREAD, max_workers=service.WORKERS
    )
    for (there, _), result in zip(small, results, strict=True):
        if isinstance(result, DataCorruption):
            continue  # the digest will differ
        if isinstance(result, BaseException):
            with service.explained(there.uri):
                raise result
    for there, path in wanted:
        if there.bytes > service.PART:
            with service.explained(there.uri), contextlib.suppress(DataCorruption):
                transfer_manager.download_chunks_concurrently(
                    there.blob,
                    str(path),
                    chunk_size=service.PART,
                    download_kwargs=dict(options),
                    worker_type=transfer_manager.THREAD,
                    max_workers=service.WORKERS,
                    crc32c_checksum=False,  # the whole file is checked
                )
