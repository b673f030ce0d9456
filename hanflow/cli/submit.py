"""`hanflow submit`, `watch`, `retry` and `cancel`: a pipeline on a Kubeflow Pipelines server."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanflow.errors import UserError
from hanflow.experiment import Experiment

if TYPE_CHECKING:
    from hanflow.pipelines.display import Display
    from hanflow.pipelines.kubeflow import Run, Server

ENDPOINT_VARIABLE = "KF_PIPELINES_ENDPOINT"
"""The same as kfp's own command line reads."""

NAMESPACE = "kubeflow"
"""Where a single-user Kubeflow Pipelines runs its pods."""

SETTLE_SECONDS = 120.0
"""How long `cancel` waits for a run to end before it removes what the run started."""
SETTLE_POLL_SECONDS = 2.0


def add(commands: Any, pipelines: tuple[str, ...], load: Callable[[argparse.Namespace], Experiment]) -> None:
    """Register the commands with the subparsers of `hanflow`.

    Args:
        commands: the subparsers.
        pipelines: names of the pipelines.
        load: gives the experiment that `--experiment` and `--set` of `submit` ask for.
    """
    from hanflow import images

    submit = commands.add_parser(
        "submit",
        help="run a pipeline on a Kubeflow Pipelines server",
        description="Compile a pipeline, start it on a Kubeflow Pipelines server and print the link to the run; with "
        "--watch follow it and exit with status 1 if it fails.",
    )
    submit.add_argument("pipeline", choices=pipelines)
    _connect(submit)
    submit.add_argument(
        "--experiment",
        metavar="FILE",
        help="YAML file with the settings, or the name of a bundled one (default: PIPELINE)",
    )
    submit.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STEP.KEY=VALUE",
        help="change one setting, e.g. train.epochs=3; may be given several times (`hanflow settings` lists them)",
    )
    submit.add_argument("--name", metavar="NAME", help="of the run (default: the experiment's, and the time)")
    submit.add_argument(
        "--group",
        default="hanflow",
        metavar="NAME",
        help='Kubeflow\'s "experiment" that lists the run (default: %(default)s)',
    )
    submit.add_argument(
        "--root", default="", metavar="URI", help="where artifacts go, e.g. gs://BUCKET/runs (default: the server's)"
    )
    submit.add_argument(
        "--service-account", default="", metavar="NAME", help="of the steps' pods (default: the server's)"
    )
    submit.add_argument("--no-cache", action="store_true", help="run every step, even if its inputs are as before")
    images.add_options(submit)
    submit.add_argument("--watch", action="store_true", help="follow the run until it has finished")
    _follow_options(submit)
    submit.set_defaults(command=lambda options: _submit(options, load))

    watch = commands.add_parser(
        "watch",
        help="follow a run on a Kubeflow Pipelines server",
        description="Follow a run until it has finished; exit status 1 if it failed or was cancelled.",
    )
    retry = commands.add_parser(
        "retry",
        help="let a failed run on a Kubeflow Pipelines server go on",
        description="Let a failed run go on from the steps that failed; steps that finished keep their results, and "
        "training goes on from its newest checkpoint.",
    )
    cancel = commands.add_parser(
        "cancel",
        help="end a run on a Kubeflow Pipelines server and the jobs it started",
        description="End a run and delete the training jobs that it started.",
    )
    for parser in (watch, retry, cancel):
        parser.add_argument("run", metavar="RUN", help="id of the run, or the link to it")
        _connect(parser)
    _follow_options(watch)
    watch.set_defaults(command=_watch)
    retry.add_argument("--watch", action="store_true", help="follow the run until it has finished")
    _follow_options(retry)
    retry.set_defaults(command=_retry)
    cancel.add_argument(
        "--job-namespace",
        default="",
        metavar="NAME",
        help=f"where the jobs are, as kubectl sees them (default: --namespace, else {NAMESPACE})",
    )
    cancel.set_defaults(command=_cancel)


def _connect(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument(
        "--endpoint",
        default=os.environ.get(ENDPOINT_VARIABLE, ""),
        metavar="URL",
        help=f"of Kubeflow Pipelines, e.g. http://localhost:8080 or https://HOST/pipeline (default: ${ENDPOINT_VARIABLE})",
    )
    server.add_argument(
        "--namespace", default="", metavar="NAME", help="Kubeflow profile, where the installation has several users"
    )
    server.add_argument(
        "--token-file", default="", metavar="FILE", help="bearer token; read anew for every request, never shown"
    )
    server.add_argument("--ca-file", default="", metavar="FILE", help="certificates to trust (default: the system's)")


def _follow_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="when the run fails while it is followed, let it go on from the failed steps that often, as `hanflow retry` "
        "does: after a lost node, too, which Kubeflow's own retries do not cover (default: %(default)s)",
    )
    parser.add_argument(
        "--every", type=float, default=10.0, metavar="SECONDS", help="between two looks (default: %(default)g)"
    )


