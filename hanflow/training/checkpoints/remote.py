"""Checkpoints in a bucket.

A checkpoint is written to a folder on this machine first, then uploaded by a thread while training continues; its commit
record is the last object (`hanflow.storage.gcs`). Only the bucket counts: a run resumes from what is committed and
intact there, whatever a killed process has left on this machine.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage import gcs, join, work_folder
from hanflow.training.checkpoints.local import COMMIT, NAME, STATE, Checkpoints, read_record, to_keep

MAX_QUEUED = 2
"""Checkpoints that may wait for their upload; with more, training waits: no more than these can be lost."""

MAX_FAILURES = 3
"""Uploads that may fail in a row (each after minutes of retries) before training stops."""

LOGS = ("metrics.jsonl", "train.log", "tensorboard")
"""Other files and folders beside the checkpoints."""

_RECORD = re.compile(rf"{NAME.pattern}/{re.escape(COMMIT)}")


class RemoteCheckpoints(Checkpoints):
    """The checkpoints of one run in a bucket; the first worker of every machine calls `choose` before all else.

    Args:
        uri: folder in the bucket.
        limit: newest checkpoints kept, in the bucket and on this machine; the best one of each is kept beside them.
        background: also write them to this machine in a thread.
    """

    fetches = True

    def __init__(self, uri: str, limit: int, *, background: bool = False):
        super().__init__(work_folder(uri), limit, background=background)
        self.uri = uri.rstrip("/")
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-upload")
        self._uploads: list[Future[None]] = []
        self._slots = threading.Semaphore(MAX_QUEUED)
        self._unsent: set[Path] = set()
        """Checkpoints that are to be uploaded."""
        self._steps: set[int] = set()
        """Steps that are committed in the bucket."""
        self._records: dict[int, bytes] = {}
        self._objects: dict[str, gcs.Object] = {}
        """What the bucket held when `choose` listed it: commit records by step, and every object by name."""
        self._failures = 0
        self._writes = False

    @property
    def place(self) -> str:
        return self.uri

    def step_of(self, place: str) -> int:
        folder, _, name = place.rstrip("/").rpartition("/")
        if folder != self.uri or not NAME.fullmatch(name):
            raise UserError(
                f"train.resume={place}: is not in the checkpoint folder {self.uri}; give auto, never, or the URI of a "
                "committed checkpoint in train.checkpoints"
            )
        return int(name[5:])

    def choose(self, requested: int | None = None, *, exactly: bool = False) -> int:
        """See `Checkpoints.choose`; afterwards this machine's folder holds that checkpoint, the best one, and the logs only.

        Raises:
            UserError: the bucket cannot be used, or the checkpoint or the best one is not intact.
        """
        self._objects = dict(gcs.listing(self.uri))
        self._records = {
            int(name[5:13]): gcs.content(one) for name, one in self._objects.items() if _RECORD.fullmatch(name)
        }
        self._steps = {number for number, record in self._records.items() if gcs.claim_note(record) is None}
        chosen = super().choose(requested, exactly=exactly)
        for step in self._local_steps() - {chosen, self._best_of(chosen)}:
            shutil.rmtree(self.path(step), ignore_errors=True)  # never uploaded, or no longer in the bucket
        self._fetch_logs(self._objects)
        return chosen

    def _available_steps(self) -> set[int]:
        return self._steps

    def _raw_state(self, step: int) -> dict[str, Any]:
        one = self._objects.get(f"{self.path(step).name}/{STATE}")
        with contextlib.suppress(ValueError):
            return json.loads(gcs.content(one)) if one else {}
        return {}

    def _unusable(self, step: int) -> str | None:
        path = self.path(step)
        content = self._records.get(step)
        if content is None or gcs.claim_note(content):
            return "was never committed"
        with contextlib.suppress(OSError):
            if (path / COMMIT).read_bytes() == content and self.problem(path) is None:
                return None
        shutil.rmtree(path, ignore_errors=True)
        staging = self.folder / f".{path.name}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            record = read_record(content)
            digests = {staging / name: expected["sha256"] for name, expected in record.items()}
            objects = {name: self._objects[f"{path.name}/{name}"] for name in record}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{error} is missing" if isinstance(error, KeyError) else f"{COMMIT} is damaged"
        log.info("fetching %s (%.1f MB)", join(self.uri, path.name), sum(o.bytes for o in objects.values()) / 1e6)
        try:
            gcs.download([(one, staging / name) for name, one in objects.items()], digests)
        except gcs.Damaged as error:
            shutil.rmtree(staging, ignore_errors=True)
            return f"{error.name} is truncated or damaged (its sha256 differs)"
        (staging / COMMIT).write_bytes(content)
        staging.rename(path)
        return None

    def _fetch_logs(self, there: Mapping[str, gcs.Object]) -> None:
        for name in LOGS:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        gcs.download([(one, self.folder / name) for name, one in there.items() if name.split("/")[0] in LOGS])

    def begin(self) -> None:
        """See `Checkpoints.begin`; leaves a note in the bucket, so that a missing permission shows before hours of training.

        Raises:
            UserError: the bucket cannot be written to.
        """
        super().begin()
        self._writes = True
        note = {"host": socket.gethostname(), "started": time.strftime("%FT%TZ", time.gmtime())}
        gcs.put(join(self.uri, "started.json"), json.dumps(note).encode())

    def wait(self) -> None:
        """Return when everything is committed in the bucket.

        Raises:
            UserError: it cannot be uploaded.
        """
        super().wait()
        uploads, self._uploads = self._uploads, []
        wait(uploads)
        if self._writes:
            self._send()

    def _committed(self, target: Path, best: int) -> None:
        self._best[int(target.name[5:])] = best
        self._unsent.add(target)
        done = [upload for upload in self._uploads if upload.done()]
        self._uploads = [upload for upload in self._uploads if upload not in done]
        for error in [upload.exception() for upload in done]:
            self._failures = self._failures + 1 if error else 0
            if error and self._failures >= MAX_FAILURES:
                raise error
            if error:
                log.warning("a checkpoint could not be uploaded, it is tried again with the next one: %s", error)
        self._slots.acquire()
        self._uploads.append(self._uploader.submit(self._upload))
        super()._committed(target, best)

    def _in_use(self, path: Path) -> bool:
        return path in self._unsent

    def _upload(self) -> None:
        try:
            self._send()
        finally:
            self._slots.release()

    def _send(self) -> None:
        """Upload what is not in the bucket yet, delete there what need not stay, and upload the logs."""
        for path in sorted(self._unsent.copy()):
            claimed = gcs.claim(join(self.uri, path.name), COMMIT, replace=True)
            gcs.publish(claimed, path)
            saved = int(path.name[5:])
            self._steps.add(saved)
            self._unsent.discard(path)
            for step in self._steps - to_keep(self._steps, saved, self.limit, self._best_of):
                gcs.remove(join(self.uri, self.path(step).name), COMMIT)
                self._steps.discard(step)
        for name in LOGS:
            path = self.folder / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    gcs.put(join(self.uri, file.relative_to(self.folder).as_posix()), file.read_bytes())

    def keep(self, files: Sequence[Path]) -> None:
        for file in files:
            gcs.put(join(self.uri, file.relative_to(self.folder).as_posix()), file)
