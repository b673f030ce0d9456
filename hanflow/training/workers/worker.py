"""One worker of a training run: shards in, and on the main rank a model out.

`python -m hanflow.training.workers.worker --task … --shards … --output … --<setting>=…` is what every launcher starts,
once per rank: `hanflow.training.workers.processes` on this machine, torchrun in the pods of a TrainJob or a
PyTorchJob, Kubernetes in those of a JobSet. A single worker can run in the caller's process: `train`. A worker starts no
other.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from hanflow.config import to_mapping
from hanflow.config.worker_spec import WorkerSpec
from hanflow.data.shards import Shard
from hanflow.errors import UNEXPECTED, UserError
from hanflow.experiment import add_settings, given_settings, step_config
from hanflow.own_files import json_text
from hanflow.progress import setup_logging
from hanflow.reports.training import render
from hanflow.signals import exit_status, raise_on_sigterm
from hanflow.storage import artifacts, fetched, staged, with_fetched_model
from hanflow.storage.artifacts import Manifest
from hanflow.strict_json import json_ready
from hanflow.tasks import get_task
from hanflow.training.allocator import keep_freed_memory
from hanflow.training.checkpoints.resume import identity_of
from hanflow.training.engine import load_engine
from hanflow.training.state import TrainingResult, TrainingRun
from hanflow.training.workers.exits import record_exit
from hanflow.version import check_launcher


def train(spec: WorkerSpec) -> Manifest | None:
    """Train as one rank of a run, or as all of it; the model that validates best is the one that is saved.

    Returns:
        The manifest of the model; None on ranks that do not save it.

    Raises:
        Stopped: a stop was requested; everything is saved, the same command continues.
        UserError: a setting, the shards or the checkpoints do not fit; training cannot continue; the message gives the remedy.
    """
    keep_freed_memory()
    from hanflow.loading.pretrained import load_tokenizer

    config, task, engine = spec.config, get_task(spec.task), load_engine(spec.config.engine)
    problems = [*engine.check(config, task), *task.check_model(config)]
    if problems:
        raise UserError("\n".join(problems))
    folder, shards = fetched(spec.shards, "shards", task=spec.task, only=_needed)
    tokenizer = load_tokenizer(folder / "tokenizer")
    train, validation = (Shard(folder / f"{split}.arrow", task.sequences) for split in ("train", "validation"))
    if not len(train):
        raise UserError(
            f"{spec.shards}: its train split is empty: there is nothing to train on; give preprocess more data"
        )
    run = TrainingRun(
        task=task,
        config=config,
        tokenizer=tokenizer,
        model=task.new_model(with_fetched_model(config, "pretrained"), tokenizer, shards.details["facts"]),
        train=train,
        validation=validation,
        checkpoints=spec.checkpoints,
        identity=identity_of(config, shards),
    )
    _check_lengths(run)
    result = engine.fit(run)
    return _save_model(spec.output, run, result, shards) if result.is_main else None


def _needed(shards: Manifest) -> list[str]:
    return [name for name in shards.files if name != "test.arrow"]


def _check_lengths(run: TrainingRun) -> None:
    """Refuse shards with rows that are longer than the model can take."""
    positions = getattr(run.model.config, "max_position_embeddings", None)
    if positions is None:
        return
    for split in (run.train, run.validation):
        for setting, needed in run.task.positions(split.lengths()).items():
            longest = int(needed.max(initial=0))
            if longest > positions:
                raise UserError(
                    f"the shards have rows of {longest} tokens, the model takes {positions}: set tokenize.{setting} to at most "
                    f"{positions}, or raise train.architecture.max_position_embeddings for a model with random weights"
                )


def _figures(run: TrainingRun, result: TrainingResult) -> dict[str, Any]:
    """The key figures of the run, for the step's report."""
    state = result.state
    figures: dict[str, Any] = {"steps": state.step, "parameters": result.model.num_parameters()}
    if state.train:  # early stopping may come before the first logged step
        speeds = sorted(point["tokens_per_second"] for point in state.train)
        figures["train_loss"] = state.train[-1]["loss"]
        figures["tokens_per_second"] = round(speeds[len(speeds) // 2])
    figures["padding_efficiency"] = result.padding_efficiency
    if state.best_step >= 0:
        figures |= {f"validation_{run.config.best_metric}": state.best_value, "best_step": state.best_step}
    return json_ready({name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()})


def _save_model(output: str, run: TrainingRun, result: TrainingResult, shards: Manifest) -> Manifest:
    """Write the model artifact."""
    state, settings = result.state, to_mapping(run.config)
    training = {
        "settings": settings,
        "history": {"train": state.train, "validation": state.validation},
        "best": {"step": state.best_step, run.config.best_metric: state.best_value} if state.best_step >= 0 else None,
        "steps": state.step,
        "skipped_steps": state.skipped,
        "order": state.order,
        "parameters": result.model.num_parameters(),
        "torch": torch.__version__,
        **{name: getattr(result, name) for name in ("precision", "device", "world_size", "padding_efficiency")},
    }
    with staged(output, "model") as target:
        result.model.save_pretrained(target)
        run.tokenizer.save_pretrained(target)
        (target / "report.html").write_text(render(training), encoding="utf-8")
        (target / "training.json").write_text(json_text(json_ready(training), indent=1) + "\n", encoding="utf-8")
        counts = {"steps": state.step, "parameters": training["parameters"]}
        details = {"figures": _figures(run, result), **artifacts.text_settings(shards)}
        lineage = artifacts.lineage(shards)
        manifest = Manifest("model", run.task.name, settings, counts, details, lineage)
        return artifacts.write_manifest(target, manifest)


def parse_arguments(argv: Sequence[str]) -> WorkerSpec:
    """The work that `hanflow.config.worker_spec.train_arguments` describes; settings left out have their defaults.

    Raises:
        UserError: settings are wrong.
        SystemExit: wrong usage.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task", required=True)
    task = first.parse_known_args(argv)[0].task
    parser = argparse.ArgumentParser("python -m hanflow.training.workers.worker", parents=[first], allow_abbrev=False)
    for name in ("shards", "output"):
        parser.add_argument(f"--{name}", required=True)
    add_settings(parser, "train", task)
    options = vars(parser.parse_args(argv))
    config = step_config("train", given_settings(options, "train", task), task)
    return WorkerSpec(task, config, options["shards"], options["output"])


def main(argv: Sequence[str]) -> int:
    """Run one worker; returns its exit status, see `hanflow.errors`."""
    setup_logging()
    raise_on_sigterm()
    status, error = 0, ""
    try:
        check_launcher()
        train(parse_arguments(argv))
    except UserError as caught:
        status, error = caught.exit_status, str(caught)
    except KeyboardInterrupt as caught:
        status, error = exit_status(caught), str(caught) or "interrupted; nothing half-written was left"
    except SystemExit as caught:  # wrong usage
        status, error = caught.code if isinstance(caught.code, int) else 1, "wrong usage"
    except Exception as caught:
        traceback.print_exc()
        # No restart gives a GPU more memory.
        status = 1 if type(caught).__name__ == "OutOfMemoryError" else UNEXPECTED
        error = f"{type(caught).__name__}: {caught}"
    if not record_exit(status, error) and error:
        print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
