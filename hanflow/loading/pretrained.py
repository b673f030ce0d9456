"""The door to models, tokenizers and configs in Hugging Face format, of a folder or the hub: nobody else opens any.

Nothing that a folder names is imported, called or looked up: its JSON files are checked before transformers sees them,
classes are those that transformers or hanflow lists for a kind of model, code of its own (`auto_map`) is refused, and
weights are read as safetensors alone. An existing folder is preferred to a hub name, and read without asking the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hanflow.config import TrainConfig
from hanflow.errors import UserError, first_line
from hanflow.loading.files import CONFIG, TOKENIZER, TOKENIZER_CONFIG, check_weights, is_missing, read_json, revision_of
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


def load_model(
    name: str | Path, auto_class: str, fields: Mapping[str, Any] | None = None, **settings: Any
) -> PreTrainedModel:
    """A model in float32 and evaluation mode; hanflow's own architectures too.

    Args:
        name: folder or hub name.
        auto_class: name of the transformers class that finds the architecture, e.g. ENCODER_DECODER.
        fields: of its config, instead of those in config.json.
        settings: passed on to `from_pretrained`.

    Raises:
        UserError: no such model can be loaded; says why.
    """
    import torch
    from safetensors import SafetensorError

    name = str(name)
    check_folder(name)
    config = load_config(name, fields)
    check_weights(name)
    if not fits(config, auto_class):
        raise UserError(
            f"{name}: no pretrained {KINDS.get(auto_class, 'model')} can be loaded from there, {CONFIG} describes a "
            f"model of type {config.model_type}; give one of the task, or set another task"
        )
    auto, safely = _auto(auto_class), {**_safely(name, config), "use_safetensors": True}
    try:
        return auto.from_pretrained(name, config=config, dtype=torch.float32, **safely, **settings).eval()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{name}: no pretrained {KINDS.get(auto_class, 'model')} can be loaded from there ({first_line(error)}); give "
            "a folder in Hugging Face format, or the name of a model on the hub with network or a filled cache"
        ) from error


def check_folder(name: str) -> None:
    """Refuse a model's name that is a path without a folder there.

    Raises:
        UserError: nothing is there, or a file.
    """
    if is_missing(name):
        raise UserError(f"{name}: no such folder; give one with a model in Hugging Face format, or a hub name")
    if Path(name).is_file():
        raise UserError(
            f"{name}: is a file, expected a folder in Hugging Face format; make one of a checkpoint with "
            f"`hanflow import {name} --model CONFIG --tokenizer DIR --output DIR`"
        )


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Args:
        name: folder or hub name.

    Raises:
        UserError: none can be loaded; says why.
    """
    name = str(name)
    try:
        return _tokenizer(name)
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise UserError(
            f"{name}: no tokenizer can be loaded from there ({first_line(error)}); give a bundle, or a folder with a "
            "model and its tokenizer"
        ) from error


