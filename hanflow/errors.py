"""Errors that the person who runs hanflow can mend, and the exit statuses of commands and workers."""

from __future__ import annotations

from collections.abc import Sequence

PERMANENT = (1, 2)
"""Exit statuses that no restart can mend: an error that names its cure, and wrong usage."""
STOPPED = 143
"""Exit status of workers that were asked to stop and saved a checkpoint."""
UNEXPECTED = 70
"""Exit status of a worker that met an error it did not expect (EX_SOFTWARE): trying again may help."""
GRACE_SECONDS = 120
"""What a worker gets between SIGTERM and the end, to save a checkpoint (spot nodes give less)."""


class UserError(Exception):
    """Something the person who runs hanflow can mend; the message says what, where and what to do."""

    exit_status = 1
    """Exit status of a command that ends with this error."""


class ConfigError(UserError):
    """One or more settings are wrong; the message lists them all."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{head} in the settings:", *(f"  - {problem}" for problem in problems)]))


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
