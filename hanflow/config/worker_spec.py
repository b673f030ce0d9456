"""The work of a train step's workers, and their command lines in the containers of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from hanflow.config import TrainConfig, to_mapping


@dataclass(frozen=True)
class WorkerSpec:
    """One train step, as each of its workers gets it."""

    task: str
    config: TrainConfig
    shards: str
    """URI of the shards artifact."""
    output: str
    """URI of the model artifact to write."""

    @property
    def checkpoints(self) -> str:
        """Folder or URI of the checkpoints: the one that was set, or beside the output."""
        return self.config.checkpoints or f"{self.output.rstrip('/')}.checkpoints"


def torchrun_command(spec: WorkerSpec) -> list[str]:
    """The command of a container that starts one worker for each GPU through torchrun, which reads PET_… variables."""
    return ["python", "-m", "hanflow.training.workers.torchrun", *_escaped(train_arguments(spec))]


def train_command(spec: WorkerSpec) -> list[str]:
    """The command of a container that is one worker itself (a host of a TPU slice)."""
    return ["python", "-m", "hanflow.training.workers.worker", *_escaped(train_arguments(spec))]


def train_arguments(spec: WorkerSpec) -> list[str]:
    """The arguments of `python -m hanflow.training.workers.worker`: every setting, so that the image's defaults do not matter."""
    arguments = ["--task", spec.task, "--shards", spec.shards, "--output", spec.output]
    for name, value in to_mapping(spec.config).items():
        arguments.append(f"--{name.replace('_', '-')}={as_text(value)}")
    return arguments


def as_text(value: Any) -> str:
    """A setting's value as text for command lines and variables; parsing it gives the same value."""
    if isinstance(value, str):
        return value
    # Not JSON: YAML 1.1 reads its 1e-05 as text. Escapes only where they are needed, so that Korean stays readable.
    for unicode in (True, False):
        written = yaml.safe_dump(value, default_flow_style=True, allow_unicode=unicode, width=10**9)
        written = written.removesuffix("\n...\n").strip()
        if yaml.safe_load(written) == value:
            break
    return written


def _escaped(arguments: list[str]) -> list[str]:
    """Arguments for Kubernetes, which replaces $(VARIABLE) in commands, and $$ by $."""
    return [argument.replace("$", "$$") for argument in arguments]
