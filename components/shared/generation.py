"""Generating text with an encoder-decoder: what evaluate, export and prediction share.

Every knob of the search is set here, none is left to what a model's own generation_config.json happens to say (BART's
say 20 tokens at most, or no repeated trigram), so one setting means one thing whatever the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from components.shared.config import EvaluateConfig, UserError
from components.shared.progress import log

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from components.shared.progress import Progress


@dataclass(frozen=True)
class GenerationOptions:
    """How texts are generated; the fields mean what the settings of the same names in EvaluateConfig mean."""

    beams: int = 4
    max_new_tokens: int = 100
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    batch_tokens: int = 8192
    remove_tokens: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: EvaluateConfig) -> GenerationOptions:
        """The options that an evaluation's settings stand for."""
        return cls(
            beams=config.beams,
            max_new_tokens=config.max_new_tokens,
            min_new_tokens=config.min_new_tokens,
            length_penalty=config.length_penalty,
            no_repeat_ngram=config.no_repeat_ngram,
            batch_tokens=config.batch_tokens,
            remove_tokens=tuple(config.remove_tokens),
        )


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[np.ndarray],
    options: GenerationOptions,
    progress: Progress | None = None,
) -> list[str]:
    """One generated text a source, in the sources' order; beam search in float32, nothing random.

    Args:
        model: an encoder-decoder; evaluated in eval mode, its own mode is put back.
        tokenizer: its tokenizer.
        sources: int32 arrays of shape (length,): token ids, end-of-sequence included.
        options: the search and the size of a batch.
        progress: told of every finished row.

    Raises:
        UserError: a source is longer than the model's positions, or min_new_tokens cannot be reached.
    """
    if not len(sources):
        return []
    import torch

    _check_positions(model, sources)
    search = generation_config(model, options)
    ids = special_ids(model)
    removed = _removed_ids(model, tokenizer, options.remove_tokens)
    texts = [""] * len(sources)
    was_training, own = model.training, model.generation_config
    model.eval()
    # generate() fills whatever a given config leaves open from the model's own one: let that be the same.
    model.generation_config = search
    try:
        with torch.inference_mode():
            for rows in batches([len(source) for source in sources], options.batch_tokens, options.beams):
                inputs, mask = _padded([sources[row] for row in rows], ids["pad_token_id"])
                generated = model.generate(
                    input_ids=torch.from_numpy(inputs).to(model.device),
                    attention_mask=torch.from_numpy(mask).to(model.device),
                    generation_config=search,
                )
                for row, tokens in zip(rows, generated.tolist(), strict=True):
                    texts[row] = _decoded(tokens[1:], tokenizer, ids["eos_token_id"], removed)
                if progress is not None:
                    progress.update(len(rows))
    finally:
        model.generation_config = own
        model.train(was_training)
    return texts


def decode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generated: Sequence[Sequence[int]]) -> list[str]:
    """Texts of what `model.generate` returned, as `generate` would give them.

    Args:
        generated: one row of token ids each, the decoder's start first; ids below 0 are padding.
    """
    end, removed = special_ids(model)["eos_token_id"], _removed_ids(model, tokenizer, ())
    return [_decoded([token for token in row[1:] if token >= 0], tokenizer, end, removed) for row in generated]


def batches(lengths: Sequence[int], batch_tokens: int, beams: int) -> Iterator[list[int]]:
    """Row numbers of every batch: rows of similar length together, the longest first.

    Args:
        lengths: tokens of every source.
        batch_tokens: most tokens of a batch: rows x the longest length among them x beams; one row always fits.
        beams: copies of every source that the search works on.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        # Sorted by falling length, the first row of a batch is what it is padded to.
        if batch and (len(batch) + 1) * max(lengths[batch[0]], 1) * beams > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def generation_config(model: PreTrainedModel, options: GenerationOptions) -> GenerationConfig:
    """The search as transformers understands it, complete: with it, `model.generate` does what `generate` does.

    Raises:
        UserError: min_new_tokens cannot be reached.
    """
    from transformers import GenerationConfig

    positions = _positions(model)
    longest = options.max_new_tokens
    if positions is not None and longest > positions:
        log.warning("max_new_tokens=%d is cut to %d, the positions that the model has", longest, positions)
        longest = positions
    if options.min_new_tokens > longest:
        raise UserError(
            f"evaluate.min_new_tokens={options.min_new_tokens} is above the longest text, {longest} tokens; lower it, "
            "or raise evaluate.max_new_tokens up to the model's positions"
        )
    settings: dict[str, Any] = {
        "num_beams": options.beams,
        "max_new_tokens": longest,
        "min_new_tokens": options.min_new_tokens,
        "no_repeat_ngram_size": options.no_repeat_ngram,
        "do_sample": False,
        "num_return_sequences": 1,
        "repetition_penalty": 1.0,
        "use_cache": True,
        **special_ids(model),
    }
    if options.beams > 1:  # transformers refuses to save a greedy search that has them
        settings |= {"length_penalty": options.length_penalty, "early_stopping": False}
    return GenerationConfig(**settings)


def special_ids(model: PreTrainedModel) -> dict[str, int]:
    """Ids that steer a search: `bos_token_id`, `eos_token_id`, `pad_token_id`, `decoder_start_token_id`.

    The model's config says how it was trained, so it wins over its generation config. Absent ones are left out.
    """
    ids = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        value = getattr(model.config, name, None)
        if value is None:
            value = getattr(model.generation_config, name, None)
        if isinstance(value, list):  # several ends: the first is the one that training appends
            value = value[0]
        if value is not None:
            ids[name] = int(value)
    missing = [name for name in ("eos_token_id", "pad_token_id", "decoder_start_token_id") if name not in ids]
    if missing:
        raise UserError(f"the model's config.json has no {', '.join(missing)}: no text can be generated; add it there")
    return ids


def _positions(model: PreTrainedModel) -> int | None:
    return getattr(model.config, "max_position_embeddings", None)


def _check_positions(model: PreTrainedModel, sources: Sequence[np.ndarray]) -> None:
    positions, longest = _positions(model), max(map(len, sources))
    if positions is not None and longest > positions:
        raise UserError(
            f"a source has {longest} tokens, the model only {positions} positions; "
            f"set tokenize.max_source_tokens to {positions} at most and tokenize again"
        )


def _padded(rows: Sequence[np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask), int64 of shape (rows, longest), padded on the right."""
    width = max(1, *map(len, rows))
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : max(len(row), 1)] = 1  # attention over nothing at all would be NaN
    return ids, mask


def _removed_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> set[int]:
    vocabulary = tokenizer.get_vocab()
    unknown = [token for token in tokens if token not in vocabulary]
    if unknown:
        log.warning("remove_tokens: %s not in the vocabulary: nothing to remove", ", ".join(unknown))
    removed = {vocabulary[token] for token in tokens if token in vocabulary} | set(special_ids(model).values())
    return removed | {
        token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None
    }


def _decoded(tokens: list[int], tokenizer: PreTrainedTokenizerBase, end: int, removed: Collection[int]) -> str:
    """Text up to the end token, without the removed ids.

    Never by skip_special_tokens: KoBART marks emojis special, and speaker tokens are special too; both belong to the
    text. Unknown tokens stay visible.
    """
    if end in tokens:
        tokens = tokens[: tokens.index(end)]
    kept = [token for token in tokens if token not in removed]
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()
