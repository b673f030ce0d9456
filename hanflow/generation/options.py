"""How texts are generated, whatever the engine: the options of the search, batches, and what every engine refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hanflow.config import SearchConfig
from hanflow.errors import UserError
from hanflow.progress import log

ROUNDS = 8
"""Batches a worker beyond which it does not matter that the last ones are small."""


@dataclass(frozen=True)
class GenerationOptions:
    """The search; the fields mean what the settings of the same names in SearchConfig mean.

    Beam search (Graves, 2012; Wu et al., 2016, section 7) means the same in every engine:

    - A text's score is the sum of its tokens' log-probabilities divided by its length to the power of `length_penalty`;
      the length counts the end token, not the start token.
    - What `min_new_tokens` and `no_repeat_ngram` forbid gets probability 0, and the others are renormalised to sum to 1.
    - The search of a row ends when `beams` texts have ended (transformers' `early_stopping=True`, CTranslate2's
      `patience=1`), or at `max_new_tokens`.

    In float32 both engines then give the same text, but for ties within rounding. The exception is `no_repeat_ngram=1`:
    transformers counts the decoder's start token as generated, and where that is also the end token (BART), its texts
    never end before `max_new_tokens`.
    """

    beams: int = 4
    max_new_tokens: int = 100
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    batch_tokens: int = 32768
    remove_tokens: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: SearchConfig) -> GenerationOptions:
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

    def longest(self, positions: int | None) -> int:
        """Most tokens that a model with so many positions (None: any number) can generate of `max_new_tokens`.

        Raises:
            UserError: min_new_tokens cannot be reached.
        """
        longest = self.max_new_tokens
        if positions is not None and longest > positions:
            log.warning("max_new_tokens=%d is cut to %d, the positions that the model has", longest, positions)
            longest = positions
        if self.min_new_tokens > longest:
            raise UserError(
                f"evaluate.min_new_tokens={self.min_new_tokens} is above the longest text, {longest} tokens; lower it, "
                "or raise evaluate.max_new_tokens up to the model's positions"
            )
        return longest


def even_batches(lengths: Sequence[int], batch_tokens: int, beams: int, workers: int) -> list[list[int]]:
    """Batches for workers that compute one each at a time: the batches of a round are alike, so that nobody waits.

    A round takes the longest rows that are left and deals them out to the workers one by one. Where rounds are few, they
    are of like size, too.

    Args:
        lengths: tokens of every source.
        batch_tokens: most tokens of a batch, counted as by `hanflow.data.batches.batches`.
        beams: copies of every source that the search works on.
        workers: batches computed at once.
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
    """Refuse sources that a model with so many positions (None: any number) cannot read.

    Raises:
        UserError: a source is longer.
    """
    longest = max(map(len, sources), default=0)
    if positions is not None and longest > positions:
        raise UserError(
            f"a source has {longest} tokens, the model only {positions} positions; "
            f"set tokenize.max_source_tokens to {positions} at most and tokenize again"
        )
