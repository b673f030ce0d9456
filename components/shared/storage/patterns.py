"""Globs for names in a bucket."""

from __future__ import annotations

import re


def pattern(text: str) -> re.Pattern[str]:
    """A glob as Python's own reads it: `*` and `?` stay within a folder and match no hidden name, `**` is any folders."""
    folders = "(?:[^/.][^/]*/)*"
    *parents, last = text.split("/")
    parts = [folders if segment == "**" else _segment(segment) + "/" for segment in parents]
    return re.compile("".join(parts) + (f"{folders}[^/.][^/]*" if last == "**" else _segment(last)), re.DOTALL)


def _segment(text: str) -> str:
    parts = [r"(?!\.)"] if text[:1] in ("*", "?", "[") else []
    for part in re.findall(r"\*+|\?|\[!?\]?[^\]]*\]|.", text, re.DOTALL):
        if part[0] in "*?":
            parts.append("[^/]*" if part[0] == "*" else "[^/]")
        elif len(part) > 1:
            inner = part[1:-1].replace("\\", r"\\").replace("[", r"\[")
            parts.append(f"[{'^' + inner[1:] if inner[0] == '!' else inner}]")
        else:
            parts.append(re.escape(part))
    return "".join(parts)
