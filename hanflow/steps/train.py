"""Shards → a trained model: by worker processes on this machine, or by a job on a cluster that this step follows.

`python -m hanflow.steps.train --job-runtime pytorchjob --shards gs://… --output gs://…` does from a shell or from Argo
what the train component does in Kubeflow. The workers of a job run the same command without the `--job-…` settings.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from hanflow.cluster import launcher
from hanflow.cluster.job import PodExtras
from hanflow.config import JobConfig, TrainConfig, job_problems, to_mapping
from hanflow.config.worker_spec import WorkerSpec
from hanflow.errors import UNEXPECTED, ConfigError, UserError
from hanflow.experiment import load_experiment, parse_text, settings_of, step_config
from hanflow.progress import log
from hanflow.reports.step_report import Report
from hanflow.steps import runner
from hanflow.steps.runner import Run, main
from hanflow.storage import manifest_at
from hanflow.storage.artifacts import Manifest
from hanflow.training.workers.torchrun import note_ending

SIDE_BY_SIDE_VARIABLE = "HANFLOW_SIDE_BY_SIDE"
"""Environment variable: how many train steps share this machine; absent: it is this one's alone."""


def run(
    config: TrainConfig,
    *,
    task: str,
    output: str,
    shards: str,
    job: JobConfig | None = None,
    run_id: str = "",
    extras: PodExtras | None = None,
) -> Report:
    """Train a model on token ids; the model that validates best is the one that is kept.

    Args:
        job: where the workers run; None: here.
        run_id: id of the pipeline's run, which a job is named and labelled by.
        extras: what the pipeline gives the pods of a job.

    Raises:
        UserError: a setting, the shards or the checkpoints do not fit; training cannot go on; the job failed. Says what to
            change.
    """
    if job is None or job.runtime == "local":
        from hanflow.training.workers.worker import run as run_here

        return run_here(config, task=task, output=output, shards=shards)
    spec = WorkerSpec(task, config, shards, output)
    attempt = launcher.prepare(job, spec, run_id=run_id, extras=extras)
    done = _already_done(spec)
    if done is not None and not attempt.submitted():
        log.info("%s holds this very model already: nothing to train", output)
        return done
    launcher.launch(attempt.cluster, attempt.body, hours=job.deadline_hours, restarts=job.max_restarts)
    return _report(manifest_at(output, "model", task=task))


def _already_done(spec: WorkerSpec) -> Report | None:
    """The report of an earlier attempt that wrote the same model whole; None: there is none."""
    try:
        model = manifest_at(spec.output, "model", task=spec.task)
    except UserError:
        return None
    shards = manifest_at(spec.shards, "shards", task=spec.task)
    same = _learnt(model.config) == _learnt(to_mapping(spec.config)) and model.parents.get("shards") == shards.digest
    return _report(model) if same else None


def _learnt(config: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that a job sets for the place where it runs."""
    return {name: value for name, value in config.items() if name not in ("backend", "topology")}


def _report(model: Manifest) -> Report:
    return Report(model.details["figures"], html="report.html")


def chosen_run(arguments: Mapping[str, Any]) -> Run:
    """The function of the train step that its component's arguments ask for: in this process, or as a job."""
    job = _checked(step_config("job", arguments["job"]))
    return functools.partial(run, job=job, run_id=arguments["run_id"], extras=PodExtras.of(arguments["task_config"]))


def in_pipeline(arguments: Mapping[str, Any]) -> str:
    """The body of the train component: trains in this process, or as a job.

    Args:
        arguments: the component's: `settings` of the step, `job` (settings of the job), `run_id`, `task_config`, `member`
            (name of the member of an ensemble that is trained beside others; empty: a model on its own).

    Returns:
        The URI of the model.

    Raises:
        ConfigError: the job's settings are wrong.
    """
    member = arguments["member"]
    if member:
        _share_processors()
    chosen = chosen_run(arguments)
    called = f"train-{member}" if member else ""
    return runner.in_pipeline("train", chosen, arguments, inputs=("shards",), output="model", called=called)


def _share_processors() -> None:
    """Use this machine's processors as far as they are not those of the other members."""
    sharers = int(os.environ.get(SIDE_BY_SIDE_VARIABLE, 1))
    if sharers > 1:
        import torch

        # More threads than processors would wait for each other.
        threads = max(1, torch.get_num_threads() // sharers)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of worker processes, if it starts any
        torch.set_num_threads(threads)


def _checked(job: JobConfig) -> JobConfig:
    problems = job_problems(job)
    if problems:
        raise ConfigError(problems)
    return job


def command(argv: Sequence[str] | None = None) -> tuple[int, str]:
    """The command line: `--job-…` settings and `--run`, and what every step has.

    Returns:
        The exit status, and the error if there was one.
    """
    parser = argparse.ArgumentParser(prog="python -m hanflow.steps.train", add_help=False, allow_abbrev=False)
    parser.add_argument("--run", default="", help="id of the run (default: the pod's, else the output's URI)")
    parser.add_argument("--experiment", help="YAML file that the settings start from")
    for s in settings_of("job"):
        parser.add_argument(f"--job-{s.name.replace('_', '-')}", dest=f"job_{s.name}", metavar=s.type.__name__.upper(), help=s.help.replace("%", "%%"))  # fmt: skip
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(argv)
    options = vars(known)
    if options["help"]:
        parser.print_help()
        rest = ["--help"]
    given = {s.name: options[f"job_{s.name}"] for s in settings_of("job") if options[f"job_{s.name}"] is not None}
    message = ""
    try:
        if options["experiment"]:
            rest += ["--experiment", options["experiment"]]
            overrides = [f"job.{name}={text}" for name, text in given.items()]
            job = load_experiment(options["experiment"], overrides, require=False).job
        else:
            job = _checked(step_config("job", {name: parse_text("job", name, text) for name, text in given.items()}))

        @functools.wraps(run)
        def remembering(*arguments: Any, **inputs: Any) -> Report:
            nonlocal message
            try:
                return run(*arguments, job=job, run_id=options["run"], **inputs)
            except UserError as error:
                message = str(error)
                raise

        return main("train", remembering, inputs=("shards",), argv=rest), message
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status, str(error)
    except SystemExit as error:  # wrong usage
        return error.code if isinstance(error.code, int) else 1, "wrong usage"
    except Exception as error:
        traceback.print_exc()
        # No restart gives a GPU more memory.
        status = 1 if type(error).__name__ == "OutOfMemoryError" else UNEXPECTED
        return status, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(note_ending(*command()))
