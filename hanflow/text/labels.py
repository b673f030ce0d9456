"""The meaning of a label: one name for its many spellings."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from unicodedata import normalize

from hanflow.text.normalize import remove_invisible

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Full-width forms of ASCII → the ASCII characters."""

# A leading zero makes a code of it: 01 and 1 may be two things.
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")

MOST_DIGITS = 30
"""Digits of a number before or behind the point, above which it is taken as it is spelt."""


@lru_cache(maxsize=4096)
def label_of(text: str) -> str:
    """The name of the class that a raw label means.

    Composed (NFC), without invisible characters, full-width ASCII as ASCII, runs of blanks as one blank; a number by its
    value (`1.0` and `1` are `1`, `01` is no number), a boolean in lower case.

    Returns:
        "" where nothing is left.
    """
    text = " ".join(normalize("NFC", remove_invisible(text)).translate(_FULL_WIDTH).split())
    if text.casefold() in ("true", "false"):
        return text.casefold()
    if _NUMBER.fullmatch(text):
        value = Decimal(text)
        if not value:
            return "0"
        if abs(value.adjusted()) < MOST_DIGITS and len(text) < 2 * MOST_DIGITS:
            whole, _, rest = format(value, "f").partition(".")
            rest = rest.rstrip("0")
            return f"{whole}.{rest}" if rest else whole
    return text


def label_order(label: str) -> tuple[int, Decimal, str]:
    """Sorting key of labels: numbers by value, then all others by their characters."""
    return (0, Decimal(label), label) if _NUMBER.fullmatch(label) else (1, Decimal(0), label)
