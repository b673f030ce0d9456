"""A file is read in its own encoding, whichever command reads it; a wrong guess would be nonsense in every row."""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from hanflow.data.lines import Encoding, encoding_of, line_blocks
from hanflow.data.readers import read_texts, text_source
from hanflow.data.schema import Source
from hanflow.errors import UserError

Reader = Callable[[Path, str], list[str]]

TEXTS = ["기사 하나", "요약 하나", "기사 둘", "요약 둘"]
CONTENT = "".join(f"{text}\n" for text in TEXTS)

MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}

ARTICLES = [f"기사 {number}" for number in range(4)]
"""Texts whose bytes in UTF-8 are by chance valid CP949, too."""


def by_preprocess(path: Path, encoding: str) -> list[str]:
    return [line for block in line_blocks(Source(str(path), (), encoding=encoding)) for line in block.lines if line]


def by_score_and_predict(path: Path, encoding: str) -> list[str]:
    return [text for (text,), _ in read_texts(text_source(str(path), encoding=encoding))]


@pytest.fixture(params=[by_preprocess, by_score_and_predict])
def reader(request: pytest.FixtureRequest) -> Reader:
    return request.param


@pytest.mark.parametrize(
    ("codec", "mark", "setting"),
    [
        ("utf-8", b"", "auto"),
        ("utf-8", b"", "utf-8-sig"),
        ("cp949", b"", "auto"),
        ("cp949", b"", "euc-kr"),
        ("utf-16-le", b"", "utf-16"),
        ("utf-16-be", b"", "utf-16-be"),
        *((codec, mark, "auto") for codec, mark in MARKED.items()),
        *((codec, mark, codec) for codec, mark in MARKED.items()),
        *((codec, mark, codec[:-3]) for codec, mark in MARKED.items() if codec != "utf-8"),
    ],
)
def test_every_encoding_gives_the_same_texts(
    tmp_path: Path, reader: Reader, codec: str, mark: bytes, setting: str
) -> None:
    content = mark + CONTENT.encode(codec)
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    assert reader(tmp_path / "a.txt", setting) == TEXTS
    assert reader(tmp_path / "a.txt.gz", setting) == TEXTS


def test_one_bad_line_does_not_make_utf_8_into_cp949(tmp_path: Path) -> None:
    content = "\n".join(ARTICLES).encode() + "\n뷁\n".encode("cp949")
    (tmp_path / "a.txt").write_bytes(content)
    assert content.decode("cp949")
    assert by_preprocess(tmp_path / "a.txt", "auto")[:-1] == ARTICLES
    with pytest.raises(
        UserError,
        match=r"a\.txt: line 5: not valid UTF-8 \(byte 1 of the row\).* give the file's encoding with --encoding",
    ):
        by_score_and_predict(tmp_path / "a.txt", "auto")


@pytest.mark.parametrize("setting", ["klingon", "base64", "rot13"])
def test_what_is_no_text_encoding_is_refused(tmp_path: Path, reader: Reader, setting: str) -> None:
    (tmp_path / "a.txt").write_text(CONTENT, encoding="utf-8")
    with pytest.raises(UserError, match=rf"encoding: '{setting}' is no text encoding; give auto, utf-8, cp949"):
        reader(tmp_path / "a.txt", setting)


def test_a_mark_of_another_encoding_is_text() -> None:
    assert encoding_of(codecs.BOM_UTF16_LE + b"a\0", "cp949", "a.txt", "--encoding") == Encoding("cp949")


@pytest.mark.parametrize("codec", ["utf-8", "cp949"])
def test_a_beginning_may_end_inside_a_character(codec: str) -> None:
    content = CONTENT.encode(codec)
    ends = [at for at in range(len(content)) if at > content.index(b"\n")]
    assert {encoding_of(content[:end], "auto", "a.txt", "--encoding").codec for end in ends} == {codec}


def test_half_of_a_line_end_is_no_line_end() -> None:
    """As a pipe hands it on."""
    from hanflow.data.lines import _newline_ends

    assert b"".join(_newline_ends(iter([b"a\r", b"\nb\r\n"]), "-")) == b"a\r\nb\r\n"
