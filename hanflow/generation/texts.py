"""Generated token ids to texts, and the ids that frame them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from hanflow.errors import UserError
from hanflow.progress import log

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEEDED = ("eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Ids without which an encoder-decoder cannot generate."""


def special_ids(model: PreTrainedModel) -> dict[str, int]:
    """Ids that steer a search: `bos_token_id`, `eos_token_id`, `pad_token_id`, `decoder_start_token_id`.

    The model's config says how it was trained, so it wins over its generation config. Absent ones are left out.

    Raises:
        UserError: one that is needed is absent.
    """
    ids = {}
    for name in ("bos_token_id", *NEEDED):
        value = getattr(model.config, name, None)
        if value is None:
            value = getattr(model.generation_config, name, None)
        if isinstance(value, list):  # several ends: the first is the one that training appends
            value = value[0]
        if value is not None:
            ids[name] = int(value)
    missing = [name for name in NEEDED if name not in ids]
    if missing:
        raise UserError(f"the model's config.json has no {', '.join(missing)}: no text can be generated; add it there")
    return ids


def removed_ids(
    tokenizer: PreTrainedTokenizerBase, special: Mapping[str, int], tokens: Sequence[str] = ()
) -> frozenset[int]:
    """Ids that never belong to a text: the special ones of model and tokenizer, and the listed tokens."""
    vocabulary = tokenizer.get_vocab()
    unknown = [token for token in tokens if token not in vocabulary]
    if unknown:
        log.warning("remove_tokens: %s not in the vocabulary: nothing to remove", ", ".join(unknown))
    listed = {vocabulary[token] for token in tokens if token in vocabulary}
    own = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return frozenset(listed | set(special.values()) | {token for token in own if token is not None})


def decoded(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase, end: int, removed: Collection[int]) -> str:
    """Text up to the end token, without the removed ids.

    Never by skip_special_tokens: KoBART marks emojis special, and speaker tokens are special too; both belong to the
    text. Unknown tokens stay visible.
    """
    kept = []
    for token in tokens:
        if token == end:
            break
        if token not in removed:
            kept.append(token)
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()