def _server(options: argparse.Namespace) -> Server:
    if not options.endpoint:
        raise UserError(
            f"--endpoint: say where Kubeflow Pipelines is, here or in ${ENDPOINT_VARIABLE}, e.g. http://localhost:8080 "
            "behind `kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80`"
        )
    if getattr(options, "every", 1.0) <= 0:
        raise UserError(f"--every: {options.every:g} s is no pause; give more than 0")
    if getattr(options, "retries", 0) < 0:
        raise UserError(f"--retries: {options.retries} is negative; give 0 or more")
    from hanflow.pipelines.kubeflow import Server

    return Server(options.endpoint, options.namespace, options.token_file, options.ca_file)


def _submit(options: argparse.Namespace, load: Callable[[argparse.Namespace], Experiment]) -> int:
    from hanflow import images

    experiment = load(options)
    references = images.from_options(options)
    server = _server(options)
    source = experiment.preprocess.source
    if "://" not in source:
        print(
            f"note: preprocess.source={source} is no gs:// URI: the steps will look for it in their own containers",
            file=sys.stderr,
        )
    from hanflow.pipelines.packages import Package

    with tempfile.TemporaryDirectory() as folder:
        package = Package.of(experiment, references)
        if options.no_cache:
            package.without_cache()
        run = server.submit(
            package.write(Path(folder) / f"{options.pipeline}.yaml"),
            package.arguments(experiment),
            name=options.name or f"{experiment.name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
            group=options.group,
            root=options.root,
            service_account=options.service_account,
        )
    print(f"run {run}")
    if not options.watch:
        print(server.link(run))
        return 0
    return _follow(server, run, options)


def _watch(options: argparse.Namespace) -> int:
    return _follow(_server(options), _run_id(options.run), options)


def _retry(options: argparse.Namespace) -> int:
    server, run = _server(options), _run_id(options.run)
    state = server.get(run).state
    if state not in ("FAILED", "CANCELED"):
        raise UserError(f"{run}: is {_plain(state)}; only a run that failed or was cancelled can go on")
    server.retry(run)
    print(f"run {run} goes on")
    if not options.watch:
        print(server.link(run))
        return 0
    time.sleep(options.every)  # the server takes a moment to see that the run is not finished any more
    return _follow(server, run, options)


def _run_id(text: str) -> str:
    """The id in a run's link, or the id itself."""
    return text.rstrip("/").rsplit("/", 1)[-1]


def _follow(server: Server, run: str, options: argparse.Namespace) -> int:
    """Tell of a run until it has finished, letting it go on where that is asked for; returns the exit status."""
    from hanflow.pipelines.display import Display

    try:
        with Display(f"run {run}", server.link(run)) as display:
            seen = _see_through(server, run, options.every, display)
            for left in range(options.retries, 0, -1):
                if seen.state != "FAILED":
                    break
                display.note(f"the run failed; going on ({left} retries left)")
                server.retry(run)
                time.sleep(options.every)  # the server takes a moment to see that the run is not finished any more
                seen = _see_through(server, run, options.every, display)
    except KeyboardInterrupt:
        print(f"not watching any more; the run goes on. To end it: hanflow cancel {run}", file=sys.stderr)
        return 130
    return _tell(seen, display)


def _see_through(server: Server, run: str, every: float, display: Display) -> Run:
    """Tell of each step's states; returns the run when it has finished."""
    states: dict[str, str] = {}
    for seen in server.follow(run, every, display.note):
        for step in seen.steps:
            if states.get(step.id) == step.state:
                continue
            states[step.id] = step.state
            if step.state == "RUNNING":
                display.started(step.name)
            elif step.state == "SUCCEEDED":
                display.finished(step.name, step.seconds, {})
            elif step.state == "SKIPPED":
                display.note(f"– {step.name} skipped, or taken over from an earlier run")
            elif step.state in ("FAILED", "CANCELED"):
                display.failed(step.name)
    return seen


def _tell(run: Run, display: Display) -> int:
    if run.state == "SUCCEEDED":
        display.note("the run succeeded")
        return 0
    reasons = [
        f"{step.name}: {step.error or 'see its log'}" for step in run.steps if step.state in ("FAILED", "CANCELED")
    ]
    display.error("\n".join([f"the run is {_plain(run.state)}", *([run.error] if run.error else []), *reasons]))
    return 1


def _plain(state: str) -> str:
    return {"": "not started yet", "CANCELED": "cancelled"}.get(state, state.lower())


def _cancel(options: argparse.Namespace) -> int:
    server, run = _server(options), _run_id(options.run)
    seen = server.get(run)
    if seen.finished:
        print(f"run {run} is {_plain(seen.state)} already")
    else:
        server.terminate(run)
        seen = _settled(server, run)
        if not seen.finished:
            raise UserError(
                f"{run}: was told to end {SETTLE_SECONDS:g} s ago and is still {_plain(seen.state)}, so that its step might "
                f"start a job anew; give the same command again later ({server.link(run)})"
            )
        print(f"run {run} is {_plain(seen.state)}")
    from hanflow.cluster.cleanup import remove_jobs

    removed = remove_jobs(run, options.job_namespace or options.namespace or NAMESPACE)
    print(f"removed {', '.join(removed)}" if removed else "it has no jobs")
    return 0


def _settled(server: Server, run: str) -> Run:
    """The run when it has ended, or as it is after SETTLE_SECONDS."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not (seen := server.get(run)).finished and time.monotonic() < deadline:
        time.sleep(SETTLE_POLL_SECONDS)
    return seen
