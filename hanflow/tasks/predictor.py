"""The interface of a task's model that is ready to predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hanflow.tasks.data import Predictions, ShardRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hanflow.progress import Progress


class Predictor(Protocol):
    """A model ready for any number of calls."""

    tokenizer: PreTrainedTokenizerBase
    description: str
    """Engine and arithmetic, for display: `ctranslate2, int8`."""

    def __call__(self, rows: Sequence[ShardRow], progress: Progress | None = None) -> Predictions:
        """Predictions for rows of token ids, in order.

        Args:
            rows: input sequences, as `Task.inputs` gives them; further sequences (those of a shard's row) are ignored.
            progress: updated by every finished row.
        """
        ...


@runtime_checkable
class Adjustable(Protocol):
    """A predictor whose settings can be changed without loading the model again."""

    adjusts: tuple[str, ...]
    """Names of the settings of the evaluate step that change its predictions."""

    def with_settings(self, config: Any) -> Predictor:
        """The same model under other settings."""
        ...


@runtime_checkable
class Chunkable(Protocol):
    """A predictor of whole texts that can also take the chunks of a task that packs (`Task.packs`)."""

    def for_chunks(self) -> Predictor:
        """The same model for chunks, which begin and end anywhere: no token is added to them."""
        ...


class ModelPredictor:
    """A model of transformers with its tokenizer and settings: the base of a `Predictor`."""

    description = "transformers, float32"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Any):
        self.model, self.tokenizer, self.config = model, tokenizer, config
