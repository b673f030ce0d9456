"""Tokenizers trained on a corpus."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

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
        # A text's own ▁ would become a space. No space is put before a text, so none has to be taken away again.
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("▁", "_")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
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

    tokens = list(tokens)
    wrong = [token for token in tokens if not isinstance(token, str) or not token.strip()]
    if wrong:
        raise UserError(f"tokenize.special_tokens: {wrong[0]!r} is not a token; give non-empty texts")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    if tokens:
        _put_no_space_after_tokens(tokenizer)


def _put_no_space_after_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a pre-tokenizer that puts a space before each piece of a text do so before the first alone.

    Else `#Person1#은`, cut at the token, is read and comes back as `#Person1# 은`.
    """
    from tokenizers import Tokenizer

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if _first_alone(parts["pre_tokenizer"]) | _first_alone(parts["decoder"]):
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(parts))


def _first_alone(part: Any) -> bool:
    """Change every Metaspace in a part of a tokenizer.json; returns whether there was one to change."""
    if isinstance(part, list):
        return sum(map(_first_alone, part)) > 0
    if not isinstance(part, dict):
        return False
    if part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") == "always":
        part["prepend_scheme"] = "first"
        return True
    return sum(map(_first_alone, part.values())) > 0


def for_others(
    tokenizer: PreTrainedTokenizerFast,
    frame: tuple[Sequence[int], Sequence[int]],
    longest: int | None,
    inputs: Container[str],
) -> PreTrainedTokenizerFast:
    """A copy that, called plainly (`tokenizer(text, truncation=True)`), encodes a text as training did.

    Args:
        frame: ids before and after every text.
        longest: tokens of the longest text that the model reads, the frame included; None: unlimited.
        inputs: names of the arguments that the model takes.
    """
    from tokenizers import processors

    copied = copy.deepcopy(tokenizer)
    begin, end = ([str(token) for token in copied.convert_ids_to_tokens(list(ids))] for ids in frame)
    core = copied.backend_tokenizer
    if core.encode("가").ids != [*frame[0], *core.encode("가", add_special_tokens=False).ids, *frame[1]]:
        core.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, "$B:1", *(f"{token}:1" for token in end)],
            special_tokens=list(zip([*begin, *end], [*frame[0], *frame[1]], strict=True)),
        )
    names = [name for name in copied.model_input_names if name in inputs]
    copied.model_input_names = copied.init_kwargs["model_input_names"] = names
    if longest is not None:
        copied.model_max_length = copied.init_kwargs["model_max_length"] = longest
    return copied


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
