"""The interface of a training engine, and the choice of one."""

from __future__ import annotations

from typing import Protocol

from hanflow.config import TrainConfig
from hanflow.tasks.base import Task
from hanflow.training.state import TrainingResult, TrainingRun


class Engine(Protocol):
    """One way to train any task: `hanflow.training.loop` or `hanflow.training.trainer`."""

    def check(self, config: TrainConfig, task: Task) -> list[str]:
        """Settings that this engine does not support, one message each; called before anything is loaded."""

    def fit(self, run: TrainingRun) -> TrainingResult:
        """Train the run's model, from its newest checkpoint if there is one; called by all ranks.

        Raises:
            Stopped: SIGTERM or Ctrl-C came; a checkpoint is saved.
            UserError: checkpoints that do not fit, or training cannot continue; the message gives the remedy.
        """


ENGINES = ("hanflow", "transformers")
"""Values of `train.engine`."""


def load_engine(name: str) -> Engine:
    """The engine that `train.engine` names; the import of transformers' Trainer takes a second."""
    if name == "transformers":
        from hanflow.training import trainer

        return trainer
    from hanflow.training import loop

    return loop
