"""Settings as they may be shown to others: names of files and folders without the places where they were."""

from __future__ import annotations

import os
import re
from typing import Any

_PLACE = re.compile(r"(?:[A-Za-z]:)?[\\/~]|\.{1,2}[\\/]|[a-z][a-z0-9+.-]*://")
"""Beginning of a path or of a URI."""

_TEXTS = ("title", "license", "intended_use", "speaker_format")
"""Settings that are texts, in which anything may stand."""


def without_places(values: Any) -> Any:
    """Settings in which each path and URI is its last part alone: `/home/me/data/model` becomes `model`.

    A name of the Hugging Face hub stays, unless there is a folder of that name here. Texts in lists stay: they are tokens
    and labels.
    """
    if isinstance(values, dict):
        return {key: value if key in _TEXTS else without_places(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [without_places(value) if isinstance(value, dict) else value for value in values]
    return last_part(values) if isinstance(values, str) else values


def last_part(text: str) -> str:
    """A path or URI, or several with commas between, by its last part; any other text unchanged."""
    parts = text.split(",")
    if not any(_PLACE.match(part.strip()) or ("/" in part and os.path.exists(part.strip())) for part in parts):
        return text
    return ", ".join(re.split(r"[\\/]", part.strip().rstrip("\\/"))[-1] for part in parts)
