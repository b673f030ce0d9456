"""The `hanflow` command. Imports what a command needs only inside it, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hanflow import images, resources
from hanflow.cli import demo, import_, predict, score
from hanflow.cli import submit as remote
from hanflow.errors import UserError
from hanflow.experiment import Experiment, all_settings, load_experiment
from hanflow.pipelines.packages import PIPELINES

EXPERIMENTS = resources.folder("experiments")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 after an error, 2 for wrong usage, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        return options.command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hanflow", description="Train, score and ship Korean language models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="run a pipeline on this machine", description="Run a pipeline on this machine."
    )
    run.add_argument("pipeline", metavar="PIPELINE", help=f"{', '.join(PIPELINES)}, or the name of an installed task")
    run.add_argument(
        "--experiment",
        metavar="FILE",
        help="YAML file with the settings, or the name of a bundled one (default: sample-PIPELINE)",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STEP.KEY=VALUE",
        help="change one setting, e.g. train.epochs=3; may be given several times (`hanflow settings` lists them)",
    )
    run.add_argument("--output", metavar="DIR", help="folder of the run, local or gs:// (default: runs/NAME-TIME)")
    run.add_argument("--limit-rows", type=int, metavar="N", help="read at most N raw rows: a quick trial")
    run.set_defaults(command=_run)

    compile_ = commands.add_parser(
        "compile",
        help="write the YAML that Kubeflow takes",
        description="Write the YAML that `kfp run create -f` takes.",
    )
    compile_.add_argument("pipelines", nargs="*", metavar="NAME", help=f"pipelines (default: {' '.join(PIPELINES)})")
    compile_.add_argument("--output", required=True, metavar="DIR", help="folder to write NAME.yaml into")
    compile_.add_argument("--experiment", metavar="FILE", help="settings that the parameters start from")
    images.add_options(compile_)
    compile_.set_defaults(command=_compile)

    remote.add(
        commands, PIPELINES, lambda asked: _experiment(asked.experiment, asked.pipeline, asked.set, asked.pipeline)
    )
    import_.add(commands)
    settings = commands.add_parser("settings", help="list every setting with its default", description="List settings.")
    settings.set_defaults(command=_settings)
    predict.add(commands)
    demo.add(commands)
    score.add(commands)
    return parser


def _experiment(name: str | None, default: str, overrides: Sequence[str], pipeline: str) -> Experiment:
    path = Path(name or default)
    bundled = EXPERIMENTS / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.is_file() and path.parent == Path() and bundled.is_file():
        path = bundled
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*.yaml")))
        raise UserError(f"{path}: no such experiment file; give a YAML file or a bundled name: {known}")
    experiment = load_experiment(path, overrides)
    if experiment.pipeline != pipeline:
        wanted = " (combine.members makes it one)" if experiment.combine.members else ""
        raise UserError(
            f"{path}: is an experiment of the pipeline {experiment.pipeline}{wanted}; run `hanflow run {experiment.pipeline}`"
        )
    return experiment


def _run(options: argparse.Namespace) -> int:
    overrides = list(options.set)
    if options.limit_rows is not None:
        overrides.append(f"preprocess.limit_rows={options.limit_rows}")
    experiment = _experiment(options.experiment, f"sample-{options.pipeline}", overrides, options.pipeline)
    output = options.output or f"runs/{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    from hanflow.pipelines.local import run_locally

    if output.startswith("gs://"):
        bucket = output.rstrip("/")
        # The same folder for the same bucket: an interrupted run goes on.
        return run_locally(
            options.pipeline, experiment, Path("runs") / bucket.removeprefix("gs://").replace("/", "-"), bucket
        )
    return run_locally(options.pipeline, experiment, Path(output))


def _compile(options: argparse.Namespace) -> int:
    names = options.pipelines or PIPELINES
    unknown = [name for name in names if name not in PIPELINES]
    if unknown:
        raise UserError(f"{unknown[0]}: no such pipeline; known: {', '.join(PIPELINES)}")
    references = images.from_options(options)
    from hanflow.pipelines.packages import Package

    for name in names:
        package = Package.of(_defaults(name, options.experiment), references)
        print(package.write(Path(options.output) / f"{name}.yaml"))
    return 0


def _defaults(name: str, experiment: str | None) -> Experiment:
    """The values that a compiled pipeline's parameters start from; the source may be left to whoever runs it."""
    if experiment is None:
        return load_experiment(EXPERIMENTS / f"{name}.yaml", require=False)
    return _experiment(experiment, "", (), name)


def _settings(_: argparse.Namespace) -> int:
    for setting in all_settings():
        default = "required" if setting.required else repr(setting.default)
        print(f"{setting.dotted}  ({setting.type.__name__}, {default})\n    {setting.help}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
