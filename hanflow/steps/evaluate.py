"""The evaluate step: a model's scores on held-out rows, beside those of trivial baselines and of other models.

The split is read in chunks, once for every system; of a row only numbers are kept, so that memory does not grow with it.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from hanflow.config import EvaluateConfig, to_mapping
from hanflow.data.corpus import batches
from hanflow.data.delimited import csv_writer, safe_cell
from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.metrics.intervals import score_intervals
from hanflow.progress import Progress, log
from hanflow.reports.evaluation import Example, Shown, System, render
from hanflow.reports.step_report import Report
from hanflow.steps.gate import check_limits, failures
from hanflow.steps.runner import main
from hanflow.storage import artifacts, fetched, fetched_model, local_path, nothing, staged, with_fetched_model
from hanflow.storage.artifacts import Manifest
from hanflow.strict_json import json_ready
from hanflow.tasks import get_task
from hanflow.tasks.base import Task
from hanflow.tasks.data import Predictions
from hanflow.tasks.predictor import Predictor

CHUNK = 2_000
"""Rows in memory at once: enough that rows of similar length can share a batch, whatever the size of the split."""

TRAINED = "trained model"
EARLIER = "earlier model"
UNTRAINED = "untrained model"

RESAMPLES = 1_000
MANY_ROWS = 20_000
"""Rows above which a fifth of the resamples is enough: the intervals are narrow then."""

Predict = Callable[[Mapping[str, list[str]], "Progress | None"], Predictions]
Listener = Callable[[Mapping[str, list[str]], Predictions, Mapping[str, np.ndarray]], None]


@dataclass(frozen=True)
class Split:
    """The rows that are scored."""

    path: Path
    """Parquet file of the corpus."""
    rows: int
    limit: int


def run(config: EvaluateConfig, *, task: str, output: str, model: str, shards: str, corpus: str) -> Report:
    """Score a trained model and its baselines on the same held-out rows.

    Args:
        model, shards, corpus: URIs of the model, of the shards it was trained on, and of the corpus these were made from.

    Returns:
        Figures: every score of the trained model, the best metric of the other systems, the number of `rows`, and the
        limits of `config.minimum` and `config.maximum` that are not met (`gate`).

    Raises:
        UserError: an input or a setting cannot be used, or there is no row to score.
    """
    chosen_task = get_task(task)
    model_at, of_model = fetched(model, "model", task=task)
    _, of_shards = fetched(shards, "shards", task=task, only=nothing)
    corpus_at, of_corpus = fetched(corpus, "corpus", task=task, only=lambda _: [f"{config.split}.parquet"])
    artifacts.check_parent(of_model, of_shards, model, shards)
    artifacts.check_parent(of_shards, of_corpus, shards, corpus)
    training = artifacts.read_training(model_at)
    if config.untrained and "members" in training:
        raise UserError(f"evaluate.untrained: {model} is an ensemble, which has no untrained model; set it to false")
    check_limits(config, chosen_task)
    earlier = fetched_model(config.earlier)
    if earlier and not local_path(earlier).is_dir():
        raise UserError(f"evaluate.earlier={config.earlier}: no such folder; give that of a bundle or of a model")
    count = of_corpus.counts["rows"][config.split]
    split = Split(corpus_at / f"{config.split}.parquet", min(count, config.limit_rows or count), config.limit_rows)
    if not split.rows:
        raise UserError(
            f"{corpus}: its {config.split} split is empty: nothing to score; raise preprocess.{config.split}_ratio (or give "
            f"preprocess.{config.split}_source) and run from there, or choose another evaluate.split"
        )
    unknown = of_corpus.details.get("unknown", {}).get(config.split)
    if unknown:
        names = ", ".join(f"{name} ({count:,})" for name, count in list(unknown["names"].items())[:10])
        log.warning(
            "%s of %s rows of the %s split have a %s that the train split lacks, so they count as wrong: %s",
            f"{unknown['rows']:,}",
            f"{unknown['of']:,}",
            config.split,
            unknown["role"],
            names,
        )
    with staged(output, "evaluation") as target:
        systems, shown = _systems(
            replace(config, earlier=earlier), chosen_task, split, model_at, of_shards, training, target
        )
        scores = {system.name: {name: i.mean for name, i in system.scores.items()} for system in systems}
        gate = failures(config, scores[TRAINED])
        metrics = {
            "task": task,
            "split": config.split,
            "rows": split.rows,
            "best_metric": chosen_task.best_metric,
            "systems": scores,
            "intervals": {s.name: {name: [i.low, i.high] for name, i in s.scores.items()} for s in systems},
            "gate": {"passed": not gate, "failures": gate},
            "settings": to_mapping(config),
        }
        text = json.dumps(json_ready(metrics), ensure_ascii=False, indent=2)
        (target / "metrics.json").write_text(f"{text}\n", encoding="utf-8")
        figures = _figures(chosen_task, scores, split.rows, gate)
        html = render(config, chosen_task, split.rows, systems, shown, gate, training, of_corpus, of_shards, of_model)
        (target / "report.html").write_text(html, encoding="utf-8")
        artifacts.write_manifest(
            target,
            Manifest(
                "evaluation",
                task,
                to_mapping(config),
                {"rows": split.rows, "split": config.split},
                {
                    "systems": json_ready(scores),
                    "best_metric": chosen_task.best_metric,
                    "gate": metrics["gate"],
                    "figures": json_ready(figures),
                },
                artifacts.lineage(of_model, of_shards, of_corpus),
            ),
        )
    if gate:
        log.warning("not good enough to export: %s", "; ".join(gate))
    return Report(
        figures,
        html="report.html",
        confusion=chosen_task.confusion(systems[0].measures, of_shards.details["facts"]),
    )


def _systems(
    config: EvaluateConfig,
    task: Task,
    split: Split,
    model_at: Path,
    shards: Manifest,
    training: Mapping[str, Any],
    target: Path,
) -> tuple[list[System], Shown]:
    """The trained model, its members, the baselines, an earlier model and the untrained one, loaded one after the other."""
    from hanflow.loading import pretrained

    encoding, facts = step_config("tokenize", shards.config, shards.task), shards.details["facts"]
    tokenizer = pretrained.load_tokenizer(model_at)

    def predict_with(predictor: Predictor) -> Predict:
        def predict(rows: Mapping[str, list[str]], progress: Progress | None) -> Predictions:
            return predictor(task.inputs(rows[task.input_role], predictor.tokenizer, encoding), progress)

        return predict

    def of_model(name: str, predictor: Predictor, listener: Listener | None = None) -> System:
        with Progress(f"predicting ({name}, {predictor.description})", total=split.rows) as progress:
            return _scored(name, predict_with(predictor), task, split, progress, listener)

    with PredictionsFile(target / "predictions.csv", task, spread(split.rows, config.examples)) as file:
        model = task.load_model(str(model_at))
        trained = task.predictor(model, tokenizer, config, scoring=True)
        systems = [of_model(TRAINED, trained, file.add)]
        for name, member in task.members(model).items():
            systems.append(of_model(f"{name} model", task.predictor(member, tokenizer, config, scoring=True)))
    del trained, model  # holding two models would double the memory
    first = next(chunks(split.path, task, 1))
    for name in task.baselines(first, config, facts):

        def baseline(rows: Mapping[str, list[str]], _: Progress | None, name: str = name) -> Predictions:
            return task.baselines(rows, config, facts)[name]

        systems.append(_scored(name, baseline, task, split))
    if config.earlier:
        gc.collect()
        systems.append(of_model(EARLIER, task.open_predictor(str(local_path(config.earlier)), config, scoring=True)))
    if config.untrained:
        gc.collect()
        settings = with_fetched_model(step_config("train", training["settings"], task.name), "pretrained")
        untrained = task.new_model(settings, tokenizer, facts).eval()
        systems.append(of_model(UNTRAINED, task.predictor(untrained, tokenizer, config, scoring=True)))
    return systems, file.shown


def _scored(
    name: str,
    predict: Predict,
    task: Task,
    split: Split,
    progress: Progress | None = None,
    listener: Listener | None = None,
) -> System:
    """A system's measures and scores, computed in chunks; `listener` gets every chunk."""
    parts: dict[str, list[np.ndarray]] = {}
    for rows in chunks(split.path, task, split.limit):
        predictions = predict(rows, progress)
        measures = task.score(predictions, task.references(rows))
        if listener is not None:
            listener(rows, predictions, measures)
        for measure, values in measures.items():
            parts.setdefault(measure, []).append(values)
    whole = {measure: np.concatenate(values) for measure, values in parts.items()}
    resamples = RESAMPLES if split.rows <= MANY_ROWS else RESAMPLES // 5
    return System(name, whole, score_intervals(whole, task.overall, resamples=resamples))


def spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` row numbers, evenly spread, first and last among them."""
    return sorted({int(row) for row in np.linspace(0, total - 1, min(count, total)).round()}) if total else []


def chunks(path: Path, task: Task, limit: int) -> Iterator[dict[str, list[str]]]:
    """Role → texts of a split's rows, the first `limit` of them (0: all), in chunks.

    Raises:
        UserError: the file cannot be read.
    """
    return batches(path, [column.role for column in task.columns], CHUNK, limit)


class PredictionsFile:
    """`predictions.csv`, and what the report shows of its rows (`shown`); use as a context manager.

    UTF-8 CSV with the columns `id` (if the first rows have ids), `row` (from 0, in the split), `prompt`, `reference`,
    `prediction`, then those of the predictions and one a measure. A cell that begins with = + - @, a tab or a carriage
    return gets an apostrophe before it, so that no spreadsheet runs a text as a formula; remove it to get the text back.
    """

    def __init__(self, path: Path, task: Task, wanted: Sequence[int]):
        self.shown = Shown(frozenset(wanted))
        self._path, self._task, self._row = path, task, 0
        self._with_ids = False

    def add(
        self, rows: Mapping[str, Sequence[str]], predictions: Predictions, measures: Mapping[str, np.ndarray]
    ) -> None:
        """Append the predictions for some rows."""
        prompts, references = self._task.prompts(rows), self._task.references(rows)
        ids = rows.get("id") or [""] * len(prompts)
        if self._row == 0:
            self._with_ids = any(ids)
            names = ["row", "prompt", "reference", "prediction", *predictions.columns, *self._task.shown_measures]
            self._writer.writerow([*(["id"] if self._with_ids else []), *names])
        for i, (prompt, reference, text) in enumerate(zip(prompts, references, predictions.texts, strict=True)):
            figures = {name: float(measures[name][i]) for name in self._task.shown_measures}
            more = [safe_cell(str(values[i])) for values in predictions.columns.values()]
            texts = [safe_cell(cell) for cell in (prompt, reference, text)]
            scores = [f"{value:.6f}" for value in figures.values()]
            first = [safe_cell(ids[i])] if self._with_ids else []
            self._writer.writerow([*first, self._row, *texts, *more, *scores])
            example = Example(self._row, ids[i], prompt, reference, text, figures)
            self.shown.add(example, figures[self._task.rank_by])
            self._row += 1
        for name, texts in (("input", prompts), ("generated", predictions.texts), ("reference", references)):
            self.shown.lengths[name].append(np.array([len(text) for text in texts], dtype=np.int64))
        for name, values in self._task.describe(rows, predictions, references).items():
            self.shown.described.setdefault(name, []).append(values)

    def __enter__(self) -> PredictionsFile:
        self._stream: TextIO = self._path.open("w", encoding="utf-8", errors="replace", newline="")
        self._writer = csv_writer(self._stream)
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()


def _figures(task: Task, scores: Mapping[str, Mapping[str, float]], rows: int, gate: Sequence[str]) -> dict[str, Any]:
    """The trained model's scores, and the best metric of every other system."""
    figures: dict[str, Any] = {name: round(value, 4) for name, value in scores[TRAINED].items()}
    for system, values in scores.items():
        if system != TRAINED:
            name = system.removesuffix(" model")
            figures[f"{name}_{task.best_metric}"] = round(values[task.best_metric], 4)
    return {**figures, "rows": rows, **({"gate": "failed: " + "; ".join(gate)} if gate else {})}


if __name__ == "__main__":
    sys.exit(main("evaluate", run, inputs=("model", "shards", "corpus")))
