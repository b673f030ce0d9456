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


def use_utf8() -> None:
    """Start this program again, as it was started, in Python's UTF-8 mode where the locale's encoding is another one.

    Else paths, standard output and every process started from here would hold what that encoding holds.
    """
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8_TRIED" not in os.environ:
        os.environ |= {"PYTHONUTF8": "1", "PYTHONUTF8_TRIED": "1"}
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


ANSWER_SECONDS = 4.0
"""How long the Hugging Face hub, or the proxy on the way to it, may take to accept a connection."""


def hub_door() -> tuple[str, int]:
    """Host and port that are connected to for the Hugging Face hub: its own, or those of the proxy for it."""
    place = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    proxies = urllib.request.getproxies()
    proxy = proxies.get(place.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(place.hostname or ""):
        place = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return place.hostname or "", place.port or {"http": 80, "socks5": 1080, "socks5h": 1080}.get(place.scheme, 443)


@cache
def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached; without a network its own client tries again for a minute, silently."""
    host, port = hub_door()
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), ANSWER_SECONDS).close()
            answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)  # the look-up of a name has no limit of its own
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answered.is_set()
