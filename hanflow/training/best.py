"""Which validation is the best one."""

from __future__ import annotations

from collections.abc import Collection

from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.tasks.data import LESS_IS_BETTER


def greater_is_better(config: TrainConfig) -> bool:
    """Whether the best value of the metric that decides is the largest."""
    return config.best_mode == "max" or (config.best_mode == "auto" and config.best_metric not in LESS_IS_BETTER)


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
