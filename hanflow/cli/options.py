"""What several commands share: the groups of `hanflow --help`, pipelines and experiments by name, shell completion."""

from __future__ import annotations

import argparse
import contextlib
import textwrap
from collections.abc import Callable, Iterable, Sequence

from hanflow.config.suggest import spelling_hint
from hanflow.errors import ConfigError, UserError
from hanflow.experiment import Experiment, Setting, all_settings, experiment_names, find_experiment, load_experiment
from hanflow.pipelines.packages import PIPELINES
from hanflow.tasks import known_tasks

WIDTH = 100
"""Columns of descriptions."""


class Commands:
    """The commands of `hanflow`, in the groups that its help shows.

    Args:
        parser: the top-level parser; `finish` writes the overview into its description.
    """

    def __init__(self, parser: argparse.ArgumentParser):
        self.parsers: dict[str, argparse.ArgumentParser] = {}
        self._parser = parser
        self._add = parser.add_subparsers(metavar="COMMAND", dest="command_name", required=True, help=argparse.SUPPRESS)
        self._overview: list[str] = []

    def group(self, title: str) -> None:
        """Begin a group; the commands added next belong to it."""
        self._overview += ["", f"{title}:"]

    def add(self, name: str, help: str, description: str, examples: Sequence[str]) -> argparse.ArgumentParser:
        """A command of the current group; returns its parser."""
        self._overview.append(f"  {name:<12}{help}")
        self.parsers[name] = self._add.add_parser(
            name,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description=textwrap.fill(description, WIDTH),
            epilog="\n  ".join(["examples:", *examples]),
        )
        return self.parsers[name]

    def finish(self) -> None:
        """Write the groups into the help of the top-level parser."""
        self._parser.description = "\n".join([self._parser.description or "", *self._overview])


def completes(action: argparse.Action, candidates: Callable[[], Iterable[str]]) -> None:
    """Let the shell complete the values of an option or argument with `candidates()`."""

    def completer(**_: object) -> list[str]:
        return list(dict.fromkeys(candidates()))

    action.completer = completer  # type: ignore[attr-defined]  # argcomplete reads this attribute


def pipeline_name(text: str) -> str:
    """The text, if it is the name of a pipeline or a task; for argparse's `type`."""
    if text not in PIPELINES and ":" not in text and text not in known_tasks():
        hint = spelling_hint(text, PIPELINES)
        raise argparse.ArgumentTypeError(f"{text!r} is not a pipeline{hint} (pipelines: {', '.join(PIPELINES)})")
    return text


def add_pipeline(parser: argparse.ArgumentParser, nargs: str | None = None, default_help: str = "") -> None:
    """Add the argument `pipeline`, or `pipelines` where it may be given several times."""
    action = parser.add_argument(
        "pipelines" if nargs else "pipeline",
        metavar="PIPELINE",
        type=pipeline_name,
        nargs=nargs,
        help=f"one of {', '.join(PIPELINES)}, or a task of your own{default_help}",
    )
    completes(action, lambda: PIPELINES)


def add_experiment(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--experiment`."""
    action = parser.add_argument(
        "--experiment",
        metavar="FILE",
        help=f"YAML file with the settings, or the name of a bundled one (default: {default})",
    )
    completes(action, experiment_names)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add `--set`."""
    action = parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting, e.g. train.epochs=3; may be given several times (`hanflow settings` lists them all)",
    )
    completes(action, lambda: (f"{s.dotted}={value}" for s in settings_of_all_tasks() for value in s.choices or ("",)))


def settings_of_all_tasks() -> list[Setting]:
    """Every setting of every task; those that several tasks have occur several times."""
    return [setting for task in known_tasks() for setting in all_settings(task)]


def load(name: str, overrides: Sequence[str], pipeline: str, *, require: bool = True) -> Experiment:
    """The experiment of that file or name, for that pipeline.

    Args:
        name: see `find_experiment`.
        overrides: `section.key=value` texts.
        pipeline: the pipeline that is to run it.
        require: whether required settings must be there.

    Raises:
        UserError: there is no such experiment, its settings are wrong, or it belongs to another pipeline.
    """
    path = find_experiment(name)
    try:
        experiment = load_experiment(path, overrides, require=require)
    except ConfigError:
        if require:  # that the experiment is of another pipeline explains more than a missing data source
            with contextlib.suppress(ConfigError):
                load(name, overrides, pipeline, require=False)
        raise
    if experiment.pipeline != pipeline:
        reason = " (because it sets combine.members)" if experiment.combine.members else ""
        raise UserError(
            f"{path}: is an experiment of the pipeline {experiment.pipeline}{reason}, not of {pipeline}; give "
            f"{experiment.pipeline} as the pipeline, or another --experiment"
        )
    return experiment
