"""A pipeline on this machine: kfp.local runs every step as a process of this Python, without container or cluster.

The run's folder holds `run.json`, `run.log` (everything that Kubeflow and the steps said), `experiment.yaml`,
`checkpoints/`, the artifacts under `kfp/`, and a link to each: `corpus`, `shards`, `model`, `evaluation`, `bundle`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import psutil
import yaml

from hanflow.config import to_mapping
from hanflow.errors import UserError
from hanflow.experiment import Experiment, model_problems
from hanflow.pipelines.display import Display, step_lines
from hanflow.pipelines.packages import Package, boxes
from hanflow.progress import EVENTS_VARIABLE
from hanflow.steps.runner import ARTIFACTS_VARIABLE
from hanflow.storage import copy_file, is_remote, publish_file, refuse_run
from hanflow.storage.artifacts import kind_of

EVENTS = "events.jsonl"
POLL_SECONDS = 0.2
GRACE_SECONDS = 30.0
"""What a step gets to finish what it is at and to clean up after an interrupt (training saves a checkpoint)."""
TAIL_LINES = 30

LOCAL_LOOPS = 2
"""Turns of a loop that kfp's local runner runs at once."""


@dataclass
class StepRecord:
    """One line of the run's table, as `run.json` holds it."""

    name: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    artifact: str = ""
    status: str = "waiting"


def run_locally(name: str, experiment: Experiment, output: Path, bucket: str = "") -> int:
    """Run a pipeline and tell of it; returns the exit status (0, 1 after a failed step, 130 after Ctrl-C).

    A folder with a run of the same settings that did not succeed is taken up again: steps whose artifact is there and
    whole are kept, training resumes from its last checkpoint.

    Args:
        name: of the pipeline.
        experiment: its settings.
        output: local folder of the run.
        bucket: gs:// folder that artifacts and checkpoints go to, and at the end the record and the log; empty:
            all stays in `output`.

    Raises:
        UserError: the output folder holds something else already, the bucket cannot be used, or the settings cannot work.
    """
    problems = model_problems(experiment)
    if problems:
        raise UserError("\n".join(problems))
    output = output.absolute()
    settings = to_mapping(experiment)
    _check_folder(output, name, settings)
    if bucket and not (output / "experiment.yaml").exists():
        refuse_run(bucket)
    output.mkdir(parents=True, exist_ok=True)
    with _alone(output):
        text = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)
        (output / "experiment.yaml").write_text(text, encoding="utf-8")
        if bucket:
            publish_file(output / "experiment.yaml", f"{bucket}/experiment.yaml", replace=True)
        # Not in experiment.yaml: another run with these settings has checkpoints of its own.
        # The Trainer keeps its checkpoints in a local folder.
        place = f"{bucket if experiment.train.engine == 'hanflow' and bucket else output}/checkpoints"
        train = replace(experiment.train, checkpoints=experiment.train.checkpoints or place)
        return _Run(name, replace(experiment, train=train), output, bucket).execute()


