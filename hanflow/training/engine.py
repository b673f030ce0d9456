"""What trains: the one place where an engine is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from hanflow.config import TrainConfig
from hanflow.tasks.base import Task
from hanflow.training.state import TrainingResult, TrainingRun


class Engine(Protocol):
    """One way to train any task: `hanflow.training.loop` or `hanflow.training.trainer`."""

    def check(self, config: TrainConfig, task: Task) -> list[str]:
        """What this engine cannot do of the settings, one text each; found before anything is loaded."""
        ...

    def fit(self, run: TrainingRun) -> TrainingResult:
        """Train the run's model from where its checkpoints stand; called by all ranks.

        Raises:
            Stopped: SIGTERM or Ctrl-C came; a checkpoint is saved.
            UserError: checkpoints that do not fit, or training cannot continue; the message gives the remedy.
        """
        ...


def _hanflow() -> Engine:
    from hanflow.training import loop

    return loop


def _transformers() -> Engine:
    from hanflow.training import trainer  # its import of transformers' Trainer takes a second

    return trainer


ENGINES: Mapping[str, Callable[[], Engine]] = {"hanflow": _hanflow, "transformers": _transformers}
"""Value of `train.engine` → the engine."""
