"""Trained model → a bundle that others can load, checked by loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.export.card import model_card
from components.shared import artifacts
from components.shared.artifacts import Manifest
from components.shared.config import EvaluateConfig, ExportConfig, UserError, step_config, to_mapping
from components.shared.progress import Progress
from components.shared.shards import Shard
from components.shared.steps import Report
from components.shared.storage import local_path, staged
from components.shared.tasks import get_task
from components.shared.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOSS_TOLERANCE = 1e-5
"""Relative difference of the losses; the weights are equal bit by bit, so only another kernel could cause one."""


def run(config: ExportConfig, *, task: str, output: str, model: str, evaluation: str, shards: str) -> Report:
    """Pack a trained model for others, reload it and compare it with what was trained."""
    from transformers import AutoTokenizer

    learnt = get_task(task)
    model_at, shards_at, evaluation_at = local_path(model), local_path(shards), local_path(evaluation)
    of_model = artifacts.read_manifest(model_at, "model", task=task)
    of_shards = artifacts.read_manifest(shards_at, "shards", task=task)
    of_evaluation = artifacts.read_manifest(evaluation_at, "evaluation", task=task)
    artifacts.check_parent(of_model, of_shards, model, shards)
    artifacts.check_parent(of_evaluation, of_model, evaluation, model)
    search: EvaluateConfig = step_config("evaluate", of_evaluation.config)
    training = json.loads((model_at / "training.json").read_text(encoding="utf-8"))
    trained = learnt.load_model(str(model_at))
    tokenizer = AutoTokenizer.from_pretrained(model_at)
    with staged(output) as target:
        folder = target / "huggingface"
        learnt.prepare_export(trained, search)
        trained.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = model_card(config, learnt, training, of_model, of_shards, of_evaluation)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (target / "README.md").write_text(card, encoding="utf-8")
        rows = _check_rows(config, learnt, shards_at)
        _check(learnt, trained, tokenizer, folder, rows, search)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        parameters = trained.num_parameters()
        artifacts.write_manifest(
            target,
            Manifest(
                "bundle",
                task,
                to_mapping(config),
                {"parameters": parameters, "bytes": size, "checked_rows": len(rows)},
                {"scores": of_evaluation.details["systems"], "generation": of_evaluation.config},
                artifacts.lineage(of_model, of_evaluation, of_shards),
            ),
        )
    return Report({"size_mb": round(size / 1e6, 2), "parameters": parameters, "checked_rows": len(rows)})


def _check_rows(config: ExportConfig, task: Task, shards_at: Path) -> list[tuple[Any, ...]]:
    """Real rows to compare on: of the test split, or of the next one that has any."""
    for split in ("test", "validation", "train"):
        shard = Shard(shards_at / f"{split}.arrow", task.sequences)
        if len(shard):
            return shard.rows(range(min(config.check_rows, len(shard))))
    raise UserError(f"{shards_at}: has no rows at all, nothing to check the bundle on; run the tokenize step again")


def _check(
    task: Task,
    trained: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    rows: list[tuple[Any, ...]],
    search: EvaluateConfig,
) -> None:
    """Reload the bundle as its users will, and compare weights, loss and outputs with the trained model's.

    Raises:
        UserError: they differ; says in what.
    """
    import torch
    import transformers

    reloaded = getattr(transformers, task.card()["auto_class"]).from_pretrained(folder, dtype=torch.float32).eval()
    again = transformers.AutoTokenizer.from_pretrained(folder)
    _compare_weights(trained.state_dict(), reloaded.state_dict(), folder)
    shape = (len(rows), *(max(len(row[i]) for row in rows) for i in range(len(task.sequences))))
    with torch.inference_mode():
        losses = [float(task.loss(m, task.collate(rows, shape, m), 0.0)[0]) for m in (trained, reloaded)]
    if abs(losses[0] - losses[1]) > LOSS_TOLERANCE * abs(losses[0]):
        raise UserError(
            f"{folder}: the reloaded model's loss is {losses[1]}, the trained one's {losses[0]}: not exported"
        )
    with Progress("comparing outputs", total=2 * len(rows)) as progress:
        ours = task.predict(trained, tokenizer, rows, search, progress)
        theirs = task.predict(reloaded, again, rows, search, progress)
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            raise UserError(
                f"{folder}: on row {row} the reloaded model says {b!r}, the trained one {a!r}: not exported"
            )


def _compare_weights(ours: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path) -> None:
    import torch

    differing = sorted(ours.keys() ^ theirs.keys()) or [
        n for n in ours if not torch.equal(ours[n].cpu(), theirs[n].cpu())
    ]
    if differing:
        raise UserError(f"{folder}: {differing[0]} of the reloaded model differs from the trained one: not exported")