def _check_folder(output: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Let a run into a new or an empty folder, or into that of its own beginnings.

    Raises:
        UserError: the folder holds something else; the message names it.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    record, before = output / "run.json", output / "experiment.yaml"
    if not before.is_file():
        raise UserError(f"{output}: exists already and holds no run; give another --output or remove it")
    done = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if done.get("status") == "succeeded":
        raise UserError(f"{output}: already holds another run, which succeeded; give another --output or remove it")
    if done.get("pipeline", name) != name:
        raise UserError(
            f"{output}: already holds another run, of the pipeline {done['pipeline']}; give another --output"
        )
    found = yaml.safe_load(before.read_text(encoding="utf-8"))
    differing = _differing(found, json.loads(json.dumps(settings)))
    if differing:
        raise UserError(
            f"{output}: already holds another run, which differs in {', '.join(differing)}; give the same settings to "
            f"go on with it (--experiment {before}), or another --output"
        )


def _differing(one: Any, other: Any, at: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)) or at.count(".") > 1:
        return [] if one == other else [at.strip(".")]
    return [found for key in {**one, **other} for found in _differing(one.get(key), other.get(key), f"{at}.{key}")]


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep a second run out of the folder, and this one while a step of a killed run still works there."""
    with (output / ".lock").open("w") as lock, (output / EVENTS).open("a") as steps:
        for stream, what in ((lock, "another `hanflow run`"), (steps, "a step of a killed run")):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{output}: {what} is working there; wait for its end or stop it") from None
        fcntl.flock(steps, fcntl.LOCK_UN)
        yield


class _Run:
    def __init__(self, name: str, experiment: Experiment, output: Path, bucket: str):
        self.name, self.experiment, self.output, self.bucket = name, experiment, output, bucket
        self.records = {box: StepRecord(box) for box in boxes(experiment)}
        self.failure: dict[str, Any] | None = None
        self.log, self.events = output / "run.log", output / EVENTS
        written = self.events.read_bytes()
        if written and not written.endswith(b"\n"):
            with self.events.open("a") as stream:
                stream.write("\n")  # ends the line that a killed process was writing

    def execute(self) -> int:
        from kfp import components, local

        package = Package.of(self.experiment)
        package.without_retries()
        pipeline = components.load_component_from_text(package.text())
        started = time.monotonic()
        interrupted = False
        with (
            self.log.open("a", encoding="utf-8") as log,
            _environment(self._variables()),
            Display(f"hanflow run {self.name}", self.bucket or str(self.output)) as display,
            _output_to(log),
        ):
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(self.output / "kfp"))
            worker = _Worker(lambda: pipeline(**package.arguments(self.experiment)))
            try:
                with self.events.open(encoding="utf-8") as events, _terminate_as_interrupt():
                    events.seek(0, os.SEEK_END)  # behind the events of an interrupted run
                    worker.start()
                    while worker.is_alive():
                        self._follow(events, display)
                        worker.join(POLL_SECONDS)
                    self._follow(events, display)
            except KeyboardInterrupt:
                interrupted = True
                _stop_children()
                worker.join(GRACE_SECONDS)
        status = self._conclude(worker.error, interrupted)
        self._write_record(status)
        records = [{**vars(r), "artifact": self._short(r.artifact)} for r in self.records.values()]
        display.summary(records, time.monotonic() - started)
        return self._tell(status, display)

    def _variables(self) -> dict[str, str]:
        variables = {EVENTS_VARIABLE: str(self.events), "PYTHONUNBUFFERED": "1"}
        if self.bucket:
            variables[ARTIFACTS_VARIABLE] = self.bucket
        members = len(self.experiment.combine.members)
        if members > 1:
            variables["HANFLOW_SIDE_BY_SIDE"] = str(min(members, LOCAL_LOOPS))
        return variables

    def _follow(self, events: TextIO, display: Display) -> None:
        """Read the steps' events since the last call."""
        for line in _whole_lines(events):
            event = json.loads(line)
            kind, step = event["event"], event["step"]
            if kind == "started":
                self.records[step].status = "running"
                display.started(step)
            elif kind == "progress":
                display.progress(event)
            elif kind == "finished":
                record = self.records[step]
                record.seconds, record.figures = round(event["seconds"], 2), event["figures"]
                record.artifact, record.status = self._link(step, event["artifact"]), "done"
                if step == "evaluate" and "gate" in record.figures:
                    self.records["export"].status = "skipped"
                if event.get("kept"):
                    display.note(f"  {step}: kept, it was finished before")
                display.finished(step, record.seconds, record.figures)
            elif kind == "failed":
                self.records.setdefault(step, StepRecord(step)).status = "failed"
                self.failure = event
                display.failed(step)

    def _short(self, artifact: str) -> str:
        if not artifact or is_remote(artifact):
            return artifact.removeprefix(f"{self.bucket}/")
        return os.path.relpath(artifact, self.output)

    def _link(self, step: str, artifact: str) -> str:
        """A short way to an artifact: `<output>/<kind>`, `<output>/model-<name>` of a member of an ensemble; its URI if it
        is in a bucket."""
        if is_remote(artifact):
            return artifact
        maker, _, member = step.partition("-")
        kind = kind_of(maker)
        link = self.output / (f"{kind}-{member}" if member else kind)
        link.unlink(missing_ok=True)  # of an interrupted run
        link.symlink_to(os.path.relpath(artifact, self.output))
        return str(link)

    def _conclude(self, error: BaseException | None, interrupted: bool) -> str:
        if interrupted:
            return "interrupted"
        if error is None and all(r.status in ("done", "skipped") for r in self.records.values()):
            return "succeeded"
        return "failed"

    def _write_record(self, status: str) -> None:
        steps = [
            {"name": r.name, "seconds": r.seconds, "figures": r.figures, "artifact": r.artifact, "status": r.status}
            for r in self.records.values()
        ]
        record = {"pipeline": self.name, "experiment": self.experiment.name, "status": status, "steps": steps}
        if self.failure:
            record["error"] = self.failure["message"]
        beside = self.output / ".run.json.partial"
        beside.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        beside.replace(self.output / "run.json")
        if self.bucket:
            for name in ("run.json", "run.log"):
                publish_file(self.output / name, f"{self.bucket}/{name}", replace=True)

    def _tell(self, status: str, display: Display) -> int:
        if status == "succeeded":
            report = self.output / "evaluation" / "report.html"
            if self.bucket:
                report = self.output / "report.html"
                copy_file(f"{self.bucket}/evaluation/report.html", report)
            if self.records["export"].status == "skipped":
                display.note(f"export skipped, {self.records['evaluate'].figures['gate']}")
            display.note(f"report: {report}" if report.is_file() else f"artifacts: {self.output}")
            return 0
        if status == "interrupted":
            display.error(f"interrupted; {self._go_on()}; everything said is in {self.log}")
            return 130
        if self.failure:
            message = f"{self.failure['step']} failed: {self.failure['message']}"
        else:
            running = [r.name for r in self.records.values() if r.status == "running"]
            what = (
                f"{' or '.join(running)} died without a word (killed, or out of memory?)"
                if running
                else "the run failed"
            )
            message = what
        # An error meant for the user explains itself; for any other the end of the log is wanted.
        expected = self.failure is not None and self.failure["expected"]
        with self.log.open(encoding="utf-8", errors="replace") as log:
            excerpt = [] if expected else step_lines(log, TAIL_LINES)
        done = any(r.status == "done" for r in self.records.values())
        display.failure(message, self.log, excerpt, self._go_on() if done else "")
        return 1

    def _go_on(self) -> str:
        given = f"--experiment {self.output / 'experiment.yaml'} --output {self.bucket or self.output}"
        return f"to go on where it stopped: hanflow run {self.name} {given}"


class _Worker(threading.Thread):
    """Runs the pipeline beside the display; remembers how it ended."""

    def __init__(self, work: Any):
        super().__init__(daemon=True)
        self._work = work
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # kfp: "you may be running a non-Python image"
                self._work()
        except BaseException as error:
            self.error = error
            print(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _output_to(log: TextIO) -> Iterator[None]:
    """What kfp prints and what it passes on from the steps goes to the log file."""
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A SIGTERM stops the run as Ctrl-C does: steps clean up, the record is written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop_children() -> None:
    """Interrupt the steps that still run; kill what does not listen."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(children, timeout=GRACE_SECONDS)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _whole_lines(stream: TextIO) -> Iterator[str]:
    """The lines added since the last call; half a line is left for the next one."""
    while True:
        at = stream.tell()
        line = stream.readline()
        if not line.endswith("\n"):
            stream.seek(at)
            return
        yield line
