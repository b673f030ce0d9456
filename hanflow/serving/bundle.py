"""A bundle opened to predict: its own cleaning, encoding and search around its model.

Other models are opened as bundles too, see `hanflow.serving.sources`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanflow.config import EvaluateConfig, PreprocessConfig, TokenizeConfig
from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.progress import Progress
from hanflow.storage import fetched
from hanflow.storage.artifacts import Manifest
from hanflow.tasks import get_task
from hanflow.tasks.base import Task
from hanflow.tasks.data import Predictions
from hanflow.tasks.predictor import Predictor


@dataclass(frozen=True)
class Bundle:
    """The description of a bundle; opened without its weights, so that mistakes show before they are loaded."""

    folder: Path
    """Of the bundle, or of a model in Hugging Face format; or the name of one on the hub."""
    manifest: Manifest
    task: Task
    cleaning: PreprocessConfig
    encoding: TokenizeConfig
    settings: EvaluateConfig
    """How it predicts."""

    @classmethod
    def of(
        cls, folder: Path, manifest: Manifest, changes: Mapping[str, Any], scored: Mapping[str, Any] | None = None
    ) -> Bundle:
        """A bundle, or a model that hanflow trained, from its manifest.

        Args:
            changes: settings of the evaluate step that differ from `scored`.
            scored: settings of the evaluate step; None: those in the manifest.

        Raises:
            UserError: the manifest lacks how texts are cleaned and encoded, or a setting is wrong.
        """
        name, details = manifest.task, manifest.details
        task = get_task(name)  # the settings of no other task are read
        try:
            cleaning = cleaning_of(details["cleaning"], name)
            encoding = step_config("tokenize", details["encoding"], name)
            settings = {**(details["generation"] if scored is None else scored), **changes}
        except KeyError as error:
            raise UserError(
                f"{folder}/{manifest.artifact}.json: lacks {error}, an older hanflow has made it; train or export the model again"
            ) from None
        return cls(folder, manifest, task, cleaning, encoding, step_config("evaluate", settings, name))

    def predictor(self, device: str = "cpu") -> Predictor:
        """The model, loaded onto a device of torch.

        Raises:
            UserError: the bundle holds no format for the settings.
        """
        if device == "cpu":
            return self.task.open_predictor(str(self.folder), self.settings)
        from hanflow.loading.pretrained import load_with_tokenizer

        model, tokenizer = load_with_tokenizer(self.folder, self.task.load_model)
        return self.task.predictor(model.to(device), tokenizer, self.settings)

    def with_settings(self, **changes: Any) -> Bundle:
        """The same bundle with some settings of the evaluate step changed.

        Raises:
            ConfigError: unknown settings, wrong types or values out of range.
        """
        settings = step_config("evaluate", {**dataclasses.asdict(self.settings), **changes}, self.manifest.task)
        return dataclasses.replace(self, settings=settings)


@dataclass(frozen=True)
class Answers:
    """Predictions for some texts, and the lengths of the texts."""

    predictions: Predictions
    tokens: list[int]
    """Tokens of every cleaned text, before anything is cut off."""
    cut: list[int]
    """Tokens of every text that the model did not see, because it is longer than what it reads."""
    empty: list[bool]
    """Whether nothing of a text was left after cleaning."""


def open_bundle(uri: str, changes: Mapping[str, Any] | None = None) -> Bundle:
    """The bundle in a folder, every file of it compared with its digest.

    Args:
        uri: folder that the export step wrote, local or in a bucket.
        changes: settings of the evaluate step that differ from those the bundle was scored with.

    Raises:
        UserError: there is no complete bundle, or a setting is wrong.
    """
    folder, manifest = fetched(uri, "bundle")
    return Bundle.of(folder, manifest, changes or {})


def cleaning_of(settings: Mapping[str, Any], task: str) -> PreprocessConfig:
    """The settings that texts are cleaned by, from those that a manifest keeps: without the source, which is required."""
    return step_config("preprocess", {**settings, "source": "-"}, task)


def answer(bundle: Bundle, predictor: Predictor, texts: Sequence[str], progress: Progress | None = None) -> Answers:
    """Predictions for raw texts, one each, in order.

    A text that is empty after cleaning gets an empty prediction from a task that generates, as a model would invent a
    text. Other tasks predict for it too: their columns need a value.

    Args:
        texts: uncleaned; they are cleaned as the corpus was.
        progress: updated with every finished text.
    """
    task = bundle.task
    cleaned = [task.clean_input(text, bundle.cleaning) for text in texts]
    empty = [not text.strip() for text in cleaned]
    predicted = [row for row in range(len(cleaned)) if not (task.generates and empty[row])]
    chosen = [cleaned[row] for row in predicted]
    rows = task.inputs(chosen, predictor.tokenizer, bundle.encoding)
    found = predictor(rows, progress) if rows else Predictions([])
    if progress is not None:
        progress.update(len(texts) - len(predicted))
    lengths = [len(row[0]) for row in rows]
    cut = [0] * len(texts)
    # Only a text that fills the longest input can have been cut.
    limit = task.input_limit(bundle.encoding)
    full = [place for place, length in enumerate(lengths) if limit is not None and length >= limit]
    whole = task.inputs([chosen[place] for place in full], predictor.tokenizer, bundle.encoding, truncate=False)
    for place, row in zip(full, whole, strict=True):
        cut[predicted[place]] = len(row[0]) - lengths[place]
    tokens = list(cut)
    for row_number, length in zip(predicted, lengths, strict=True):
        tokens[row_number] += length
    return Answers(_spread(found, predicted, len(texts)), tokens, cut, empty)


def _spread(found: Predictions, places: Sequence[int], count: int) -> Predictions:
    """Predictions for all rows from those of some rows; the others get "" everywhere."""
    if len(places) == count:
        return found
    texts = [""] * count
    columns: dict[str, list[Any]] = {name: [""] * count for name in found.columns}
    for position, place in enumerate(places):
        texts[place] = found.texts[position]
        for name, values in found.columns.items():
            columns[name][place] = values[position]
    return Predictions(texts, columns)
