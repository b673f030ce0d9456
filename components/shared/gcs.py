"""Google Cloud Storage: objects found, streamed, fetched and published. Only `components.shared.storage` and checkpoints
in a bucket use this module, and import it when they meet a gs:// URI.

Several objects cannot be written at once, so what consists of several is committed by one of them, its record (an
artifact's manifest, a checkpoint's commit record):

1. claim: the record becomes a note that someone writes here, on condition that it is still what was looked at;
2. every other file is uploaded, on condition that it is still what it was after the claim;
3. commit: the record becomes the real one, on condition that it still is our claim.

So of any number of writers one commits and the others learn of it; a writer that was believed dead cannot spoil what its
successor wrote; and what was killed half-way has a note where a record would be: nobody takes it for whole.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import socket
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import requests
from google.api_core import exceptions
from google.auth import exceptions as auth
from google.cloud.storage import Client, transfer_manager
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY

from components.shared.artifacts import UNCOMMITTED
from components.shared.config import UserError
from components.shared.progress import log

SCHEME = "gs://"

WORKERS = 8
"""Requests under way at once; below the ten connections that a client's session keeps."""

PART = 32 << 20
"""Bytes: larger files travel in parts of this size, several at once."""

MOST_PARTS = 32
"""What one compose request takes; of larger files the parts are larger."""

BLOCK = 8 << 20
"""Bytes that a stream fetches at once, and ahead."""

RETRY_SECONDS = 300.0
"""How long a request is repeated while the service cannot be reached or is busy."""

RETRY_DELAY = 0.5
"""About how long the first repetition waits, in seconds; each waits twice as long as the one before."""

TIMEOUT = (15.0, 120.0)
"""Seconds to connect, and between two bytes of an answer."""

ATTEMPTS = 4
"""How often a file is moved until it arrives whole."""

WRITER = "hanflow-writer"
"""Metadata key that tells whose an object is, for when the answer to a request is lost."""


_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


@dataclass(frozen=True)
class Object:
    """One version of an object."""

    uri: str
    bytes: int
    generation: int
    crc32c: str
    """Base 64, as the service tells it."""
    blob: Any = field(repr=False, compare=False)


@dataclass
class Claim:
    """The right to commit at a place, until someone else takes it over."""

    uri: str
    record: str
    """Name of the file that commits."""
    generation: int
    written: list[tuple[str, int]] = field(default_factory=list)
    """(key, generation) of what was uploaded so far."""


class TakenOver(UserError):
    """Another writer has claimed the place."""

    def __init__(self, uri: str):
        super().__init__(
            f"{uri}: another process writes there, too, and has taken over; nothing of this one's is left, let the other "
            "one finish or give another place"
        )