def load_config(name: str | Path, fields: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """A model's config.

    Args:
        name: folder, its config.json, or hub name.
        fields: instead of those in config.json.

    Raises:
        UserError: it is not the config of a model that transformers or hanflow has.
    """
    mapping = _transformers().CONFIG_MAPPING
    register()
    place = str(name)
    values = read_json(place, CONFIG)
    if values is None:
        raise UserError(
            f"{place}: no {CONFIG} can be read from there; give a folder in Hugging Face format, or the name of a model on "
            "the hub with network or a filled cache"
        )
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in mapping:
        raise UserError(
            f"{place}: no model can be loaded from there: {CONFIG} has the model_type {kind!r}, which neither transformers "
            "nor hanflow has; give a model of another architecture"
        )
    if values.get("quantization_config") is not None:
        raise UserError(
            f"{place}: {CONFIG} describes quantized weights (quantization_config); give the model as trained"
        )
    if not _is_tokenizer_class(values.get("tokenizer_class")):
        del values["tokenizer_class"]
    if fields:
        values = {key: value for key, value in values.items() if key != "num_labels"} | dict(fields)
    try:
        config = mapping[kind].from_dict(values)
    except Exception as error:  # of a class's own checks, which raise what they like
        raise UserError(
            f"{place}: no model can be made of its {CONFIG} ({first_line(error)}); fetch it again"
        ) from error
    config._commit_hash = revision_of(place)
    return config


def untrained(config: PretrainedConfig) -> PreTrainedModel:
    """A model of a config from `load_config`, in float32 and evaluation mode, its weights still random.

    Raises:
        ValueError, KeyError, TypeError: its architecture is none that a task has.
    """
    import torch

    auto_class = ENCODER_DECODER if config.is_encoder_decoder else CAUSAL_LM
    if (config.architectures or [""])[0].endswith("ForSequenceClassification"):
        auto_class = CLASSIFIER
    return _auto(auto_class).from_config(config, dtype=torch.float32, trust_remote_code=False).eval()


def fits(config: PretrainedConfig, auto_class: str, architecture: str = "") -> bool:
    """Whether an auto class has a model for a config; with an architecture, whether it is that one."""
    models = _auto(auto_class)._model_mapping.get(type(config), ())
    names = [model.__name__ for model in (models if isinstance(models, tuple) else (models,))]
    return architecture in names if architecture else bool(names)


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
    config: TrainConfig,
    auto_class: str,
    tokenizer: PreTrainedTokenizerBase,
    shared_ids: Sequence[str],
    fields: Mapping[str, Any] | None = None,
    **settings: Any,
) -> PreTrainedModel:
    """The model `config.pretrained`, with an embedding for every token that was added to its vocabulary.

    Args:
        config: its `seed` is that of the weights that are new: a classifier's head, added embeddings.
        auto_class, fields, settings: as in `load_model`.
        tokenizer: the one that the training data was encoded with.
        shared_ids: ids that model and tokenizer must agree on where the model has them, e.g. `pad_token_id`.

    Raises:
        UserError: the model cannot be loaded, or is not the tokenizer's.
    """
    import torch

    name = config.pretrained
    torch.manual_seed(config.seed)
    model = load_model(name, auto_class, fields, **settings)
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
    if is_missing(name):
        raise UserError(f"tokenize.tokenizer={name}: no such folder; give one with a tokenizer.json, or a hub name")
    try:
        tokenizer = _tokenizer(name)
    except UserError:
        raise
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


def _auto(auto_class: str) -> Any:
    """The class of transformers that a task's code names."""
    register()
    return getattr(_transformers(), auto_class)


def _transformers() -> ModuleType:
    """transformers, which asks nobody whether to run code: without time to wait for an answer it refuses."""
    import transformers
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    return transformers


def _tokenizer(name: str) -> Any:
    """The tokenizer of a folder or hub name; one whose class transformers does not list is read from tokenizer.json alone."""
    transformers = _transformers()
    values, model = read_json(name, TOKENIZER_CONFIG), read_json(name, CONFIG)
    bare = Path(name) / TOKENIZER
    if values is None and bare.is_file():
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(bare))
    if values is None and model is None:
        raise OSError("no tokenizer.json, tokenizer_config.json or config.json")
    register()
    known = model is not None and model.get("model_type") in transformers.CONFIG_MAPPING
    config = load_config(name) if known else transformers.PretrainedConfig()  # else the file would be read unchecked
    safely = _safely(name, config)
    if values is not None and not _is_tokenizer_class(values.get("tokenizer_class")):
        return transformers.PreTrainedTokenizerFast.from_pretrained(name, **safely)
    return transformers.AutoTokenizer.from_pretrained(name, config=config, **safely)


def _is_tokenizer_class(name: Any) -> bool:
    """Whether a file's `tokenizer_class` is one that transformers lists as a tokenizer, or is not there (None)."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    known = {*TOKENIZER_MAPPING_NAMES.values(), "PreTrainedTokenizer", "TokenizersBackend"}
    return name is None or (
        isinstance(name, str) and name.removesuffix("Fast") in {k and k.removesuffix("Fast") for k in known}
    )


def _safely(name: str, config: PretrainedConfig | None = None) -> dict[str, Any]:
    """Arguments of every `from_pretrained`; a model on the hub is read at the commit of its checked config."""
    local = Path(name).exists() or not hub_answers()
    revision = None if local or config is None else getattr(config, "_commit_hash", None)
    return {"trust_remote_code": False, "local_files_only": local, **({"revision": revision} if revision else {})}
