"""Local paths and gs:// URIs: the one place where what a person gives becomes a path."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from hanflow.errors import UserError

REMOTE = "gs://"


def is_remote(uri: str) -> bool:
    """Whether a URI is in a bucket."""
    return uri.startswith(REMOTE)


def join(uri: str, name: str) -> str:
    """The URI of something inside a folder."""
    return f"{uri.rstrip('/')}/{name}" if is_remote(uri) else str(local_path(uri) / name)


def local_path(uri: str | os.PathLike[str]) -> Path:
    """The path behind a local URI (`/path`, `relative/path`, `~/path`, `file:///path` with %XX for odd bytes).

    A name that is not there is looked for in the other Unicode forms, too: an archive of another system may hold Korean
    names decomposed that a keyboard types composed.

    Raises:
        UserError: the URI is in a bucket, of an unknown scheme, or can be no path.
    """
    text = os.fspath(uri)
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "gs":
        raise UserError(
            f"{text}: is in a bucket, here a local path is needed; copy it with `gcloud storage cp -r` first"
        )
    if separator and scheme == "file":
        host, slash, below = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise UserError(f"{text}: names another machine; write file:/// and the whole path on this one")
        text = os.fsdecode(unquote_to_bytes(f"/{below}"))
    elif separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise UserError(f"{text}: hanflow cannot read {scheme}://; copy the data to a local folder or to gs://")
    if "\0" in text:
        raise UserError(f"{text!r}: holds a zero byte, which no path has; correct it")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: there is no such user; write the path of the folder instead of ~") from None
    if text.isascii() or os.path.lexists(path):
        return path
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((form for form in forms if os.path.lexists(form)), path)


def portable(text: str) -> str:
    """A path as text that every file of ours and every program can hold: unchanged, or, where it holds bytes that are not
    UTF-8, as a `file://` URI."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"file://{quote_from_bytes(os.fsencode(os.path.abspath(text)))}"
    return text


def shown(text: object) -> str:
    """A path for people: bytes that are not UTF-8, and characters that move the cursor, as escapes."""
    plain = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


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
