"""Weights from other programs: PyTorch-Lightning checkpoints and bare state dicts, loaded into a transformers model.

A checkpoint is untrusted data. It is read with torch's weights_only unpickler, which builds tensors and plain containers
and calls nothing else, or as safetensors.
"""

from __future__ import annotations

import argparse
import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hanflow.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN = 10
"""Most keys of one kind that a message lists."""

NESTS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""Keys under which training programs store the state dict, in the order in which they are tried."""


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    keys: int
    """Number of tensors that were loaded."""
    prefix: str
    """The prefix that was removed from every key or added: "-module.", "+model.", "-module. +model."."""
    derived: list[str]
    """Keys that are missing in the file and not needed: tied weights, and buffers that training does not change."""
    ignored: list[str]
    """Keys of the file that the caller asked to ignore."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint file."""

    tensors: dict[str, torch.Tensor]
    """By their keys, on the CPU."""
    under: str = ""
    """Where in the file they are: `state_dict`; empty: at its top."""
    passed_over: list[str] = field(default_factory=list)
    """What else the file holds, each with its number of tensors: `ema_state_dict (52 tensors)`."""


def read_weights(path: Path) -> Weights:
    """The tensors of a checkpoint file; nothing in it is executed.

    Args:
        path: `.safetensors`, else anything that `torch.save` wrote: a state dict, or a mapping that holds one under a
            key in NESTS (PyTorch-Lightning: `state_dict`).

    Raises:
        UserError: the file does not exist, cannot be read, holds more than data, or no tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a checkpoint (.ckpt, .pt, .bin or .safetensors)")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return Weights(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: cannot be read as safetensors ({error}); fetch or save it again") from error
    return _state_dict(_unpickled(path), path)


def load_weights(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor], origin: str, ignore: Sequence[str] = ()
) -> Imported:
    """Load weights into a model; all that it needs must be there, and nothing else.

    Args:
        model: changed only if everything fits; floating-point tensors are taken in the model's own dtype.
        weights: tensors by their keys; a common prefix (`model.`, `module.`) is detected and removed, and that of the base
            model is added if the file holds the bare base model.
        origin: name of the weights in messages.
        ignore: patterns (`loss_fn.*`) of keys of the file to ignore.

    Raises:
        UserError: keys are missing or unexpected, or shapes differ; lists up to SHOWN of each, with counts.
    """
    ignored = sorted(key for key in weights if any(fnmatch.fnmatchcase(key, pattern) for pattern in ignore))
    kept = {key: value for key, value in weights.items() if key not in set(ignored)}
    wanted = model.state_dict()
    prefix, renamed = _fitted(kept, wanted, getattr(model, "base_model_prefix", ""))
    missing, unexpected = sorted(wanted.keys() - renamed.keys()), sorted(renamed.keys() - wanted.keys())
    same = _aliases(wanted)
    buffers = {name for name, _ in model.named_buffers()}
    derived = [key for key in missing if key in buffers or any(other in renamed for other in same[key])]
    missing = [key for key in missing if key not in set(derived)]
    shapes = [
        f"{key}: {tuple(renamed[key].shape)} in the file, {tuple(wanted[key].shape)} in the model"
        for key in sorted(wanted.keys() & renamed.keys())
        if renamed[key].shape != wanted[key].shape
    ]
    torn = [
        f"{key} and {other}"
        for key in sorted(wanted.keys() & renamed.keys())
        for other in same[key]
        if key < other and other in renamed and not torch.equal(renamed[key], renamed[other])
    ]
    problems = [
        *_listed("missing: the model has them, the file does not", missing),
        *_listed("unexpected: the file has them, the model does not", unexpected),
        *_listed("of another shape", shapes),
        *_listed("different in the file, one and the same (tied) in the model", torn),
    ]
    if problems:
        raise UserError(
            "\n".join(
                [
                    f"{origin}: its {len(kept)} tensors do not fit a {type(model).__name__} of {len(wanted)}; nothing "
                    "was imported",
                    *problems,
                    "Give the config.json of the very model that was saved (sizes, layers, vocab_size); pass over keys "
                    "that are no part of it with --ignore 'PATTERN'.",
                ]
            )
        )
    model.load_state_dict(renamed, strict=False)  # of tied tensors, one is enough
    return Imported(len(renamed), prefix, derived, ignored)


def _unpickled(path: Path) -> Any:
    """The content of a file of `torch.save`."""
    # Settings that Lightning saves beside the weights are read as plain data; their classes are not imported.
    plain: list[Any] = [
        argparse.Namespace,
        *(
            (dict, f"{module}.AttributeDict")
            for module in (
                "pytorch_lightning.utilities.parsing",
                "lightning_fabric.utilities.data",
                "lightning.fabric.utilities.data",
            )
        ),
        *((_joined, f"pathlib.{name}") for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    ]
    try:
        with torch.serialization.safe_globals(plain):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can make the unpickler raise anything
        reason = str(error)
        if "Unsupported" in reason or "GLOBAL" in reason or "reduce" in reason:
            found = reason.split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL " in reason else type(error).__name__
            raise UserError(
                f"{path}: holds more than weights ({found}); reading that would run code of whoever made the file, so it "
                "was not read and nothing ran. Where you trust it, load it with the program that saved it and save the "
                'weights alone: safetensors.torch.save_file(model.state_dict(), "weights.safetensors"), or '
                'torch.save(model.state_dict(), "weights.pt")'
            ) from error
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({first_line(error)}); fetch it again, or save it again with torch.save"
        ) from error


def _joined(*parts: str) -> str:
    return "/".join(parts)


def _state_dict(content: Any, path: Path) -> Weights:
    """The mapping of tensors in a file's content: the content itself, or what is stored under a key in NESTS."""
    found, under, others = content, list[str](), list[str]()
    while isinstance(found, Mapping) and len(under) < len(NESTS):
        inner = next((key for key in NESTS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        others += [_described(".".join([*under, str(key)]), value) for key, value in found.items() if key != inner]
        under.append(inner)
        found = found[inner]
    if isinstance(found, Mapping):
        tensors = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
        if tensors:
            others += [_described(".".join([*under, str(k)]), v) for k, v in found.items() if str(k) not in tensors]
            return Weights(tensors, ".".join(under), others)
    held = ", ".join(map(str, list(content)[:SHOWN])) if isinstance(content, Mapping) else type(content).__name__
    raise UserError(
        f"{path}: holds no weights (found {held or 'nothing'}); expected a state dict, by itself or under one of "
        f"{', '.join(NESTS)}"
    )


def _described(key: str, value: Any) -> str:
    """A key of a file, with the number of tensors below it."""
    count = _tensors_in(value)
    return f"{key} ({count} {'tensor' if count == 1 else 'tensors'})" if count else key


def _tensors_in(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_tensors_in, value.values()))
    return sum(map(_tensors_in, value)) if isinstance(value, (list, tuple)) else int(isinstance(value, torch.Tensor))


def _fitted(
    weights: Mapping[str, torch.Tensor], wanted: Mapping[str, Any], base: str
) -> tuple[str, dict[str, torch.Tensor]]:
    """The change of prefix with which most keys fit, and the tensors under their new keys."""
    # BART's own keys begin with `model.`, so a prefix is only taken off where more keys fit without it.
    votes: Counter[tuple[str, str]] = Counter()
    for key in weights:
        parts = key.split(".")
        for cut in range(len(parts)):
            removed, rest = "".join(f"{part}." for part in parts[:cut]), ".".join(parts[cut:])
            for added in {"", f"{base}." if base else ""}:
                votes[removed, added] += added + rest in wanted
    removed, added = max(votes, key=lambda change: (votes[change], -len(change[0] + change[1])), default=("", ""))
    change = " ".join(sign + prefix for sign, prefix in (("-", removed), ("+", added)) if prefix)
    return change, {added + key.removeprefix(removed): value for key, value in weights.items()}


def _aliases(state: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Key → the other keys of the very same tensor (tied weights)."""
    groups: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for key, value in state.items():
        groups.setdefault((value.data_ptr(), tuple(value.shape)), []).append(key)
    return {
        key: [other for other in group if other != key] if state[key].numel() else []
        for group in groups.values()
        for key in group
    }


def _listed(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f"\n    … and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return [f"  {len(items)} {title}:\n    " + "\n    ".join(items[:SHOWN]) + more]
