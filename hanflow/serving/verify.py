"""Comparison of an exported format, loaded again, with the trained model; a bundle is written only if they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hanflow.config import SearchConfig
from hanflow.errors import UserError
from hanflow.generation import Generator
from hanflow.generation.ctranslate2_engine import CTranslate2Engine
from hanflow.progress import Progress
from hanflow.tasks.base import Task
from hanflow.tasks.data import Predictions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOSS_TOLERANCE = 1e-5
"""Largest relative difference of two losses of equal weights; only another kernel of torch could cause one."""

CONVERTED_TOLERANCES = {"float32": 1e-4, "int8": 0.1}
"""Compute type → largest relative difference of CTranslate2's loss: float32 sums products in another order (1e-7 to 1e-6
measured), int8 rounds every weight and activation to 8 bits (up to 1e-2 measured); a wrong conversion is far beyond."""

NEAR_TIE = 1e-3
"""Two texts whose scores, in nats a token, differ by less than this are a tie: rounding may prefer either."""


def compare_huggingface(
    task: Task,
    trained: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    rows: Sequence[tuple[Any, ...]],
    search: Any,
) -> dict[str, Any]:
    """Reload a Hugging Face folder as users do, and compare weights, loss and outputs with the trained model's.

    Args:
        search: settings of the prediction; the engine is transformers.

    Returns:
        The entry in bundle.json.

    Raises:
        UserError: they differ; the message gives the place.
    """
    from hanflow.loading.pretrained import load_model, load_tokenizer

    reloaded, again = load_model(folder, task.card()["auto_class"]), load_tokenizer(folder)
    _compare_weights(trained.state_dict(), reloaded.state_dict(), folder)
    ours, theirs = loss(task, trained, rows), loss(task, reloaded, rows)
    if abs(ours - theirs) > LOSS_TOLERANCE * abs(ours):
        raise UserError(f"{folder}: the reloaded model's loss is {theirs}, the trained one's {ours}: not exported")
    with Progress("comparing outputs (huggingface)", total=2 * len(rows)) as progress:
        expected = task.predictor(trained, tokenizer, search)(rows, progress).texts
        found = task.predictor(reloaded, again, search)(rows, progress).texts
    for row, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a != b:
            raise UserError(
                f"{folder}: on row {row} the reloaded model predicts {b!r}, the trained one {a!r}: not exported"
            )
    return {"equal_texts": 1.0}


def compare_ctranslate2(
    task: Task,
    trained: Generator,
    trained_loss: float,
    folder: Path,
    compute_type: str,
    rows: Sequence[tuple[Any, ...]],
    references: Sequence[str],
    options: SearchConfig,
) -> dict[str, Any]:
    """Reload a CTranslate2 folder as users do, and compare it with the trained model in float32.

    In float32 the loss has to be the same, and so have the texts except for near ties. In int8 the loss has to be close
    and texts may differ: how many do, and what that does to the scores, is returned.

    Args:
        trained: the trained model, run by transformers.
        trained_loss: its loss, summed over the target tokens of the rows.
        rows: rows of the shards of a task that generates.
        references: the reference text of every row.

    Returns:
        The entry in bundle.json: `loss_difference` (relative), `equal_texts` (share of rows), and `near_ties` (rows)
        for float32 or `score_difference` (name → mean score minus the trained model's) for int8.

    Raises:
        UserError: it differs from the trained model; the message gives the place.
    """
    reloaded = Generator.open(folder, task.load_model, "ctranslate2", compute_type)
    engine = reloaded.engine
    assert isinstance(engine, CTranslate2Engine)
    sources, targets = task.sources(rows), [row[-1].tolist() for row in rows]
    known = engine.log_probabilities(sources, targets)
    converted_loss = -float(sum(row.sum(dtype=np.float64) for row in known))
    difference = converted_loss / trained_loss - 1
    if abs(difference) > CONVERTED_TOLERANCES[compute_type]:
        raise UserError(
            f"{folder}: the converted model's loss is {converted_loss}, the trained one's {trained_loss}: not exported; "
            "leave ctranslate2 out of export.formats and report a bug"
        )
    with Progress(f"comparing outputs (ctranslate2, {compute_type})", total=2 * len(rows)) as progress:
        expected = trained.search(sources, options, progress)
        found = reloaded.search(sources, options, progress)
    ours, theirs = (g.decode(ids, options.remove_tokens) for g, ids in ((trained, expected), (reloaded, found)))
    differing = [row for row, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    entry: dict[str, Any] = {
        "loss_difference": float(f"{difference:.2g}"),
        "equal_texts": round(1 - len(differing) / len(rows), 4),
    }
    if compute_type != "float32":
        return entry | {"score_difference": score_difference(task, theirs, ours, references)}
    for row in differing:
        scores = _scores(engine, sources[row], (expected[row], found[row]), options)
        if abs(scores[0] - scores[1]) > NEAR_TIE:
            raise UserError(
                f"{folder}: on row {row} the converted model predicts {theirs[row]!r}, the trained one {ours[row]!r} "
                f"(scores {scores[1]:.5f} and {scores[0]:.5f}, no tie): not exported; leave ctranslate2 out of "
                "export.formats and report a bug"
            )
    return entry | {"near_ties": len(differing)}


def score_difference(
    task: Task, predictions: Sequence[str], others: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Mean scores of predictions minus those of other predictions for the same rows."""
    ours, theirs = (task.overall(task.score(Predictions(list(texts)), references)) for texts in (predictions, others))
    return {name: round(ours[name] - theirs[name], 6) for name in ours}


def loss(task: Task, model: PreTrainedModel, rows: Sequence[tuple[Any, ...]]) -> float:
    """Loss of a model in nats, summed over the target tokens of rows of the shards."""
    import torch

    shape = (len(rows), *(max(len(row[i]) for row in rows) for i in range(len(task.sequences))))
    with torch.inference_mode():
        return float(task.loss(model, task.collate(rows, shape, model), 0.0)[0])


def _scores(
    engine: CTranslate2Engine, source: np.ndarray, texts: Sequence[Sequence[int]], options: SearchConfig
) -> list[float]:
    """Scores in nats, by which a search ranks them, of texts (ids) of one source."""
    known = engine.log_probabilities([source] * len(texts), texts)
    power = options.length_penalty if options.beams > 1 else 1.0
    return [float(row.sum(dtype=np.float64)) / len(row) ** power for row in known]


def _compare_weights(ours: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path) -> None:
    import torch

    differing = sorted(ours.keys() ^ theirs.keys()) or [
        n for n in ours if not torch.equal(ours[n].cpu(), theirs[n].cpu())
    ]
    if differing:
        raise UserError(f"{folder}: {differing[0]} of the reloaded model differs from the trained one: not exported")
