"""Model → its scores on held-out rows, beside those of trivial baselines and of the model before training."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.shared import artifacts
from components.shared.artifacts import Manifest
from components.shared.config import EvaluateConfig, UserError, step_config, to_mapping
from components.shared.progress import Progress
from components.shared.steps import Report
from components.shared.storage import local_path, staged
from components.shared.tasks import get_task
from components.shared.tasks.base import Scores, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINED = "trained model"
UNTRAINED = "untrained model"

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that spreadsheets take for a formula."""


@dataclass(frozen=True)
class Rows:
    """The rows that are scored, in the order of the split."""

    ids: list[str]
    """Ids from the raw data; empty texts where it has none."""
    prompts: list[str]
    references: list[str]


@dataclass(frozen=True)
class System:
    """One thing that predicts, and how well."""

    name: str
    predictions: list[str]
    scores: Scores


def run(config: EvaluateConfig, *, task: str, output: str, model: str, shards: str, corpus: str) -> Report:
    """Score a trained model and its baselines on the same held-out rows."""
    learnt = get_task(task)
    model_at, shards_at, corpus_at = local_path(model), local_path(shards), local_path(corpus)
    of_model = artifacts.read_manifest(model_at, "model", task=task)
    of_shards = artifacts.read_manifest(shards_at, "shards", task=task)
    of_corpus = artifacts.read_manifest(corpus_at, "corpus", task=task)
    artifacts.check_parent(of_model, of_shards, model, shards)
    artifacts.check_parent(of_shards, of_corpus, shards, corpus)
    training = _training(model_at)
    columns = _columns(corpus_at / f"{config.split}.parquet", learnt, config.limit_rows)
    rows = Rows(columns.get("id", []), learnt.prompts(columns), learnt.references(columns))
    if not rows.references:
        raise UserError(
            f"{corpus}: its {config.split} split is empty: nothing to score; raise preprocess.{config.split}_ratio (or give "
            f"preprocess.{config.split}_source) and run from there, or choose another evaluate.split"
        )
    with staged(output) as target:
        systems = _systems(config, learnt, columns, rows, model_at, shards_at, training)
        metrics = {
            "task": task,
            "split": config.split,
            "rows": len(rows.references),
            "best_metric": learnt.best_metric,
            "systems": {system.name: system.scores.overall for system in systems},
            "settings": to_mapping(config),
        }
        _write_json(target / "metrics.json", metrics)
        write_predictions(target / "predictions.csv", rows, systems[0])
        from components.evaluate.report import render

        html = render(config, learnt, rows, systems, training, of_corpus, of_shards, of_model)
        (target / "report.html").write_text(html, encoding="utf-8")
        artifacts.write_manifest(
            target,
            Manifest(
                "evaluation",
                task,
                to_mapping(config),
                {"rows": len(rows.references), "split": config.split},
                {"systems": artifacts.json_ready(metrics["systems"]), "best_metric": learnt.best_metric},
                artifacts.lineage(of_model, of_shards, of_corpus),
            ),
        )
    return Report(_figures(learnt, systems, len(rows.references)), html="report.html")


def _systems(
    config: EvaluateConfig,
    task: Task,
    columns: Mapping[str, list[str]],
    rows: Rows,
    model_at: Path,
    shards_at: Path,
    training: Mapping[str, Any],
) -> list[System]:
    """The trained model first, then the baselines, then the untrained model."""
    from components.shared.shards import Shard

    shard = Shard(shards_at / f"{config.split}.arrow", task.sequences)
    count = len(rows.references)
    if len(shard) < count or (not config.limit_rows and len(shard) != count):
        raise UserError(
            f"{shards_at}/{config.split}.arrow: holds {len(shard)} rows, the corpus {count}; run the tokenize step again"
        )
    tokens = shard.rows(range(count))
    tokenizer = load_tokenizer(model_at)

    def scored(name: str, predictions: list[str]) -> System:
        return System(name, predictions, task.score(predictions, rows.references))

    def generated(name: str, model: PreTrainedModel) -> System:
        with Progress(f"generating ({name})", total=count) as progress:
            return scored(name, task.predict(model, tokenizer, tokens, config, progress))

    systems = [generated(TRAINED, task.load_model(str(model_at)))]
    systems += [scored(name, predictions) for name, predictions in task.baselines(columns, config).items()]
    if config.untrained:
        settings = step_config("train", training["settings"])
        systems.append(generated(UNTRAINED, task.new_model(settings, tokenizer)))
    return systems


def _training(model_at: Path) -> dict[str, Any]:
    path = model_at / "training.json"
    try:
        training = json.loads(path.read_text(encoding="utf-8"))
        training["settings"], training["history"]["train"], training["history"]["validation"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: tells no training ({error}); give the folder that the train step wrote") from None
    return training


def _columns(path: Path, task: Task, limit: int) -> dict[str, list[str]]:
    """Role → texts of the split's rows, the first `limit` of them (0: all)."""
    import pyarrow.parquet as pq

    roles = [column.role for column in task.columns]
    columns: dict[str, list[str]] = {role: [] for role in roles}
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=roles):
                for role, texts in batch.to_pydict().items():
                    columns[role] += texts
                if limit and len(columns[roles[0]]) >= limit:
                    break
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the preprocess step again") from None
    return {role: texts[: limit or None] for role, texts in columns.items()}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: its tokenizer cannot be loaded ({reason}); run the train step again") from error


def write_predictions(path: Path, rows: Rows, system: System) -> None:
    """Every prediction as UTF-8 CSV: `id` (if the data has ids), `row` (from 0, in the split), `prompt`, `reference`,
    `prediction`, then one column a metric.

    A cell that begins with = + - @, a tab or a carriage return gets an apostrophe before it, so that no spreadsheet
    runs a text as a formula; drop it to have the text back.
    """
    with_ids = any(rows.ids)
    names = list(system.scores.rows)
    with path.open("w", encoding="utf-8", errors="replace", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*(["id"] if with_ids else []), "row", "prompt", "reference", "prediction", *names])
        for row, texts in enumerate(zip(rows.prompts, rows.references, system.predictions, strict=True)):
            cells = [safe_cell(text) for text in ([rows.ids[row]] if with_ids else []) + list(texts)]
            scores = [f"{system.scores.rows[name][row]:.6f}" for name in names]
            writer.writerow([*cells[:-3], row, *cells[-3:], *scores])


def safe_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(artifacts.json_ready(content), ensure_ascii=False, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def _figures(task: Task, systems: Sequence[System], rows: int) -> dict[str, Any]:
    """The trained model's scores, and the deciding one of every other system."""
    figures: dict[str, Any] = {name: round(value, 4) for name, value in systems[0].scores.overall.items()}
    for system in systems[1:]:
        name = "untrained" if system.name == UNTRAINED else system.name
        figures[f"{name}_{task.best_metric}"] = round(system.scores.overall[task.best_metric], 4)
    return {**figures, "rows": rows}
