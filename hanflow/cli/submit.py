"""`hanflow submit`, `watch`, `retry` and `cancel`: a pipeline on a Kubeflow Pipelines server."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hanflow import images
from hanflow.cli.options import Commands, add_experiment, add_pipeline, add_set, load
from hanflow.errors import ConfigError, UserError
from hanflow.experiment import model_problems

if TYPE_CHECKING:
    from hanflow.pipelines.display import Display
    from hanflow.pipelines.kubeflow import Run, Server

ENDPOINT_VARIABLE = "KF_PIPELINES_ENDPOINT"
"""The variable that kfp's own command line reads, too."""

NAMESPACE = "kubeflow"
"""Where a single-user Kubeflow Pipelines runs its pods."""

SETTLE_SECONDS = 120.0
"""How long `cancel` waits for a run to end before it removes what the run started."""
SETTLE_POLL_SECONDS = 2.0


def add(commands: Commands) -> None:
    """Register the commands."""
    submit = commands.add(
        "submit",
        help="compile a pipeline and start it on the server",
        description="Compile a pipeline, start it on a Kubeflow Pipelines server and print the link to the run; with "
        "--watch follow it and exit with status 1 if it fails.",
        examples=[
            f"export {ENDPOINT_VARIABLE}=http://localhost:8080",
            "hanflow submit summarization --set preprocess.source=gs://bucket/news.tsv --root gs://bucket/runs --watch",
            "hanflow submit summarization --experiment kobart-news --set job.runtime=auto --retries 2 --watch",
        ],
    )
    add_pipeline(submit)
    _add_server(submit)
    add_experiment(submit, "PIPELINE")
    add_set(submit)
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
    submit.add_argument("--no-cache", action="store_true", help="run every step, even if its inputs are unchanged")
    images.add_options(submit)
    _add_watch(submit)
    submit.set_defaults(command=_submit)

    watch = commands.add(
        "watch",
        help="follow a run",
        description="Follow a run until it has finished; exit status 1 if it failed or was cancelled.",
        examples=["hanflow watch RUN", "hanflow watch http://localhost:8080/#/runs/details/RUN --retries 2"],
    )
    retry = commands.add(
        "retry",
        help="continue a failed run",
        description="Continue a failed run from the steps that failed: finished steps keep their results, and training "
        "resumes from its newest checkpoint.",
        examples=["hanflow retry RUN --watch"],
    )
    cancel = commands.add(
        "cancel",
        help="end a run and the training jobs it started",
        description="End a run and delete the training jobs that it started.",
        examples=["hanflow cancel RUN", "hanflow cancel RUN --job-namespace team"],
    )
    for parser in (watch, retry, cancel):
        parser.add_argument("run", metavar="RUN", help="id of the run, or the link to it")
        _add_server(parser)
    _add_following(watch)
    watch.set_defaults(command=_watch)
    _add_watch(retry)
    retry.set_defaults(command=_retry)
    cancel.add_argument(
        "--job-namespace",
        default="",
        metavar="NAME",
        help=f"namespace of the jobs in Kubernetes (default: --namespace, else {NAMESPACE})",
    )
    cancel.set_defaults(command=_cancel)


def _add_server(parser: argparse.ArgumentParser) -> None:
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
        "--token-file", default="", metavar="FILE", help="file with a bearer token; read for every request, never shown"
    )
    server.add_argument("--ca-file", default="", metavar="FILE", help="certificates to trust (default: the system's)")


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="follow the run until it has finished")
    _add_following(parser)


def _add_following(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="continue the run up to N times when it fails while it is followed, as `hanflow retry` does; also after a lost "
        "node, which Kubeflow's own retries do not cover (default: %(default)s)",
    )
    parser.add_argument(
        "--every",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="between two requests for the state (default: %(default)g)",
    )


