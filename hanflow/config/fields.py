"""The declaration of a setting (default, documentation, limits), and settings classes from plain values."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

from hanflow.config import suggest

REQUIRED = ""
"""Default of a text setting that has no sensible default; `required=True` marks it."""


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    required: bool = False,
) -> Any:
    """A dataclass field with its documentation and its limits; mutable defaults are copied per instance."""
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "below": below,
        "required": required,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def coerced(value: Any, expected: type) -> Any:
    """`value` as `expected`; YAML reads 1e-4 as text and Kubeflow passes 3 as 3.0: both are accepted."""
    shown = repr(value)
    wrong = ValueError(f"expected {_NAMES[expected]}, found {shown if len(shown) <= 80 else f'{shown[:79]}…'}")
    if expected is bool:
        if isinstance(value, bool):
            return value
        raise wrong
    if expected in (int, float):
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise wrong from None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            raise wrong
        if expected is float:
            return float(value)
        if value != int(value):
            raise wrong
        return int(value)
    if expected is str:
        if value is None:
            return ""
        if isinstance(value, bool):
            raise ValueError(f"{wrong} (YAML reads on, off, yes and no as true and false: put the text in quotes)")
        if isinstance(value, (dict, list)):
            raise wrong
        if value == "--":  # argparse drops it
            raise ValueError("'--' cannot be passed on by a command line; give another text")
        return str(value)
    if value is None:
        return expected()
    if not isinstance(value, expected):
        raise wrong
    return _whole_numbers(value)


def _whole_numbers(value: Any) -> Any:
    """Kubeflow passes lists and mappings as protobuf structs, whose only numbers are floats: 3.0 means 3."""
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def checked(value: Any, limits: Mapping[str, Any]) -> Any:
    """`value`, if it is within the limits of its `setting`.

    Raises:
        ValueError: it is not; the message names the limit.
    """
    if limits.get("required") and value == REQUIRED:
        raise ValueError(f"is required ({limits['help']})")
    choices = limits.get("choices")
    for item in value if isinstance(value, list) else [value]:
        if choices and item not in choices:
            near = suggest.value(item, choices)
            raise ValueError(f"{item!r} is none of {', '.join(choices)}{suggest.did_you_mean([near] if near else [])}")
    for key, text, fits in (
        ("at_least", "at least", lambda v, limit: v >= limit),
        ("at_most", "at most", lambda v, limit: v <= limit),
        ("above", "above", lambda v, limit: v > limit),
        ("below", "below", lambda v, limit: v < limit),
    ):
        limit = limits.get(key)
        if limit is not None and not fits(value, limit):
            raise ValueError(f"must be {text} {limit:g}, found {value:g}")
    return value


Suggest = Callable[[str], str]
"""The hint for an unknown key: `train.epoch` → `; did you mean train.epochs?`."""


def build(cls: type, values: Any, section: str, require: bool, hint: Suggest = lambda key: "") -> tuple[Any, list[str]]:
    """An instance of a settings class, or None, and what is wrong with the values.

    Args:
        values: setting → value, as YAML or a command line gave them.
        section: name of the section that they stand in, for the messages, e.g. `train`.
        require: whether required settings must be given.
        hint: gives the hint for an unknown key.
    """
    if not isinstance(values, Mapping):
        return None, [f"{section}: expected `key: value` lines, found {values!r}"]
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    problems, arguments = [], {}
    for key, value in values.items():
        if key not in fields:
            problems.append(f"{section}.{key}: no such setting{hint(f'{section}.{key}')}")
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
