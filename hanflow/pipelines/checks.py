"""What settings and the beginnings of files can tell before the first step: `hanflow run --check` does only this."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from hanflow.data.readers import raw_files, read
from hanflow.data.schema import corpus_source
from hanflow.errors import ConfigError, UserError
from hanflow.experiment import Experiment, model_problems
from hanflow.storage import is_remote, local_path
from hanflow.tasks import chosen_task

MOST_FILES = 50
"""Files of a source whose first rows are read."""


def check(experiment: Experiment, done: Collection[str] = ()) -> None:
    """Refuse an experiment that cannot end well, as far as that shows without work.

    Args:
        done: steps whose artifacts are there already: what they have read need not be kept.

    Raises:
        ConfigError: everything that is wrong with its settings, its files and their columns.
    """
    problems = [*model_problems(experiment), *_missing_files(experiment, done)]
    if "preprocess" not in done:
        problems += _data_problems(experiment)
    if problems:
        raise ConfigError(problems)


def _missing_files(experiment: Experiment, done: Collection[str]) -> Iterator[str]:
    """Settings that name a folder which is not there; what may be a name of the hub is left to its step."""
    steps = {name.partition("-")[0] for name in done}  # train-NAME is a member of an ensemble
    given = {
        "tokenize.tokenizer": experiment.tokenize.tokenizer,
        "train.pretrained": experiment.train.pretrained,
        "evaluate.earlier": experiment.evaluate.earlier,
        "train.resume": "" if experiment.train.resume in ("auto", "never") else experiment.train.resume,
    }
    local = ("evaluate.earlier", "train.resume")
    for setting, name in given.items():
        if not name or is_remote(name) or setting.partition(".")[0] in steps:
            continue
        try:
            path = local_path(name)
        except UserError as error:
            yield f"{setting}: {error}"
            continue
        only_a_path = setting in local or name.startswith(("/", ".", "~", "file:")) or name.count("/") > 1
        if only_a_path and not path.is_dir():
            near = next(parent for parent in path.absolute().parents if parent.exists())
            yield f"{setting}={name}: no such folder (the nearest that exists is {near}); check the path"


def _data_problems(experiment: Experiment) -> Iterator[str]:
    """What the first rows of every source tell: files that cannot be read, columns that are missing."""
    config, columns = experiment.preprocess, chosen_task(experiment.task).columns
    for setting in ("source", "validation_source", "test_source"):
        uri = getattr(config, setting)
        try:
            for path in raw_files(uri)[:MOST_FILES] if uri else ():
                next(read(corpus_source(path, columns, config)), None)
        except (UserError, OSError) as error:
            cure = ""
            if setting == "test_source" and "no column for" in str(error):
                cure = (
                    "; or score the rows that were split off: evaluate.split=validation and no test_source. Predictions of a "
                    f"file without them: hanflow predict RUN --input {Path(uri).name}"
                )
            yield f"preprocess.{setting}: {error}{cure}"
