"""An experiment from its YAML files and the overrides of a command line; files by path, run or name."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hanflow import resources
from hanflow.config.suggest import spelling_hint
from hanflow.errors import ConfigError, UserError
from hanflow.experiment.checks import cross_checks
from hanflow.experiment.sections import SECTIONS, Experiment, build_experiment, settings_of
from hanflow.own_files import Damaged, parse_yaml, read_yaml
from hanflow.storage import local_path, portable

EXPERIMENTS = resources.folder("experiments")
"""The bundled experiments."""


def experiment_names() -> list[str]:
    """Names of the bundled experiments."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def find_experiment(name: str | os.PathLike[str]) -> Path:
    """The experiment file for a path, the folder of a run, or the name of a bundled experiment.

    Raises:
        UserError: there is none; suggests the nearest name and lists all.
    """
    path = local_path(name)
    if path.is_dir() and (path / "experiment.yaml").is_file():
        return path / "experiment.yaml"
    if path.is_file():
        return path
    known, bare = experiment_names(), path.name.removesuffix(".yaml")
    if path.parent == Path() and bare in known:
        return EXPERIMENTS / f"{bare}.yaml"
    if path.is_dir():
        raise UserError(f"{path}: is a folder without experiment.yaml; give a YAML file or the folder of a run")
    hint = spelling_hint(bare, known) or "; give a YAML file or the name of a bundled one."
    raise UserError(f"{path}: no such experiment file{hint} Bundled experiments: {', '.join(known)}")


def load_experiment(
    path: str | Path, overrides: Sequence[str] = (), *, above: Mapping[str, Any] | None = None, require: bool = True
) -> Experiment:
    """An experiment from a YAML file (with its `base:` files below it) and `key=value` overrides above it.

    Args:
        overrides: `step.key=value` texts; the value is read as YAML, except for a text setting.
        above: settings by section, or by their dotted names, above the files' and below `overrides`.
        require: whether required settings must be given; a compiled pipeline may leave them to its user.

    Raises:
        ConfigError: every problem of every file and override, in one message.
        UserError: a file is missing or is not YAML.
    """
    values = _read_yaml(Path(path), ())
    for key, item in (above or {}).items():
        section, dot, name = key.partition(".")
        values = _merge(values, {section: {name: item} if dot else item})
    problems: list[str] = []
    parted = [text.partition("=") for text in overrides]
    task = str(next((raw for key, _, raw in reversed(parted) if key.strip() == "task"), values.get("task") or ""))
    for text in overrides:
        key, separator, raw = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not separator or (not dot and section not in ("name", "task")):
            problems.append(f"--set {text!r}: write it as step.key=value, for example train.epochs=3")
            continue
        if not dot:
            values[section] = raw
            continue
        value = parse_text(section, name, raw, task)
        target = values.setdefault(section, {})
        if not isinstance(target, dict):
            continue  # reported below, as a section that is not a mapping
        first, *rest = name.split(".")
        if rest:  # into a setting that is a mapping: train.architecture.d_model=256
            inner = target.get(first) or {}
            if not isinstance(inner, dict):
                problems.append(f"--set {text!r}: {section}.{first} is no mapping; set it as a whole")
                continue
            inner = dict(inner)
            inner[".".join(rest)] = value
            value = inner
        target[first] = value
    experiment, found = build_experiment(values, require=False)
    problems += found
    if experiment is not None and not problems:
        problems += cross_checks(experiment)
    if require:
        problems += [problem for problem in build_experiment(values)[1] if problem not in problems]
    if experiment is None or problems:
        raise ConfigError(problems, path)
    return experiment


def parse_text(section: str, name: str, text: str, task: str = "") -> Any:
    """The value that a command line's text gives a setting: the text itself for a text setting, else the text as YAML."""
    if section in SECTIONS and any(s.name == name and s.type is str for s in settings_of(section, task)):
        return portable(text)
    try:
        return parse_yaml(text, name) if text.strip() else None
    except Damaged:
        return text  # refused later, with the setting's name and the expected type


