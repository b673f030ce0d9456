"""Plain values to settings; every problem is reported, not only the first."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from hanflow.config import suggest
from hanflow.config.experiment import SECTIONS, Experiment, all_settings
from hanflow.config.fields import checked, coerced
from hanflow.errors import ConfigError


def step_config(step: str, values: Mapping[str, Any]) -> Any:
    """The config of one section from plain values.

    Raises:
        ConfigError: unknown keys, wrong types or values out of range; all of them in one message.
    """
    config, problems = build(SECTIONS[step], values, step, require=True)
    if problems:
        raise ConfigError(problems)
    return config


def build(cls: type, values: Any, where: str, require: bool) -> tuple[Any, list[str]]:
    """An instance of a settings class, or None, and what is wrong with the values.

    Args:
        cls: the class; its fields may be settings or further such classes.
        values: setting → value, as YAML or a command line gave them.
        where: what the settings are below, for the messages, e.g. `train`; empty at the top.
        require: whether required settings must be there.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(values, Mapping):
        return None, [f"{where}: expected `key: value` lines, found {values!r}"]
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    problems, arguments = [], {}
    for key, value in values.items():
        if key not in fields:
            problems.append(f"{prefix}{key}: no such setting{_suggestion(f'{prefix}{key}', where)}")
            continue
        if dataclasses.is_dataclass(hints[key]):
            section, found = build(hints[key], {} if value is None else value, key, require)
            problems += found
            if section is not None:
                arguments[key] = section
            continue
        try:
            arguments[key] = checked(coerced(value, hints[key]), fields[key].metadata)
        except ValueError as error:
            problems.append(f"{prefix}{key}: {error}")
    for name, f in fields.items():
        if name in values:
            continue
        if dataclasses.is_dataclass(hints[name]):  # a section left out may still have required settings
            problems += build(hints[name], {}, name, require)[1]
        elif require and f.metadata["required"]:
            problems.append(f"{prefix}{name}: is required ({f.metadata['help']})")
    return (None, problems) if problems else (cls(**arguments), [])


def _suggestion(key: str, where: str) -> str:
    top = [f.name for f in dataclasses.fields(Experiment)]
    near = suggest.setting(key, [*(s.dotted for s in all_settings()), *top])
    if near:
        return suggest.did_you_mean(near)
    if where:
        return f"; `hanflow settings {where}` lists those of {where}"
    return f"; known: {', '.join(top)}"