def split(uri: str) -> tuple[str, str]:
    """`gs://bucket/a/b/` → ("bucket", "a/b").

    Raises:
        UserError: there is no bucket's name in it.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"{uri}: names no bucket; write gs://bucket/folder")
    return bucket, key.rstrip("/")


def _join(uri: str, name: str) -> str:
    return f"{uri.rstrip('/')}/{name}"


def _client() -> Client:
    return _client_of(os.getpid())  # a forked process must not share connections with its parent


@functools.cache
def _client_of(_: int) -> Client:
    # No project: buckets are named, none is made.
    return Client(project=None)


def _retry() -> Any:
    return DEFAULT_RETRY.with_timeout(RETRY_SECONDS).with_delay(initial=RETRY_DELAY, maximum=16.0)


def _bucket(uri: str) -> Any:
    return _client().bucket(split(uri)[0])


def _blob(uri: str) -> Any:
    return _bucket(uri).blob(split(uri)[1])


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """What the service refuses becomes a UserError that says what to do."""
    bucket = split(uri)[0]
    try:
        yield
    except auth.DefaultCredentialsError:
        raise UserError(
            f"{uri}: no Google Cloud credentials were found; run `gcloud auth application-default login`, set "
            "GOOGLE_APPLICATION_CREDENTIALS to a key file, or in a cluster bind the pod's service account (Workload Identity)"
        ) from None
    except auth.RefreshError as error:
        raise UserError(
            f"{uri}: the Google Cloud credentials are not accepted ({_reason(error)}); log in again with `gcloud auth "
            "application-default login`, or mend the pod's service account"
        ) from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise UserError(
            f"{uri}: no permission ({_reason(error)}); give the account roles/storage.objectUser on gs://{bucket} "
            "(roles/storage.objectViewer is enough to read)"
        ) from None
    except exceptions.NotFound as error:
        raise UserError(
            f"{uri}: not found ({_reason(error)}); check that the bucket gs://{bucket} exists and is spelt right, and that "
            "nobody removes or replaces what is being read"
        ) from None
    except (
        exceptions.GoogleAPIError,
        auth.GoogleAuthError,
        InvalidResponse,
        DataCorruption,
        requests.RequestException,
    ) as error:
        raise UserError(
            f"{uri}: Google Cloud Storage cannot be used ({_reason(error)}); check network and bucket, then start the "
            "same command again"
        ) from error


def _reason(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return " ".join((str(cause) or type(cause).__name__).split())[:300]


def stat(uri: str) -> Object | None:
    """The object of that very name; None: there is none."""
    with explained(uri):
        return _object(uri, _bucket(uri).get_blob(split(uri)[1], retry=_retry(), timeout=TIMEOUT))


def check_bucket(uri: str) -> None:
    """Make sure that the bucket is there and can be read.

    Raises:
        UserError: it is not.
    """
    with explained(uri):  # to ask for the bucket itself would take another right than to list it
        next(iter(_client().list_blobs(split(uri)[0], max_results=1, retry=_retry(), timeout=TIMEOUT)), None)


def _object(uri: str, blob: Any) -> Object | None:
    if blob is None:
        return None
    return Object(uri, int(blob.size or 0), int(blob.generation), blob.crc32c or "", blob)


def listing(uri: str) -> dict[str, Object]:
    """Everything below a folder: name relative to it → object, sorted.

    Raises:
        UserError: the bucket cannot be read.
    """
    bucket, key = split(uri)
    prefix = f"{key}/" if key else ""
    found = {}
    with explained(uri):
        for blob in _client().list_blobs(bucket, prefix=prefix, retry=_retry(), timeout=TIMEOUT):
            name = blob.name.removeprefix(prefix)
            one = _object(f"{SCHEME}{bucket}/{blob.name}", blob)
            if one and name and not name.endswith("/"):  # consoles make folders as empty objects
                found[name] = one
    return dict(sorted(found.items()))


def read(uri: str) -> tuple[bytes, int] | None:
    """(content, generation) of a small object; None: there is none."""
    for attempt in range(ATTEMPTS * 8):
        there = stat(uri)
        if there is None:
            return None
        with contextlib.suppress(_Changed):
            return content(there), there.generation
        time.sleep(0.01 * attempt)
    raise UserError(f"{uri}: changes all the time; wait until nobody writes it, then start again")


def content(there: Object) -> bytes:
    """All bytes of a small object."""
    return Reader(there).readall()


class Damaged(UserError):
    """What lies in the bucket is not what was written there."""

    def __init__(self, uri: str):
        self.name = uri.rpartition("/")[2]
        super().__init__(f"{uri}: was changed or damaged after it was written (its digest differs); write it anew")


class _Changed(UserError):
    """An object is no longer the version that is being read."""


class Reader(io.RawIOBase):
    """An object as a file that can be read from and sought in; memory holds two blocks of it.

    The version is pinned: an object that is replaced meanwhile is an error, never a mixture. Read from beginning to end,
    the whole is compared with the service's CRC-32C.
    """

    def __init__(self, there: Object):
        super().__init__()
        bucket = _bucket(there.uri)
        self._object, self._blob = there, bucket.blob(split(there.uri)[1], generation=there.generation)
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
            found = b64encode(self._checksum.digest()).decode()
            if found != self._object.crc32c:
                raise UserError(
                    f"{self._object.uri}: arrived damaged (its CRC-32C differs from what the bucket tells); start again"
                )

    def _fetch(self, start: int) -> bytes:
        wanted = min(BLOCK, self._object.bytes - start)
        for attempt in range(ATTEMPTS):
            try:
                with explained(self._object.uri):
                    data = self._blob.download_as_bytes(
                        start=start,
                        end=start + wanted - 1,
                        raw_download=True,
                        checksum=None,  # a part has none
                        retry=_retry(),
                        timeout=TIMEOUT,
                        if_generation_match=self._object.generation,
                    )
            except UserError as error:
                if isinstance(error.__context__, (exceptions.NotFound, exceptions.PreconditionFailed)):
                    raise _Changed(
                        f"{self._object.uri}: was replaced or removed while it was read; start again"
                    ) from None
                raise
            if len(data) == wanted:
                return data
            log.warning("%s: %d of %d bytes arrived, asking again", self._object.uri, len(data), wanted)
            time.sleep(0.2 * attempt)
        raise UserError(f"{self._object.uri}: arrives cut short again and again; check network and proxies")


def file_crc32c(path: Path) -> str:
    """CRC-32C of a file's bytes, base 64."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            checksum.update(block)
    return b64encode(checksum.digest()).decode()


