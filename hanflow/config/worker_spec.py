"""What the workers of a job do: one train step, and the command lines that do it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hanflow.config import TrainConfig, parse_text, settings_of, step_config


@dataclass(frozen=True)
class WorkerSpec:
    """What the workers do: one train step."""

    task: str
    config: TrainConfig
    shards: str
    """URI of the shards artifact."""
    output: str
    """URI of the model artifact to write."""


def train_arguments(work: WorkerSpec) -> list[str]:
    """The command line of `hanflow.training.workers.worker` for that work: every setting, whatever the image's defaults."""
    arguments = ["--task", work.task, "--shards", work.shards, "--output", work.output]
    for s in settings_of("train"):
        arguments.append(f"--{s.name.replace('_', '-')}={as_text(getattr(work.config, s.name))}")
    return arguments


def parse_arguments(argv: Sequence[str]) -> WorkerSpec:
    """The work that `train_arguments` describes; settings that are left out have their defaults.

    Raises:
        ConfigError: settings are wrong.
        SystemExit: wrong usage.
    """
    parser = argparse.ArgumentParser(prog="python -m hanflow.training.workers.worker", allow_abbrev=False)
    for name in ("task", "shards", "output"):
        parser.add_argument(f"--{name}", required=True)
    names = [s.name for s in settings_of("train")]
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=f"set_{name}", default=argparse.SUPPRESS)
    options = vars(parser.parse_args(argv))
    given = {name: options[f"set_{name}"] for name in names if f"set_{name}" in options}
    config = step_config("train", {name: parse_text("train", name, text) for name, text in given.items()})
    return WorkerSpec(options["task"], config, options["shards"], options["output"])


def _escaped(arguments: Sequence[str]) -> list[str]:
    """Kubernetes replaces $(VARIABLE) in commands, and $$ by $: what the settings say stays as it is."""
    return [argument.replace("$", "$$") for argument in arguments]


def as_text(value: Any) -> str:
    """A setting's value as command lines and variables take it: what reads it gets the same value."""
    if isinstance(value, str):
        return value
    # Not JSON: YAML 1.1 reads its 1e-05 as text. Without escapes where they are not needed: Korean stays readable.
    for unicode in (True, False):
        written = yaml.safe_dump(value, default_flow_style=True, allow_unicode=unicode, width=10**9)
        written = written.removesuffix("\n...\n").strip()
        if yaml.safe_load(written) == value:
            break
    return written


def pytorch_command(work: WorkerSpec) -> list[str]:
    """What a PyTorchJob's container runs: torchrun as the operator's PET_* say, and an exit status that tells why."""
    return ["python", "-m", "hanflow.training.workers.torchrun", *_escaped(train_arguments(work))]


def tpu_command(work: WorkerSpec) -> list[str]:
    """What a JobSet's container runs: one process a host."""
    return ["python", "-m", "hanflow.training.workers.worker", *_escaped(train_arguments(work))]
