"""The interface of a task's model that is ready to predict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hanflow.tasks.data import Predictions, ShardRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hanflow.progress import Progress


class Predictor(ABC):
    """A model ready for any number of calls."""

    tokenizer: PreTrainedTokenizerBase
    description: str
    """Engine and arithmetic, for display: `ctranslate2, int8`."""
    adjusts: tuple[str, ...] = ()
    """Settings of the evaluate step that `with_settings` can change."""

    @abstractmethod
    def __call__(self, rows: Sequence[ShardRow], progress: Progress | None = None) -> Predictions:
        """Predictions for rows of token ids, in order.

        Args:
            rows: input sequences, as `Task.inputs` gives them; further sequences (those of a shard's row) are ignored.
            progress: updated by every finished row.
        """

    def with_settings(self, config: Any) -> Predictor:
        """The same model under other settings; nothing is loaded again."""
        return self

    def for_chunks(self) -> Predictor:
        """The same model for the chunks of a task that packs, which begin and end anywhere: no token is added to them."""
        return self


class ModelPredictor(Predictor):
    """A predictor with a model of transformers."""

    description = "transformers, float32"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Any):
        self.model, self.tokenizer, self.config = model, tokenizer, config

    def with_settings(self, config: Any) -> Predictor:
        return type(self)(self.model, self.tokenizer, config)
