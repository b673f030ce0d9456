"""Comparison of an exported format, loaded again, with the trained model; a bundle holds the formats that agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hanflow.config import SearchConfig
from hanflow.errors import UserError
from hanflow.generation import Generator
from hanflow.generation.ctranslate2_engine import CTranslate2Engine
from hanflow.progress import Progress, log
from hanflow.tasks.base import Task
from hanflow.tasks.data import Predictions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCES = {"huggingface": 1e-4, "float32": 1e-3, "int8": 0.1}
"""Format → largest difference of its loss from the trained model's, in nats a token. Equal weights differ by what another
kernel of torch does; CTranslate2 sums products in another order in float32 (1e-6 measured), and rounds every weight and
activation to 8 bits in int8 (up to 0.04 measured). A share of the loss would be no measure: that of a good model is small."""

NEAR_TIE = 1e-3
"""Two texts whose scores, in nats a token, differ by less than this are a tie: rounding may prefer either."""


class Differs(UserError):
    """An exported format does not do what the trained model does: why, without any text of the data."""


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
        Differs: says where.
    """
    from hanflow.loading.pretrained import load_model, load_tokenizer

    reloaded, again = load_model(folder, task.card()["auto_class"]), load_tokenizer(folder)
    _compare_weights(trained.state_dict(), reloaded.state_dict())
    (ours, tokens), (theirs, _) = loss(task, trained, rows), loss(task, reloaded, rows)
    check_loss("huggingface", ours / tokens, theirs / tokens)
    with Progress("comparing outputs (huggingface)", total=2 * len(rows)) as progress:
        expected = task.predictor(trained, tokenizer, search)(rows, progress).texts
        found = task.predictor(reloaded, again, search)(rows, progress).texts
    for row, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a != b:
            log.warning("row %d: the reloaded model predicts %r, the trained one %r", row, b, a)
            raise Differs(f"on row {row} it predicts another text")
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
        The entry in bundle.json: `loss_difference` (nats a token), `equal_texts` (share of rows), and `near_ties` (rows)
        for float32 or `score_difference` (name → mean score minus the trained model's) for int8.

    Raises:
        Differs: says where.
    """
    reloaded = Generator.open(folder, task.load_model, "ctranslate2", compute_type)
    engine = reloaded.engine
    assert isinstance(engine, CTranslate2Engine)
    sources, targets = task.sources(rows), [row[-1].tolist() for row in rows]
    known = engine.log_probabilities(sources, targets)
    tokens = sum(map(len, known))
    converted_loss = -float(sum(row.sum(dtype=np.float64) for row in known))
    difference = check_loss(compute_type, trained_loss / tokens, converted_loss / tokens)
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
            log.warning("row %d: the converted model predicts %r, the trained one %r", row, theirs[row], ours[row])
            raise Differs(
                f"on row {row} it predicts another text (scores {scores[1]:.5f} and {scores[0]:.5f}, which is no tie)"
            )
    return entry | {"near_ties": len(differing)}


def check_loss(format_name: str, trained: float, found: float) -> float:
    """The difference of two losses in nats a token, that of the format minus that of the trained model.

    Raises:
        Differs: it is more than TOLERANCES allows, or no number.
    """
    difference = found - trained
    if not abs(difference) <= TOLERANCES[format_name]:
        raise Differs(
            f"its loss is {found:.4g} nats a token, the trained model's {trained:.4g}; {TOLERANCES[format_name]:g} is allowed"
        )
    return difference


def score_difference(
    task: Task, predictions: Sequence[str], others: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Mean scores of predictions minus those of other predictions for the same rows."""
    ours, theirs = (task.overall(task.score(Predictions(list(texts)), references)) for texts in (predictions, others))
    return {name: round(ours[name] - theirs[name], 6) for name in ours}


def loss(task: Task, model: PreTrainedModel, rows: Sequence[tuple[Any, ...]]) -> tuple[float, float]:
    """Loss of a model in nats, summed over the target tokens of rows of the shards; and the number of those tokens."""
    import torch

    shape = (len(rows), *(max(len(row[i]) for row in rows) for i in range(len(task.sequences))))
    with torch.inference_mode():
        total, tokens = task.loss(model, task.collate(rows, shape, model), 0.0)
        return float(total), float(tokens)


def _scores(
    engine: CTranslate2Engine, source: np.ndarray, texts: Sequence[Sequence[int]], options: SearchConfig
) -> list[float]:
    """Scores in nats, by which a search ranks them, of texts (ids) of one source."""
    known = engine.log_probabilities([source] * len(texts), texts)
    power = options.length_penalty if options.beams > 1 else 1.0
    return [float(row.sum(dtype=np.float64)) / len(row) ** power for row in known]


def _compare_weights(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    import torch

    differing = sorted(ours.keys() ^ theirs.keys()) or [
        n for n in ours if not torch.equal(ours[n].cpu(), theirs[n].cpu())
    ]
    if differing:
        raise Differs(f"{differing[0]} of the reloaded model differs from the trained one")
