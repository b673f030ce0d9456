"""The folder of a run on this machine: what an earlier process left there, and whether this run may go on in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from hanflow.config import to_mapping
from hanflow.config.training import FREE_SETTINGS
from hanflow.errors import UserError, file_error, has_no_locks
from hanflow.experiment import Experiment
from hanflow.own_files import Damaged, read_json, read_yaml
from hanflow.progress import read_events
from hanflow.storage import holding, is_remote, local_path
from hanflow.storage.locks import LOCK

EVENTS, RECORD, SETTINGS = "events.jsonl", "run.json", "experiment.yaml"
_BEGUN = {LOCK, EVENTS, f".{SETTINGS}.new", f".{RECORD}.new"}
"""What a process that was killed at its very beginning may leave, beside what its terminal's shell has made."""
_REMEDY = "give --experiment and another --output, or remove the folder"


@dataclass(frozen=True)
class Earlier:
    """What the folder holds of earlier processes of the run."""

    record: dict[str, Any] = field(default_factory=dict)
    """Content of run.json; empty: none has ended yet."""
    done: frozenset[str] = frozenset()
    """Steps that were finished."""

    @property
    def succeeded(self) -> bool:
        return self.record.get("status") == "succeeded"


def run_folder(output: str) -> Path:
    """The local folder of a run: its output, or the one in `runs/` that belongs to an output in a bucket."""
    if is_remote(output):
        return Path("runs") / output.rstrip("/").partition("://")[2].replace("/", "-")
    return local_path(output)


def earlier_run(folder: Path, experiment: Experiment) -> Earlier:
    """What earlier processes of this run left in a folder; nothing if it is new.

    Raises:
        UserError: the folder holds something else, a damaged record, or a run that differs in what is done already.
    """
    if not folder.exists():
        return Earlier()
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder as --output")
    names = {path.name for path in folder.iterdir()}
    if names <= _BEGUN:
        return Earlier()
    if SETTINGS not in names or not names & {LOCK, EVENTS, RECORD}:
        raise UserError(f"{folder}: exists already and does not hold a run; give another --output or remove it")
    record: dict[str, Any] = {}
    if RECORD in names:
        record = read_json(folder / RECORD, _REMEDY, keys={"pipeline": str, "status": str, "steps": list})
    if record.get("pipeline", experiment.pipeline) != experiment.pipeline:
        raise UserError(
            f"{folder}: already holds another run, of the pipeline {record['pipeline']}; give another --output"
        )
    before = read_yaml(folder / SETTINGS)
    if not isinstance(before, dict) or not isinstance(before.get("train"), dict):
        raise Damaged(f"{folder / SETTINGS}: is damaged (not the settings of a run); {_REMEDY}")
    earlier = Earlier(record, _finished(folder))
    differing = _differing(before, json.loads(json.dumps(to_mapping(experiment))))
    if earlier.succeeded and differing:
        raise UserError(
            f"{folder}: already holds another run, which succeeded and differs in {', '.join(differing)}; give another "
            f"--output, or remove it. To train its model further: another --output with --set train.pretrained="
            f"{folder / 'model'} --set tokenize.tokenizer={folder / 'model'}"
        )
    _check_changes(folder, differing, earlier.done, experiment)
    return earlier


def _check_changes(folder: Path, differing: list[str], done: frozenset[str], experiment: Experiment) -> None:
    """Refuse other settings for what is done already.

    Raises:
        UserError: the message names the settings and the step.
    """
    finished = {name.partition("-")[0] for name in done}  # train-NAME is a member of an ensemble
    checkpoints = experiment.train.checkpoints or str(folder / "checkpoints")
    # Those in a bucket are refused by the training itself, if they are another run's.
    trains = not is_remote(checkpoints) and any(local_path(checkpoints).glob("**/step-*"))
    refused: dict[str, list[str]] = {}
    for key in differing:
        section, _, name = key.partition(".")
        if section in finished:
            refused.setdefault(f"{section} is done", []).append(key)
        elif section == "task" or (section == "name" and "export" in finished):
            refused.setdefault("it has begun", []).append(key)
        elif section == "train" and trains and name.partition(".")[0] not in FREE_SETTINGS:
            refused.setdefault("train has begun, there are checkpoints", []).append(key)
        elif section == "combine" and "train" in finished:
            refused.setdefault("train is done", []).append(key)
    if refused:
        reasons = "; ".join(f"{', '.join(keys)} ({reason})" for reason, keys in refused.items())
        raise UserError(
            f"{folder}: already holds another run, which differs in {reasons}; give the same settings to continue it "
            f"(--experiment {folder / SETTINGS}), or another --output"
        )


def _differing(one: Any, other: Any, at: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)) or at.count(".") > 1:
        return [] if one == other else [at.strip(".")]
    return [found for key in {**one, **other} for found in _differing(one.get(key), other.get(key), f"{at}.{key}")]


def _finished(folder: Path) -> frozenset[str]:
    return frozenset(e["step"] for e in read_events(folder / EVENTS) if e["event"] == "finished")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run out of the folder, and refuse this one while a step of a killed run still works there; what killed
    steps left half-written is removed."""
    with holding(str(folder)):
        try:
            with (folder / EVENTS).open("ab+") as steps:
                _refuse_steps(folder, steps)
                if steps.seek(0, 2) and (steps.seek(-1, 2), steps.read(1))[1] != b"\n":
                    steps.write(b"\n")  # ends the line that a killed process was writing
        except OSError as error:
            raise file_error(error, folder) from error
        for left in (folder / "kfp").rglob(".*"):
            if ".partial-" in left.name:
                shutil.rmtree(left, ignore_errors=True)
            elif left.name.endswith(LOCK):
                left.unlink(missing_ok=True)
        yield


def _refuse_steps(folder: Path, events: BinaryIO) -> None:
    """Refuse a folder in which a step still works: each holds a lock on the events (`hanflow.progress.hold_run`).

    Raises:
        UserError: the message names its process.
    """
    try:
        fcntl.flock(events, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(events, fcntl.LOCK_UN)
    except BlockingIOError:
        pids = [event.get("pid") for event in read_events(folder / EVENTS) if event["event"] == "started"]
        raise UserError(
            f"{folder}: a step of a killed run is working there (process {pids[-1] if pids else 'unknown'}); wait for "
            "its end or stop it"
        ) from None
    except OSError as error:
        if not has_no_locks(error):
            raise
