"""Models that others trained: loaded, and fitted to the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hanflow.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load(auto_class: Any, name: str, kind: str, **settings: Any) -> PreTrainedModel:
    """A pretrained model in float32 and evaluation mode, from a hub name or a folder.

    Args:
        auto_class: the transformers class that finds the right one, e.g. AutoModelForCausalLM.
        name: hub name or folder.
        kind: what it should be, for the error message, e.g. "encoder-decoder".
        settings: handed on to its `from_pretrained`.

    Raises:
        UserError: it cannot be loaded; says why.
    """
    if name.startswith(("/", ".", "~")) and not Path(name).expanduser().exists():
        raise UserError(f"{name}: no such folder; give one with a model in Hugging Face format, or a hub name")
    if Path(name).is_file():
        raise UserError(
            f"{name}: is a file, expected a folder in Hugging Face format; make one of a checkpoint with "
            f"`hanflow import {name} --model CONFIG --tokenizer DIR --output DIR`"
        )
    try:
        return auto_class.from_pretrained(name, dtype=torch.float32, **settings).eval()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: no pretrained {kind} can be loaded from there ({first_line(error)}); give a folder in Hugging Face "
            "format, or the name of a model on the hub with network or a filled cache"
        ) from error


def fit_to_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, roles: Sequence[str]
) -> None:
    """Give a model rows for the tokens that were added to its vocabulary.

    Args:
        name: where the model came from, for the error message.
        roles: ids that both must have in common where the model has them, e.g. `pad_token_id`.

    Raises:
        UserError: the two do not belong together.
    """
    for role in roles:
        ours, theirs = getattr(tokenizer, role), getattr(model.config, role)
        if theirs is not None and ours != theirs:
            raise UserError(
                f"{name}: its {role} is {theirs}, the tokenizer's is {ours}: they do not belong together; "
                f"set tokenize.tokenizer={name}"
            )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:  # special tokens were added: new rows at the end, drawn around the old ones' mean
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)


def open_folder(
    folder: str, load_model: Callable[[str], PreTrainedModel]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a bundle, or from any folder that holds both in Hugging Face format.

    Raises:
        UserError: one of them is not there.
    """
    inner = Path(folder) / "huggingface"
    place = str(inner if inner.is_dir() else folder)
    return load_model(place), load_tokenizer(place)


def load_config(name: str | Path) -> PretrainedConfig:
    """A model's config.

    Args:
        name: folder, its config.json, or hub name.

    Raises:
        OSError, ValueError, KeyError: it is not the config of a transformers model.
    """
    from transformers import AutoConfig

    from hanflow.models import register

    register()
    return AutoConfig.from_pretrained(str(name))


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: no tokenizer can be loaded from there ({first_line(error)}); give a bundle, or a folder with a "
            "model and its tokenizer"
        ) from error
