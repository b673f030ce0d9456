"""Files of a model in Hugging Face format, of a folder or the hub, checked before transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hanflow.errors import UserError, first_line
from hanflow.own_files import parse_json, read_file
from hanflow.system import hub_answers

CONFIG, TOKENIZER_CONFIG, TOKENIZER = "config.json", "tokenizer_config.json", "tokenizer.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"

_PASSED_OVER = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "experts_implementation",
    "name_or_path",
    "transformers_weights",
    "use_kernels",
}
"""Keys of config.json, at any depth, that may name a place or a program to load: none of them is read."""


def read_json(name: str, file: str) -> dict[str, Any] | None:
    """A JSON file of a model's folder or hub name, without the keys in _PASSED_OVER; None: it is not there.

    Raises:
        UserError: it is no JSON object, or names code to run.
    """
    path = Path(name)
    if path.is_dir():
        path /= file
    elif not path.is_file():
        found = fetched(name, file)
        if found is None:
            return None
        path = Path(found)
    if not path.is_file():
        return None
    values = parse_json(read_file(path), path, "fetch or save it again", strict=False)
    try:
        return _without_code(values, path)
    except RecursionError:
        raise UserError(f"{path}: nested too deep; fetch or save it again") from None


def _without_code(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Values of a file without the keys in _PASSED_OVER, at any depth.

    Raises:
        UserError: they name code to run.
    """
    if values.get("auto_map"):
        raise UserError(
            f"{path}: names code of its own (auto_map), which would run on this machine; hanflow runs none, so nothing was "
            "loaded. Give a model of an architecture of transformers; if it is one, remove auto_map from the file"
        )
    return {key: _cleaned(value, path) for key, value in values.items() if key not in _PASSED_OVER}


def _cleaned(value: Any, path: Path) -> Any:
    if isinstance(value, list):
        return [_cleaned(item, path) for item in value]
    return _without_code(value, path) if isinstance(value, dict) else value


def fetched(name: str, file: str) -> str | None:
    """Local copy of a file of a model on the hub; None: it is not there, or neither network nor cache has it.

    Raises:
        UserError: there is no such model.
    """
    from transformers.utils.hub import cached_file

    if is_missing(name):
        raise UserError(f"{name}: no such folder; give one in Hugging Face format, or the name of a model on the hub")
    quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        return cached_file(name, file, local_files_only=not hub_answers(), **quietly)
    except OSError as error:  # no such model, or no name of one
        raise UserError(
            f"{name}: no model can be loaded from there ({first_line(error)}); give a folder in Hugging Face format, or the "
            "name of a model on the hub"
        ) from error


def is_missing(name: str) -> bool:
    """Whether a name can only be a path, of a folder that is not there."""
    return name.startswith(("/", ".", "~")) and not Path(name).expanduser().exists()


def revision_of(name: str) -> str | None:
    """The commit of a model on the hub that its config is of; None: a local folder."""
    found = None if Path(name).exists() else fetched(name, CONFIG)
    return Path(found).parent.name if found else None


def check_weights(name: str) -> None:
    """Refuse weights that are not safetensors, wherever an index of shards says that they lie.

    Raises:
        UserError: there are none, or an index names other files.
    """
    index = read_json(name, WEIGHTS_INDEX)
    if index is not None:
        shards = index.get("weight_map")
        named = set(shards.values()) if isinstance(shards, dict) else set()
        wrong = [file for file in named if not str(file).endswith(".safetensors") or Path(str(file)).name != file]
        if wrong or not named:
            raise UserError(
                f"{name}/{WEIGHTS_INDEX}: names {wrong[0] if wrong else 'no file'}, expected .safetensors files beside it; "
                "fetch or save the model again"
            )
        return
    there = (Path(name) / WEIGHTS).is_file() if Path(name).is_dir() else fetched(name, WEIGHTS) is not None
    if there:
        return
    pickled = next((p.name for p in sorted(Path(name).glob("*.bin")) + sorted(Path(name).glob("*.pt*"))), "")
    held = (
        f"its weights are a pickle ({pickled}), a program that runs as it is read" if pickled else f"has no {WEIGHTS}"
    )
    raise UserError(
        f"{name}: {held}; make a folder of safetensors: hanflow import FOLDER/{pickled or 'pytorch_model.bin'} --model "
        "FOLDER --tokenizer FOLDER --output NEW (it reads tensors and nothing else)"
    )
