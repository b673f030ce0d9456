"""Errors that the user can fix, and the exit statuses of commands and workers."""

from __future__ import annotations

from collections.abc import Sequence

PERMANENT = (1, 2)
"""Exit statuses that a restart cannot help: a UserError, and wrong usage."""
STOPPED = 143
"""Exit status of workers that saved a checkpoint and stopped on request."""
UNEXPECTED = 70
"""Exit status of a worker after an unexpected error (EX_SOFTWARE): a restart may help."""
GRACE_SECONDS = 120
"""Seconds between SIGTERM and SIGKILL that a worker gets to save a checkpoint (spot nodes give less)."""


class UserError(Exception):
    """An error that the user can fix; the message gives the cause, the place and the remedy."""

    exit_status = 1
    """Exit status of a command that ends with this error."""


class ConfigError(UserError):
    """One or more settings are wrong; the message lists them all."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{head} in the settings:", *(f"  - {problem}" for problem in problems)]))


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
