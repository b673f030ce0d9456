"""A pipeline on this machine: kfp.local runs every step as a process of this Python, without container or cluster.

The run's folder holds `run.json`, `run.log` (the output of Kubeflow and of the steps), `experiment.yaml`, `checkpoints/`,
the artifacts under `kfp/`, and a link to each: `corpus`, `shards`, `model`, `evaluation`, `bundle`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import psutil
import yaml

from hanflow.config import to_mapping
from hanflow.errors import UserError
from hanflow.experiment import Experiment
from hanflow.own_files import json_text, replace_file
from hanflow.pipelines.checks import check
from hanflow.pipelines.display import Display, step_lines
from hanflow.pipelines.packages import Package, step_names
from hanflow.pipelines.run_folder import EVENTS, RECORD, SETTINGS, Earlier, earlier_run, locked, run_folder
from hanflow.progress import EVENTS_VARIABLE, parse_event
from hanflow.signals import handled
from hanflow.steps.preprocess import sources_fit
from hanflow.steps.runner import ARTIFACTS_VARIABLE, SIDE_BY_SIDE_VARIABLE
from hanflow.storage import copy_file, is_remote, manifest_at, publish_file, refuse_run
from hanflow.storage.artifacts import kind_of
from hanflow.strict_json import json_ready

POLL_SECONDS = 0.2
GRACE_SECONDS = 30.0
"""Seconds that a step gets to end and to clean up after an interruption (training saves a checkpoint)."""
TAIL_LINES = 30

PARALLEL_MEMBERS = 2
"""Iterations of a loop that kfp's local runner runs at once."""


@dataclass
class StepRecord:
    """One line of the run's table, as `run.json` holds it."""

    name: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    artifact: str = ""
    status: str = "waiting"
    """waiting, running, done, failed or skipped."""


def run_locally(experiment: Experiment, output: str) -> int:
    """Run an experiment's pipeline and display its progress; returns the exit status: 0, 1 after a failed step, 130 after
    Ctrl-C.

    A run of the same settings that did not succeed is continued: steps with a complete artifact are kept, training
    resumes from its newest checkpoint.

    Args:
        output: folder of the run. In a bucket it gets artifacts and checkpoints, and at the end the record of the run; the
            local folder is `run_folder` then.

    Raises:
        UserError: the output folder holds something else already, the bucket cannot be used, or the settings cannot work.
    """
    bucket = output.rstrip("/") if is_remote(output) else ""
    folder = run_folder(output).absolute()
    check(experiment, earlier_run(folder, experiment).done)
    if bucket and not (folder / SETTINGS).exists():
        refuse_run(bucket)
    with locked(folder):
        earlier = earlier_run(folder, experiment)
        if earlier.succeeded:
            return _show_again(folder, output, earlier)
        replace_file(folder / SETTINGS, yaml.safe_dump(to_mapping(experiment), allow_unicode=True, sort_keys=False))
        if bucket:
            publish_file(folder / SETTINGS, f"{bucket}/{SETTINGS}", replace=True)
        # Not in experiment.yaml: another run with these settings has checkpoints of its own.
        # The Trainer keeps its checkpoints in a local folder.
        place = f"{bucket if experiment.train.engine == 'hanflow' and bucket else folder}/checkpoints"
        train = replace(experiment.train, checkpoints=experiment.train.checkpoints or place)
        return _Run(replace(experiment, train=train), folder, bucket).execute()


def _show_again(folder: Path, output: str, earlier: Earlier) -> int:
    """Display the end of a run that had succeeded already: one that was killed after that is given again.

    Raises:
        UserError: its sources have changed since.
    """
    records = earlier.record["steps"]
    corpus = next((record["artifact"] for record in records if record["name"] == "preprocess"), "")
    gone = ""
    try:
        fit = not corpus or sources_fit(manifest_at(corpus, "corpus"))
    except (UserError, OSError) as error:
        fit, gone = True, str(error)
    if not fit:
        raise UserError(
            f"{output}: holds a run that succeeded, but its sources have changed since; give another --output"
        )
    with Display(f"hanflow run {earlier.record['pipeline']}", output) as display:
        display.summary(records, sum(record["seconds"] for record in records))
        if gone:
            display.note(f"whether its sources have changed cannot be told: {gone}")
        display.note(f"has succeeded already; to run it again give another --output: {folder}")
    return 0


