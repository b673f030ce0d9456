"""Plain values to settings; every problem is reported, not only the first."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

from hanflow.config.fields import checked, coerced

Suggest = Callable[[str], str]
"""Gives the hint after an unknown key: `train.epoch` → `; did you mean train.epochs?`."""


def build(
    cls: type, values: Any, section: str, require: bool, suggest: Suggest = lambda key: ""
) -> tuple[Any, list[str]]:
    """An instance of a settings class, or None, and what is wrong with the values.

    Args:
        cls: the class.
        values: setting → value, as YAML or a command line gave them.
        section: name of the section that they stand in, for the messages, e.g. `train`.
        require: whether required settings must be given.
        suggest: gives the hint for an unknown key.
    """
    if not isinstance(values, Mapping):
        return None, [f"{section}: expected `key: value` lines, found {values!r}"]
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    problems, arguments = [], {}
    for key, value in values.items():
        if key not in fields:
            problems.append(f"{section}.{key}: no such setting{suggest(f'{section}.{key}')}")
            continue
        try:
            arguments[key] = checked(coerced(value, hints[key]), fields[key].metadata)
        except ValueError as error:
            problems.append(f"{section}.{key}: {error}")
    if require:
        problems += [
            f"{section}.{name}: is required ({f.metadata['help']})"
            for name, f in fields.items()
            if name not in values and f.metadata["required"]
        ]
    return (None, problems) if problems else (cls(**arguments), [])


def to_mapping(config: Any) -> dict[str, Any]:
    """A config as plain data, fit for YAML and JSON."""
    return dataclasses.asdict(config)


def changed(config: Any) -> dict[str, Any]:
    """The settings of a section that differ from their defaults."""
    defaults = to_mapping(type(config)())
    return {name: value for name, value in to_mapping(config).items() if value != defaults[name]}
