"""Processors, garbage collection and text encoding of this process."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
