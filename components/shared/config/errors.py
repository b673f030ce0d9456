"""What a command says when the person who runs it can mend the matter."""

from __future__ import annotations

from collections.abc import Sequence


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
