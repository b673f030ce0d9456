"""Standard input as a real pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

import pytest


def pipe_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let standard input be a pipe into which another thread writes `content`."""
    reading, writing = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(writing, "wb") as stream:
            stream.write(content)

    threading.Thread(target=write, daemon=True).start()
    monkeypatch.setattr(sys, "stdin", open(reading, encoding="utf-8"))  # noqa: SIM115, closed with the test
