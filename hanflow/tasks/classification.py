"""Classification: a text to one of some classes, by any classifier of `hanflow.models`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hanflow.config import EvaluateConfig, PreprocessConfig, TrainConfig
from hanflow.config.fields import setting
from hanflow.data.schema import Column, RejectedRow
from hanflow.errors import UserError
from hanflow.tasks.base import Config, Task, TextTokenizeConfig, check_length
from hanflow.tasks.data import (
    Encoded,
    Facts,
    Lines,
    Measures,
    Metric,
    Predictions,
    ReportPart,
    Rest,
    Rows,
    ShardRow,
    Table,
)
from hanflow.tasks.predictor import ModelPredictor
from hanflow.text.encoding import cut_into_morphemes
from hanflow.text.labels import label_of, label_order

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from hanflow.progress import Progress

MOST_CLASSES = 1_000
"""More than this are no classes, but another column."""

LONGEST_LABEL = 1_000
"""Characters above which a label is none, but a text of another column."""

MOST_SHOWN = 30
"""Classes above which the confusion matrix is too wide to be read."""

UNKNOWN = -100
"""Index of a class that the train split does not have: it takes no part in a loss, and no prediction is right."""

_EXAMPLE = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hanflow.models import register  # of hanflow: the architectures that are not in transformers

register()
tokenizer = AutoTokenizer.from_pretrained("huggingface")  # this folder
model = AutoModelForSequenceClassification.from_pretrained("huggingface").eval()
inputs = tokenizer("분류할 글을 여기에 넣습니다.", truncation=True, return_tensors="pt")
with torch.inference_mode():
    probabilities = model(**inputs).logits.softmax(-1)[0]
print(model.config.id2label[int(probabilities.argmax())], float(probabilities.max()))"""


@dataclass(frozen=True)
class ClassificationPreprocess(PreprocessConfig):
    """Labelled texts, clean and split."""

    drop_labels: list = setting([], 'Reject rows with these labels, e.g. ["2"] (ambiguous reviews).')
    labels: str = setting(
        "meaning",
        "When two spellings of a label are one class; meaning: 1 and 1.0, true and TRUE, characters that look the same; "
        "exact: only the same characters.",
        choices=("meaning", "exact"),
    )


@dataclass(frozen=True)
class ClassificationTokenize(TextTokenizeConfig):
    """Token ids of labelled texts."""

    morphemes: bool = setting(False, "Cut texts into morphemes (MeCab) before the tokenizer sees them.")


@dataclass(frozen=True)
class ClassificationTrain(TrainConfig):
    """Shards to a trained classifier."""

    class_weights: str = setting(
        "none",
        "Weight of each class's loss; balanced: rare classes count as much as frequent ones.",
        choices=("none", "balanced"),
    )


@dataclass(frozen=True)
class ClassificationEvaluate(EvaluateConfig):
    """A classifier's scores on held-out rows."""

    top_classes: int = setting(1, "Classes written for every row, the likeliest first.", at_least=1)