class _Run:
    def __init__(self, experiment: Experiment, output: Path, bucket: str):
        self.experiment, self.output, self.bucket = experiment, output, bucket
        self.records = {name: StepRecord(name) for name in step_names(experiment)}
        self.failure: dict[str, Any] | None = None
        """The event of the step that failed."""
        self.log, self.events = output / "run.log", output / EVENTS

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
            Display(f"hanflow run {self.experiment.pipeline}", self.bucket or str(self.output)) as display,
            contextlib.redirect_stdout(log),  # what kfp prints, the output of the steps included
            contextlib.redirect_stderr(log),
        ):
            _keep_paths()
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(self.output / "kfp"))
            worker = _Worker(lambda: pipeline(**package.arguments(self.experiment)))
            # SIGTERM stops the run as Ctrl-C does: steps clean up, the record is written.
            interruptible = handled(signal.default_int_handler, signal.SIGTERM)
            try:
                with self.events.open(encoding="utf-8", errors="replace") as events, interruptible:
                    events.seek(0, os.SEEK_END)  # after the events of an interrupted run
                    worker.start()
                    while worker.is_alive():
                        self._follow(events, display)
                        worker.join(POLL_SECONDS)
                    self._follow(events, display)
            except KeyboardInterrupt:
                interrupted = True
                _stop_children()
                worker.join(GRACE_SECONDS)
        if interrupted:
            status = "interrupted"
        else:
            complete = all(r.status in ("done", "skipped") for r in self.records.values())
            status = "succeeded" if complete and worker.error is None else "failed"
        self._write_record(status)
        records = [{**vars(r), "artifact": self._short(r.artifact)} for r in self.records.values()]
        display.summary(records, time.monotonic() - started)
        return self._show_result(status, display)

    def _variables(self) -> dict[str, str]:
        variables = {EVENTS_VARIABLE: str(self.events), "PYTHONUNBUFFERED": "1"}
        if self.bucket:
            variables[ARTIFACTS_VARIABLE] = self.bucket
        members = len(self.experiment.combine.members)
        if members > 1:
            variables[SIDE_BY_SIDE_VARIABLE] = str(min(members, PARALLEL_MEMBERS))
        return variables

    def _follow(self, events: TextIO, display: Display) -> None:
        """Record and display the events that the steps have written since the last call."""
        for line in _complete_lines(events):
            event = parse_event(line.encode())
            if event is None:
                continue
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
                    display.note(f"  {step}: kept from an earlier attempt")
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
        """Link to an artifact as `<output>/<kind>`, or `<output>/model-<name>` for a member of an ensemble; returns the
        link, or the artifact's URI if it is in a bucket."""
        if is_remote(artifact):
            return artifact
        maker, _, member = step.partition("-")
        kind = kind_of(maker)
        link = self.output / (f"{kind}-{member}" if member else kind)
        link.unlink(missing_ok=True)  # of an interrupted run
        link.symlink_to(os.path.relpath(artifact, self.output))
        return str(link)

    def _write_record(self, status: str) -> None:
        record: dict[str, Any] = {
            "pipeline": self.experiment.pipeline,
            "experiment": self.experiment.name,
            "status": status,
            "steps": [vars(r) for r in self.records.values()],
        }
        if self.failure:
            record["error"] = self.failure["message"]
        replace_file(self.output / RECORD, json_text(json_ready(record), indent=2) + "\n")
        if self.bucket:
            for name in (RECORD, "run.log"):
                publish_file(self.output / name, f"{self.bucket}/{name}", replace=True)

    def _show_result(self, status: str, display: Display) -> int:
        """Display the end of the run, its error last; returns the exit status."""
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
            display.error(f"interrupted; {self._how_to_continue()}; the full log is {self.log}")
            return 130
        running = [r.name for r in self.records.values() if r.status == "running"]
        if self.failure:
            message = f"{self.failure['step']} failed: {self.failure['message']}"
        elif running:
            message = f"{' or '.join(running)} ended without an error message (killed, or out of memory?)"
        else:
            message = "the run failed"
        # The message of a UserError is enough; for any other error the end of the log is shown too.
        expected = self.failure is not None and self.failure["expected"]
        with self.log.open(encoding="utf-8", errors="replace") as log:
            excerpt = [] if expected else step_lines(log, TAIL_LINES)
        done = any(r.status == "done" for r in self.records.values())
        display.failure(message, self.log, excerpt, self._how_to_continue() if done else "")
        return 1

    def _how_to_continue(self) -> str:
        options = f"--experiment {self.output / 'experiment.yaml'} --output {self.bucket or self.output}"
        return f"to continue where it stopped: hanflow run {self.experiment.pipeline} {options}"


class _Worker(threading.Thread):
    """Runs the pipeline in a thread; `error` is what it raised."""

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


def _keep_paths() -> None:
    """Let kfp put this Python's path in the place of `python3` in a step's command only, and not in what the step is given.

    kfp 2.17 replaces the word everywhere, so that a path such as `/usr/lib/python3.11/…` leads nowhere.
    """
    from kfp.local import subprocess_task_handler as handler

    replace: Callable[[list[str], str], list[str]] = handler.replace_python_executable

    def replace_in_command(command: list[str], executable: str) -> list[str]:
        end = command.index("--executor_input") if "--executor_input" in command else len(command)
        return [*replace(command[:end], executable), *command[end:]]

    if replace.__module__ != __name__:  # not done by an earlier run of this process
        handler.replace_python_executable = replace_in_command


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


def _stop_children() -> None:
    """Interrupt the steps that still run; kill those that do not end."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(children, timeout=GRACE_SECONDS)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _complete_lines(stream: TextIO) -> Iterator[str]:
    """The lines added since the last call; half a line is left for the next one."""
    while True:
        at = stream.tell()
        line = stream.readline()
        if not line.endswith("\n"):
            stream.seek(at)
            return
        yield line
