"""The setting `train.architecture`: what networks it can describe, its checks, and the network itself, untrained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from hanflow.config.suggest import hint
from hanflow.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """One kind of network."""

    config: type[PretrainedConfig]
    """Its fields hold the settings; their defaults are those of the settings."""
    model: type[PreTrainedModel]
    keys: tuple[str, ...]
    """Settings beside `type`: the fields of the config that shape the network."""
    heads: tuple[tuple[str, str], ...] = ()
    """(key of a width, key of the number of attention heads that share it evenly)."""
    check: Callable[[Mapping[str, Any]], list[str]] = lambda settings: []
    """Further problems of settings whose values are of the right type."""

    def problems(self, settings: Mapping[str, Any]) -> list[str]:
        """Problems of the settings, one message each; `type` is ignored.

        A value fits if it has the type of the config's default: whole numbers above 0, fractions from 0 (dropout: below
        1), lists of whole numbers above 0, names of activation functions.
        """
        defaults = _defaults(self.config)
        found = []
        for key, value in settings.items():
            if key == "type":
                continue
            if key not in self.keys:
                found.append(f"train.architecture.{key}: no such setting; {hint(key, self.keys)}")
            elif not _fits(key, value, defaults[key]):
                example = 0.1 if defaults[key] is None else defaults[key]
                found.append(f"train.architecture.{key}: {value!r} does not fit; for example {example!r}")
        if found:
            return found
        values = {**defaults, **settings}
        uneven = [
            f"train.architecture.{heads}: {values[heads]} does not divide {width}={values[width]} evenly; give a divisor"
            for width, heads in self.heads
            if values[width] % values[heads]
        ]
        return uneven + self.check(settings)


@dataclass(frozen=True)
class Architectures:
    """The networks that a task can train from random weights."""

    task: str
    by_type: Mapping[str, Architecture]
    """`train.architecture.type` → the network; the first one is the default."""
    example: str
    """A setting that the message about an empty `train.architecture` suggests."""

    def problems(self, settings: Mapping[str, Any]) -> list[str]:
        """Problems of `train.architecture`, one message each."""
        if not settings:
            return [f"train.architecture: is empty and train.pretrained too; set one, e.g. {self.example}"]
        kind = str(settings.get("type", self._default))
        if kind in self.by_type:
            return self.by_type[kind].problems(settings)
        unknown = f"train.architecture.type: {kind!r} is not known to {self.task}; {hint(kind, self.by_type)}"
        only_one = len(self.by_type) == 1  # then the other settings can only be meant for that
        return [unknown, *(self.by_type[self._default].problems(settings) if only_one else [])]

    def build(
        self,
        settings: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        roles: Sequence[str],
        **fields: Any,
    ) -> PreTrainedModel:
        """The network with random weights, in evaluation mode.

        Args:
            settings: `train.architecture`.
            tokenizer: gives the vocabulary's size and special ids.
            seed: of the weights.
            roles: special ids that the config stores, e.g. `pad_token_id`.
            fields: further fields of the config.

        Raises:
            UserError: the settings are wrong; lists every problem.
        """
        problems = self.problems(settings)
        if problems:
            raise UserError("\n".join(problems))
        chosen = self.by_type[settings.get("type", self._default)]
        shape = {key: value for key, value in settings.items() if key != "type"}
        ids = {role: getattr(tokenizer, role) for role in roles}
        torch.manual_seed(seed)
        return chosen.model(chosen.config(vocab_size=len(tokenizer), **ids, **fields, **shape)).eval()

    @property
    def _default(self) -> str:
        return next(iter(self.by_type))


def _defaults(config: type[PretrainedConfig]) -> dict[str, Any]:
    """Name of each field of a transformers config → its default."""
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(config)
    }


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
    is_activation = key.endswith(("activation_function", "_act", "activation"))
    return isinstance(value, str) and (not is_activation or value in ACT2FN)
