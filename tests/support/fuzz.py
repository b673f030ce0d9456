"""How many cases a property is tried with: few in `make test`, many in `make fuzz`."""

from __future__ import annotations

import os

LONG = bool(os.environ.get("HANFLOW_FUZZ"))


def cases(quick: int, long: int) -> int:
    """`long` in `make fuzz`, else `quick`; for loops and hypothesis' `max_examples` in tests marked `fuzz`."""
    return long if LONG else quick