def _server(options: argparse.Namespace) -> Server:
    if not options.endpoint:
        raise UserError(
            f"--endpoint: is missing; give the URL of Kubeflow Pipelines here or in ${ENDPOINT_VARIABLE}, e.g. http://localhost:8080 "
            "behind `kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80`"
        )
    if getattr(options, "every", 1.0) <= 0:
        raise UserError(f"--every: must be above 0 seconds, found {options.every:g}")
    if getattr(options, "retries", 0) < 0:
        raise UserError(f"--retries: {options.retries} is negative; give 0 or more")
    from hanflow.pipelines.kubeflow import Server

    return Server(options.endpoint, options.namespace, options.token_file, options.ca_file)


def _submit(options: argparse.Namespace) -> int:
    experiment = load(options.experiment or options.pipeline, options.set, options.pipeline)
    references = images.from_options(options)
    problems = model_problems(experiment)
    if problems:
        raise ConfigError(problems)
    server = _server(options)
    source = experiment.preprocess.source
    if "://" not in source:
        print(
            f"note: preprocess.source={source} is not a gs:// URI; the steps read it inside their own containers",
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
        raise UserError(f"{run}: is {_plain(state)}; only a run that failed or was cancelled can be continued")
    server.retry(run)
    print(f"run {run} continues")
    if not options.watch:
        print(server.link(run))
        return 0
    time.sleep(options.every)  # the server needs a moment to notice that the run is active again
    return _follow(server, run, options)


def _run_id(text: str) -> str:
    """The id in a run's link, or the id itself."""
    return text.rstrip("/").rsplit("/", 1)[-1]


def _follow(server: Server, run: str, options: argparse.Namespace) -> int:
    """Show a run until it has finished, continuing it up to --retries times; returns the exit status."""
    from hanflow.pipelines.display import Display

    try:
        with Display(f"run {run}", server.link(run)) as display:
            seen = _show_until_finished(server, run, options.every, display)
            for left in range(options.retries, 0, -1):
                if seen.state != "FAILED":
                    break
                display.note(f"the run failed; continuing it ({left} retries left)")
                server.retry(run)
                time.sleep(options.every)  # the server needs a moment to notice that the run is active again
                seen = _show_until_finished(server, run, options.every, display)
    except KeyboardInterrupt:
        print(f"no longer following; the run continues on the server. To end it: hanflow cancel {run}", file=sys.stderr)
        return 130
    return _conclude(seen, display)


def _show_until_finished(server: Server, run: str, every: float, display: Display) -> Run:
    """Show every change of a step's state; returns the run when it has finished."""
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
                display.note(f"– {step.name} skipped, or reused from an earlier run")
            elif step.state in ("FAILED", "CANCELED"):
                display.failed(step.name)
    return seen


def _conclude(run: Run, display: Display) -> int:
    """Show how a run ended, the reason of a failure last; returns the exit status."""
    if run.state == "SUCCEEDED":
        display.note("the run succeeded")
        return 0
    ended = [step for step in run.steps if step.state in ("FAILED", "CANCELED")]
    ended.sort(key=lambda step: bool(step.error))  # the explanation of the failure last
    reasons = [f"{step.name}: {step.error or 'no reason given; see its log on the page of the run'}" for step in ended]
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
                f"{run}: is still {_plain(seen.state)} {SETTLE_SECONDS:g} s after the request to end, and its step could start "
                f"a removed job again; give the same command again later ({server.link(run)})"
            )
        print(f"run {run} is {_plain(seen.state)}")
    from hanflow.cluster.cleanup import remove_jobs

    removed = remove_jobs(run, options.job_namespace or options.namespace or NAMESPACE)
    print(f"removed the jobs {', '.join(removed)}" if removed else "it has no jobs to remove")
    return 0


def _settled(server: Server, run: str) -> Run:
    """The run once it has ended, or its state after SETTLE_SECONDS."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not (seen := server.get(run)).finished and time.monotonic() < deadline:
        time.sleep(SETTLE_POLL_SECONDS)
    return seen
