"""Texts to token ids and back, in the same way for every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


def cut_into_morphemes(texts: Sequence[str]) -> list[str]:
    """Texts with a space between any two morphemes (MeCab)."""
    from hanflow.text.scoring_tokens import get_tokenization

    analyser = get_tokenization("morpheme")
    whole = [analyser.clean(text).replace("\n", " ") for text in texts]
    return [" ".join(map(str, tokens)) for tokens in analyser.cut(whole)]


def plain_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts without any special token: KoBART's post-processor adds none, others add several."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def framed(
    rows: Sequence[list[int]], frame: tuple[Sequence[int], Sequence[int]], longest: int | None
) -> tuple[list[list[int]], int]:
    """Token ids with special ids before and after each text, truncated so that both fit.

    Args:
        rows: token ids of one text each.
        frame: ids to put before and after every text.
        longest: most tokens of a row, the frame included; None: unlimited.

    Returns:
        (at most `longest` token ids a row, number of truncated rows).
    """
    begin, end = frame
    if longest is None:
        return [[*begin, *ids, *end] for ids in rows], 0
    room = longest - len(begin) - len(end)
    return [[*begin, *ids[:room], *end] for ids in rows], sum(len(ids) > room for ids in rows)


def plain_text(ids: Sequence[int] | np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of token ids of shape (length,), special tokens included and spaces unchanged."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
