"""How a text becomes the tokens that ROUGE counts, by name: a score means nothing without it."""

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
"""Words (by white space) of a text that Dacon's scorer looks at."""

BATCH = 1000
"""Texts given to a model's tokenizer at once."""

# MeCab ends a text at NUL, wrappers refuse lone surrogates, and control characters and line separators are no tokens.
_UNREADABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u1680\u2028\u2029\ud800-\udfff]")
_NOT_DACON = re.compile("[^A-Za-z0-9가-힣\n]")


def normalise(text: str) -> str:
    """NFKC, as most Korean tokenizers decode (ㅋ becomes ᄏ there), in one line, unreadable characters as spaces."""
    return normalise_lines(text).replace("\n", " ")


def normalise_lines(text: str) -> str:
    """The same with its newlines, which end sentences in ROUGE-Lsum."""
    return _UNREADABLE.sub(" ", unicodedata.normalize("NFKC", text))


@dataclass(frozen=True)
class Tokenization:
    """A named way to cut texts."""

    name: str
    """Stands in every score's name, e.g. `rougeL_morpheme`."""
    cut: Callable[[Sequence[str]], Iterable[Sequence[Hashable]]]
    """Cleaned texts of one line each → the tokens of every text, in order."""
    clean: Callable[[str], str] = normalise_lines
    """A whole raw text → what is cut, newlines kept. Must take any text."""

    def __call__(self, text: str) -> Sequence[Hashable]:
        """The tokens of one raw text, newlines as spaces."""
        (tokens,) = self.cut([self.clean(text).replace("\n", " ")])
        return tokens


def characters(texts: Sequence[str]) -> Iterator[str]:
    """Every character (a syllable, in Korean) that is no white space."""
    return ("".join(text.split()) for text in texts)


def words(texts: Sequence[str]) -> Iterator[list[str]]:
    """What stands between white space: eojeol."""
    return (text.split() for text in texts)


def clean_for_dacon(text: str) -> str:
    """A text as the scorer of Dacon's Korean summarization contests prepares it, after NFKC.

    The first DACON_WORDS words, in lower case, everything but Latin letters, digits and whole Hangul syllables as
    spaces (ㅋㅋ goes, with all punctuation and emojis). NFKC is ours: it keeps what that scorer would drop (① as 1,
    decomposed Hangul), so that no score hangs on the form of Unicode a text came in. Its ROUGE-L takes newlines for
    the ends of sentences: compare `rougeLsum_dacon` with it where summaries have several lines.
    """
    left, lines = DACON_WORDS, []
    for line in normalise_lines(text).split("\n"):
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
"""The tokenizations that need nothing else, by name; `model_tokenization` makes the fifth, `model`."""

NAMES = (*TOKENIZATIONS, "model")


def get_tokenization(tokenization: str | Tokenization) -> Tokenization:
    """A tokenization by its name; one that is made already comes back as it is.

    Raises:
        ValueError: no such name, or `model`, which has to be made.
    """
    if isinstance(tokenization, Tokenization):
        return tokenization
    if tokenization == "model":
        raise ValueError("tokenization 'model' needs a tokenizer: give model_tokenization(tokenizer)")
    if tokenization not in TOKENIZATIONS:
        raise ValueError(f"tokenization {tokenization!r} is not known; known: {', '.join(NAMES)}")
    return TOKENIZATIONS[tokenization]


def model_tokenization(tokenizer: Any) -> Tokenization:
    """The tokenization `model`: what a model's own tokenizer cuts a text into, without special tokens around it.

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
    """Cuts by a `tokenizers.Tokenizer`: ids, without bare spaces; an unknown piece stands for itself, not for all."""

    def __init__(self, core: Any):
        from tokenizers import Tokenizer

        written = core.to_str()
        self._core = Tokenizer.from_str(written)  # a copy: the caller's settings stay
        self._core.no_truncation()
        self._core.no_padding()
        model = json.loads(written)["model"]  # BPE and WordPiece name the unknown token, Unigram numbers it
        unknown = model.get("unk_token")
        self._unknown = model.get("unk_id") if unknown is None else self._core.token_to_id(unknown)
        # "▁" alone would be a match between an emoji and a sentence. č is a letter in some vocabularies: decode to tell.
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
        found: Encoding = self._core.encode(text, add_special_tokens=False)  # knows where each piece stands
        pieces = zip(found.ids, found.offsets, strict=True)
        return [text[start:end] if number == self._unknown else number for number, (start, end) in pieces]
