"""What a person sees while a step works: a progress bar on a terminal, plain log lines elsewhere.

Under `hanflow run` the step is a child of a child; there it appends its events as JSON lines to the file that
HANFLOW_EVENTS names, and the command at the top of the tree shows them.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import time
from typing import Any

from tqdm import tqdm

from hanflow.strict_json import json_ready

EVENTS_VARIABLE = "HANFLOW_EVENTS"
"""Environment variable: file to which events are appended."""

BAR_INTERVAL = 0.2
"""Seconds between two updates of a bar."""

LINE_INTERVAL = 15.0
"""Seconds between two plain log lines of one progress."""

log = logging.getLogger("hanflow")

_step = ""


def speak_for(step: str) -> None:
    """Let all further events of this process carry the name of a step."""
    global _step
    _step = step


def emit(event: str, **fields: Any) -> bool:
    """Append one event for the command at the top; False when nobody listens."""
    path = os.environ.get(EVENTS_VARIABLE)
    if not path:
        return False
    line = json.dumps({"event": event, "step": _step, "time": time.time(), **json_ready(fields)}, ensure_ascii=False)
    with open(path, "a", encoding="utf-8") as stream:  # one short O_APPEND write: lines of two steps never mix
        stream.write(line + "\n")
    return True


def hold_run() -> None:
    """Keep `hanflow run` out of this run's folder for as long as this process lives, even if its parent is killed."""
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        descriptor = os.open(path, os.O_RDONLY)  # closed, and so unlocked, when the process ends
        fcntl.flock(descriptor, fcntl.LOCK_SH)


class Progress:
    """Progress of one piece of work; use as a context manager.

    Args:
        label: what is going on, e.g. "training".
        total: units of work in all; None: not known.
        unit: name of a unit, e.g. "rows".
        done: units done before this process started (a resumed run).
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "rows", done: int = 0):
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.figures: dict[str, Any] = {}
        self._listened = bool(os.environ.get(EVENTS_VARIABLE))
        self._bar: tqdm | None = None
        if not self._listened and sys.stderr.isatty():
            self._bar = tqdm(
                total=total, desc=label, unit=f" {unit}", initial=done, mininterval=BAR_INTERVAL, dynamic_ncols=True
            )
        self._interval = BAR_INTERVAL if self._listened else LINE_INTERVAL
        self._shown = time.monotonic() if not self._listened else 0.0

    def update(self, count: int = 1, **figures: Any) -> None:
        """Add `count` finished units; `figures` (loss=…) are shown beside the bar until replaced."""
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
        if self._listened:
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
        elif self._listened or self.done:
            self._show()


def _shortened(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: (f"{value:.4g}" if isinstance(value, float) else value) for name, value in figures.items()}


def setup_logging() -> None:
    """Plain, timed lines on standard error for hanflow's own messages; libraries speak from WARNING up."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' own bars would fill a log
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
