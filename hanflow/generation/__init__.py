"""Text generation: beam search by transformers or CTranslate2 behind one interface, and sampling from language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hanflow.generation.conversion import COMPUTE_TYPES, conversion_problem, convert
from hanflow.generation.generator import Generator
from hanflow.generation.options import GenerationOptions, decoded, removed_ids, special_ids
from hanflow.generation.transformers_engine import TransformersEngine, generation_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hanflow.progress import Progress

__all__ = [
    "COMPUTE_TYPES",
    "GenerationOptions",
    "Generator",
    "conversion_problem",
    "convert",
    "decode",
    "generate",
    "generation_config",
    "special_ids",
]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[np.ndarray],
    options: GenerationOptions,
    progress: Progress | None = None,
) -> list[str]:
    """One text a source by the transformers engine; arguments and errors as in `Generator.generate`."""
    return Generator(TransformersEngine(model), tokenizer).generate(sources, options, progress)


def decode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generated: Sequence[Sequence[int]]) -> list[str]:
    """The texts of what `model.generate` returned.

    Args:
        generated: token ids of each row, the decoder's start first; ids below 0 are padding.
    """
    special = special_ids(model)
    end, removed = special["eos_token_id"], removed_ids(tokenizer, special)
    return [decoded([token for token in row[1:] if token >= 0], tokenizer, end, removed) for row in generated]