def file_is(path: Path, there: Object, sha256: str = "") -> bool:
    """Whether a file is what an object should be: by its sha256 (hex) if that is known, else by the object's CRC-32C."""
    if path.stat().st_size != there.bytes:
        return False
    if not sha256:
        return not there.crc32c or file_crc32c(path) == there.crc32c
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256


def download(wanted: Iterable[tuple[Object, Path]], sha256: Mapping[Path, str] | None = None) -> None:
    """Fetch objects to files, several and several parts at once; a file appears under its name only when whole.

    Args:
        wanted: (object, file to write); folders are made.
        sha256: file → hex digest that it must have; where none is given, the object's CRC-32C decides.

    Raises:
        UserError: an object cannot be had, arrives damaged again and again, or the disk is full.
    """
    digests = sha256 or {}
    pending = [(there, path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")) for there, path in wanted]
    staged = [staging for _, _, staging in pending]
    try:
        for attempt in range(ATTEMPTS):
            time.sleep(0.5 * attempt)
            _fetch_files([(there, staging) for there, _, staging in pending])
            with ThreadPoolExecutor(WORKERS) as pool:
                whole = list(pool.map(lambda p: file_is(p[2], p[0], digests.get(p[1], "")), pending))
            for (_, path, staging), good in zip(pending, whole, strict=True):
                if good:
                    os.replace(staging, path)
            pending = [one for one, good in zip(pending, whole, strict=True) if not good]
            for there, _, staging in pending:
                if file_is(staging, there):
                    raise Damaged(there.uri)  # it is what the bucket holds
                log.warning("%s: arrived damaged, fetching it again", there.uri)
            if not pending:
                return
        raise UserError(f"{pending[0][0].uri}: arrives damaged, however often it is fetched; check network and proxies")
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
    options = {"retry": _retry(), "timeout": TIMEOUT, "raw_download": True}
    small = []
    for there, path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not there.bytes:
            path.touch()
        elif there.bytes <= PART:
            small.append((there, path))
    pairs = [(there.blob, str(path)) for there, path in small]
    results = transfer_manager.download_many(
        pairs, {**options, "checksum": None}, worker_type=transfer_manager.THREAD, max_workers=WORKERS
    )
    for (there, _), result in zip(small, results, strict=True):
        if isinstance(result, DataCorruption):
            continue  # the digest will tell
        if isinstance(result, BaseException):
            with explained(there.uri):
                raise result
    for there, path in wanted:
        if there.bytes > PART:
            with explained(there.uri), contextlib.suppress(DataCorruption):
                transfer_manager.download_chunks_concurrently(
                    there.blob,
                    str(path),
                    chunk_size=PART,
                    download_kwargs=dict(options),
                    worker_type=transfer_manager.THREAD,
                    max_workers=WORKERS,
                    crc32c_checksum=False,  # the whole file is checked
                )


def claim(uri: str, record: str, *, replace: bool = False) -> Claim:
    """Become the one who writes at a place; what an unfinished writer left there is taken over.

    Args:
        uri: the folder.
        record: name of the file in it that will commit.
        replace: whether something committed may be replaced.

    Raises:
        UserError: the place is taken, or cannot be written to.
    """
    place = _join(uri, record)
    for _ in range(ATTEMPTS * 4):
        there = read(place)
        if there is None:
            match = 0
            if not replace and listing(uri):
                raise UserError(
                    f"{uri}: already exists and is not empty; give another output folder or remove this one"
                )
        else:
            found, match = there
            note = claim_note(found)
            if note is None and not replace:
                raise UserError(
                    f"{uri}: already exists and is not empty; give another output folder or remove this one"
                )
            if note is not None:
                log.warning("%s: was left unfinished by %s; writing it anew", uri, note)
        text = json.dumps(
            {UNCOMMITTED: {"host": socket.gethostname(), "since": time.strftime("%FT%TZ", time.gmtime())}}
        )
        try:
            return Claim(uri, record, _put(place, text.encode(), match))
        except exceptions.PreconditionFailed:
            continue  # someone else was faster: look again
    raise TakenOver(uri)


def claim_note(record: bytes) -> str | None:
    """Who claimed a place, from the content of its record; None: it is committed."""
    try:
        note = json.loads(record)[UNCOMMITTED]
        return f"{note['host']} (since {note['since']})"
    except (ValueError, KeyError, TypeError):
        return None


def publish(claimed: Claim, folder: Path) -> None:
    """Upload a folder to a claimed place, its record last.

    Raises:
        UserError: it cannot be uploaded, or someone else has taken over the place; then nothing is committed.
    """
    uri, record = claimed.uri, folder / claimed.record
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != record]
    there = listing(uri)
    _check_claim(
        claimed
    )  # after the look: whoever takes over from now on writes over what was seen, not the other way round
    for name in there:
        if name.split("/")[-2:-1] and name.split("/")[-2].startswith(".parts-"):
            _delete(there[name].uri, there[name].generation)  # left by a killed writer
    jobs, composed = [], []
    for path in files:
        name = path.relative_to(folder).as_posix()
        match = there[name].generation if name in there else 0
        size = path.stat().st_size
        if size <= PART:
            jobs.append(_Job(_join(uri, name), path, match))
            continue
        length = max(PART, -(-size // MOST_PARTS))
        parts = f"{_join(uri, name).rpartition('/')[0]}/.parts-{uuid.uuid4().hex}"
        starts = range(0, size, length)
        pieces = [_Job(f"{parts}/{i:02d}", path, 0, start, min(length, size - start)) for i, start in enumerate(starts)]
        jobs += pieces
        composed.append((_Job(_join(uri, name), path, match), pieces))
    with explained(uri):
        _upload(jobs, claimed)
        for job, pieces in composed:
            _compose(job, pieces, claimed)
        try:
            claimed.generation = _put(_join(uri, claimed.record), record.read_bytes(), claimed.generation)
        except exceptions.PreconditionFailed:
            raise TakenOver(uri) from None


@dataclass
class _Job:
    """One file, or a part of one, on its way up."""

    uri: str
    source: Path
    match: int
    """Generation that the object must still have; 0: there must be none."""
    start: int = 0
    bytes: int = -1
    """-1: the whole file."""
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)
    generation: int = 0
    overtaken: bool = False
    """Whether another writer changed the object first, when it was last tried."""

    def __post_init__(self) -> None:
        self.blob = _blob(self.uri)
        self.blob.metadata = {WRITER: self.writer}

    def content(self) -> Any:
        return str(self.source) if self.bytes < 0 else _Slice(self.source, self.start, self.bytes)


class _Slice(io.RawIOBase):
    """A part of a file as a file."""

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


def _upload(jobs: Sequence[_Job], claimed: Claim) -> None:
    """Move jobs up, several at once."""
    pending, attempt = list(jobs), 0
    while attempt < ATTEMPTS:
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
                        "retry": _retry(),
                        "timeout": TIMEOUT,
                    },
                    worker_type=transfer_manager.THREAD,
                    max_workers=WORKERS,
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
    raise UserError(f"{pending[0].uri}: does not arrive whole, however often it is sent; check network and proxies")


def _check_claim(claimed: Claim) -> None:
    """Make sure that a claim still stands; one without a record always does."""
    if claimed.record:
        now = stat(_join(claimed.uri, claimed.record))
        if now is None or now.generation != claimed.generation:
            raise TakenOver(claimed.uri)


def _done(job: _Job, generation: int, claimed: Claim) -> None:
    job.generation = generation
    claimed.written.append((job.uri, generation))


AGAIN = (
    DataCorruption,
    exceptions.BadRequest,  # the service refuses a wrong checksum with 400
    exceptions.NotFound,  # the session of a resumable upload is no more (404, or 410)
)
"""Errors after which a file is sent anew."""


def _settled(job: _Job, error: BaseException, claimed: Claim) -> bool:
    """Whether an upload that ended in an error has arrived all the same; False: it is to be repeated."""
    if not isinstance(error, (exceptions.PreconditionFailed, *AGAIN)) and getattr(error, "code", 0) != 410:
        raise error
    now, job.overtaken = stat(job.uri), False
    if now is not None and (now.blob.metadata or {}).get(WRITER) == job.writer:
        # Ours: an earlier request did its work and its answer was lost.
        if now.crc32c == _crc32c_of(job):
            _done(job, now.generation, claimed)
            return True
        job.match = now.generation
    elif isinstance(error, exceptions.PreconditionFailed):
        if not claimed.record:
            raise TakenOver(claimed.uri)
        _check_claim(claimed)  # it stands: one whom we took over from was faster here, and cannot be a second time
        job.match = now.generation if now else 0
        job.overtaken = True
    return False


def _crc32c_of(job: _Job) -> str:
    content = _Slice(job.source, job.start, job.source.stat().st_size if job.bytes < 0 else job.bytes)
    try:
        checksum = google_crc32c.Checksum()
        while block := content.read(1 << 20):
            checksum.update(block)
        return b64encode(checksum.digest()).decode()
    finally:
        content.close()


def _compose(job: _Job, pieces: Sequence[_Job], claimed: Claim) -> None:
    """Make one object of its parts, and remove them."""
    job.blob.content_type = "application/octet-stream"
    while not job.generation:
        try:
            job.blob.compose(
                [piece.blob for piece in pieces],
                if_generation_match=job.match,
                if_source_generation_match=[piece.generation for piece in pieces],
                retry=_retry(),
                timeout=TIMEOUT,
            )
            _done(job, int(job.blob.generation), claimed)
        except exceptions.NotFound:
            _check_claim(claimed)  # who takes over removes the parts that it finds
            raise
        except exceptions.PreconditionFailed as error:
            if not _settled(job, error, claimed) and not job.overtaken:
                break
    if not job.generation or job.blob.crc32c not in (None, file_crc32c(job.source)):
        raise UserError(f"{job.uri}: was put together wrongly (its CRC-32C differs); start the same command again")
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda piece: _delete(piece.uri, piece.generation), pieces))


