"""Tokenizers trained on a corpus."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hanflow.config import TokenizeConfig
from hanflow.errors import UserError
from hanflow.progress import log

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""Special tokens of a trained tokenizer, in the order of their ids (0 to 4)."""


def train_tokenizer(texts: Iterable[str], config: TokenizeConfig) -> PreTrainedTokenizerFast:
    """Train a tokenizer on texts: byte-level BPE (no text is ever unknown) or Unigram.

    Args:
        texts: streamed, read once.
        config: algorithm, size and special tokens.

    Raises:
        UserError: the corpus is too small.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [*SPECIAL, *(token for token in config.special_tokens if token not in SPECIAL)]
    trainer: trainers.Trainer
    if config.algorithm == "byte_bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocabulary_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=config.vocabulary_size, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # the Unigram trainer raises bare Exception on a corpus without enough distinct pieces
        raise UserError(
            f"no {config.algorithm} tokenizer of {config.vocabulary_size} tokens can be trained on this corpus "
            f"({error}); a unigram vocabulary must hold every character of the corpus: set tokenize.vocabulary_size "
            "accordingly, or tokenize.algorithm=byte_bpe, or a pretrained tokenize.tokenizer"
        ) from error
    if tokenizer.get_vocab_size() < config.vocabulary_size:
        log.warning(
            "the corpus yields %d tokens, fewer than tokenize.vocabulary_size=%d",
            tokenizer.get_vocab_size(),
            config.vocabulary_size,
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True)),
    )
    add_tokens(wrapped, config.special_tokens)
    return wrapped


def add_tokens(tokenizer: PreTrainedTokenizerFast, tokens: Iterable[str]) -> None:
    """Add tokens to a vocabulary where they are missing, and never split them.

    They are not added as "special" ones, which decoding may leave out: `#Person1#` is content.

    Raises:
        UserError: one is no text, or empty.
    """
    from tokenizers import AddedToken

    wrong = [token for token in tokens if not isinstance(token, str) or not token.strip()]
    if wrong:
        raise UserError(f"tokenize.special_tokens: {wrong[0]!r} is not a token; give non-empty texts")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])


def unused_tokens(texts: Iterable[str], tokens: Sequence[str]) -> str:
    """What to say of tokens that occur in no text: which, and spellings that do occur and differ in case alone; else ""."""
    known = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))), re.IGNORECASE)
    found = Counter(spelling for text in texts for spelling in known.findall(text)) if tokens else Counter()
    unused = [token for token in tokens if token not in found]
    if not unused:
        return ""
    folded = {token.casefold() for token in unused}
    near = [
        f"{spelling} ({count:,} times)" for spelling, count in sorted(found.items()) if spelling.casefold() in folded
    ]
    return f"{', '.join(unused)} occur in no text{'; near: ' if near else ''}{', '.join(near)}"
