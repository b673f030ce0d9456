"""A fourth task, for a test: how many stars a review gives, as a number. It and its model are this one file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hanflow.config import PreprocessConfig
from hanflow.config.fields import setting
from hanflow.data.schema import Column, RejectedRow
from hanflow.tasks.base import Config, Task, TextTokenizeConfig
from hanflow.tasks.data import Encoded, Facts, Lines, Measures, Metric, Predictions, ReportPart, Rest, Rows, ShardRow
from hanflow.tasks.predictor import ModelPredictor


class StarsConfig(PretrainedConfig):
    model_type = "toy_stars"
    vocab_size: int = 1000
    width: int = 8
    pad_token_id: int | None = 0


class StarsModel(PreTrainedModel):
    """The mean of a text's embeddings, and a line through it."""

    config_class = StarsConfig

    def __init__(self, config: StarsConfig):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(config.vocab_size, config.width)
        self.head = torch.nn.Linear(config.width, 1)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
        mask = attention_mask[..., None].float()
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return SequenceClassifierOutput(logits=self.head(mean))


AutoConfig.register("toy_stars", StarsConfig, exist_ok=True)
AutoModelForSequenceClassification.register(StarsConfig, StarsModel, exist_ok=True)


@dataclass(frozen=True)
class StarsPreprocess(PreprocessConfig):
    """Reviews with their stars."""

    most_stars: int = setting(5, "Rows with more stars than this are rejected.", at_least=1)


class Stars(Task):
    name = "tests.toy.stars:Stars"
    settings: Mapping[str, type] = {"preprocess": StarsPreprocess, "tokenize": TextTokenizeConfig}
    columns = (Column("stars", ("stars", "label")), Column("text", ("text", "document"), text=True, input=True))
    sequences = ("text", "stars")
    verb = "Guess"
    metrics = (
        Metric("within_one", decides=True),
        Metric("mean_error", better="lower"),
        Metric("closeness", ranks_rows=True, shown=True),
    )

    def clean(self, row: Mapping[str, str], config: Config) -> dict[str, str]:
        text = self.clean_input(row["text"], config)
        if not text or not row["stars"].isdecimal() or int(row["stars"]) > config.most_stars:
            raise RejectedRow("no text or no stars")
        return {"stars": row["stars"], "text": text}

    def facts(self, rows: Iterable[Rows]) -> dict[str, Any]:
        stars = [int(value) for batch in rows for value in batch["stars"]]
        return {"mean": sum(stars) / len(stars)}

    def longest(self, config: Config) -> dict[str, int]:
        return {"text": config.max_source_tokens, "stars": 1}

    def encode(self, rows: Rows, tokenizer: Any, config: Config, facts: Facts, rest: Rest | None = None) -> Encoded:
        texts = super().encode(rows, tokenizer, config, facts)
        return replace(texts, columns={**texts.columns, "stars": [[int(value)] for value in rows["stars"]]})

    def check_model(self, config: Config) -> list[str]:
        return []

    def new_model(self, config: Config, tokenizer: Any, facts: Facts) -> PreTrainedModel:
        torch.manual_seed(config.seed)
        ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        return StarsModel(StarsConfig(**ids, **config.architecture)).eval()

    def load_model(self, folder: str) -> PreTrainedModel:
        return StarsModel.from_pretrained(folder).eval()

    def collate(
        self, rows: Sequence[ShardRow], shape: Sequence[int], model: PreTrainedModel, *, static: bool = False
    ) -> dict[str, torch.Tensor]:
        ids = torch.full(tuple(shape[:2]), model.config.pad_token_id)
        mask, stars = torch.zeros_like(ids), torch.full((shape[0],), float("nan"))
        for at, row in enumerate(rows):
            ids[at, : len(row[0])] = torch.from_numpy(row[0].astype(np.int64))
            mask[at, : len(row[0])] = 1
            if len(row) > 1:
                stars[at] = int(row[1][0])
        return {"input_ids": ids, "attention_mask": mask, "stars": stars}

    def loss(
        self, model: Any, batch: Mapping[str, torch.Tensor], label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = model(batch["input_ids"], batch["attention_mask"]).logits[:, 0].float()
        known = ~batch["stars"].isnan()
        return ((found - batch["stars"].nan_to_num()) ** 2 * known).sum(), known.sum()

    def predictor(self, model: Any, tokenizer: Any, config: Config, *, scoring: bool = False) -> Guesser:
        return Guesser(model, tokenizer, config)

    def references(self, rows: Rows) -> list[str]:
        return list(rows["stars"])

    def reference_of(self, row: ShardRow, tokenizer: Any, model: PreTrainedModel) -> str:
        return str(int(row[1][0]))

    def baselines(self, rows: Rows, config: Config, facts: Facts) -> dict[str, Predictions]:
        return {"mean": Predictions([f"{facts['mean']:.2f}"] * len(rows["text"]))}

    def score(self, predictions: Predictions, references: Sequence[str]) -> dict[str, np.ndarray]:
        found, right = (np.array(list(map(float, values))) for values in (predictions.texts, references))
        return {"closeness": -np.abs(found - right)}

    def overall(self, measures: Measures) -> dict[str, float]:
        closeness = measures["closeness"]
        within = float((closeness >= -1).mean()) if len(closeness) else 0.0
        return {"within_one": within, "mean_error": float(-closeness.mean()) if len(closeness) else 0.0}

    def sections(self, measures: Measures, facts: Facts) -> list[ReportPart]:
        errors = sorted(-measures["closeness"])
        points = [(float(at), float(error)) for at, error in enumerate(errors)]
        return [Lines("Errors", {"all rows": points}, "rows, best first", "stars")]

    def card(self) -> dict[str, Any]:
        auto = "AutoModelForSequenceClassification"
        return {"pipeline_tag": "text-classification", "auto_class": auto, "example": "see tests/toy/stars.py"}


class Guesser(ModelPredictor):
    def __call__(self, rows: Sequence[ShardRow], progress: Any = None) -> Predictions:
        batch = Stars().collate([row[:1] for row in rows], (len(rows), max(len(row[0]) for row in rows)), self.model)
        with torch.inference_mode():
            found = self.model(batch["input_ids"], batch["attention_mask"]).logits[:, 0]
        if progress is not None:
            progress.update(len(rows))
        return Predictions([f"{value:.2f}" for value in found.tolist()])
