"""The train step as a job on a cluster: submitted or adopted, watched, told of, and removed whatever happens.

`python -m components.train.launch --job-runtime pytorchjob --shards gs://… --output gs://…` does from a shell or from
Argo what the train component does in Kubeflow. A step that is tried again finds its job by name: one that runs or has
succeeded is adopted, one that failed or was made from other settings is replaced.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from components.shared.config import (
    ConfigError,
    JobConfig,
    TrainConfig,
    UserError,
    job_problems,
    load_experiment,
    parse_text,
    settings_of,
    step_config,
)
from components.shared.images import images_of_this_step
from components.shared.progress import log
from components.shared.steps import Report, Run, Terminated, main
from components.train import outcome
from components.train.jobs import Origin, build
from components.train.kube import Cluster
from components.train.life import Life
from components.train.own_pod import own_pod, run_of, workflow_of
from components.train.pod_spec import PodExtras
from components.train.submission import find, remove, submit
from components.train.work import Work

REMOVE_SECONDS = 60.0
"""How long removing the job is tried."""
TERMINATE_SECONDS = 0.9
"""What a step has between SIGTERM and its end, about."""


def chosen_run(arguments: Mapping[str, Any]) -> Run:
    """The function of the train step that its component's arguments ask for: in this process, or as a job.

    Args:
        arguments: the component's: `job_…` (the settings of the job), `run_id`, `task_config`.

    Raises:
        ConfigError: the job's settings are wrong.
    """
    job = _checked(step_config("job", {s.name: arguments[s.parameter] for s in settings_of("job")}))
    return functools.partial(run, job=job, run_id=arguments["run_id"], extras=PodExtras.of(arguments["task_config"]))


def _checked(job: JobConfig) -> JobConfig:
    problems = job_problems(job)
    if problems:
        raise ConfigError(problems)
    return job


def run(
    config: TrainConfig,
    *,
    task: str,
    output: str,
    shards: str,
    job: JobConfig,
    run_id: str = "",
    extras: PodExtras | None = None,
) -> Report:
    """Train a model on token ids: in this process, or as a job on a cluster."""
    if job.runtime == "local":
        from components.train.worker import run as run_here

        return run_here(config, task=task, output=output, shards=shards)
    work = Work(task, config, shards, output)
    outcome.check_reach(work, extras or PodExtras())
    cluster = Cluster(job.namespace)
    pod = own_pod(cluster)
    run_id = run_id or run_of(pod) or output
    origin = Origin(run_id, owner=workflow_of(pod, cluster))
    body = build(job, work, origin, extras, images_of_this_step())
    done = outcome.already_done(work)
    if done is not None and find(cluster, body) is None:
        log.info("%s holds this very model already: nothing to train", output)
        return done
    launch(cluster, body, hours=job.deadline_hours, restarts=job.max_restarts)
    return outcome.report(work)


def launch(cluster: Cluster, body: Mapping[str, Any], *, hours: float = 168.0, restarts: int = 3) -> None:
    """See a job through to its end; whatever that is, the job is not there any more afterwards.

    Args:
        cluster: where; its namespace is the job's.
        body: the job, from `jobs.build`.
        hours: how long it may take, waiting included.
        restarts: how many incidents that may pass a PyTorchJob survives (a JobSet counts for itself).

    Raises:
        JobFailed: it failed, vanished, took too long or can never start; says why.
        ClusterError: the cluster refuses the job, or went away for good.
    """
    job, hurry = None, False
    try:
        job = submit(cluster, body)
        Life(cluster, job, hours, restarts).follow()
        log.info("job %s succeeded", job["metadata"]["name"])
    except (Terminated, KeyboardInterrupt):
        hurry = True
        raise
    finally:
        try:
            remove(cluster, body, job, TERMINATE_SECONDS if hurry else REMOVE_SECONDS)
        except (Terminated, KeyboardInterrupt):
            remove(cluster, body, job, TERMINATE_SECONDS)
            raise


def command(argv: Sequence[str] | None = None) -> int:
    """The command line: `--job-…` settings and `--run` here, everything else as `python -m components.train` has it."""
    parser = argparse.ArgumentParser(prog="python -m components.train.launch", add_help=False, allow_abbrev=False)
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
    given = {s.name: options[s.parameter] for s in settings_of("job") if options[s.parameter] is not None}
    try:
        if options["experiment"]:
            rest += ["--experiment", options["experiment"]]
            overrides = [f"job.{name}={text}" for name, text in given.items()]
            job = load_experiment(options["experiment"], overrides, require=False).job
        else:
            job = _checked(step_config("job", {name: parse_text("job", name, text) for name, text in given.items()}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return main("train", functools.partial(run, job=job, run_id=options["run"]), inputs=("shards",), argv=rest)


if __name__ == "__main__":
    sys.exit(command())
