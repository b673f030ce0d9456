"""Tokenizations for ROUGE, by name. A score depends on them, so the name is part of the score's name."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hanflow.text.morphemes import morphemes

if TYPE_CHECKING:
    from tokenizers import Encoding

DACON_WORDS = 1000
"""Words (by white space) of a text that Dacon's scorer counts."""

BATCH = 1000
"""Texts that a model's tokenizer encodes at once."""

# MeCab ends a text at NUL, bindings refuse lone surrogates, and control characters and line separators are no tokens.
_UNREADABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u1680\u2028\u2029\ud800-\udfff]")
_NOT_DACON = re.compile("[^A-Za-z0-9가-힣\n]")


def normalise(text: str) -> str:
    """NFKC (as most Korean tokenizers decode: ㅋ becomes ᄏ), with unreadable characters as spaces.

    Newlines stay: they end sentences in ROUGE-Lsum.
    """
    return _UNREADABLE.sub(" ", unicodedata.normalize("NFKC", text))


@dataclass(frozen=True)
class Tokenization:
    """A named way to split texts into tokens."""

    name: str
    """Part of the names of scores, e.g. `rougeL_morpheme`."""
    cut: Callable[[Sequence[str]], Iterable[Sequence[Hashable]]]
    """Cleaned texts of one line each → the tokens of every text, in order."""
    clean: Callable[[str], str] = normalise
    """A raw text → the text to split, newlines kept. Must accept any text."""

    def __call__(self, text: str) -> Sequence[Hashable]:
        """The tokens of one raw text, newlines as spaces."""
        (tokens,) = self.cut([self.clean(text).replace("\n", " ")])
        return tokens


def characters(texts: Sequence[str]) -> Iterator[str]:
    """Every character (in Korean: syllable) but white space."""
    return ("".join(text.split()) for text in texts)


def words(texts: Sequence[str]) -> Iterator[list[str]]:
    """Words separated by white space (eojeol)."""
    return (text.split() for text in texts)


def clean_for_dacon(text: str) -> str:
    """A text as the scorer of Dacon's Korean summarization contests prepares it, from its raw characters.

    The first DACON_WORDS words, in lower case, with everything but Latin letters, digits and complete Hangul syllables
    as spaces: ㅋㅋ is removed, and so are punctuation, emojis, ㈜, ① and decomposed Hangul. Its ROUGE-L ends sentences at
    newlines: compare it with `rougeLsum_dacon` where summaries have several lines.
    """
    left, lines = DACON_WORDS, []
    for line in _UNREADABLE.sub(" ", text).split("\n"):
        kept = line.split()[:left]
        left -= len(kept)
        lines.append(" ".join(kept))
    return _NOT_DACON.sub(" ", "\n".join(lines).lower())


TOKENIZATIONS = {
    tokenization.name: tokenization
    for tokenization in (
        Tokenization("morpheme", morphemes),
        Tokenization("character", characters),
        Tokenization("word", words),
        Tokenization("dacon", morphemes, clean_for_dacon),
    )
}
"""The tokenizations that need no tokenizer, by name; `model_tokenization` makes the fifth, `model`."""

NAMES = (*TOKENIZATIONS, "model")


def get_tokenization(tokenization: str | Tokenization) -> Tokenization:
    """A tokenization by its name; a `Tokenization` is returned unchanged.

    Raises:
        ValueError: the name is unknown, or `model`, which needs a tokenizer.
    """
    if isinstance(tokenization, Tokenization):
        return tokenization
    if tokenization == "model":
        raise ValueError("tokenization 'model' needs a tokenizer: give model_tokenization(tokenizer)")
    if tokenization not in TOKENIZATIONS:
        raise ValueError(f"tokenization {tokenization!r} is not known; known: {', '.join(NAMES)}")
    return TOKENIZATIONS[tokenization]


def model_tokenization(tokenizer: Any) -> Tokenization:
    """The tokenization `model`: the tokens of a model's own tokenizer, without special tokens around a text.

    Args:
        tokenizer: a transformers tokenizer (`hanflow.loading.pretrained.load_tokenizer`), a `tokenizers.Tokenizer`, or
            any function from one text to its tokens. Its own truncation and padding are not applied.
    """
    core = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(core, "encode_batch_fast"):
        return Tokenization("model", _Pieces(core))
    cut = getattr(tokenizer, "tokenize", tokenizer)  # a transformers tokenizer without a fast core
    return Tokenization("model", lambda texts: map(cut, texts))


class _Pieces:
    """Token ids by a `tokenizers.Tokenizer`, without those of spaces; an unknown piece is its own text, not the unknown id."""

    def __init__(self, core: Any):
        from tokenizers import Tokenizer

        written = core.to_str()
        self._core = Tokenizer.from_str(written)  # a copy: the caller's own is not changed
        self._core.no_truncation()
        self._core.no_padding()
        model = json.loads(written)["model"]  # BPE and WordPiece name the unknown token, Unigram numbers it
        unknown = model.get("unk_token")
        self._unknown = model.get("unk_id") if unknown is None else self._core.token_to_id(unknown)
        # "▁" alone would match in any two texts. č is a letter in some vocabularies, a carriage return in others: decode it.
        maybe = [number for piece, number in self._core.get_vocab().items() if not piece.strip("▁ĠĊĉč \t\n\r")]
        self._blank = {n for n in maybe if not self._core.decode([n], skip_special_tokens=False).strip()}

    def __call__(self, texts: Sequence[str]) -> Iterator[list[Hashable]]:
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            for text, found in zip(batch, self._core.encode_batch_fast(batch, add_special_tokens=False), strict=True):
                ids = found.ids
                pieces = ids if self._unknown not in ids else self._with_surfaces(text)
                yield [piece for piece in pieces if piece not in self._blank]

    def _with_surfaces(self, text: str) -> list[Hashable]:
        found: Encoding = self._core.encode(text, add_special_tokens=False)  # has the offsets of the pieces
        pieces = zip(found.ids, found.offsets, strict=True)
        return [text[start:end] if number == self._unknown else number for number, (start, end) in pieces]
