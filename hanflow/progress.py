"""Progress and logging of a step: a progress bar on a terminal, plain log lines elsewhere.

Under `hanflow run`, which starts each step in a process of its own, a step appends its events as JSON lines to the file
that HANFLOW_EVENTS names, and the command displays them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hanflow.errors import file_error, has_no_locks
from hanflow.own_files import Damaged, json_text, parse_json
from hanflow.strict_json import json_ready

EVENTS_VARIABLE = "HANFLOW_EVENTS"
"""Environment variable: file to which events are appended."""

BAR_INTERVAL = 0.2
"""Seconds between two updates of a bar."""

LINE_INTERVAL = 15.0
"""Seconds between two log lines of one progress."""

log = logging.getLogger("hanflow")

_step = ""


def set_step(step: str) -> None:
    """Set the name of the step that all further events of this process carry."""
    global _step
    _step = step


def emit(event: str, **fields: Any) -> None:
    """Append one event to the file of `hanflow run`, if it has started this process.

    Raises:
        UserError: it cannot be written.
    """
    path = os.environ.get(EVENTS_VARIABLE)
    if not path:
        return
    line = json_text({"event": event, "step": _step, "time": time.time(), **json_ready(fields)})
    try:
        with open(path, "a", encoding="utf-8") as stream:  # one short O_APPEND write: lines of two processes never mix
            stream.write(line + "\n")
    except OSError as error:
        if event != "progress":  # which the next one makes good
            raise file_error(error, path) from error


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events in the file of a run so far."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
        yield from filter(None, map(parse_event, lines))


def parse_event(line: bytes) -> dict[str, Any] | None:
    """The event in a line; None: a full disk or a kill has cut the line."""
    with contextlib.suppress(Damaged):
        event: dict[str, Any] = parse_json(line, "", "")
        if event.keys() >= {"event", "step"}:
            return event
    return None


def hold_run() -> None:
    """Lock this run's folder against another `hanflow run` until this process ends, even if its parent is killed."""
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        descriptor = os.open(path, os.O_RDONLY)  # closed, and so unlocked, when the process ends
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            if not has_no_locks(error):
                raise file_error(error, path) from error


class Progress:
    """Progress of a task; use as a context manager.

    Args:
        label: what is being done, e.g. "training".
        total: number of units; None: not known.
        unit: name of a unit, e.g. "rows".
        done: units done by an earlier process (of a resumed run).
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "rows", done: int = 0):
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.figures: dict[str, Any] = {}
        self._has_events = bool(os.environ.get(EVENTS_VARIABLE))
        self._bar: tqdm | None = None
        if not self._has_events and sys.stderr.isatty():
            self._bar = tqdm(
                total=total, desc=label, unit=f" {unit}", initial=done, mininterval=BAR_INTERVAL, dynamic_ncols=True
            )
        self._interval = BAR_INTERVAL if self._has_events else LINE_INTERVAL
        self._shown = time.monotonic() if not self._has_events else 0.0

    def update(self, count: int = 1, **figures: Any) -> None:
        """Add finished units; `figures` (loss=…) are displayed beside the bar until they are replaced."""
        self.done += count
        self.figures.update(figures)
        if self._bar is not None:
            if figures:
                self._bar.set_postfix(_shortened(self.figures), refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._shown >= self._interval:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        if self._has_events:
            emit(
                "progress",
                label=self.label,
                done=self.done,
                total=self.total,
                unit=self.unit,
                figures=_shortened(self.figures),
            )
            return
        of = f"/{self.total:,}" if self.total else ""
        extra = "".join(f" · {name} {value}" for name, value in _shortened(self.figures).items())
        log.info("%s %s%s %s%s", self.label, f"{self.done:,}", of, self.unit, extra)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._has_events or self.done:
            self._show()


def _shortened(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: (f"{value:.4g}" if isinstance(value, float) else value) for name, value in figures.items()}


def setup_logging() -> None:
    """Log hanflow's messages from INFO up to standard error, with the time; libraries keep their level, WARNING."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' own bars would fill a log
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
