"""The quality gate before export: the limits of `evaluate.minimum` and `evaluate.maximum`.

`python -m hanflow.steps.gate --evaluation DIR` prints true or false: the condition of the export step in Argo.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from hanflow.config import EvaluateConfig
from hanflow.errors import UserError
from hanflow.experiment import limit_problems
from hanflow.storage import fetched, nothing
from hanflow.tasks.base import Task


def passed(evaluation: str) -> bool:
    """Whether the scores of an evaluation artifact meet the limits."""
    return bool(fetched(evaluation, "evaluation", only=nothing)[1].details["gate"]["passed"])


def check_limits(config: EvaluateConfig, task: Task) -> None:
    """Refuse limits for unknown scores, before anything is computed.

    Raises:
        UserError: an unknown score, or a limit that is not a number.
    """
    problems = limit_problems(config, task)
    if problems:
        raise UserError("\n".join(problems))


def failures(config: EvaluateConfig, scores: Mapping[str, float]) -> list[str]:
    """The limits that the scores do not meet, one text each."""
    low = [
        f"{name} is {scores[name]:.4f}, below evaluate.minimum {limit}"
        for name, limit in config.minimum.items()
        if not scores[name] >= limit
    ]
    high = [
        f"{name} is {scores[name]:.4f}, above evaluate.maximum {limit}"
        for name, limit in config.maximum.items()
        if not scores[name] <= limit
    ]
    return low + high


def main(argv: Sequence[str] | None = None) -> int:
    """Print whether an evaluation's scores meet the limits; the exit status is 0 in both cases."""
    parser = argparse.ArgumentParser(
        prog="python -m hanflow.steps.gate", description="Print whether a model may be exported."
    )
    parser.add_argument("--evaluation", required=True, help="folder of the evaluation artifact")
    options = parser.parse_args(argv)
    try:
        print(str(passed(options.evaluation)).lower())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
