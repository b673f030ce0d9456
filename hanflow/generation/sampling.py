"""Continuing texts with a language model: greedily, or by sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hanflow.config import SamplingConfig
from hanflow.data.batches import batches
from hanflow.errors import UserError
from hanflow.generation.transformers_engine import padded, searching
from hanflow.progress import log

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def generate(
    model: PreTrainedModel, prompts: Sequence[np.ndarray], options: SamplingConfig, seed: int = 42
) -> list[np.ndarray]:
    """One continuation a prompt, in order.

    A continuation does not depend on the other prompts of its batch: each prompt has its own random generator, seeded by
    `seed`, its tokens and how often the same prompt came before. (Batches of other shapes round the logits
    differently in the last place, which can decide a tie.)

    Args:
        model: a decoder-only transformers model; run in evaluation mode, its own mode is restored.
        prompts: int32 arrays of token ids, the separator first as in training; an empty one stands for the separator alone.
            Prompts that leave no room for the continuation in the model's context are cut to their last tokens, with
            a warning.
        options: how to continue; `batch_tokens` counts prompts and continuations together. Greedy: always the likeliest
            token, whatever temperature, top_k, top_p and seed are.
        seed: of the random numbers.

    Returns:
        int32 arrays of new token ids, without the end of sequence that may have ended them.

    Raises:
        UserError: the model's context is too short for the continuation alone.
    """
    end, pad = _special_ids(model)
    cut = _fitted([np.asarray(prompt if len(prompt) else [end]) for prompt in prompts], model, options.max_new_tokens)
    generators = _generators(prompts, seed)
    search = GenerationConfig(
        do_sample=False,  # `_Sampler` samples, from the generators of the prompts
        num_beams=1,
        max_new_tokens=options.max_new_tokens,
        eos_token_id=end,
        pad_token_id=pad,
        use_cache=bool(getattr(model.config, "use_cache", True)),
    )
    continuations: list[np.ndarray] = [np.zeros(0, np.int32)] * len(cut)
    lengths = [len(prompt) for prompt in cut]
    with searching(model, search):
        for rows in batches(lengths, options.batch_tokens, more=options.max_new_tokens):
            inputs = padded([cut[row] for row in rows], pad, model, left=True)  # so that new tokens follow every prompt
            draw = [] if options.greedy else [_Sampler([generators[row] for row in rows], options)]
            generated = model.generate(**inputs, generation_config=search, logits_processor=LogitsProcessorList(draw))
            new = generated[:, inputs["input_ids"].shape[1] :].cpu().numpy()
            for row, tokens in zip(rows, new, strict=True):
                ends = np.flatnonzero(tokens == end)
                continuations[row] = tokens[: ends[0] if len(ends) else None].astype(np.int32)
    return continuations


class _Sampler(LogitsProcessor):
    """Samples one token a row after temperature, top-k and top-p, and forbids all others.

    One uniform number a token, looked up in the cumulated probabilities.
    """

    def __init__(self, generators: Sequence[np.random.Generator], options: SamplingConfig):
        self.generators = generators
        self.warpers: list[LogitsProcessor] = []
        if options.temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(float(options.temperature)))
        if options.top_k:
            self.warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(options.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        cumulated = scores.double().softmax(-1).cumsum(-1)
        drawn = torch.tensor([generator.random() for generator in self.generators], dtype=torch.float64)
        places = drawn.to(scores.device)[:, None] * cumulated[:, -1:]
        token = torch.searchsorted(cumulated, places, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter_(1, token, 0.0)


def _special_ids(model: PreTrainedModel) -> tuple[int, int]:
    """(end of sequence, padding)."""
    end = model.config.eos_token_id
    if isinstance(end, list):  # of several, the first is the one that training appends
        end = end[0]
    if end is None:
        raise UserError("the model's config.json has no eos_token_id: no text can be generated; add it there")
    pad = model.config.pad_token_id
    return end, end if pad is None else pad


def _fitted(prompts: list[np.ndarray], model: PreTrainedModel, new: int) -> list[np.ndarray]:
    """Prompts cut so that `new` tokens fit behind them."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or not prompts:
        return prompts
    room = positions - new
    if room < 1:
        raise UserError(
            f"max_new_tokens={new} leaves no room for a prompt: the model's context is {positions} tokens; "
            f"set it to {positions - 1} at most"
        )
    long = sum(len(prompt) > room for prompt in prompts)
    if long:
        log.warning(
            "%d of %d prompts are longer than %d tokens, which the model's context of %d leaves beside %d new ones: only "
            "their last %d are used (the longest has %d)",
            *(long, len(prompts), room, positions, new, room, max(map(len, prompts))),
        )
    return [prompt[-room:] for prompt in prompts]


def _generators(prompts: Sequence[np.ndarray], seed: int) -> list[np.random.Generator]:
    before: Counter[bytes] = Counter()
    generators = []
    for prompt in prompts:
        tokens = np.asarray(prompt, dtype=np.int32)
        same = before[tokens.tobytes()]
        before[tokens.tobytes()] += 1
        generators.append(np.random.default_rng([seed, same, *tokens.tolist()]))
    return generators
