"""`hanflow run` and `hanflow compile`: a pipeline on this machine, and as the YAML that Kubeflow takes."""

from __future__ import annotations

import argparse
import time

from hanflow import images
from hanflow.cli.options import PIPELINES, Commands, add_experiment, add_pipeline, add_set, load
from hanflow.experiment import experiment_files, find_experiment
from hanflow.storage import check_output, local_path


def add(commands: Commands) -> None:
    """Register the commands."""
    run = commands.add(
        "run",
        help="run a pipeline",
        description="Run a pipeline on this machine: preprocess, tokenize, train, evaluate, export. The run's folder holds "
        "the artifacts, the report and the log; the same command with the same --output continues an interrupted run.",
        examples=[
            "hanflow run summarization",
            "hanflow run classification --experiment kcbert-reviews --set preprocess.source=reviews.tsv",
            "hanflow run summarization --set train.learning_rate=1e-4 --set train.epochs=5 --output runs/second",
            "hanflow run summarization --experiment runs/second    # again with the settings of that run",
        ],
    )
    add_pipeline(run)
    add_experiment(run, "sample-PIPELINE")
    add_set(run)
    run.add_argument("--output", metavar="DIR", help="folder of the run, local or gs:// (default: runs/NAME-TIME)")
    run.add_argument(
        "--check", action="store_true", help="only check settings, files and columns, and end; nothing is written"
    )
    run.add_argument("--limit-rows", type=int, metavar="N", help="read at most N raw rows, for a quick trial")
    run.set_defaults(command=_run)

    compile_ = commands.add(
        "compile",
        help="write a pipeline as the YAML that Kubeflow takes",
        description="Write pipelines as YAML for `kfp run create -f` or the upload form of the Kubeflow UI. Settings that an "
        "experiment leaves open, such as the data source, are parameters of the run.",
        examples=[
            "hanflow compile --output compiled",
            "hanflow compile summarization --experiment kobart-news --output compiled",
        ],
    )
    add_pipeline(compile_, "*", " (default: all)")
    compile_.add_argument("--output", required=True, metavar="DIR", help="folder to write PIPELINE.yaml into")
    add_experiment(compile_, "PIPELINE")
    compile_.add_argument("--force", action="store_true", help="replace files that exist")
    images.add_options(compile_)
    compile_.set_defaults(command=_compile)


def _run(options: argparse.Namespace) -> int:
    overrides = list(options.set)
    if options.limit_rows is not None:
        overrides.append(f"preprocess.limit_rows={options.limit_rows}")
    experiment = load(options.experiment or f"sample-{options.pipeline}", overrides, options.pipeline)
    if options.check:
        from hanflow.pipelines.checks import check

        check(experiment)
        print(f"{experiment.name}: settings, files and columns fit together")
        return 0
    from hanflow.pipelines.local import run_locally

    return run_locally(experiment, options.output or f"runs/{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}")


def _compile(options: argparse.Namespace) -> int:
    references = images.from_options(options)
    from hanflow.pipelines.packages import Package

    names = options.pipelines or PIPELINES
    packages = {}
    for name in names:
        given = options.experiment or name
        target = local_path(options.output) / f"{name}.yaml"
        if target.exists():
            check_output("--output", str(target), experiment_files(find_experiment(given)), force=options.force)
        packages[target] = Package.of(load(given, (), name, require=False), references)
    for target, package in packages.items():
        print(package.write(target))
    return 0
