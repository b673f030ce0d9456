"""What all steps share: a command line, and the body of a Kubeflow component, around the step's function.

A step is a function `run(config, *, task, output, **inputs) -> Report`: its settings, the name of the task, the URI of the
artifact to write, at which there must not be anything yet, and the URIs of the input artifacts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hanflow.errors import UserError
from hanflow.experiment import add_settings, given_settings, load_experiment, step_config
from hanflow.progress import emit, hold_run, log, set_step, setup_logging
from hanflow.reports.step_report import Report
from hanflow.signals import exit_status, raise_on_sigterm
from hanflow.steps.reuse import finished_before, left_at
from hanflow.storage import copy_file, is_remote, join, local_path, writing
from hanflow.storage.artifacts import Manifest
from hanflow.system import use_utf8

Run = Callable[..., Report]

ARTIFACTS_VARIABLE = "HANFLOW_ARTIFACTS"
"""Environment variable with the folder that a pipeline's artifacts go to, instead of their own URIs: kfp's local runner
knows local URIs alone."""

SIDE_BY_SIDE_VARIABLE = "HANFLOW_SIDE_BY_SIDE"
"""Environment variable with the number of train steps that run on this machine at once; not set: one."""


def execute(
    step: str,
    run: Run,
    values: Mapping[str, Any],
    *,
    task: str,
    output: str,
    called: str = "",
    keep: bool = False,
    **inputs: Any,
) -> Report:
    """Run a step's function on plain setting values; its start, and its end or failure, are emitted as events.

    Args:
        called: its name in the run, where the step runs several times; empty: that of the step.
        keep: whether this may be another attempt: a complete artifact that an earlier one left at `output` is kept.
        inputs: URI of every input artifact, or a list of them.
    """
    setup_logging()
    raise_on_sigterm()
    hold_run()
    set_step(called or step)
    emit("started", pid=os.getpid())
    started = time.monotonic()
    try:
        config = step_config(step, values, task)
        # What is trained may be written by others: a job's pods, the first of torchrun's workers.
        with contextlib.nullcontext() if step == "train" else writing(output):
            left = left_at(output, step, values, task=task, **inputs) if keep else None
            report = _report_of(left) if left else run(config, task=task, output=output, **inputs)
    except BaseException as error:
        with contextlib.suppress(UserError):  # a full disk: the error itself says so
            emit("failed", message=_message(error), expected=isinstance(error, (UserError, KeyboardInterrupt)))
        raise
    seconds = time.monotonic() - started
    emit("finished", seconds=seconds, figures=report.figures, artifact=str(output), report=report.html)
    figures = ", ".join(f"{name} {value}" for name, value in report.figures.items())
    done = "was done by an earlier attempt" if left else f"done in {seconds:.1f} s"
    log.info("%s %s: %s → %s", called or step, done, figures, output)
    return report


def _report_of(left: Manifest) -> Report:
    """The report of an earlier attempt, as far as the manifest of its artifact holds it."""
    figures = left.details.get("figures") or {
        name: count for name, count in left.counts.items() if isinstance(count, (int, float))
    }
    return Report(figures, html="report.html" if "report.html" in left.files else "")


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted; nothing half-written was left"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def main(
    step: str,
    run: Run,
    inputs: Sequence[str],
    argv: Sequence[str] | None = None,
    lists: Sequence[str] = (),
) -> int:
    """The command line of a step: `python -m hanflow.steps.<step> --output DIR --<input> DIR --<setting> VALUE`.

    Args:
        inputs: names of the input artifacts.
        lists: names of inputs that are several artifacts of one kind: `--models DIR DIR`.

    Returns:
        The exit status: 0, 1 after an error (printed to standard error), 130 after Ctrl-C, 143 after SIGTERM.
    """
    if argv is None:
        use_utf8()
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task", help="name of the task (default: the experiment's, else summarization)")
    first.add_argument("--experiment", help="YAML file that the settings start from")
    parser = argparse.ArgumentParser(
        prog=f"python -m hanflow.steps.{step}", description=run.__doc__, parents=[first], allow_abbrev=False
    )
    parser.add_argument(
        "--output", required=True, help="folder of the artifact to write, local or gs://; must not exist yet"
    )
    for name in inputs:
        parser.add_argument(
            f"--{name}", required=True, dest=f"input_{name}", help=f"folder of the {name} artifact, local or gs://"
        )
    for name in lists:
        help = f"folders of the {name}, local or gs://, in order"
        parser.add_argument(f"--{name}", required=True, nargs="+", dest=f"input_{name}", metavar="DIR", help=help)
    parser.add_argument(
        "--keep-finished",
        action="store_true",
        help="where the output holds the artifact of the same settings, inputs and version already, keep it and succeed: "
        "for a step that is retried",
    )
    try:
        known, _ = first.parse_known_args(argv)
        task = known.task or (
            load_experiment(known.experiment, require=False).task if known.experiment else "summarization"
        )
        add_settings(parser, step, task)
        options = vars(parser.parse_args(argv))
        values = given_settings(options, step, task)
        artifacts = {name: options[f"input_{name}"] for name in (*inputs, *lists)}
        keep, output = options["keep_finished"], options["output"]
        execute(step, run, values, task=task, output=output, keep=keep, **artifacts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        return exit_status(error)
    return 0


def in_pipeline(
    step: str,
    run: Run,
    arguments: Mapping[str, Any],
    *,
    inputs: Sequence[str],
    output: str,
    called: str = "",
) -> str:
    """The body of a step's Kubeflow component.

    Args:
        step: name of the step.
        run: its function.
        arguments: the component's arguments (`locals()`): `settings` of the step, `task`, the URIs of the inputs, and the
            output artifacts: `output`, `metrics` and, where there is one, `report`.
        inputs: names of the arguments that are URIs of input artifacts.
        output: name of the argument that is the output artifact.
        called: see `execute`.

    Returns:
        The URI of the artifact, for the next step.
    """
    values, task, artifact = arguments["settings"], arguments["task"], arguments[output]
    uris = {name: arguments[name] for name in inputs}
    earlier = finished_before(step, values, task=task, called=called, **uris)
    if earlier:
        emit(**{**earlier, "kept": True})
        report, uri = Report(earlier["figures"], earlier["report"]), earlier["artifact"]
    else:
        uri = _place(artifact.uri, output, called)
        report = execute(step, run, values, task=task, output=uri, called=called, keep=True, **uris)
    for name, value in report.figures.items():
        if isinstance(value, (int, float)):
            arguments["metrics"].log_metric(name, value)
    if report.confusion is not None and "classification_metrics" in arguments:
        classes, matrix = report.confusion
        arguments["classification_metrics"].log_confusion_matrix(classes, matrix.tolist())
    if report.html:
        copy_file(join(uri, report.html), Path(arguments["report"].path))
    if is_remote(uri) or Path(artifact.path).resolve() != local_path(uri).resolve():
        # Kubeflow uploads what is at .path: the manifest alone, the data is at its URI already.
        Path(artifact.path).mkdir(parents=True, exist_ok=True)
        copy_file(join(uri, f"{output}.json"), Path(artifact.path) / f"{output}.json")
    return uri


def _place(uri: str, output: str, called: str) -> str:
    """Where a step of a pipeline writes its artifact."""
    root, member = os.environ.get(ARTIFACTS_VARIABLE), called.partition("-")[2]
    return join(root, f"{output}-{member}" if member else output) if root else uri
