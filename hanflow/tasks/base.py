"""What a task is: all that the steps know of what is learnt, and the answers that most tasks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hanflow.config import EvaluateConfig, TokenizeConfig
from hanflow.config.fields import setting
from hanflow.data.schema import Column, RejectedRow
from hanflow.errors import UserError
from hanflow.tasks.data import Encoded, Facts, Measures, Metric, Predictions, ReportPart, Rest, Rows, ShardRow
from hanflow.tasks.predictor import Predictor
from hanflow.text.encoding import framed, plain_ids
from hanflow.text.normalize import clean_text

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Config = Any
"""The settings of a step as the task extends them: `Task.settings` of that step."""


@dataclass(frozen=True)
class TextTokenizeConfig(TokenizeConfig):
    """Token ids of a corpus whose input texts have a longest length."""

    max_source_tokens: int = setting(
        512, "Longest source, in tokens, end-of-sequence included; longer ones are truncated.", at_least=2
    )


class Task(ABC):
    """A task; a subclass needs every abstract method and every attribute without a default.

    The defaults suit a task that reads one text of a row, the first of `sequences`, and predicts the last of them.
    torch and transformers are imported inside the methods only, so that listing the tasks and their settings is fast.
    """

    name: str
    settings: Mapping[str, type] = {}
    """Section of an experiment → the step's settings class with this task's own settings; for other sections the usual."""
    headline: Mapping[str, str] = {}
    """Parameters of the pipeline's form that only this task has: name → setting (`tokenize.max_target_tokens`)."""
    columns: tuple[Column, ...]
    """Columns of the corpus, all text."""
    sequences: tuple[str, ...]
    """Sequences of token ids in a row of the shards; the shape of a batch lists their lengths in this order."""
    generates: bool = False
    """Whether predictions are texts that an encoder-decoder generates: a row is then (source, target)."""
    labels: bool = False
    """Whether a prediction is one of a fixed set of labels."""
    packs: bool = False
    """Whether a row of the shards is a chunk of fixed length, filled with one text after the other."""
    verb: str
    """What the task does with a text, on a button: `Summarize`."""
    metrics: tuple[Metric, ...]
    """The scores of `overall`, and the measures of `score`, that reports explain, each with its direction."""

    @property
    def text_roles(self) -> tuple[str, ...]:
        """Columns that the tokenizer is trained on and whose lengths are reported."""
        return tuple(column.role for column in self.columns if column.text)

    @property
    def input_role(self) -> str:
        """The column that a model predicts from."""
        return next(column.role for column in self.columns if column.input)

    @property
    def split_role(self) -> str:
        """Column whose text may occur in one split only."""
        return self.input_role

    @property
    def best_metric(self) -> str:
        """The one of `overall` that decides which model is best."""
        return next(metric.name for metric in self.metrics if metric.decides)

    @property
    def rank_by(self) -> str:
        """The measure of `score` that rows are ranked by; higher is better."""
        return next(metric.name for metric in self.metrics if metric.ranks_rows)

    @property
    def shown_measures(self) -> tuple[str, ...]:
        """Measures of `score` that are shown for single rows."""
        return tuple(metric.name for metric in self.metrics if metric.shown)

    def check_settings(self, config: Config) -> list[str]:
        """Settings of the evaluate step that exclude or need each other, one message each."""
        return []

    @abstractmethod
    def clean(self, row: Mapping[str, str], config: Config) -> dict[str, str]:
        """A raw row (role → text; absent optional roles are "") as a corpus row.

        Raises:
            RejectedRow: the row cannot be used.
        """

    def clean_input(self, text: str, config: Config) -> str:
        """An input text, cleaned as `clean` cleans it in a row; "" where nothing is left of it."""
        return clean_text(text, config, br=" ")

    def facts(self, rows: Iterable[Rows]) -> dict[str, Any]:
        """What must be known of the train split before anything is encoded, e.g. its classes; plain JSON data.

        Args:
            rows: the train split's columns outside `text_roles`, batch by batch; need not be read.

        Raises:
            UserError: nothing can be learnt from it.
        """
        return {}

    def prepare(self, texts: Sequence[str], config: Config) -> list[str]:
        """Texts as the tokenizer reads them, e.g. cut into morphemes."""
        return list(texts)

    @abstractmethod
    def longest(self, config: Config) -> dict[str, int]:
        """Name of each sequence → its longest length in tokens, special ones included."""

    def frame(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Token ids before and after every text: none, and the end of sequence."""
        return [], [tokenizer.eos_token_id]

    def encode(
        self, rows: Rows, tokenizer: Tokenizer, config: Config, facts: Facts, rest: Rest | None = None
    ) -> Encoded:
        """Token ids of a batch of corpus rows; the default encodes the texts alone.

        Args:
            facts: the result of `facts`.
            rest: `Encoded.rest` of the batch before, in the same split; that of the last batch becomes a row of its own,
                if it has more than one token.
        """
        columns, truncated, tokens, characters = {}, {}, 0, 0
        frame, longest = self.frame(tokenizer), self.longest(config)
        for role in self.text_roles:
            plain = plain_ids(self.prepare(rows[role], config), tokenizer)
            columns[role], truncated[role] = framed(plain, frame, longest[role])
            tokens += sum(map(len, plain))
            characters += sum(map(len, rows[role]))
        return Encoded(columns, truncated, tokens, characters, len(rows[self.input_role]))

    def inputs(
        self, texts: Sequence[str], tokenizer: Tokenizer, config: Config, *, truncate: bool = True
    ) -> list[tuple[np.ndarray, ...]]:
        """Cleaned input texts as a `Predictor` takes them: encoded as in `encode`, without the sequence to predict.

        Args:
            truncate: whether a text longer than `input_limit` is cut.

        Returns:
            A tuple a text: int32 arrays of shape (length,), one for each sequence of the input.
        """
        import numpy as np

        plain = plain_ids(self.prepare(texts, config), tokenizer)
        rows, _ = framed(plain, self.frame(tokenizer), self.input_limit(config) if truncate else None)
        return [(np.array(ids, dtype=np.int32),) for ids in rows]

    def input_limit(self, config: Config) -> int | None:
        """Most tokens of an input text that a model reads, special ones included; None: no text is cut."""
        return self.longest(config).get(self.input_role)

    def models(self) -> ModuleType:
        """The module of `hanflow.models` with `ARCHITECTURES`, `collate` and `loss`; it imports torch.

        Not needed by a task with its own `check_model`, `collate` and `loss`.
        """
        raise NotImplementedError(f"{type(self).__name__}.models: define it, or check_model, collate and loss")

    def check_model(self, config: Config) -> list[str]:
        """Problems of the model settings, one message each, found without loading weights."""
        return [] if config.pretrained else self.models().ARCHITECTURES.problems(config.architecture)

    @abstractmethod
    def new_model(self, config: Config, tokenizer: Tokenizer, facts: Facts) -> PreTrainedModel:
        """The model before training: weights drawn from `config.seed`, or loaded from `config.pretrained`.

        Raises:
            UserError: it cannot be made or loaded, or does not fit the tokenizer.
        """

    def load_model(self, folder: str) -> PreTrainedModel:
        """A model that this task saved."""
        from hanflow.loading.pretrained import load_model

        return load_model(folder, self.card()["auto_class"])

    def combine(self, folders: Mapping[str, str], weights: Sequence[float]) -> PreTrainedModel:
        """An ensemble of trained models.

        Args:
            folders: name of each member → folder with a model that this task saved and its tokenizer.
            weights: weight of each member, in their order; empty: equal weights.

        Raises:
            UserError: the models do not fit together, or the task cannot combine any.
        """
        raise UserError(f"models of the task {self.name} cannot be combined; classifiers can: set task=classification")

    def members(self, model: PreTrainedModel) -> dict[str, PreTrainedModel]:
        """The members of an ensemble that `combine` made, by name; empty for any other model."""
        return {}

    def positions(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Positions that the model needs for each row.

        Args:
            lengths: tokens of every sequence: int64 array of shape (rows, sequences).

        Returns:
            Setting of TokenizeConfig that limits them → int64 array of shape (rows,).
        """
        return {"max_source_tokens": lengths[:, 0]}

    def targets(self, lengths: np.ndarray) -> np.ndarray:
        """Number of target tokens in the loss of each row: int64 array of shape (rows,); `lengths` as in `positions`."""
        return lengths[:, -1]

    def collate(
        self, rows: Sequence[ShardRow], shape: Sequence[int], model: PreTrainedModel, *, static: bool = False
    ) -> dict[str, torch.Tensor]:
        """Rows as one batch of a given shape.

        Args:
            rows: rows of the shards.
            shape: rows of the batch, then the padded length in tokens of every sequence; missing rows are padding.
            model: the model that reads the batch (its ids of padding and start).
            static: always the same tensors, whose shapes follow from `shape` alone and whose first dimension is the
                rows; else tensors that these rows do not need may be absent.

        Returns:
            The batch for `loss`: name → tensor on the CPU, token ids in int64.
        """
        return self.models().collate(rows, shape, model.config, static=static)

    def loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of the loss over target tokens, number of target tokens), float32 and int64 scalars on the device.

        Args:
            model: made by `new_model` or `load_model`.
            batch: made by `collate`, on the model's device.
            label_smoothing: share of the probability that is spread over the whole vocabulary, from 0 to below 1.
        """
        return self.models().loss(model, batch, label_smoothing)

    def sources(self, rows: Sequence[ShardRow]) -> list[np.ndarray]:
        """The inputs of a `Generator` in rows of the shards: int32 arrays of shape (length,)."""
        return [row[0] for row in rows]

    def validation_settings(self, config: Config, longest: int, batch_tokens: int) -> Config:
        """Settings of the predictions of a validation during training.

        Args:
            config: the settings of the train step.
            longest: tokens of the longest target in the shards.
            batch_tokens: padded tokens of a batch.
        """
        return self.settings.get("evaluate", EvaluateConfig)(batch_tokens=batch_tokens)

    def copies(self, config: Config) -> int:
        """Copies of each row that a prediction computes together, e.g. the beams of a search."""
        return 1

    @abstractmethod
    def predictor(
        self, model: PreTrainedModel, tokenizer: Tokenizer, config: Config, *, scoring: bool = False
    ) -> Predictor:
        """A predictor with a model in memory, on the device where it is.

        Args:
            scoring: whether the predictions are for `score` alone (a language model then computes the likelihood of the
                rows and continues nothing).

        Raises:
            UserError: the model cannot be run with these settings.
        """

    def open_predictor(self, folder: str, config: Config, *, scoring: bool = False) -> Predictor:
        """A predictor from a bundle, or any folder with a model and its tokenizer, in the format that suits the settings.

        Raises:
            UserError: the folder has no model that can be run with these settings.
        """
        from hanflow.loading.pretrained import load_with_tokenizer

        return self.predictor(*load_with_tokenizer(folder, self.load_model), config, scoring=scoring)

    @abstractmethod
    def references(self, rows: Rows) -> list[str]:
        """The right answers of corpus rows."""

    @abstractmethod
    def reference_of(self, row: ShardRow, tokenizer: Tokenizer, model: PreTrainedModel) -> str:
        """The right answer of one row of the shards, without what was truncated."""

    def baselines(self, rows: Rows, config: Config, facts: Facts) -> dict[str, Predictions]:
        """Name of each trivial system → its predictions for corpus rows, e.g. the lead sentences."""
        return {}

    @abstractmethod
    def score(self, predictions: Predictions, references: Sequence[str]) -> dict[str, np.ndarray]:
        """Measures of each row, from which `overall` computes the scores: name → float64 array of shape (rows,).

        Measures of several batches are concatenated. A batch may have no rows.
        """

    @abstractmethod
    def overall(self, measures: Measures) -> dict[str, float]:
        """The scores of any number of rows from their measures; a tokenization is part of a score's name."""

    def describe(self, rows: Rows, predictions: Predictions, references: Sequence[str]) -> dict[str, np.ndarray]:
        """Properties of predictions other than quality, e.g. how much is copied from the input.

        Returns:
            Name for people → float64 array of shape (rows,); the report shows means. NaN: not defined for that row.
        """
        return {}

    def sections(self, measures: Measures, facts: Facts) -> list[ReportPart]:
        """The task's own part of an evaluation's report, from the measures of all rows."""
        return []

    def confusion(self, measures: Measures, facts: Facts) -> tuple[list[str], np.ndarray] | None:
        """(names of C classes, int64 matrix of shape (C, C): rows by right class × predicted class); None: there are no
        classes."""
        return None

    def prompts(self, rows: Rows) -> list[str]:
        """The inputs of corpus rows, as reports show them."""
        return list(rows[self.input_role])

    def reference_settings(self, config: Config) -> Config:
        """Settings of the evaluate step for comparing an exported model with the trained one: exact arithmetic."""
        return config

    def prepare_export(self, model: PreTrainedModel, config: Config) -> None:
        """Store the settings of the evaluation in a model about to be saved, so that other programs get its outputs."""
        return

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Entries of the bundle: `pipeline_tag`, `auto_class` (name of the transformers class that loads the model),
        `example` (Python code that uses it), and `ctranslate2_example` (code for a CTranslate2 model; absent where the task
        has none)."""


def lower_is_better(task: Task) -> set[str]:
    """Names of the figures of a task whose best value is the smallest; the loss of any task is one."""
    return {"loss", *(metric.name for metric in task.metrics if metric.better == "lower")}


def check_length(what: str, text: str, config: Config) -> None:
    """Check the number of characters of an input text against the settings.

    Raises:
        RejectedRow: it is too short or too long.
    """
    if len(text) < config.min_source_chars:
        raise RejectedRow(f"the {what} has {len(text)} characters, fewer than {config.min_source_chars}")
    if config.max_source_chars and len(text) > config.max_source_chars:
        raise RejectedRow(f"the {what} has {len(text)} characters, more than {config.max_source_chars}")
