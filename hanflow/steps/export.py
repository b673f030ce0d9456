"""The export step: a trained model as a bundle that others can load, checked by loading it."""

from __future__ import annotations

import functools
import inspect
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanflow.config import ExportConfig, to_mapping, without_places
from hanflow.data.shards import Shard
from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.progress import log
from hanflow.reports.model_card import libraries, model_card
from hanflow.reports.step_report import Report
from hanflow.steps.runner import main
from hanflow.storage import artifacts, fetched, nothing, staged
from hanflow.storage.artifacts import Manifest
from hanflow.tasks import get_task
from hanflow.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMATS = ("huggingface", "ctranslate2")
"""Formats that a bundle can hold, one folder each."""


def run(config: ExportConfig, *, task: str, output: str, model: str, evaluation: str, shards: str) -> Report:
    """Write a trained model in every format, reload each, and compare it with the trained model.

    A format that differs from the trained model is left out, and named in the bundle.

    Args:
        model, evaluation, shards: URIs of the model, of its scores, and of the shards it was trained on.

    Returns:
        Figures: `size_mb` of all files in 10^6 bytes, `parameters`, the number of rows that formats were compared on
        (`checked_rows`), and the `formats`.

    Raises:
        UserError: an input or a setting cannot be used, or no format does what the trained model does.
    """
    from hanflow.loading import pretrained

    chosen_task = get_task(task)
    model_at, of_model = fetched(model, "model", task=task)
    shards_at, of_shards = fetched(
        shards, "shards", task=task, only=lambda manifest: [f"{_check_split(manifest)}.arrow"]
    )
    _, of_evaluation = fetched(evaluation, "evaluation", task=task, only=nothing)
    artifacts.check_parent(of_model, of_shards, model, shards)
    artifacts.check_parent(of_evaluation, of_model, evaluation, model)
    search = step_config("evaluate", of_evaluation.config, task)
    training = artifacts.read_training(model_at)
    trained = chosen_task.load_model(str(model_at))
    tokenizer = _tokenizer_for_others(chosen_task, pretrained.load_tokenizer(model_at), trained, of_shards)
    shard = Shard(shards_at / f"{_check_split(of_shards)}.arrow", chosen_task.sequences)
    rows = shard.rows(range(min(config.check_rows, len(shard))))
    chosen_task.prepare_export(trained, search)
    formats, skipped = chosen_formats(config, chosen_task, trained)
    with staged(output, "bundle") as target:
        written, failed = _write_formats(config, chosen_task, trained, tokenizer, formats, target, rows, search)
        skipped |= failed
        card = model_card(config, chosen_task, training, of_model, of_shards, of_evaluation, written, skipped)
        for folder in (target, *(target / name for name in written)):
            (folder / "README.md").write_text(card, encoding="utf-8")
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        parameters = trained.num_parameters()
        artifacts.write_manifest(
            target,
            Manifest(
                "bundle",
                task,
                to_mapping(config),
                {"parameters": parameters, "bytes": size, "checked_rows": len(rows)},
                {
                    "scores": of_evaluation.details["systems"],
                    "generation": without_places(of_evaluation.config),
                    "formats": written,
                    "skipped": skipped,
                    "libraries": libraries(written),
                    **artifacts.text_settings(of_shards),
                },
                artifacts.lineage(of_model, of_evaluation, of_shards),
            ),
        )
    figures = {"size_mb": round(size / 1e6, 2), "parameters": parameters, "checked_rows": len(rows)}
    return Report({**figures, "formats": ", ".join(written)})


def _tokenizer_for_others(
    task: Task, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, shards: Manifest
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which by itself puts the frame around a text and knows how much the model reads."""
    from hanflow.text.vocabulary import for_others

    encoding = step_config("tokenize", shards.config, task.name)
    limits = (task.input_limit(encoding), getattr(model.config, "max_position_embeddings", None))
    longest = min((limit for limit in limits if limit is not None), default=None)
    return for_others(tokenizer, task.frame(tokenizer), longest, inspect.signature(model.forward).parameters)


def chosen_formats(config: ExportConfig, task: Task, model: PreTrainedModel) -> tuple[list[str], dict[str, str]]:
    """Formats to write; and format → reason of those that `auto` leaves out.

    Raises:
        UserError: a format that was named cannot be written.
    """
    problem = _ctranslate2_problem(task, model)
    wanted = [name for name in FORMATS if name in config.formats]
    if "ctranslate2" in wanted and problem:
        raise UserError(
            f"export.formats asks for ctranslate2, but {problem}; leave it out, or set export.formats=[auto]"
        )
    if "auto" not in config.formats:
        return wanted, {}
    if problem:
        log.info("the bundle has no ctranslate2 format: %s", problem)
    return list(FORMATS if not problem else FORMATS[:1]), {"ctranslate2": problem} if problem else {}


def _ctranslate2_problem(task: Task, model: PreTrainedModel) -> str:
    if "ctranslate2_example" not in task.card():
        return f"the task {task.name} generates no text"
    from hanflow.generation import conversion_problem

    return conversion_problem(model)


def _write_formats(
    config: ExportConfig,
    task: Task,
    trained: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    formats: Sequence[str],
    target: Path,
    rows: Sequence[tuple[Any, ...]],
    search: Any,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Write every format below `target` and compare it with the trained model; one that differs is removed again.

    Returns:
        Folder → its entry in bundle.json; and folder → how it differed.

    Raises:
        UserError: all differed.
    """
    from hanflow.serving import verify

    search = task.reference_settings(search)
    written: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}

    def compared(name: str, compare: Callable[[], dict[str, Any]]) -> None:
        try:
            written[name] = compare()
        except verify.Differs as error:
            failed[name] = str(error)
            shutil.rmtree(target / name)
            log.warning("the bundle has no format %s, which differs from the trained model: %s", name, error)

    if "huggingface" in formats:
        folder = target / "huggingface"
        trained.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        compared("huggingface", lambda: verify.compare_huggingface(task, trained, tokenizer, folder, rows, search))
    if "ctranslate2" in formats:
        from hanflow.generation import Generator, convert
        from hanflow.generation.ctranslate2_engine import search_arguments
        from hanflow.generation.transformers_engine import positions

        arguments = search_arguments(search, positions(trained))
        generator, loss = Generator.of(trained, tokenizer, "transformers"), verify.loss(task, trained, rows)[0]
        references = [task.reference_of(row, tokenizer, trained) for row in rows]
        for compute_type in dict.fromkeys(config.compute_types):
            name = f"ctranslate2/{compute_type}"
            (target / name).parent.mkdir(exist_ok=True)
            convert(trained, tokenizer, target / name, compute_type, arguments)
            compared(
                name,
                functools.partial(
                    verify.compare_ctranslate2,
                    task, generator, loss, target / name, compute_type, rows, references, search,
                ),
            )  # fmt: skip
    if not written:
        differences = "; ".join(f"{name}: {text}" for name, text in failed.items())
        raise UserError(
            f"no format does what the trained model does, so nothing is exported; report a bug: {differences}"
        )
    for name, entry in written.items():
        entry["bytes"] = sum(path.stat().st_size for path in (target / name).rglob("*") if path.is_file())
    return written, failed


def _check_split(shards: Manifest) -> str:
    """The split whose rows formats are compared on: test, or the next one that has any."""
    for split in ("test", "validation", "train"):
        if shards.counts["rows"][split]:
            return split
    raise UserError("the shards have no rows to check the bundle on; run the tokenize step again on a corpus with rows")


if __name__ == "__main__":
    sys.exit(main("export", run, inputs=("model", "evaluation", "shards")))
