"""From a raw value of any format to a text, or to nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


class Unusable(Exception):
    """A value is no text; the message is the reason."""


def is_missing(value: Any, words: Collection[str]) -> bool:
    """Whether a value stands for none: null, not a number, an empty text, or one of some words.

    Args:
        words: see `Source.missing`.
    """
    if value.__class__ is str:
        return not value or value in words
    return value is None or value != value or value in ("", *words)  # NaN alone is unequal to itself


def as_text(value: Any, name: str, words: Collection[str], join_lists: bool) -> str | list[str]:
    """A value as text: texts and numbers themselves, a missing one "", a list of texts by `Source.join_lists`.

    What is missing in a list is left out.

    Args:
        name: the value's name in the file, for messages.
        words: see `Source.missing`.

    Raises:
        Unusable: it is an object, a list of other things than texts, or an empty list where lists are kept.
    """
    if isinstance(value, list):
        texts = [item for item in value if isinstance(item, (dict, list)) or not is_missing(item, words)]
        if not all(item.__class__ is str for item in texts):
            raise Unusable(f"{name} is a list of other things than texts, expected text")
        if join_lists:
            return "\n".join(texts)
        if not texts:
            raise Unusable(f"{name} is an empty list, expected at least one text")
        return texts
    if isinstance(value, dict):
        raise Unusable(f"{name} is an object, expected text")
    if is_missing(value, words):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
