"""Models, tokenizers and configs in Hugging Face format, from a folder or the hub: the only callers of `from_pretrained`.

Nothing that a folder names is executed: its own code is refused (`trust_remote_code=False`), and weights are read as
safetensors or by torch's weights-only unpickler. An existing folder is preferred to a hub name, and read without asking
the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanflow.config import TrainConfig
from hanflow.errors import UserError, first_line
from hanflow.models import register
from hanflow.system import hub_answers
from hanflow.text.vocabulary import add_tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

ENCODER_DECODER = "AutoModelForSeq2SeqLM"
CAUSAL_LM = "AutoModelForCausalLM"
CLASSIFIER = "AutoModelForSequenceClassification"

KINDS = {ENCODER_DECODER: "encoder-decoder", CAUSAL_LM: "language model", CLASSIFIER: "classifier"}
"""Name of a transformers auto class → what it loads, for messages."""

TOKEN_ROLES = {
    "bos_token": ("<s>", "[CLS]", "<bos>", "<|startoftext|>"),
    "eos_token": ("</s>", "[SEP]", "<eos>", "<|endoftext|>"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
    "unk_token": ("<unk>", "[UNK]"),
    "mask_token": ("<mask>", "[MASK]"),
}
"""Role of a special token → its usual names, for a tokenizer.json that comes without a configuration."""


def load_model(name: str | Path, auto_class: str, **settings: Any) -> PreTrainedModel:
    """A model in float32 and evaluation mode; hanflow's own architectures too.

    Args:
        name: folder or hub name.
        auto_class: name of the transformers class that finds the architecture, e.g. ENCODER_DECODER.
        settings: passed on to `from_pretrained`.

    Raises:
        UserError: no such model can be loaded; says why.
    """
    import torch
    import transformers

    register()
    name = str(name)
    if _is_missing(name):
        raise UserError(f"{name}: no such folder; give one with a model in Hugging Face format, or a hub name")
    if Path(name).is_file():
        raise UserError(
            f"{name}: is a file, expected a folder in Hugging Face format; make one of a checkpoint with "
            f"`hanflow import {name} --model CONFIG --tokenizer DIR --output DIR`"
        )
    try:
        found = getattr(transformers, auto_class)
        return found.from_pretrained(name, dtype=torch.float32, **_safely(name), **settings).eval()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: no pretrained {KINDS.get(auto_class, 'model')} can be loaded from there ({first_line(error)}); give "
            "a folder in Hugging Face format, or the name of a model on the hub with network or a filled cache"
        ) from error


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Args:
        name: folder or hub name.

    Raises:
        UserError: none can be loaded; says why.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name), **_safely(name))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: no tokenizer can be loaded from there ({first_line(error)}); give a bundle, or a folder with a "
            "model and its tokenizer"
        ) from error


def load_config(name: str | Path) -> PretrainedConfig:
    """A model's config.

    Args:
        name: folder, its config.json, or hub name.

    Raises:
        OSError, ValueError, KeyError: it is not the config of a transformers model.
    """
    from transformers import AutoConfig

    register()
    return AutoConfig.from_pretrained(str(name), **_safely(name))


def load_with_tokenizer(
    folder: str | Path, load: Callable[[str], PreTrainedModel]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a bundle, or from any folder that holds both in Hugging Face format.

    Args:
        folder: of the bundle, or of the model.
        load: makes a model of a folder in Hugging Face format, e.g. `Task.load_model`.

    Raises:
        UserError: one of them is not there.
    """
    place = huggingface_folder(folder)
    return load(str(place)), load_tokenizer(place)


def huggingface_folder(folder: str | Path) -> Path:
    """The folder in Hugging Face format: the one inside a bundle, else the folder itself."""
    inner = Path(folder) / "huggingface"
    return inner if inner.is_dir() else Path(folder)


def load_for_training(
    config: TrainConfig, auto_class: str, tokenizer: PreTrainedTokenizerBase, shared_ids: Sequence[str], **settings: Any
) -> PreTrainedModel:
    """The model `config.pretrained`, with an embedding for every token that was added to its vocabulary.

    Args:
        config: its `seed` is that of the weights that are new: a classifier's head, added embeddings.
        auto_class, settings: as in `load_model`.
        tokenizer: the one that the training data was encoded with.
        shared_ids: ids that model and tokenizer must agree on where the model has them, e.g. `pad_token_id`.

    Raises:
        UserError: the model cannot be loaded, or is not the tokenizer's.
    """
    import torch

    name = config.pretrained
    torch.manual_seed(config.seed)
    model = load_model(name, auto_class, **settings)
    for role in shared_ids:
        ours, theirs = getattr(tokenizer, role), getattr(model.config, role)
        if theirs is not None and ours != theirs:
            raise UserError(
                f"{name}: its {role} is {theirs}, the tokenizer's is {ours}: they do not belong together; "
                f"set tokenize.tokenizer={name}"
            )
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings:  # new rows at the end, drawn around the mean of the old ones
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    return model


def load_encoding_tokenizer(name: str, special_tokens: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer that can encode and pad the training data.

    Args:
        name: hub name, or folder with at least a tokenizer.json.
        special_tokens: tokens to add to the vocabulary where they are missing.

    Raises:
        UserError: nothing loads from there, or it has no end-of-sequence or padding token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if _is_missing(name):
        raise UserError(f"tokenize.tokenizer={name}: no such folder; give one with a tokenizer.json, or a hub name")
    try:
        bare = Path(name) / "tokenizer.json"
        if bare.is_file() and not (Path(name) / "tokenizer_config.json").is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(bare))
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, **_safely(name))
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise UserError(
            f"tokenize.tokenizer={name}: no tokenizer can be loaded from there ({first_line(error)}); give a folder with a "
            "tokenizer.json, or the name of a model on the hub with network or a filled cache"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(f"tokenize.tokenizer={name}: has no tokenizer.json; convert it to the fast format first")
    # A stored truncation would cut texts silently before ours does, which keeps the end of sequence and is counted.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab()
    for role, usual in TOKEN_ROLES.items():
        if getattr(tokenizer, role, None) is None:
            found = next((token for token in usual if token in vocabulary), None)
            if found:
                setattr(tokenizer, role, found)
    for role in ("eos_token", "pad_token"):
        if getattr(tokenizer, role) is None:
            raise UserError(
                f"tokenize.tokenizer={name}: has no {role.replace('_', ' ')} (looked for {', '.join(TOKEN_ROLES[role])}); "
                "set it in the folder's tokenizer_config.json"
            )
    add_tokens(tokenizer, special_tokens)
    return tokenizer


def _safely(name: str | Path) -> dict[str, bool]:
    """Arguments of every `from_pretrained`."""
    return {"trust_remote_code": False, "local_files_only": Path(name).exists() or not hub_answers()}


def _is_missing(name: str) -> bool:
    """Whether a name can only be a path, of a folder that is not there."""
    return name.startswith(("/", ".", "~")) and not Path(name).expanduser().exists()
