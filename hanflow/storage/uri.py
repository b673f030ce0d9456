"""Local paths and gs:// URIs as strings: nothing here touches a file."""

from __future__ import annotations

import re
from pathlib import Path

from hanflow.errors import UserError

REMOTE = "gs://"


def is_remote(uri: str) -> bool:
    """Whether a URI is in a bucket."""
    return uri.startswith(REMOTE)


def join(uri: str, name: str) -> str:
    """The URI of something inside a folder."""
    return f"{uri.rstrip('/')}/{name}" if is_remote(uri) else str(local_path(uri) / name)


def local_path(uri: str) -> Path:
    """The path behind a local URI (`/path`, `relative/path`, `file:///path`).

    Raises:
        UserError: the URI is in a bucket, or of an unknown scheme.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri).expanduser()
    if scheme == "file":
        return Path(rest)
    if scheme == "gs":
        raise UserError(
            f"{uri}: is in a bucket, here a local path is needed; copy it with `gcloud storage cp -r` first"
        )
    raise UserError(f"{uri}: hanflow cannot read {scheme}://; copy the data to a local folder or to gs://")


def pattern(text: str) -> re.Pattern[str]:
    """A glob with the meaning of Python's `glob`: `*` and `?` match within a folder and no hidden name, `**` any folders."""
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
