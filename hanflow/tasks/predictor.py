"""What predicts: a task's model, made ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hanflow.tasks.data import Predictions

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from hanflow.progress import Progress


class Predictor(Protocol):
    """A model made ready once, then asked for as many rows as one likes."""

    tokenizer: PreTrainedTokenizerBase
    description: str
    """What computes, for people: `ctranslate2, int8`."""

    def __call__(self, rows: Sequence[Sequence[np.ndarray]], progress: Progress | None = None) -> Predictions:
        """Predictions for rows of token ids, in order.

        Args:
            rows: int32 arrays of shape (length,) of every row: token ids of its input sequences, as `Task.inputs` gives
                them; further sequences (those of a shard's row) are not looked at.
            progress: told of every finished row.
        """
        ...


@runtime_checkable
class Adjustable(Protocol):
    """A predictor whose settings can be changed without loading the model again."""

    adjusts: tuple[str, ...]
    """Names of the settings of the evaluate step that change what it says."""

    def with_settings(self, config: Any) -> Predictor:
        """The same model under other settings."""
        ...


@runtime_checkable
class Chunkable(Protocol):
    """A predictor of whole texts that can be told to take rows of the shards of a task that packs (`Task.packs`)."""

    def for_chunks(self) -> Predictor:
        """The same model for chunks, which begin and end anywhere: nothing is added to them."""
        ...
