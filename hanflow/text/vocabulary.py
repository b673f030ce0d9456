"""The tokenizer of a run: a pretrained one, or one trained on the corpus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hanflow.config import TokenizeConfig
from hanflow.errors import UserError, first_line
from hanflow.progress import log

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROLES = {
    "bos_token": ("<s>", "[CLS]", "<bos>", "<|startoftext|>"),
    "eos_token": ("</s>", "[SEP]", "<eos>", "<|endoftext|>"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
    "unk_token": ("<unk>", "[UNK]"),
    "mask_token": ("<mask>", "[MASK]"),
}
"""Role → the names it usually has, for a tokenizer.json that comes without a configuration."""

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""Special tokens of a tokenizer trained here, in the order of their ids (0 to 4)."""


def pretrained(name: str, special_tokens: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer from a hub name or a folder, ready to encode and to pad.

    Args:
        name: hub name, or folder with at least a tokenizer.json.
        special_tokens: tokens to add to the vocabulary where they are missing.

    Raises:
        UserError: nothing loads from there, or it has no end-of-sequence or padding token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if name.startswith(("/", ".", "~")) and not Path(name).expanduser().exists():
        raise UserError(f"tokenize.tokenizer={name}: no such folder; give one with a tokenizer.json, or a hub name")
    try:
        bare = Path(name) / "tokenizer.json"
        if bare.is_file() and not (Path(name) / "tokenizer_config.json").is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(bare))
        else:
            tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise UserError(
            f"tokenize.tokenizer={name}: no tokenizer can be loaded from there ({first_line(error)}); give a folder with a "
            "tokenizer.json, or the name of a model on the hub with network or a filled cache"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(f"tokenize.tokenizer={name}: has no tokenizer.json; convert it to the fast format first")
    # A stored truncation would silently cut texts before our own does, which keeps the end of sequence and counts.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab()
    for role, usual in ROLES.items():
        if getattr(tokenizer, role, None) is None:
            found = next((token for token in usual if token in vocabulary), None)
            if found:
                setattr(tokenizer, role, found)
    for role in ("eos_token", "pad_token"):
        if getattr(tokenizer, role) is None:
            raise UserError(
                f"tokenize.tokenizer={name}: has no {role.replace('_', ' ')} (looked for {', '.join(ROLES[role])}); "
                "set it in the folder's tokenizer_config.json"
            )
    _add(tokenizer, special_tokens)
    return tokenizer


def trained(texts: Iterable[str], config: TokenizeConfig) -> PreTrainedTokenizerFast:
    """A tokenizer trained on texts: byte-level BPE (nothing is ever unknown) or Unigram.

    Args:
        texts: the train split's texts, each once; streamed.
        config: algorithm, size and special tokens.

    Raises:
        UserError: the corpus is too small for anything to be learnt.
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
    _add(wrapped, config.special_tokens)
    return wrapped


def _add(tokenizer: PreTrainedTokenizerFast, tokens: Iterable[str]) -> None:
    """Mark tokens as never to be split. Not as "special" ones, or decoding would drop them (#Person1# is content)."""
    from tokenizers import AddedToken

    wrong = [token for token in tokens if not isinstance(token, str) or not token.strip()]
    if wrong:
        raise UserError(f"tokenize.special_tokens: {wrong[0]!r} is no token; give non-empty texts")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
