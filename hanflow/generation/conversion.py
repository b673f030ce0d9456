"""Conversion of transformers models to folders that CTranslate2 loads.

Each supported class has an entry in `FAMILIES`. A folder holds CTranslate2's `model.bin`, `shared_vocabulary.json` and
`config.json`, in which the key `hanflow` adds what a search needs and CTranslate2 does not store, and the tokenizer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hanflow.errors import UserError
from hanflow.generation.options import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMPUTE_TYPES = ("float32", "int8")
"""Arithmetic of the matrix products; int8 keeps one scale a row of each weight and float32 everywhere else."""

EXTRA = "hanflow"
"""Our key in CTranslate2's config.json."""

ENCODER_DECODER = "encoder-decoder"
"""Kind of model that maps a source text to a target text."""

_ACTIVATIONS = {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish"}


def conversion_problem(model: PreTrainedModel) -> str:
    """Why CTranslate2 cannot run this model; empty: it can."""
    try:
        import ctranslate2  # noqa: F401
    except ImportError:
        return "the package ctranslate2 is not installed (pip install ctranslate2)"
    # The class itself: a derived one may compute something else.
    known = type(model).__name__ in FAMILIES and type(model).__module__.startswith("transformers.")
    if not known:
        return f"CTranslate2 models are made of {', '.join(FAMILIES)} only, this is a {type(model).__name__}"
    activation = getattr(model.config, "activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        return f"CTranslate2 has no activation {activation!r}; it has {', '.join(sorted(_ACTIVATIONS))}"
    return ""


def convert(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    compute_type: str = "float32",
    search: dict[str, Any] | None = None,
) -> None:
    """Write a model and its tokenizer as a CTranslate2 folder; the model itself is not changed.

    Args:
        model: of a class in `FAMILIES`, on any device.
        tokenizer: its tokenizer.
        folder: to write; must not exist.
        compute_type: one of COMPUTE_TYPES, how the weights are stored.
        search: arguments of `translate_batch` to store in the folder for other programs.

    Raises:
        UserError: CTranslate2 cannot run this model; says why.
    """
    problem = conversion_problem(model)
    if problem:
        raise UserError(f"no CTranslate2 model can be made: {problem}")
    import torch
    from ctranslate2.converters.converter import Converter

    if compute_type != "float32" or model.device.type != "cpu":
        # CTranslate2 changes the tensors that it is given when it quantizes: give it copies.
        model = copy.deepcopy(model).cpu()
    kind, family = FAMILIES[type(model).__name__]

    class FromMemory(Converter):
        def _load(self) -> Any:
            with torch.no_grad():
                spec = family(model, tokenizer)
            facts = {
                "kind": kind,
                "compute_type": compute_type,
                "positions": getattr(model.config, "max_position_embeddings", None),
                "ids": special_ids(model),
                "search": search or {},
            }
            spec.config.add_attribute(EXTRA, facts)
            return spec

    FromMemory().convert(str(folder), quantization=compute_type)
    tokenizer.save_pretrained(folder)


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """Token of every row of the embedding matrix; a placeholder where the tokenizer has none."""
    tokens = [""] * size
    for token, row in tokenizer.get_vocab().items():
        if row < size:
            tokens[row] = token
    return [token or f"<|row {row}|>" for row, token in enumerate(tokens)]


def _bart(model: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """CTranslate2's specification of a BartForConditionalGeneration."""
    from ctranslate2.converters.transformers import BartLoader

    tokens = vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0])
    ids = special_ids(model)

    class Loader(BartLoader):
        def get_vocabulary(self, *_: Any) -> list[str]:
            return tokens

        def set_config(self, config: Any, *_: Any) -> None:
            config.eos_token = tokens[ids["eos_token_id"]]
            config.bos_token = tokens[ids.get("bos_token_id", ids["eos_token_id"])]
            config.decoder_start_token = tokens[ids["decoder_start_token_id"]]
            config.unk_token = tokenizer.unk_token or tokens[ids["pad_token_id"]]

    # CTranslate2 4.8 reads config fields that transformers 5 no longer has; BART's values have always been these.
    config = copy.copy(model.config)
    config.normalize_before, config.normalize_embedding = False, True
    view = SimpleNamespace(
        config=config, model=model.model, lm_head=model.lm_head, final_logits_bias=model.final_logits_bias
    )
    return Loader()(view, tokenizer)


FAMILIES: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "BartForConditionalGeneration": (ENCODER_DECODER, _bart),
}
"""Name of a transformers class → its kind, and what makes CTranslate2's specification of (model, tokenizer)."""
