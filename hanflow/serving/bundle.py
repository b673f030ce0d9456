"""A bundle opened to predict: its own cleaning, encoding and search around its model."""

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
from hanflow.storage import fetched, is_remote, local_path
from hanflow.storage.artifacts import Manifest
from hanflow.tasks import get_task
from hanflow.tasks.base import Task
from hanflow.tasks.data import Predictions
from hanflow.tasks.predictor import Predictor


@dataclass(frozen=True)
class Bundle:
    """What a bundle says about itself; opened without its weights, so that mistakes show before they are loaded."""

    folder: Path
    manifest: Manifest
    task: Task
    cleaning: PreprocessConfig
    encoding: TokenizeConfig
    settings: EvaluateConfig
    """How it predicts."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Usual names of a column with texts to predict from."""
        role = self.task.input_role
        return (role, *next((column.aliases for column in self.task.columns if column.role == role), ()))

    def predictor(self) -> Predictor:
        """The model, loaded.

        Raises:
            UserError: the bundle holds nothing that the settings go with.
        """
        return self.task.open_predictor(str(self.folder), self.settings)

    def with_settings(self, **changes: Any) -> Bundle:
        """The same bundle with some settings of the evaluate step changed.

        Raises:
            ConfigError: unknown settings, wrong types or values out of range.
        """
        settings = step_config("evaluate", {**dataclasses.asdict(self.settings), **changes}, self.manifest.task)
        return dataclasses.replace(self, settings=settings)


@dataclass(frozen=True)
class Answers:
    """Predictions for some texts, and what became of the texts."""

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
        UserError: there is no whole bundle, or a setting is wrong; says what was found.
    """
    if not is_remote(uri):
        folder = local_path(uri)
        if (folder / ".." / "bundle.json").is_file() and not (folder / "bundle.json").is_file():
            raise UserError(f"{uri}: is a part of a bundle; give the bundle itself, {(folder / '..').resolve()}")
    folder, manifest = fetched(uri, "bundle")
    try:
        parts = {name: manifest.details[name] for name in ("cleaning", "encoding", "generation")}
    except KeyError as error:
        raise UserError(
            f"{uri}/bundle.json: lacks {error}, it is of an older hanflow; export the model again"
        ) from None
    # Where its corpus came from is nobody's business here, and the setting is required.
    cleaning = step_config("preprocess", {**parts["cleaning"], "source": "-"}, manifest.task)
    encoding = step_config("tokenize", parts["encoding"], manifest.task)
    settings = step_config("evaluate", {**parts["generation"], **(changes or {})}, manifest.task)
    return Bundle(folder, manifest, get_task(manifest.task), cleaning, encoding, settings)


def answer(bundle: Bundle, predictor: Predictor, texts: Sequence[str], progress: Progress | None = None) -> Answers:
    """Predictions for raw texts, one each, in order.

    A text that is empty after cleaning gets an empty prediction from a task that generates: whatever a model says about
    nothing is made up. Other tasks are asked all the same, their columns need a value.

    Args:
        texts: as people give them; cleaned as the corpus was.
        progress: told of every finished text.
    """
    task = bundle.task
    cleaned = [task.clean_input(text, bundle.cleaning) for text in texts]
    empty = [not text.strip() for text in cleaned]
    asked = [row for row in range(len(cleaned)) if not (task.generates and empty[row])]
    chosen = [cleaned[row] for row in asked]
    rows = task.inputs(chosen, predictor.tokenizer, bundle.encoding)
    found = predictor(rows, progress) if rows else Predictions([])
    if progress is not None:
        progress.update(len(texts) - len(asked))
    lengths = [len(row[0]) for row in rows]
    cut = [0] * len(texts)
    # Only a text that fills all the room there is can have been longer.
    limit = task.input_limit(bundle.encoding)
    full = [place for place, length in enumerate(lengths) if limit is not None and length >= limit]
    whole = task.inputs([chosen[place] for place in full], predictor.tokenizer, bundle.encoding, truncate=False)
    for place, row in zip(full, whole, strict=True):
        cut[asked[place]] = len(row[0]) - lengths[place]
    tokens = list(cut)
    for row_number, length in zip(asked, lengths, strict=True):
        tokens[row_number] += length
    return Answers(_spread(found, asked, len(texts)), tokens, cut, empty)


def _spread(found: Predictions, places: Sequence[int], count: int) -> Predictions:
    """Predictions for all rows from those of the rows that were asked about; the others get "" everywhere."""
    if len(places) == count:
        return found
    texts = [""] * count
    columns: dict[str, list[Any]] = {name: [""] * count for name in found.columns}
    for position, place in enumerate(places):
        texts[place] = found.texts[position]
        for name, values in found.columns.items():
            columns[name][place] = values[position]
    return Predictions(texts, columns)
