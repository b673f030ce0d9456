"""Korean text clean-up: pure functions from text to text.

Most rows need no change, so every operation is guarded by a test that runs in C (`"<" in text`, `str.isprintable`,
`unicodedata.is_normalized`).
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from unicodedata import is_normalized, normalize

from hanflow.config import PreprocessConfig

_BLOCK_TAGS = (
    "article|aside|blockquote|body|caption|center|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6]|head|header"
    "|hr|html|li|nav|ol|option|p|pre|section|select|table|tbody|td|textarea|tfoot|th|thead|tr|ul"
)
_INLINE_TAGS = (
    "a|abbr|acronym|audio|b|big|button|cite|code|col|colgroup|del|em|embed|font|i|iframe|img|input|ins|kbd|link|meta"
    "|noscript|o:p|param|q|s|samp|script|small|span|strike|strong|style|sub|sup|svg|tt|u|var|video|wbr"
)
# An attribute has a value or is one of those that HTML lets stand alone: "a <b and c> d" is no tag. Values hold no
# angle brackets and the quantifiers are possessive, so that hostile text costs linear time.
_ATTRIBUTE = (
    r"""\s++(?:[a-z_:@][a-z0-9_:.-]*+\s*+=\s*+(?:"[^"<>]*+"|'[^'<>]*+'|[^\s"'<>]++)"""
    r"|(?:allowfullscreen|async|autoplay|checked|controls|defer|disabled|hidden|loop|muted|noshade|nowrap|readonly|selected)"
    r"(?=[\s/>]))"
)
_TAG = re.compile(
    rf"</?(?:(?P<br>br)|(?P<block>{_BLOCK_TAGS})|(?:{_INLINE_TAGS}))(?:{_ATTRIBUTE})*+\s*+/?>|<!doctype\b[^<>]*+>",
    re.IGNORECASE | re.ASCII,
)
# Only entities with a semicolon: `?a=1&para=2` has no pilcrow.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_HIDDEN = (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>"))
"""Start and end of what is removed with all of its content."""

_NEWLINES = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "["
    "\x00-\x08\x0e-\x1f\x7f-\x9f"  # C0 and C1 controls but \t and \n; the other line ends are newlines by now
    "\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # zero-width, soft hyphen, text direction, BOM
    "\ud800-\udfff"  # lone surrogates: text in no encoding
    "]+"
)
_FILLERS = re.compile("[\u3164\uffa0]+")
"""Hangul fillers: Unicode classes them as letters, people type them as spaces."""


def clean_text(text: str, config: PreprocessConfig, *, br: str) -> str:
    """Text as it is stored in a corpus.

    Control characters (except newline and tab), zero-width characters, byte-order marks and lone surrogates are always
    removed.

    Args:
        text: raw text.
        config: the settings `strip_html`, `unicode`, `collapse_whitespace` and `max_repeats` choose further changes.
        br: replacement of `<br>` where `strip_html` is on.
    """
    if config.strip_html and ("<" in text or "&" in text):
        text = strip_html(text, br)
    plain = text.isprintable()  # no control, no format character, no surrogate, no blank but the space itself
    if not plain:
        text = remove_invisible(text)
    if not text.isascii():
        if "\u3164" in text or "\uffa0" in text:
            text = _FILLERS.sub(" ", text)
        form = config.unicode
        if form != "none" and not is_normalized(form, text):  # type: ignore[arg-type]
            text = normalize(form, text)  # type: ignore[arg-type]
            plain = text.isprintable()
    if config.collapse_whitespace:
        text = _collapse_spaces(text) if plain else collapse_whitespace(text)
    if config.max_repeats:
        text = shorten_repeats(text, config.max_repeats)
    return text


def strip_html(text: str, br: str) -> str:
    """Text without HTML tags and comments, with its entities unescaped.

    Only real tags are removed: `<3`, `a < b`, `<usr>` and `<기생충>` stay. `<br>` becomes `br`; tags of blocks (`<p>`,
    `<li>`, …) become a space, so that words stay separate.
    """
    if "<" in text:
        for start, end in _HIDDEN:
            if start in text:
                text = _without(text, start, end)

        def replacement(match: re.Match[str]) -> str:
            return br if match["br"] else " " if match["block"] else ""

        text = _TAG.sub(replacement, text)
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return text


def _without(text: str, start: str, end: str) -> str:
    """Text without the parts from `start` to `end`; one without an end stays. Takes linear time, unlike `.*?`."""
    kept, position = [], 0
    while (begin := text.find(start, position)) >= 0 and (stop := text.find(end, begin + len(start))) >= 0:
        kept.append(text[position:begin])
        position = stop + len(end)
    return "".join([*kept, text[position:]])


def remove_invisible(text: str) -> str:
    """Text with every kind of line end as a newline, and without invisible characters."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    if text.replace("\n", "").isprintable():
        return text
    return _INVISIBLE.sub("", _NEWLINES.sub("\n", text))


def collapse_whitespace(text: str) -> str:
    """Text whose runs of spaces are one space and whose runs of newlines one newline, with none at its ends."""
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _collapse_spaces(text: str) -> str:
    """`collapse_whitespace` for text whose only white space is the space."""
    if "  " in text or text[:1] == " " or text[-1:] == " ":
        return " ".join(text.split())
    return text


def shorten_repeats(text: str, longest: int) -> str:
    """Text whose runs of one character (ㅋㅋㅋㅋ) are at most `longest` long; digits stay, 1000000 is a number."""
    return _repeats(longest).sub(lambda match: match[1] * longest, text)


@lru_cache(maxsize=8)
def _repeats(longest: int) -> re.Pattern[str]:
    return re.compile(rf"([^\s\d])\1{{{longest},}}")
