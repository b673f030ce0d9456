"""Signals as ordinary errors, and handlers for the time of a block."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

INTERRUPTED = 128 + signal.SIGINT
"""Exit status of a command after Ctrl-C."""


class Terminated(KeyboardInterrupt):
    """SIGTERM as an error, so that partial output is removed before the process ends.

    As Ctrl-C it is no `Exception`: whatever takes an error of its work for an answer ("not there", "damaged") would swallow
    it.
    """

    exit_status = 128 + signal.SIGTERM


def exit_status(error: KeyboardInterrupt) -> int:
    """Exit status of a command that a signal has ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return error.exit_status if isinstance(error, Terminated) else INTERRUPTED


def terminate(*_: object) -> None:
    """A handler of SIGTERM that raises `Terminated`."""
    raise Terminated("terminated; nothing half-written was left")


def raise_on_sigterm() -> None:
    """Raise `Terminated` when SIGTERM arrives; only the main thread can set this."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], Any], *signums: int) -> Iterator[None]:
    """Handle signals by `handler` in the block, then as before; only in the main thread."""
    before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield
    finally:
        for signum, former in before.items():
            signal.signal(signum, former)
