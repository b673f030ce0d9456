"""Which validation is the best one."""

from __future__ import annotations

from collections.abc import Collection

from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.tasks.base import Task, lower_is_better


def greater_is_better(config: TrainConfig, task: Task) -> bool:
    """Whether the best value of the metric that decides is the largest."""
    if config.best_mode == "auto":
        return config.best_metric not in lower_is_better(task)
    return config.best_mode == "max"


def check_measured(config: TrainConfig, figures: Collection[str]) -> None:
    """Refuse a metric that decides and is not measured.

    Args:
        config: the run's settings.
        figures: names of a validation's figures.

    Raises:
        UserError: names those that are measured.
    """
    if config.best_metric not in figures:
        raise UserError(
            f"train.best_metric={config.best_metric}: no such validation figure; measured are "
            f"{', '.join(name for name in figures if name != 'step')}"
            + ("" if config.validation_rows else "; scores need train.validation_rows above 0")
        )
