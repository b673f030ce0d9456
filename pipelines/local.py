"""A pipeline on this machine: kfp.local runs every step as a process of this Python, without container or cluster.

The run's folder holds `run.json`, `run.log` (everything that Kubeflow and the steps said), `experiment.yaml`,
`checkpoints/`, the artifacts under `kfp/`, and a link to each: `corpus`, `shards`, `model`, `evaluation`, `bundle`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import psutil
import yaml

from components.shared.artifacts import KINDS
from components.shared.config import STEPS, Experiment, UserError, to_mapping
from components.shared.progress import EVENTS_VARIABLE
from components.shared.tasks import get_task
from pipelines.build import arguments_of
from pipelines.display import Display
from pipelines.package import load_pipeline

POLL_SECONDS = 0.2
GRACE_SECONDS = 30.0
"""What a step gets to finish what it is at and to clean up after an interrupt (training saves a checkpoint)."""
TAIL_LINES = 30


@dataclass
class StepRecord:
    """One line of the run's table, as `run.json` holds it."""

    name: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    artifact: str = ""
    status: str = "waiting"


def run_locally(name: str, experiment: Experiment, output: Path) -> int:
    """Run a pipeline and tell of it; returns the exit status (0, 1 after a failed step, 130 after Ctrl-C).

    Raises:
        UserError: the output folder holds something already, or the settings cannot work.
    """
    problems = get_task(experiment.task).check_model(experiment.train)
    if problems:
        raise UserError("\n".join(problems))
    output = output.absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: already holds another run; give another --output or remove it")
    output.mkdir(parents=True, exist_ok=True)
    experiment = replace(
        experiment,
        train=replace(experiment.train, checkpoints=experiment.train.checkpoints or str(output / "checkpoints")),
        export=replace(experiment.export, title=experiment.export.title or experiment.name),
    )
    settings = yaml.safe_dump(to_mapping(experiment), allow_unicode=True, sort_keys=False)
    (output / "experiment.yaml").write_text(settings, encoding="utf-8")
    return _Run(name, experiment, output).execute()


class _Run:
    def __init__(self, name: str, experiment: Experiment, output: Path):
        self.name, self.experiment, self.output = name, experiment, output
        self.records = {step: StepRecord(step) for step in STEPS}
        self.failure: dict[str, Any] | None = None
        self.log, self.events = output / "run.log", output / "events.jsonl"
        self.events.touch()

    def execute(self) -> int:
        from kfp import local

        pipeline = load_pipeline(self.name, self.experiment)
        started = time.monotonic()
        interrupted = False
        with (
            self.log.open("w", encoding="utf-8") as log,
            _environment({EVENTS_VARIABLE: str(self.events), "PYTHONUNBUFFERED": "1"}),
            Display(f"hanflow run {self.name}", str(self.output)) as display,
            _output_to(log),
        ):
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(self.output / "kfp"))
            worker = _Worker(lambda: pipeline(**arguments_of(self.experiment)))
            try:
                with self.events.open(encoding="utf-8") as events, _terminate_as_interrupt():
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
        records = [
            {**vars(r), "artifact": os.path.relpath(r.artifact, self.output) if r.artifact else ""}
            for r in self.records.values()
        ]
        display.summary(records, time.monotonic() - started)
        return self._tell(status, display)

    def _follow(self, events: TextIO, display: Display) -> None:
        """Take in what the steps have told since the last look."""
        for line in _whole_lines(events):
            event = json.loads(line)
            kind, step = event["event"], event.get("step", "")
            if kind == "started":
                self.records[step].status = "running"
                display.started(step)
            elif kind == "progress":
                display.progress(event)
            elif kind == "finished":
                record = self.records[step]
                record.seconds, record.figures = round(event["seconds"], 2), event["figures"]
                record.artifact, record.status = str(self._link(step, event["artifact"])), "done"
                if step == "evaluate" and "gate" in record.figures:
                    self.records["export"].status = "skipped"
                display.finished(step, record.seconds, record.figures)
            elif kind == "failed":
                self.records[step].status = "failed"
                self.failure = event
                display.failed(step)

    def _link(self, step: str, artifact: str) -> Path:
        """A short way to an artifact: `<output>/<kind>`."""
        kind = next(kind for kind, maker in KINDS.items() if maker == step)
        link = self.output / kind
        link.symlink_to(os.path.relpath(artifact, self.output))
        return link

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

    def _tell(self, status: str, display: Display) -> int:
        if status == "succeeded":
            report = self.output / "evaluation" / "report.html"
            if self.records["export"].status == "skipped":
                display.note(f"export skipped, {self.records['evaluate'].figures['gate']}")
            display.note(f"report: {report}" if report.is_file() else f"artifacts: {self.output}")
            return 0
        if status == "interrupted":
            display.error(f"interrupted; finished steps are in {self.output}, everything said is in {self.log}")
            return 130
        if self.failure:
            message = f"{self.failure['step']} failed: {self.failure['message']}"
        else:
            running = [r.name for r in self.records.values() if r.status == "running"]
            what = f"{running[0]} died without a word (killed, or out of memory?)" if running else "the run failed"
            message = what
        # A message meant for the user says it all; for anything else the way there is wanted.
        expected = self.failure is not None and self.failure["expected"]
        display.log_tail(_tail(self.log, TAIL_LINES // 3 if expected else TAIL_LINES))
        display.error(f"{message}\nthe whole log: {self.log}")
        return 1


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


def _tail(path: Path, count: int) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        lines = [line.rstrip() for line in stream if line.strip()]
    return lines[-count:]
