"""A requested stop: SIGTERM and Ctrl-C are recorded, and followed at the next step boundary."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

from hanflow.errors import UserError
from hanflow.progress import log

SECOND_SIGNAL_SECONDS = 2.0
"""A second signal later than this ends the process at once (a terminal and its parent may both send the first)."""


class Stopped(UserError):
    """Training has stopped on a signal, with everything saved."""

    def __init__(self, signum: int, step: int, folder: object):
        self.exit_status = 128 + signum
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}, everything is saved in {folder}; "
            "the same command continues from there"
        )


class StopRequest:
    """Whether a stop was requested; use as a context manager in the main thread."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signum = 0
        """The signal that requested it; 0: none."""
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and time.monotonic() - self._at > SECOND_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if not self.signum:
            self.signum, self._at = signum, time.monotonic()
            log.info("%s: stopping at the next step", signal.Signals(signum).name)

    def __enter__(self) -> StopRequest:
        self._before = {signum: signal.signal(signum, self._record) for signum in self.SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self.signum and error is None:  # it came after the last step: whoever handled it before does so now
            signal.raise_signal(self.signum)
