"""The quality gate before export: the limits of `evaluate.minimum` and `evaluate.maximum`.

`python -m hanflow.steps.gate --evaluation DIR` prints true or false: the condition of the export step in Argo.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from hanflow.config import EvaluateConfig
from hanflow.config.suggest import spelling_hint
from hanflow.errors import UserError
from hanflow.storage import fetched, nothing
from hanflow.tasks.base import Task
from hanflow.tasks.data import Predictions


def passed(evaluation: str) -> bool:
    """Whether the scores of an evaluation artifact meet the limits."""
    return bool(fetched(evaluation, "evaluation", only=nothing)[1].details["gate"]["passed"])


def check_limits(config: EvaluateConfig, task: Task) -> None:
    """Refuse limits for unknown scores, before anything is computed.

    Raises:
        UserError: an unknown score, or a limit that is not a number.
    """
    known = task.overall(task.score(Predictions([]), []))
    for setting, limits in (("minimum", config.minimum), ("maximum", config.maximum)):
        for name, limit in limits.items():
            if name not in known:
                hint = spelling_hint(name, known)
                raise UserError(f"evaluate.{setting}: the task has no score {name!r}{hint}; known: {', '.join(known)}")
            if isinstance(limit, bool) or not isinstance(limit, (int, float)):
                raise UserError(f"evaluate.{setting}.{name}: expected a number, found {limit!r}")


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
