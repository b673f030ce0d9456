"""SIGTERM as an ordinary error."""

from __future__ import annotations

import signal
import threading

from hanflow.errors import UserError


class Terminated(UserError):
    """SIGTERM as an error, so that partial output is removed before the process ends."""

    exit_status = 128 + signal.SIGTERM


def raise_on_sigterm() -> None:
    """Raise `Terminated` in the main thread when SIGTERM arrives."""

    def terminate(*_: object) -> None:
        raise Terminated("terminated; nothing half-written was left")

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
