"""Models in use: texts in, texts or labels out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from hanflow.data.schema import ColumnMapping
from hanflow.data.values import Unusable, as_text
from hanflow.errors import UserError
from hanflow.serving.inputs import input_source

if TYPE_CHECKING:
    import os

    from hanflow.serving.bundle import Bundle
    from hanflow.tasks.predictor import Predictor as TaskPredictor

BATCH_ROWS = 1_000
"""Rows that `Predictor.stream` predicts at once by default."""


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for one text."""

    text: str
    """The generated text, or the label. Empty for a text of which cleaning leaves nothing, where the task generates."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """Label → probability, between 0 and 1, the likeliest first; empty for generated texts."""
    tokens: int = 0
    """Tokens of the cleaned input text."""
    cut: int = 0
    """Tokens at its end that the model did not see, because the text is longer than what it reads."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Further values of the task for the row, the columns of `hanflow predict`."""

    @property
    def probability(self) -> float | None:
        """Probability of the label; None for generated texts."""
        return self.probabilities.get(self.text)

    def __str__(self) -> str:
        return self.text


class Predictor:
    """A loaded model that predicts any number of texts; made by `load`.

    Texts are cleaned and encoded as the training data was. The prediction for a text does not depend on the other texts of
    a call (except by a language model that samples tokens).
    """

    def __init__(self, bundle: Bundle, model: TaskPredictor):
        self._bundle, self._model = bundle, model

    @property
    def task(self) -> str:
        """Name of the task, e.g. `summarization`."""
        return self._bundle.task.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that can be predicted, in the order of their index; empty where texts are generated."""
        return tuple(getattr(self._model, "classes", ()))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the evaluate step that predictions depend on, e.g. `beams`."""
        from hanflow.serving.predict import SEARCH

        settings = vars(self._bundle.settings)
        return {name: settings[name] for name in SEARCH if name in settings}

    def __call__(self, texts: Iterable[str]) -> list[Prediction]:
        """Predictions for some texts, one each, in order.

        All texts are held in memory; for more than some ten thousand use `stream`. The model sees them in batches of
        like length, whose size is the setting `batch_tokens`.

        Raises:
            TypeError: a single text instead of several.
            UserError: the settings do not fit the model.
        """
        if isinstance(texts, str):
            raise TypeError("expected several texts, found one: put it into a list, predictor([text])[0]")
        from hanflow.serving.bundle import answer

        answers = answer(self._bundle, self._model, list(texts))
        found = answers.predictions
        shares = found.measures.get("probabilities") if found.classes else None
        return [
            Prediction(
                text,
                {} if shares is None else _by_label(found.classes, shares[row]),
                answers.tokens[row],
                answers.cut[row],
                {name: values[row] for name, values in found.columns.items()},
            )
            for row, text in enumerate(found.texts)
        ]

    def stream(
        self, rows: Iterable[str | Mapping[str, str]], *, batch_rows: int = BATCH_ROWS, column: str | None = None
    ) -> Iterator[Prediction]:
        """Predictions for any number of rows, one each, in order; rows are taken as they are needed.

        Args:
            rows: texts, or mappings with the text among their values, as `read_rows` yields them.
            batch_rows: rows in memory at once, at least 1. More rows fit together better by length: faster.
            column: key of the text in a mapping; None: found by the task's usual names.

        Raises:
            UserError: a mapping without the text's key; the message lists its keys.
        """
        if batch_rows < 1:
            raise UserError(f"batch_rows={batch_rows}: give 1 or more")
        remaining = iter(rows)
        while batch := list(islice(remaining, batch_rows)):
            yield from self([row if isinstance(row, str) else self._text(row, column) for row in batch])

    def with_settings(self, **settings: Any) -> Predictor:
        """The same model with other settings of the evaluate step, e.g. `beams=1`; nothing is loaded again.

        Raises:
            UserError: an unknown setting, a wrong value, or one that this model's predictions do not depend on.
        """
        allowed = self._model.adjusts
        fixed = [name for name in settings if name not in allowed]
        if fixed:
            raise UserError(
                f"{', '.join(fixed)}: cannot be changed in a loaded model; those that can: {', '.join(allowed) or 'none'}. "
                "Give others to hanflow.load"
            )
        changed = self._bundle.with_settings(**settings)
        return Predictor(changed, self._model.with_settings(changed.settings))

    def _text(self, row: Mapping[str, Any], column: str | None) -> str:
        source = input_source(self._bundle, column=column)
        names, mapping = list(row), ColumnMapping(source)
        place = mapping.find(names).get(mapping.text_role)
        if place is None:
            wanted = [column] if column is not None else [*source.columns[0].aliases, mapping.text_role]
            raise UserError(
                f"a row has no {' or '.join(wanted)}; its columns: {', '.join(row)}; name the text's with column="
            )
        try:
            return str(as_text(row[names[place]], names[place], source.missing, True))
        except Unusable as error:
            raise UserError(f"a row cannot be used: {error}") from None

    def __repr__(self) -> str:
        return f"<hanflow.Predictor: {self.task}, {self._bundle.folder}, {self._model.description}>"


def load(
    source: str | os.PathLike[str],
    *,
    task: str | None = None,
    engine: str = "auto",
    device: str = "auto",
    **settings: Any,
) -> Predictor:
    """A trained model, ready to predict.

    Args:
        source: what to load, local or in a bucket (`gs://…`):
            - a bundle that the export step wrote;
            - a run's folder: its bundle, or its model where it has none (yet);
            - a model that the train or the combine step wrote;
            - any other folder with a model and its tokenizer in Hugging Face format, or a name on the hub.
            The first three have their own settings of cleaning, encoding and search; the last gets the task's defaults.
        task: name of the task; None: that of the training, or for a Hugging Face model that of the architecture in its
            config.
        engine: what generates texts: `transformers`, `ctranslate2` (faster on a CPU, for BART), or `auto`: as the model
            was scored, else what is faster.
        device: `cpu`, `cuda`, `cuda:1` …, or `auto`: a GPU if there is one.
        settings: further settings of the evaluate step, e.g. `beams=1` or `max_new_tokens=40`.

    Raises:
        UserError: nothing is there that can be loaded, a file of it was changed, or a setting is wrong.
    """
    from hanflow.serving.sources import open_source

    changes = {**settings, **({} if engine == "auto" else {"engine": engine})}
    bundle = open_source(str(source), changes, task=task)
    return Predictor(bundle, bundle.predictor(_device(device)))


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise UserError(f"device={name!r}: no such device; give auto, cpu, cuda, or cuda:1 for the second GPU")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name!r}: torch finds no GPU here; give cpu, or auto")
    return name


def _by_label(labels: Sequence[str], shares: Any) -> dict[str, float]:
    return dict(sorted(zip(labels, map(float, shares), strict=True), key=lambda pair: -pair[1]))
