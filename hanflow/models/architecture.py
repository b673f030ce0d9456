"""The setting `train.architecture`: told what is wrong with it before any model is made."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.activations import ACT2FN


def problems(settings: Mapping[str, Any], config_class: type[PretrainedConfig], keys: Collection[str]) -> list[str]:
    """Problems of architecture settings, one text each.

    A value fits if it is of the kind of the config's default: whole numbers above 0, fractions from 0 (dropout: below
    1), lists of whole numbers above 0, names of activation functions.

    Args:
        settings: `train.architecture`; `type` is not looked at.
        config_class: the transformers config that takes them.
        keys: those of its fields that shape the model.
    """
    defaults = defaults_of(config_class)
    found = []
    for key, value in settings.items():
        if key == "type":
            continue
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(keys)}"
            found.append(f"train.architecture.{key}: no such setting; {hint}")
        elif not _fits(key, value, defaults[key]):
            found.append(
                f"train.architecture.{key}: {value!r} does not fit; for example {_example(key, defaults[key])}"
            )
    return found


def defaults_of(config_class: type[PretrainedConfig]) -> dict[str, Any]:
    """Name of each field of a transformers config → its default."""
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(config_class)
    }


def indivisible(settings: Mapping[str, Any], config_class: type[PretrainedConfig], width: str, heads: str) -> list[str]:
    """The problem that a width cannot be shared evenly among attention heads, if it is one; call on fitting values."""
    values = {**defaults_of(config_class), **settings}
    if values[width] % values[heads] == 0:
        return []
    return [
        f"train.architecture.{heads}: {values[heads]} does not divide {width}={values[width]} evenly; give a divisor"
    ]


def choose(settings: Mapping[str, Any], known: Collection[str], task: str, example: str) -> tuple[str, list[str]]:
    """(type, problems of choosing it) of `train.architecture`.

    Args:
        known: types of architecture that the task has; the first is meant where `type` is missing.
        example: a setting that would do instead of an empty architecture.
    """
    if not settings:
        return "", [f"train.architecture: is empty and train.pretrained too; set one, e.g. {example}"]
    kind = settings.get("type", next(iter(known)))
    if kind in known:
        return kind, []
    near = difflib.get_close_matches(str(kind), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return "", [f"train.architecture.type: {kind!r} is not known to {task}; {hint}"]


def _is_activation(key: str) -> bool:
    return key.endswith(("activation_function", "_act", "activation"))


def _fits(key: str, value: Any, default: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return whole and value > 0
    if isinstance(default, float) or (default is None and "dropout" in key):
        fraction = (whole or isinstance(value, float)) and value >= 0
        return fraction and (value < 1 or "dropout" not in key)
    if isinstance(default, list):
        return isinstance(value, list) and len(value) > 0 and all(_fits(key, item, 1) for item in value)
    return isinstance(value, str) and (not _is_activation(key) or value in ACT2FN)


def _example(key: str, default: Any) -> str:
    return repr(0.1 if default is None else default)
