"""How many processors this process may use."""

from __future__ import annotations

import os


def usable() -> int:
    """Processors that the kernel may run this process on: fewer than the machine has, if it was bound to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
