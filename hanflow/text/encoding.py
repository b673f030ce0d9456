"""Texts to token ids and back, in the same way for every task."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


_REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character."""

_WHOLE_REPLACEMENTS = (_REPLACEMENT, "ï¿½")
"""The same as a character of the text itself: as a token, and as byte-level tokens spell its three bytes."""


_NEVER = -1e6
"""Log-probability of a piece that no text is cut into."""


def cut_into_morphemes(texts: Sequence[str]) -> list[str]:
    """Texts with a space between any two morphemes (MeCab)."""
    from hanflow.text.scoring_tokens import get_tokenization

    analyser = get_tokenization("morpheme")
    whole = [analyser.clean(text).replace("\n", " ") for text in texts]
    return [" ".join(map(str, tokens)) for tokens in analyser.cut(whole)]


def plain_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts without any that has a role (begin, end, padding …), not even where a text spells its name.

    KoBART's post-processor adds none, others add several.
    """
    texts = list(texts)
    ids = [e.ids for e in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    roles = {role for role in tokenizer.special_tokens_map.values() if isinstance(role, str)}
    spelt = [row for row, text in enumerate(texts) if any(role in text for role in roles)]
    if spelt:
        blind = _without_roles(tokenizer.backend_tokenizer.to_str(), frozenset(roles))
        for row in spelt:
            ids[row] = blind.encode(texts[row], add_special_tokens=False).ids
    return ids


@lru_cache(maxsize=4)  # it takes a tenth of a second to make, and every batch of a corpus may need it
def _without_roles(tokenizer: str, roles: Set[str]) -> Any:
    """The same tokenizer, given as its tokenizer.json, which reads the names of tokens with a role like any other text.

    KoBART marks emojis and speakers as special too, which belong to the text: only those with a role are left so.
    """
    from tokenizers import Tokenizer

    parts = json.loads(tokenizer)
    for token in parts["added_tokens"]:
        token["special"] = token["content"] in roles
    if parts["model"]["type"] == "Unigram":  # whose pieces they are too, and the likeliest
        parts["model"]["vocab"] = [[p, _NEVER if p in roles else score] for p, score in parts["model"]["vocab"]]
    blind = Tokenizer.from_str(json.dumps(parts))
    blind.encode_special_tokens = True
    return blind


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
    """The text of token ids of shape (length,), special tokens included and spaces unchanged.

    Tokens of bytes may end within a character, where a limit has cut them: such a half is left out.
    """
    ids = [int(token) for token in ids]
    while True:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if not text.endswith(_REPLACEMENT):
            return text
        if "".join(tokenizer.convert_ids_to_tokens(ids)).endswith(_WHOLE_REPLACEMENTS):
            return text
        ids.pop()


def continuation(prompt: Sequence[int], new: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of new token ids after those of a prompt, with the space before it that a decoder takes from a first word."""
    before, whole = plain_text(prompt, tokenizer), plain_text([*prompt, *new], tokenizer)
    return whole[len(before) :] if whole.startswith(before) else plain_text(new, tokenizer)
