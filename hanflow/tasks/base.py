"""What a task is: the only door between the steps and what is learnt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hanflow.data.schema import Column
from hanflow.tasks.data import Encoded, Metric, Predictions, ReportPart
from hanflow.tasks.predictor import Predictor

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Config = Any
"""The settings of a step as the task extends them: `Task.settings` of that step."""


class Task(Protocol):
    """What a step may ask of a task. Heavy imports (torch, transformers) belong inside the methods.

    A *row of the shards* is one int32 array of shape (length,) of token ids for each of `sequences`, in their order.
    `hanflow.tasks.common.CommonTask` has the answers that most tasks give.
    """

    name: str
    settings: Mapping[str, type]
    """Section of an experiment → the step's settings class extended by what this task alone needs; others are as they are."""
    headline: Mapping[str, str]
    """Parameters of the pipeline's form that only this task has: name → setting (`tokenize.max_target_tokens`)."""
    columns: tuple[Column, ...]
    """Columns of the corpus, all text."""
    text_roles: tuple[str, ...]
    """Columns that carry text: the tokenizer is trained on them, their lengths are reported."""
    input_role: str
    """The text that a person gives to have something predicted."""
    split_role: str
    """Column whose text may stand in one split only."""
    sequences: tuple[str, ...]
    """Sequences of token ids that a row of the shards holds, in the order that batches are shaped by."""
    generates: bool
    """Whether predictions are texts that an encoder-decoder generates: a row is then (source, target)."""
    labels: bool
    """Whether a prediction is a label that means something beside its text only."""
    packs: bool
    """Whether a row of the shards is a chunk of fixed length, filled with texts one after the other."""
    verb: str
    """What to do with a text, on a button: `Summarize`."""
    metrics: tuple[Metric, ...]
    """The scores of `overall` and the measures of `score` that mean something to people, each with its direction."""
    best_metric: str
    """The one of `overall` that decides which model is best."""
    rank_by: str
    """The measure of `score` that tells good rows from bad ones; higher is better."""
    shown_measures: tuple[str, ...]
    """Measures of `score` that mean something for a single row."""

    def check_settings(self, config: Config) -> list[str]:
        """Settings of the evaluate step that exclude or need each other, one text each."""
        ...

    def clean(self, row: Mapping[str, str], config: Config) -> dict[str, str]:
        """A raw row (role → text; absent optional roles are "") as a corpus row.

        Raises:
            RejectedRow: the row cannot be used.
        """
        ...

    def clean_input(self, text: str, config: Config) -> str:
        """A text to predict from, cleaned as `clean` cleans the input of a row; never refused, "" at worst."""
        ...

    def facts(self, rows: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, Any]:
        """What has to be known of the train split before anything is encoded, e.g. its classes; plain JSON data.

        Args:
            rows: the train split's columns that are no `text_roles`, batch by batch (role → values); need not be read.

        Raises:
            UserError: nothing can be learnt from it.
        """
        ...

    def prepare(self, texts: Sequence[str], config: Config) -> list[str]:
        """Texts as the tokenizer is to see them, e.g. cut into morphemes."""
        ...

    def longest(self, config: Config) -> dict[str, int]:
        """Name of each sequence → its longest length in tokens, special ones included."""
        ...

    def encode(
        self,
        rows: Mapping[str, Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        facts: Mapping[str, Any],
        rest: Mapping[str, list[int]] | None = None,
    ) -> Encoded:
        """Token ids of a batch of corpus rows (role → texts), end-of-sequence appended and kept on truncation.

        Args:
            rest: the `Encoded.rest` of the batch before, in the same split; after the last batch it becomes a row of
                its own, if it has more than one token.
        """
        ...

    def inputs(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        *,
        truncate: bool = True,
    ) -> list[tuple[np.ndarray, ...]]:
        """Cleaned input texts as a `Predictor` takes them: encoded as `encode` does it, without what is to be predicted.

        Args:
            truncate: whether a text longer than `input_limit` is cut.

        Returns:
            int32 arrays of shape (length,), for every text one a sequence that is read of it.
        """
        ...

    def input_limit(self, config: Config) -> int | None:
        """Most tokens of an input text that a model sees, special ones included; None: no text is cut."""
        ...

    def check_model(self, config: Config) -> list[str]:
        """Problems of the model settings, one text each, found without loading weights."""
        ...

    def new_model(
        self, config: Config, tokenizer: PreTrainedTokenizerBase, facts: Mapping[str, Any]
    ) -> PreTrainedModel:
        """The model before training, its weights drawn from `config.seed` or loaded from `config.pretrained`.

        Args:
            facts: what `facts` told when the shards were made.

        Raises:
            UserError: it cannot be had, or does not fit the tokenizer.
        """
        ...

    def load_model(self, folder: str) -> PreTrainedModel:
        """A model that this task saved."""
        ...

    def combine(self, folders: Mapping[str, str], weights: Sequence[float]) -> PreTrainedModel:
        """One model that averages what several say; nothing is trained.

        Args:
            folders: name of each member → folder with a model that this task saved and its tokenizer.
            weights: how much each counts, in their order; empty: all the same.

        Raises:
            UserError: they do not fit together, or the task cannot combine models.
        """
        ...

    def members(self, model: PreTrainedModel) -> dict[str, PreTrainedModel]:
        """The models that `combine` made one of, by name; empty for any other model."""
        ...

    def positions(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Tokens of every row that the model looks at together.

        Args:
            lengths: tokens of every sequence: int64 array of shape (rows, sequences).

        Returns:
            Setting of TokenizeConfig that bounds them → int64 array of shape (rows,).
        """
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
        self,
        rows: Sequence[Sequence[np.ndarray]],
        shape: Sequence[int],
        model: PreTrainedModel,
        *,
        static: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Rows as one batch of static shape.

        Args:
            rows: rows of the shards.
            shape: rows of the batch, then the padded length in tokens of every sequence; missing rows are padding.
            model: the model that the batch is for (its ids of padding and start).
            static: which tensors the batch has, and their shapes, follow from `shape` alone, and the first dimension of
                each is the rows; else what the rows do not need may be left out.

        Returns:
            What `loss` takes: name → tensor on the CPU, token ids in int64.
        """
        ...

    def loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of the loss over target tokens, number of target tokens), float32 and int64 scalars on the device.

        Args:
            model: one that `new_model` or `load_model` gave.
            batch: what `collate` gave, on the model's device.
            label_smoothing: share of the probability that is spread over the whole vocabulary, from 0 to below 1.
        """
        ...

    def sources(self, rows: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """What a `Generator` reads of rows of the shards: int32 arrays of shape (length,); for tasks that generate."""
        ...

    def validation_settings(self, config: Config, longest: int, batch_tokens: int) -> Config:
        """How rows are predicted at a validation while training.

        Args:
            longest: tokens of the longest target of the shards.
            batch_tokens: padded tokens of a batch.
        """
        ...

    def copies(self, config: Config) -> int:
        """Of every row that a prediction computes with at once, e.g. the beams of a search."""
        ...

    def predictor(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        *,
        scoring: bool = False,
    ) -> Predictor:
        """A model in memory made ready to predict, on the device where it is.

        Args:
            scoring: whether the predictions are for `score` and not to be read (a language model then says how likely
                the rows are, and continues nothing).

        Raises:
            UserError: the model cannot be run as the settings ask.
        """
        ...

    def open_predictor(self, folder: str, config: Config, *, scoring: bool = False) -> Predictor:
        """The same for a bundle, or any folder with a model and its tokenizer, in the format that suits the settings.

        Raises:
            UserError: nothing there fits.
        """
        ...

    def references(self, rows: Mapping[str, Sequence[str]]) -> list[str]:
        """The right answers of corpus rows (role → texts)."""
        ...

    def reference_of(
        self, row: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> str:
        """The right answer of one row of the shards; what truncation cut is missing from it."""
        ...

    def baselines(
        self, rows: Mapping[str, Sequence[str]], config: Config, facts: Mapping[str, Any]
    ) -> dict[str, Predictions]:
        """Name of each trivial system → its predictions for corpus rows, e.g. the lead sentences."""
        ...

    def score(self, predictions: Predictions, references: Sequence[str]) -> dict[str, np.ndarray]:
        """What of each row the scores follow from: name → float64 array of shape (rows,).

        The arrays of several batches of rows, concatenated, are those of all their rows. No row at all is a batch, too.
        """
        ...

    def overall(self, measures: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The scores of any number of rows from what `score` gave for them, tokenization and the like in their names."""
        ...

    def describe(
        self, rows: Mapping[str, Sequence[str]], predictions: Predictions, references: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """What is worth knowing of predictions beside how right they are, e.g. how much is copied from the input.

        Returns:
            Name for people → float64 array of shape (rows,); the report shows means. NaN: not defined for that row.
        """
        ...

    def sections(self, measures: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> list[ReportPart]:
        """The task's own part of an evaluation's report, from what `score` gave for all rows."""
        ...

    def confusion(
        self, measures: Mapping[str, np.ndarray], facts: Mapping[str, Any]
    ) -> tuple[list[str], np.ndarray] | None:
        """(names of C classes, int64 matrix of shape (C, C): rows by right class × predicted class); None: predictions
        are no classes."""
        ...

    def prompts(self, rows: Mapping[str, Sequence[str]]) -> list[str]:
        """What a person reads as the input of corpus rows."""
        ...

    def reference_settings(self, config: Config) -> Config:
        """Settings of the evaluate step by which the trained model and an exported one are compared: the exact arithmetic."""
        ...

    def prepare_export(self, model: PreTrainedModel, config: Config) -> None:
        """Give a model about to be saved the settings that it was scored with, so that others get the same outputs."""
        ...

    def card(self) -> dict[str, Any]:
        """What the bundle needs: `pipeline_tag`, `auto_class` (name of the transformers class that loads it), `example`
        (lines of Python that use it), and `ctranslate2_example` (lines that use it as a CTranslate2 model; absent where
        the task has no use for that format)."""
        ...


def lower_is_better(task: Task) -> set[str]:
    """Names of the figures of a task whose best value is the smallest; the loss of any task is one."""
    return {"loss", *(metric.name for metric in task.metrics if metric.better == "lower")}
