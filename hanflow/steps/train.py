"""Shards → a trained model: by worker processes on this machine, or by a job on a cluster that this step follows.

`python -m hanflow.steps.train --job-runtime auto --shards gs://… --output gs://…` does from a shell or from Argo
what the train component does in Kubeflow.
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
from hanflow.experiment import add_settings, given_settings, step_config
from hanflow.progress import log
from hanflow.reports.step_report import Report
from hanflow.steps import runner
from hanflow.steps.runner import SIDE_BY_SIDE_VARIABLE, main
from hanflow.storage import holding, manifest_at, writing
from hanflow.storage.artifacts import Manifest
from hanflow.training.workers import processes
from hanflow.version import program_version


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
        job: where the workers run; None: on this machine.
        run_id: id of the pipeline's run; a job is named and labelled by it.
        extras: what the pipeline adds to the pods of a job.

    Raises:
        UserError: a setting, the shards or the checkpoints do not fit; training cannot continue; the job failed. The message
            gives the remedy.
    """
    spec = WorkerSpec(task, config, shards, output)
    if job is None or job.runtime == "local":
        return _train_here(spec)
    cluster, objects = launcher.prepare(job, spec, run_id=run_id, extras=extras)

    def trained() -> bool:
        done = _already_done(spec) is not None
        if done:
            log.info("%s: an earlier attempt has trained this model already", output)
        return done

    hours, restarts = job.deadline_hours, job.max_restarts
    launcher.launch(cluster, *objects, hours=hours, restarts=restarts, unless=trained)
    return _report(manifest_at(output, "model", task=task))


def _train_here(spec: WorkerSpec) -> Report:
    """Train on this machine: in processes of their own if there are several workers, else in this one."""
    if int(os.environ.get("RANK", 0)):  # of torchrun's
        return _train_in(spec)
    with writing(spec.output), holding(spec.checkpoints):  # before all else that takes time
        return _train_in(spec)


def _train_in(spec: WorkerSpec) -> Report:
    workers = processes.count(spec.config)
    if workers > 1:
        processes.run(spec, workers)
        return _report(manifest_at(spec.output, "model", task=spec.task))
    from hanflow.training.workers import worker

    model = worker.train(spec)
    return _report(model) if model else Report()  # on a rank of torchrun's that does not save


def _already_done(spec: WorkerSpec) -> Report | None:
    """The report of an earlier attempt that has written the same model completely; None: there is none."""
    try:
        model = manifest_at(spec.output, "model", task=spec.task)
    except UserError:
        return None
    shards = manifest_at(spec.shards, "shards", task=spec.task)
    same = (
        _portable(model.config) == _portable(to_mapping(spec.config))
        and model.parents.get("shards") == shards.digest
        and model.program == program_version("train", spec.task)
    )
    return _report(model) if same else None


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that a job sets for the machines where it runs."""
    return {name: value for name, value in config.items() if name not in ("backend", "topology")}


def _report(model: Manifest) -> Report:
    return Report(model.details["figures"], html="report.html")


def in_pipeline(arguments: Mapping[str, Any]) -> str:
    """The body of the train component: trains on this machine, or as a job.

    Args:
        arguments: the component's: `settings` of the step, `job` (settings of the job), `run_id`, `task_config`, `member`
            (name of the member of an ensemble that is trained in parallel with others; empty: a model on its own).

    Returns:
        The URI of the model.

    Raises:
        ConfigError: the job's settings are wrong.
    """
    member = arguments["member"]
    if member:
        _limit_threads()
    job, extras = _checked(step_config("job", arguments["job"])), PodExtras.of(arguments["task_config"])
    chosen = functools.partial(run, job=job, run_id=arguments["run_id"], extras=extras)
    called = f"train-{member}" if member else ""
    return runner.in_pipeline("train", chosen, arguments, inputs=("shards",), output="model", called=called)


def _limit_threads() -> None:
    """Use this step's share of the CPUs where several train steps run on one machine."""
    steps = int(os.environ.get(SIDE_BY_SIDE_VARIABLE, 1))
    if steps > 1:
        import torch

        # More threads than CPUs would wait for each other.
        threads = max(1, torch.get_num_threads() // steps)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of worker processes, if there are any
        torch.set_num_threads(threads)


def _checked(job: JobConfig) -> JobConfig:
    problems = job_problems(job)
    if problems:
        raise ConfigError(problems)
    return job


def command(argv: Sequence[str] | None = None) -> int:
    """The command line: `--job-…` settings and `--run`, and what every step has; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hanflow.steps.train", add_help=False, allow_abbrev=False)
    parser.add_argument("--run", default="", help="id of the run (default: the pod's, else the output's URI)")
    parser.add_argument("--experiment", help="YAML file that the settings start from")
    add_settings(parser, "job", prefix="job-")
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(argv)
    options = vars(known)
    if options["help"]:
        parser.print_help()
        rest = ["--help"]
    if options["experiment"]:
        rest += ["--experiment", options["experiment"]]
    try:
        job = _checked(step_config("job", given_settings(options, "job")))
        chosen = functools.wraps(run)(functools.partial(run, job=job, run_id=options["run"]))
        return main("train", chosen, inputs=("shards",), argv=rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except SystemExit as error:  # wrong usage
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        traceback.print_exc()
        # No second attempt gives a GPU more memory.
        return 1 if type(error).__name__ == "OutOfMemoryError" else UNEXPECTED


if __name__ == "__main__":
    sys.exit(command())
