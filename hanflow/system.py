"""Processors, garbage collection, text encoding and network of this process."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


def available_cpus() -> int:
    """Number of processors that this process may run on; fewer than the machine has if it is bound to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause garbage collection: for loops that make millions of rows without reference cycles, where it takes up to a quarter
    of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def use_utf8(module: str) -> None:
    """Start this program again in Python's UTF-8 mode where the locale's encoding is another one (`LC_ALL=C`).

    Else paths, standard output and every process started from here would hold what ASCII holds.

    Args:
        module: to run, as in `python -m`.
    """
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8_TRIED" not in os.environ:
        os.environ |= {"PYTHONUTF8": "1", "PYTHONUTF8_TRIED": "1"}
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


ANSWER_SECONDS = 4.0
"""How long the Hugging Face hub, or the proxy on the way to it, may take to accept a connection."""


@cache
def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached; without a network its own client tries again for a minute, silently."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    place = urllib.parse.urlsplit(urllib.request.getproxies().get("https") or hub)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((place.hostname or "", place.port or 443), ANSWER_SECONDS).close()
            answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)  # the look-up of a name has no limit of its own
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answered.is_set()