def add_settings(parser: argparse.ArgumentParser, section: str, task: str = "", prefix: str = "") -> None:
    """Add an option for every setting of a section, `--learning-rate` for `train.learning_rate`."""
    for s in settings_of(section, task):
        default = "required" if s.required else f"default: {json.dumps(s.default, ensure_ascii=False)}"
        choices = f" One of: {', '.join(s.choices)}." if s.choices else ""
        parser.add_argument(
            f"--{prefix}{s.name.replace('_', '-')}",
            dest=s.dotted,
            metavar=s.type.__name__.upper(),
            help=f"{s.help}{choices} ({default})".replace("%", "%%"),
        )


def given_settings(options: Mapping[str, Any], section: str, task: str = "") -> dict[str, Any]:
    """The values of a section from the options of `add_settings`, above those of the file `experiment` if one is given.

    Raises:
        UserError: the experiment cannot be used; settings that it lacks are not reported.
    """
    texts = {key: text for key, text in options.items() if key.startswith(f"{section}.") and text is not None}
    if options.get("experiment"):
        overrides = [f"{key}={text}" for key, text in texts.items()] + ([f"task={task}"] if task else [])
        return load_experiment(options["experiment"], overrides, require=False).settings(section)
    names = {key.partition(".")[2]: text for key, text in texts.items()}
    return {name: parse_text(section, name, text, task) for name, text in names.items()}


def experiment_files(path: Path) -> list[Path]:
    """An experiment file and all that lie below it as `base:`.

    Raises:
        UserError: see `load_experiment`.
    """
    files: list[Path] = []
    _read_yaml(path, (), files)
    return files


def _read_yaml(path: Path, chain: tuple[Path, ...], files: list[Path] | None = None) -> dict[str, Any]:
    """A YAML file merged over its `base:`; `./` and `../` paths inside are relative to the file itself."""
    if path.resolve() in chain:
        raise UserError(f"{path}: its `base:` files form a circle: {' → '.join(str(p) for p in (*chain, path))}")
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such experiment file; check the path") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines at the top level, found a {type(values).__name__}")
    if files is not None:
        files.append(path)
    values = _resolve_paths(values, path.resolve().parent)
    base = values.pop("base", None)
    if base is None:
        return values
    try:
        below = _read_yaml(_base(path, str(base)), (*chain, path.resolve()), files)
    except RecursionError:
        raise UserError(f"{path}: its `base:` files are more than can be followed; write fewer") from None
    return _merge(below, values)


def _base(path: Path, name: str) -> Path:
    """The file that a `base:` names: beside the file itself, or a bundled experiment."""
    try:
        beside = local_path(path.parent / local_path(name))
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    bare = name.removesuffix(".yaml")
    if beside.exists() or bare not in experiment_names():
        if not beside.exists():
            hint = spelling_hint(bare, experiment_names())
            raise UserError(f"{path}: base: {name}: no such file beside it, nor a bundled experiment{hint}")
        return beside
    return EXPERIMENTS / f"{bare}.yaml"


def _resolve_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: (item if key == "base" else _resolve_paths(item, folder)) for key, item in value.items()}
    if isinstance(value, list):  # combine.members
        return [_resolve_paths(item, folder) if isinstance(item, dict) else item for item in value]
    if isinstance(value, str) and value.startswith(("./", "../")):
        parts = [part.strip() for part in value.split(",")]  # several sources
        return ",".join(str((folder / part).resolve()) if part.startswith(("./", "../")) else part for part in parts)
    return value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two levels deep: sections merge, settings replace (a mapping such as `model` is one setting)."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = {**merged[key], **value}
        else:
            merged[key] = value
    return merged


def from_yaml(path: str | os.PathLike[str], **overrides: Any) -> Experiment:
    """An experiment from a YAML file, with everything checked.

    Args:
        path: the file (its `base:` files are read below it), the folder of a run, or the name of a bundled experiment,
            e.g. `sample-summarization`.
        overrides: settings above the file's, by section: `train={"epochs": 3}`, `name="trial"`; or by their dotted names:
            `**{"train.epochs": 3}`.

    Raises:
        ConfigError: every unknown setting, wrong type and value out of range, in one message.
        UserError: the file is missing or is not YAML.
    """
    return load_experiment(find_experiment(path), above=overrides)


Experiment.from_yaml = staticmethod(from_yaml)