class Classification(Task):
    """See `hanflow.tasks.base.Task` for the meaning of every attribute and method."""

    name = "classification"
    settings: Mapping[str, type] = {
        "preprocess": ClassificationPreprocess,
        "tokenize": ClassificationTokenize,
        "train": ClassificationTrain,
        "evaluate": ClassificationEvaluate,
    }
    headline: Mapping[str, str] = {
        "max_source_tokens": "tokenize.max_source_tokens",
        "morphemes": "tokenize.morphemes",
    }
    columns = (
        Column("label", ("label", "rating", "class", "category", "sentiment"), category=True),
        Column("text", ("text", "document", "review", "sentence", "content"), text=True, input=True),
        Column("id", ("id",), required=False),
    )
    sequences = ("text", "label")
    labels = True
    verb = "Classify"
    metrics = (
        Metric("accuracy", decides=True),
        Metric("calibration_error", better="lower"),
        Metric("right", shown=True),
        Metric("probability_of_right", ranks_rows=True, shown=True),
    )

    def prepare(self, texts: Sequence[str], config: Config) -> list[str]:
        return cut_into_morphemes(texts) if config.morphemes else list(texts)

    def clean(self, row: Mapping[str, str], config: Config) -> dict[str, str]:
        if len(row["label"]) > LONGEST_LABEL:  # so that ever new ones do not fill the memory
            raise RejectedRow(f"the label is longer than {LONGEST_LABEL:,} characters")
        exact = config.labels == "exact"
        text, label = self.clean_input(row["text"], config), row["label"].strip() if exact else label_of(row["label"])
        if not text:
            raise RejectedRow("the text is empty")
        if not label:
            raise RejectedRow("the label is empty")
        if config.drop_labels and label in (
            str(dropped) if exact else label_of(str(dropped)) for dropped in config.drop_labels
        ):
            raise RejectedRow(f"the label {label} is one of preprocess.drop_labels")
        check_length("text", text, config)
        return {"label": label, "text": text, "id": row.get("id", "")}

    def facts(self, rows: Iterable[Rows]) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        for batch in rows:
            counts.update(batch["label"])
            if len(counts) > MOST_CLASSES:
                shown = ", ".join(repr(label[:40]) for label in sorted(counts)[:3])
                raise UserError(
                    f"the column of labels holds more than {MOST_CLASSES:,} different ones ({shown}, …): these are no "
                    """classes; say which column is the label: preprocess.columns='{"label": "...", "text": "..."}'"""
                )
        if len(counts) < 2:
            found = f"only the label {next(iter(counts))!r}" if counts else "no row"
            raise UserError(
                f"the train split has {found}: nothing can be told apart; give rows of two classes or more, and check "
                """that preprocess.columns='{"label": "..."}' names the right column"""
            )
        labels = sorted(counts, key=label_order)
        return {"labels": labels, "counts": [counts[label] for label in labels]}

    def longest(self, config: Config) -> dict[str, int]:
        return {"text": config.max_source_tokens, "label": 1}

    def encode(
        self, rows: Rows, tokenizer: Tokenizer, config: Config, facts: Facts, rest: Rest | None = None
    ) -> Encoded:
        index = {label: place for place, label in enumerate(facts["labels"])}
        labels = [[index.get(label, UNKNOWN)] for label in rows["label"]]
        texts = super().encode(rows, tokenizer, config, facts)
        return replace(texts, columns={**texts.columns, "label": labels})

    def frame(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """What the tokenizer's models expect at both ends."""
        begin = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
        return begin, [tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id]

    def models(self) -> ModuleType:
        from hanflow.models import classifiers

        return classifiers

    def new_model(self, config: Config, tokenizer: Tokenizer, facts: Facts) -> PreTrainedModel:
        from hanflow.loading import initial
        from hanflow.models import classifiers

        weights = classifiers.balanced_weights(facts["counts"]) if config.class_weights == "balanced" else None
        return initial.classifier(config, tokenizer, facts["labels"], weights)

    def combine(self, folders: Mapping[str, str], weights: Sequence[float]) -> PreTrainedModel:
        from hanflow.loading.pretrained import load_with_tokenizer
        from hanflow.models import ensemble

        members = {name: load_with_tokenizer(folder, self.load_model) for name, folder in folders.items()}
        return ensemble.combine(members, weights or None)

    def members(self, model: PreTrainedModel) -> dict[str, PreTrainedModel]:
        from hanflow.models import ensemble

        if not isinstance(model, ensemble.EnsembleForSequenceClassification):
            return {}
        return dict(zip(model.config.names, model.members, strict=True))

    def predictor(
        self, model: PreTrainedModel, tokenizer: Tokenizer, config: Config, *, scoring: bool = False
    ) -> Classifier:
        return Classifier(model, tokenizer, config)

    def references(self, rows: Rows) -> list[str]:
        return list(rows["label"])

    def reference_of(self, row: ShardRow, tokenizer: Tokenizer, model: PreTrainedModel) -> str:
        return model.config.id2label.get(int(row[1][0]), "")

    def baselines(self, rows: Rows, config: Config, facts: Facts) -> dict[str, Predictions]:
        import numpy as np

        labels, counts, count = facts["labels"], np.array(facts["counts"], dtype=np.float64), len(rows["label"])
        shares = np.tile(counts / counts.sum(), (count, 1)).astype(np.float32)
        texts = [labels[int(counts.argmax())]] * count
        return {"most frequent class": Predictions(texts, measures={"probabilities": shares}, classes=tuple(labels))}

    def score(self, predictions: Predictions, references: Sequence[str]) -> dict[str, np.ndarray]:
        """See `Task.score`. Classes are numbered in the order of `facts` and known by their meaning, whatever order and
        spelling a model has."""
        from hanflow.metrics import classification as classes

        order = sorted(range(len(predictions.classes)), key=lambda place: label_order(predictions.classes[place]))
        names = [predictions.classes[place] for place in order]
        meanings = [label_of(name) for name in names]
        if len(set(meanings)) == len(names):  # else they were kept apart on purpose
            names, references = meanings, [label_of(reference) for reference in references]
        probabilities = predictions.measures.get("probabilities")
        return classes.measures(None if probabilities is None else probabilities[:, order], names, references)

    def overall(self, measures: Measures) -> dict[str, float]:
        from hanflow.metrics import classification as classes

        return classes.overall(measures)

    def sections(self, measures: Measures, facts: Facts) -> list[ReportPart]:
        """Per-class table, confusion matrix and reliability plot."""
        from hanflow.metrics import classification as classes

        labels = facts["labels"]
        figures = classes.per_class(measures, len(labels))
        table = [[name, *map(float, figures[place, :3]), int(figures[place, 3])] for place, name in enumerate(labels)]
        unknown = int((measures["label"] < 0).sum())
        note = f"{unknown:,} rows have a class that the train split has not; they count as wrong." if unknown else ""
        parts: list[ReportPart] = [Table("Classes", ["class", "precision", "recall", "F1", "rows"], table, note)]
        if len(labels) <= MOST_SHOWN:
            matrix = classes.confusion(measures, len(labels))
            rows = [[f"right: {name}", *(int(n) for n in matrix[place])] for place, name in enumerate(labels)]
            headers = ["", *(f"predicted: {name}" for name in labels)]
            parts.append(Table("Confusion matrix", headers, rows, "Rows of the split."))
        bins = classes.calibration(measures)
        points = [(float(p), float(a)) for p, a, count in bins if count]
        lowest = min((p for p, _ in points), default=0.0)
        series = {"model": points, "perfectly calibrated": [(lowest, lowest), (1.0, 1.0)]}
        intro = "Below the straight line the model is more confident than it is accurate."
        parts.append(Lines("Reliability", series, "mean probability of the predicted class", "accuracy", intro))
        return parts

    def confusion(self, measures: Measures, facts: Facts) -> tuple[list[str], np.ndarray] | None:
        from hanflow.metrics import classification as classes

        return list(facts["labels"]), classes.confusion(measures, len(facts["labels"]))

    def card(self) -> dict[str, Any]:
        return {
            "pipeline_tag": "text-classification",
            "auto_class": "AutoModelForSequenceClassification",
            "example": _EXAMPLE,
        }


class Classifier(ModelPredictor):
    """A classifier with its classes."""

    adjusts = ("top_classes",)

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, config: Config):
        super().__init__(model, tokenizer, config)
        self.classes = tuple(model.config.id2label[place] for place in range(len(model.config.id2label)))

    def __call__(self, rows: Sequence[ShardRow], progress: Progress | None = None) -> Predictions:
        import numpy as np

        from hanflow.data.batches import batches
        from hanflow.models import classifiers, evaluating

        found = np.zeros((len(rows), len(self.classes)), dtype=np.float32)
        with evaluating(self.model):
            for batch in batches([len(row[0]) for row in rows], self.config.batch_tokens):
                found[batch] = classifiers.probabilities(self.model, [rows[row][0] for row in batch])
                if progress is not None:
                    progress.update(len(batch))
        order = np.argsort(-found, axis=1, kind="stable")
        columns: dict[str, list[Any]] = {
            "probability": [round(float(found[row, best]), 6) for row, best in enumerate(order[:, 0])]
        }
        most = min(self.config.top_classes, len(self.classes))
        if most > 1:
            columns["top"] = [
                json.dumps(
                    {self.classes[at]: round(float(found[row, at]), 6) for at in places[:most]}, ensure_ascii=False
                )
                for row, places in enumerate(order)
            ]
        texts = [self.classes[best] for best in order[:, 0]]
        return Predictions(texts, columns, {"probabilities": found}, self.classes)