def _put(uri: str, content: bytes, match: int) -> int:
    """Write a small object on condition that its generation is `match`; returns the new one.

    Raises:
        PreconditionFailed: it is another.
    """
    blob, writer = _blob(uri), uuid.uuid4().hex
    blob.metadata = {WRITER: writer}
    with explained(uri):
        try:
            blob.upload_from_string(
                content,
                content_type="application/json",
                if_generation_match=match,
                checksum="crc32c",
                retry=_retry(),
                timeout=TIMEOUT,
            )
        except exceptions.PreconditionFailed as error:
            failure = error
        else:
            return int(blob.generation)
    now = stat(uri)
    if now is not None and (now.blob.metadata or {}).get(WRITER) == writer:
        return now.generation  # it was written, only the answer was lost
    raise failure


def abandon(claimed: Claim) -> None:
    """Give up a claim: remove it and what was uploaded, as far as that can still be done."""
    with contextlib.suppress(Exception):
        _delete(_join(claimed.uri, claimed.record), claimed.generation, seconds=10.0)
        for uri, generation in claimed.written:
            _delete(uri, generation, seconds=10.0)


def _delete(uri: str, generation: int, seconds: float = RETRY_SECONDS) -> None:
    """Remove one version of an object; it may be gone or replaced already."""
    with contextlib.suppress(exceptions.NotFound, exceptions.PreconditionFailed):
        _blob(uri).delete(if_generation_match=generation, retry=_retry().with_timeout(seconds), timeout=TIMEOUT)


def remove(uri: str, record: str) -> None:
    """Remove a committed folder, its record first: nobody finds a half of it."""
    there = listing(uri)
    with explained(uri):
        for name in sorted(there, key=lambda name: name != record):
            _delete(there[name].uri, there[name].generation)


def put(uri: str, source: Path | bytes) -> None:
    """Write a small object that stands for itself, whatever was there."""
    blob = _blob(uri)
    options: dict[str, Any] = {"checksum": "crc32c", "retry": _retry(), "timeout": TIMEOUT}
    send: Callable[..., None] = blob.upload_from_filename if isinstance(source, Path) else blob.upload_from_string
    with explained(uri):
        send(str(source) if isinstance(source, Path) else source, **options)


def put_new(uri: str, source: Path, *, replace: bool) -> None:
    """Upload one file that stands for itself.

    Args:
        replace: whether an object that is there already is replaced; else that is an error.

    Raises:
        UserError: there is one, or it cannot be written.
    """
    there = stat(uri)
    if there is not None and not replace:
        raise UserError(f"{uri}: exists already; give another place, or replace it with --force")
    job = _Job(uri, source, there.generation if there else 0)
    with explained(uri):
        _upload([job], Claim(uri, "", 0))
