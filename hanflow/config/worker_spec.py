"""What the workers of a job do: one train step, and the command lines that do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hanflow.config import TrainConfig, to_mapping


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
    for name, value in to_mapping(work.config).items():
        arguments.append(f"--{name.replace('_', '-')}={as_text(value)}")
    return arguments


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
