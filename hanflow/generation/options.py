"""What every engine of generation shares: limits, batches and special ids of the search.

The options of a search are the settings of `SearchConfig`. Beam search (Graves, 2012; Wu et al., 2016, section 7) is the
same in every engine:

- A text's score is the sum of its tokens' log-probabilities divided by its length to the power of `length_penalty`; the
  length counts the end token, not the start token.
- Tokens that `min_new_tokens` and `no_repeat_ngram` forbid get probability 0, the others are renormalised to sum to 1.
- The search of a row ends when `beams` hypotheses have ended (transformers' `early_stopping=True`, CTranslate2's
  `patience=1`), or at `max_new_tokens`.

In float32 both engines then give the same text, but for ties within rounding. The exception is `no_repeat_ngram=1`:
transformers counts the decoder's start token as generated, and where that is also the end token (BART), its texts never
end before `max_new_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hanflow.config import SearchConfig
from hanflow.errors import UserError
from hanflow.progress import log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDS = 8
"""Batches a worker above which the size of the last ones hardly matters."""

NEEDED = ("eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Ids without which an encoder-decoder cannot generate."""


def longest_text(options: SearchConfig, positions: int | None) -> int:
    """`max_new_tokens`, limited to the model's positions (None: unlimited).

    Raises:
        UserError: min_new_tokens cannot be reached.
    """
    longest = options.max_new_tokens
    if positions is not None and longest > positions:
        log.warning("max_new_tokens=%d is cut to %d, the positions that the model has", longest, positions)
        longest = positions
    if options.min_new_tokens > longest:
        raise UserError(
            f"evaluate.min_new_tokens={options.min_new_tokens} is above the longest text, {longest} tokens; lower it, "
            "or raise evaluate.max_new_tokens up to the model's positions"
        )
    return longest


def even_batches(lengths: Sequence[int], batch_tokens: int, beams: int, workers: int) -> list[list[int]]:
    """Batches for workers that compute one batch each at a time: those of a round are alike, so that none is idle.

    A round takes the longest remaining rows and distributes them to the workers one by one. If there are few rounds, they
    are of similar size, too.

    Args:
        lengths: tokens of every source.
        batch_tokens: most tokens of a batch, counted as by `hanflow.data.batches.batches`.
        beams: hypotheses of every source that are computed together.
        workers: batches computed in parallel.

    Returns:
        Indices of the rows of every batch.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])

    def rounds(budget: int) -> list[list[int]]:
        made, at = [], 0
        while at < len(order):
            size = workers * max(budget // (max(lengths[order[at]], 1) * beams), 1)
            made.append(order[at : at + size])
            at += size
        return made

    made, budget = rounds(batch_tokens), batch_tokens
    while 1 < len(made) <= ROUNDS:  # of as many rounds, those of the smallest budget are the most even
        budget -= max(budget // 16, 1)
        smaller = rounds(budget)
        if budget < 1 or len(smaller) > len(made):
            break
        made = smaller
    return [part[worker::workers] for part in made for worker in range(min(workers, len(part)))]


def check_positions(positions: int | None, sources: Sequence[np.ndarray]) -> None:
    """Refuse sources that are longer than a model's positions (None: unlimited).

    Raises:
        UserError: a source is longer.
    """
    longest = max(map(len, sources), default=0)
    if positions is not None and longest > positions:
        raise UserError(
            f"a source has {longest} tokens, the model only {positions} positions; "
            f"set tokenize.max_source_tokens to {positions} at most and tokenize again"
        )


def special_ids(model: PreTrainedModel) -> dict[str, int]:
    """The special ids of a search: `bos_token_id`, `eos_token_id`, `pad_token_id`, `decoder_start_token_id`.

    The model's config, which it was trained with, takes precedence over its generation config. Absent ids are omitted.

    Raises:
        UserError: one in NEEDED is absent.
    """
    ids = {}
    for name in ("bos_token_id", *NEEDED):
        value = getattr(model.config, name, None)
        if value is None:
            value = getattr(model.generation_config, name, None)
        if isinstance(value, list):  # of several, the first is the one that training appends
            value = value[0]
        if value is not None:
            ids[name] = int(value)
    missing = [name for name in NEEDED if name not in ids]
    if missing:
        raise UserError(f"the model's config.json has no {', '.join(missing)}: no text can be generated; add it there")
    return ids
