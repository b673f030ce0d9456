"""SIGTERM as an ordinary error."""

from __future__ import annotations

import signal
import threading

from hanflow.errors import UserError


class Terminated(UserError):
    """SIGTERM: an ordinary error, so that everything half-written is removed on the way out."""

    exit_status = 128 + signal.SIGTERM


def obey_sigterm() -> None:
    """Let SIGTERM end this process as an error does."""

    def terminate(*_: object) -> None:
        raise Terminated("terminated; nothing half-written was left")

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
