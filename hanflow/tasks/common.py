"""What most tasks answer alike: a base class for them, and for predictors that are one model of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hanflow.config import EvaluateConfig, TokenizeConfig
from hanflow.config.fields import setting
from hanflow.data.schema import RejectedRow
from hanflow.errors import UserError
from hanflow.tasks.base import Config, Task
from hanflow.tasks.data import Encoded, Predictions, ReportPart
from hanflow.tasks.predictor import Predictor
from hanflow.text.encoding import as_inputs, framed, plain_ids
from hanflow.text.normalize import clean_text

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextTokenizeConfig(TokenizeConfig):
    """Token ids of a corpus whose input texts have a longest length."""

    max_source_tokens: int = setting(
        512, "Longest source, in tokens, end-of-sequence included; longer ones are truncated.", at_least=2
    )


class CommonTask(Task):
    """A task that reads one text of a row, and whose models are in one module.

    The first of `sequences` is that text, the last what is to be said of it. Any answer may be another in a task.
    """

    settings: Mapping[str, type] = {}
    headline: Mapping[str, str] = {}
    generates = labels = packs = False

    @property
    def text_roles(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(column.role for column in self.columns if column.text)

    @property
    def input_role(self) -> str:  # type: ignore[override]
        return next(column.role for column in self.columns if column.input)

    @property
    def split_role(self) -> str:  # type: ignore[override]
        return self.input_role

    @property
    def best_metric(self) -> str:  # type: ignore[override]
        return next(metric.name for metric in self.metrics if metric.decides)

    @property
    def rank_by(self) -> str:  # type: ignore[override]
        return next(metric.name for metric in self.metrics if metric.ranks_rows)

    @property
    def shown_measures(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(metric.name for metric in self.metrics if metric.shown)

    def models(self) -> ModuleType:
        """The module of `hanflow.models` with the functions `check`, `collate` and `loss`; imported only here, as it needs
        torch. A task that has those three methods of its own needs none."""
        raise NotImplementedError(f"{self.name}: does not say where its models are")

    def frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
        """Token ids that stand before and behind every text: none, and the end of sequence."""
        return [], [tokenizer.eos_token_id]

    def check_settings(self, config: Config) -> list[str]:
        return []

    def clean_input(self, text: str, config: Config) -> str:
        return clean_text(text, config, br=" ")

    def facts(self, rows: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, Any]:
        return {}

    def prepare(self, texts: Sequence[str], config: Config) -> list[str]:
        return list(texts)

    def encode(
        self,
        rows: Mapping[str, Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        facts: Mapping[str, Any],
        rest: Mapping[str, list[int]] | None = None,
    ) -> Encoded:
        """The texts alone; what else a row holds is for the task to add."""
        columns, truncated, tokens, characters = {}, {}, 0, 0
        frame, longest = self.frame(tokenizer), self.longest(config)
        for role in self.text_roles:
            plain = plain_ids(self.prepare(rows[role], config), tokenizer)
            columns[role], truncated[role] = framed(plain, frame, longest[role])
            tokens += sum(map(len, plain))
            characters += sum(map(len, rows[role]))
        return Encoded(columns, truncated, tokens, characters, len(rows[self.input_role]))

    def inputs(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        *,
        truncate: bool = True,
    ) -> list[tuple[np.ndarray, ...]]:
        plain = plain_ids(self.prepare(texts, config), tokenizer)
        return as_inputs(framed(plain, self.frame(tokenizer), self.input_limit(config) if truncate else None)[0])

    def input_limit(self, config: Config) -> int | None:
        return self.longest(config).get(self.input_role)

    def check_model(self, config: Config) -> list[str]:
        return [] if config.pretrained else self.models().check(config.architecture)

    def new_model(
        self, config: Config, tokenizer: PreTrainedTokenizerBase, facts: Mapping[str, Any]
    ) -> PreTrainedModel:
        raise NotImplementedError(f"{self.name}: does not say how its models are made")

    def load_model(self, folder: str) -> PreTrainedModel:
        from hanflow.loading.pretrained import load_model

        return load_model(folder, self.card()["auto_class"])

    def combine(self, folders: Mapping[str, str], weights: Sequence[float]) -> PreTrainedModel:
        raise UserError(f"models of the task {self.name} cannot be combined; classifiers can: set task=classification")

    def members(self, model: PreTrainedModel) -> dict[str, PreTrainedModel]:
        return {}

    def positions(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        return {"max_source_tokens": lengths[:, 0]}

    def targets(self, lengths: np.ndarray) -> np.ndarray:
        return lengths[:, -1]

    def collate(
        self,
        rows: Sequence[Sequence[np.ndarray]],
        shape: Sequence[int],
        model: PreTrainedModel,
        *,
        static: bool = False,
    ) -> dict[str, torch.Tensor]:
        return self.models().collate(rows, shape, model.config, static=static)

    def loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.models().loss(model, batch, label_smoothing)

    def sources(self, rows: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        return [row[0] for row in rows]

    def validation_settings(self, config: Config, longest: int, batch_tokens: int) -> EvaluateConfig:
        return self.settings.get("evaluate", EvaluateConfig)(batch_tokens=batch_tokens)

    def copies(self, config: Config) -> int:
        return 1

    def open_predictor(self, folder: str, config: Config, *, scoring: bool = False) -> Predictor:
        from hanflow.loading.pretrained import load_with_tokenizer

        return self.predictor(*load_with_tokenizer(folder, self.load_model), config, scoring=scoring)

    def baselines(
        self, rows: Mapping[str, Sequence[str]], config: Config, facts: Mapping[str, Any]
    ) -> dict[str, Predictions]:
        return {}

    def describe(
        self, rows: Mapping[str, Sequence[str]], predictions: Predictions, references: Sequence[str]
    ) -> dict[str, np.ndarray]:
        return {}

    def sections(self, measures: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> list[ReportPart]:
        return []

    def confusion(
        self, measures: Mapping[str, np.ndarray], facts: Mapping[str, Any]
    ) -> tuple[list[str], np.ndarray] | None:
        return None

    def prompts(self, rows: Mapping[str, Sequence[str]]) -> list[str]:
        return list(rows[self.input_role])

    def reference_settings(self, config: Config) -> Config:
        return config

    def prepare_export(self, model: PreTrainedModel, config: Config) -> None:
        pass


class ModelPredictor:
    """A model of transformers with its tokenizer and settings: the beginning of a `Predictor`."""

    description = "transformers, float32"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config):
        self.model, self.tokenizer, self.config = model, tokenizer, config


def check_length(what: str, text: str, config: Config) -> None:
    """Refuse an input text of a length, in characters, that the settings do not want.

    Raises:
        RejectedRow: it is too short or too long.
    """
    if len(text) < config.min_source_chars:
        raise RejectedRow(f"the {what} has {len(text)} characters, fewer than {config.min_source_chars}")
    if config.max_source_chars and len(text) > config.max_source_chars:
        raise RejectedRow(f"the {what} has {len(text)} characters, more than {config.max_source_chars}")
