"""What a task is: the only door between the steps and what is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from components.shared.config import EvaluateConfig, PreprocessConfig, TokenizeConfig, TrainConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from components.shared.generation import Generator
    from components.shared.progress import Progress


@dataclass(frozen=True)
class Column:
    """One column of the corpus, and the raw columns that can fill it."""

    role: str
    """Name in the corpus."""
    aliases: tuple[str, ...]
    """Raw column names that mean it, compared without case."""
    required: bool = True
    """Whether a raw file without it is refused; else it is left empty."""


class Rejected(Exception):
    """A row cannot be used; the message is the reason kept beside it."""


@dataclass(frozen=True)
class Encoded:
    """A batch of rows as token ids."""

    columns: dict[str, list[list[int]]]
    """Name of each sequence → one list of token ids a row."""
    truncated: dict[str, int]
    """Name of each sequence → rows cut to its longest length."""
    tokens: int
    """Tokens of all texts before truncation, end-of-sequence not counted."""
    characters: int
    """Characters of all texts."""


@dataclass(frozen=True)
class Scores:
    """The scores of one system's predictions."""

    overall: dict[str, float]
    """Metric, with its tokenization in the name (`rougeL_morpheme`) → mean over the rows."""
    rows: dict[str, np.ndarray]
    """Metric → float64 array of shape (rows,)."""


class Task(Protocol):
    """What a step may ask of a task. Heavy imports (torch, transformers) belong inside the methods."""

    name: str
    columns: tuple[Column, ...]
    """Columns of the corpus, all text."""
    text_roles: tuple[str, ...]
    """Columns that carry text: the tokenizer is trained on them, their lengths are reported."""
    split_role: str
    """Column whose text may stand in one split only."""
    sequences: tuple[str, ...]
    """Sequences of token ids that a row of the shards holds, in the order that batches are shaped by."""
    generates: bool
    """Whether predictions are texts that an encoder-decoder generates: a row is then (source, target)."""
    best_metric: str
    """The one of `Scores.overall` that decides which model is best; higher is better."""

    def clean(self, row: Mapping[str, str], config: PreprocessConfig) -> dict[str, str]:
        """A raw row (role → text; absent optional roles are "") as a corpus row.

        Raises:
            Rejected: the row cannot be used.
        """
        ...

    def longest(self, config: TokenizeConfig) -> dict[str, int]:
        """Name of each sequence → its longest length in tokens."""
        ...

    def encode(
        self, rows: Mapping[str, Sequence[str]], tokenizer: PreTrainedTokenizerBase, config: TokenizeConfig
    ) -> Encoded:
        """Token ids of a batch of corpus rows (role → texts), end-of-sequence appended and kept on truncation."""
        ...

    def check_model(self, config: TrainConfig) -> list[str]:
        """Problems of the model settings, one text each, found without loading weights."""
        ...

    def new_model(self, config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """The model before training, its weights drawn from `config.seed` or loaded from `config.pretrained`.

        Raises:
            UserError: it cannot be had, or does not fit the tokenizer.
        """
        ...

    def load_model(self, folder: str) -> PreTrainedModel:
        """A model that this task saved."""
        ...

    def targets(self, lengths: np.ndarray) -> np.ndarray:
        """Target tokens that the loss of every row sums over, known before anything is computed.

        Args:
            lengths: tokens of every sequence: int64 array of shape (rows, sequences).

        Returns:
            int64 array of shape (rows,).
        """
        ...

    def collate(
        self, rows: Sequence[Sequence[np.ndarray]], shape: Sequence[int], model: PreTrainedModel
    ) -> dict[str, torch.Tensor]:
        """Rows as one batch of static shape.

        Args:
            rows: one row each: int32 token ids of every sequence, in the order of `sequences`.
            shape: rows of the batch, then the padded length of every sequence; missing rows are padding.
            model: the model that the batch is for (its ids of padding and start).
        """
        ...

    def loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of the loss over target tokens, number of target tokens), float32 and int64 scalars on the device."""
        ...

    def sources(self, rows: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """What a `Generator` reads of rows as in `collate`; only for tasks that generate."""
        ...

    def predict(
        self,
        model: PreTrainedModel | Generator,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Sequence[np.ndarray]],
        config: EvaluateConfig,
        progress: Progress | None = None,
    ) -> list[str]:
        """One prediction a row, in order; rows as in `collate`, only the input sequences are looked at.

        A task that generates takes a ready `Generator` too, which goes before the engine that the settings name.
        """
        ...

    def references(self, rows: Mapping[str, Sequence[str]]) -> list[str]:
        """The right answers of corpus rows (role → texts)."""
        ...

    def reference_of(self, row: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase) -> str:
        """The right answer of one row of the shards, as in `collate`; what truncation cut is missing from it."""
        ...

    def baselines(self, rows: Mapping[str, Sequence[str]], config: EvaluateConfig) -> dict[str, list[str]]:
        """Name of each trivial system → its predictions for corpus rows, e.g. the lead sentences."""
        ...

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> Scores:
        """Scores of predictions against references, row by row."""
        ...

    def prompts(self, rows: Mapping[str, Sequence[str]]) -> list[str]:
        """What a person reads as the input of corpus rows."""
        ...

    def prepare_export(self, model: PreTrainedModel, config: EvaluateConfig) -> None:
        """Give a model about to be saved the settings that it was scored with, so that others get the same outputs."""
        ...

    def card(self) -> dict[str, Any]:
        """What the bundle needs: `pipeline_tag`, `auto_class` (name of the transformers class that loads it), `example`
        (lines of Python that use it), and `ctranslate2_example` (lines that use it as a CTranslate2 model; absent where
        the task has no use for that format)."""
        ...
