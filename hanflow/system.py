"""How many processors this process may use."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


def usable() -> int:
    """Processors that the kernel may run this process on: fewer than the machine has, if it was bound to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def put_off() -> Iterator[None]:
    """No search inside: for work that makes millions of rows, which hold no cycles; it would take up to a quarter of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
