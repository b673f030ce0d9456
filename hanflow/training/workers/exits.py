"""How a worker reports its end to its launcher: exit status and error, in a file that both know."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

EXITS_VARIABLE = "HANFLOW_WORKER_EXITS"
"""Environment variable: folder in which every worker records its exit, in a file named after its rank."""


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended."""

    status: int
    error: str = ""


def record_exit(status: int, error: str = "") -> bool:
    """Record this worker's exit for its launcher; False where there is none, so that nobody else reports the error."""
    folder = os.environ.get(EXITS_VARIABLE)
    if folder:
        Path(folder, os.environ.get("RANK", "0")).write_text(f"{status}\n{error}", encoding="utf-8")
    return bool(folder)


def read_exits(folder: str) -> dict[int, WorkerExit]:
    """Rank → exit of the workers that recorded one; a worker that was killed did not."""
    exits = {}
    for path in Path(folder).iterdir():
        status, _, error = path.read_text(encoding="utf-8").partition("\n")
        exits[int(path.name)] = WorkerExit(int(status), error)
    return exits
