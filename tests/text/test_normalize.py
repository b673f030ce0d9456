"""What a user would lose: a corpus whose texts look clean and are not, or that lost what people really wrote."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanflow.config import PreprocessConfig
from hanflow.text.normalize import clean_text, collapse_whitespace, shorten_repeats, strip_html

CONFIG = PreprocessConfig(source="x")
BARE = PreprocessConfig(source="x", unicode="none", strip_html=False, collapse_whitespace=False)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("첫째 줄<br>둘째<BR/>셋째<br />넷째</br>", "첫째 줄\n둘째\n셋째\n넷째"),
        ('<a href="https://x.kr/?a=1" target=_blank>링크</a>', "링크"),
        ("<b>굵</b>게", "굵게"),
        ("<p>가</p><p class='x'>나</p>", "가 나"),
        ("앞<!-- 숨은 <b>글</b> -->뒤", "앞뒤"),
        ("<script>if (a<b) x()</script>본문<style>p {}</style>", "본문"),
        ("&lt;b&gt; &amp;amp; &quot;R&D&quot; &#44032;&nbsp;끝", '<b> &amp; "R&D" 가 끝'),
        ("<!DOCTYPE html><html><body>글</body></html>", "글"),
    ],
)
def test_html_goes(raw: str, clean: str) -> None:
    assert clean_text(raw, CONFIG, br="\n") == clean


@pytest.mark.parametrize(
    "text",
    [
        "사랑해 <3",
        "a < b 이고 c > d",
        "a <b and c> d",
        "<usr> 안녕 <sys>",
        "#Person1#: 오늘 뭐 해?",
        "영화 <기생충>과 <Her>",
        "https://x.kr/?a=1&para=2&copy=3",
        "R&D, AT&T; 1&2",
        "<!-- 끝나지 않는",
        "ㅋㅋㅋㅋㅠㅠ 😂👍🏽",
    ],
)
def test_what_is_no_html_stays(text: str) -> None:
    assert clean_text(text, CONFIG, br=" ") == text


def test_html_is_left_alone_when_asked() -> None:
    config = PreprocessConfig(source="x", strip_html=False)
    assert clean_text("<b>글</b> &amp;", config, br=" ") == "<b>글</b> &amp;"


def test_invisible_characters_always_go() -> None:
    raw = "\ufeff가\x00나\x07\u200b다\x1b\x9f\ud800라\udfff\u2060마\u202e\xad"
    assert clean_text(raw, BARE, br=" ") == "가나다라마"


def test_every_line_end_is_a_newline() -> None:
    assert clean_text("가\r\n나\r다\u2028라\x85마\x0b바", BARE, br=" ") == "가\n나\n다\n라\n마\n바"


def test_whitespace_collapses() -> None:
    raw = " \u3000가\xa0\xa0나\t다 \r\n \n\n 라\u3164\u3164마 \n"
    assert clean_text(raw, CONFIG, br=" ") == "가 나 다\n라 마"
    assert clean_text("가  나\t다\n\n라", BARE, br=" ") == "가  나\t다\n\n라"


def test_decomposed_hangul_is_composed() -> None:
    decomposed = unicodedata.normalize("NFD", "한글 요약")
    assert clean_text(decomposed, CONFIG, br=" ") == "한글 요약"
    assert clean_text(decomposed, BARE, br=" ") == decomposed
    nfkc = PreprocessConfig(source="x", unicode="NFKC")
    assert clean_text("ＡＢＣ㈜ １", nfkc, br=" ") == "ABC(주) 1"


def test_repeats_are_shortened_but_numbers_are_not() -> None:
    config = PreprocessConfig(source="x", max_repeats=2)
    assert clean_text("ㅋㅋㅋㅋㅋ 대박!!!!! 1000000원", config, br=" ") == "ㅋㅋ 대박!! 1000000원"
    assert shorten_repeats("ㅠㅠㅠ", 3) == "ㅠㅠㅠ"


@settings(deadline=None)  # a busy machine is no failure
@given(st.text())
def test_clean_text_is_clean(text: str) -> None:
    config = PreprocessConfig(source="x", strip_html=False)
    clean = clean_text(text, config, br=" ")
    assert clean_text(clean, config, br=" ") == clean
    assert (
        "  " not in clean and "\n\n" not in clean and clean == clean.strip() and "\r" not in clean and "\0" not in clean
    )
    assert unicodedata.is_normalized("NFC", clean)
    clean.encode()


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(alphabet="가a <>/!-brp='\"&;\n"))
def test_the_fast_paths_agree_with_the_slow_ones(text: str) -> None:
    assert clean_text(text, CONFIG, br=" ") == collapse_whitespace(strip_html(text, " "))


@pytest.mark.parametrize(
    "piece", ["<!--", "<script", "<a href=", '<a href="x" ', "<a ", "&#1", "<br ", '<p class="', "ㅋ\n", "< "]
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    """Linear: a tenth of a second of computing. Quadratic: hours, which the time limit of any test ends."""
    text = piece * (1_000_000 // len(piece))
    clean_text(text, PreprocessConfig(source="x", max_repeats=3), br=" ")
