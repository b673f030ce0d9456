"""What encoding a file of text is in: by its setting, or by its first bytes."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from functools import cache

from hanflow.errors import UserError
from hanflow.progress import log

HEAD = 1 << 16
"""Bytes of a file's beginning that its encoding is told from."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Encoding:
    """How a file is to be read."""

    codec: str
    """Python's name of it; it neither looks for a byte-order mark nor writes one."""
    mark: bytes = b""
    """The byte-order mark that the file begins with, which belongs to no text."""


def encoding_of(head: bytes, setting: str, path: str, option: str) -> Encoding:
    """The encoding of a file.

    Args:
        head: its first bytes, `HEAD` of them if there are as many; may end inside a character.
        setting: a codec's name, or `auto`: by byte-order mark, else UTF-8, else CP949 where only that fits.
        path: the file, for messages.
        option: what a person sets it with, for messages.

    Raises:
        UserError: `setting` is no text encoding that Python knows.
    """
    codec = "" if setting == "auto" else _codec(setting, option)
    mark, marked = next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", ""))
    if not codec:
        return Encoding(marked, mark) if marked else Encoding(_guessed(head, path, option))
    if marked and codec in (marked, marked.removesuffix("-le").removesuffix("-be")):
        return Encoding(marked, mark)
    # No mark, or that of another encoding than was asked for: then it is text. Without one, the byte order of Windows.
    return Encoding(f"{codec}-le" if codec in ("utf-16", "utf-32") else codec)


def display_name(codec: str) -> str:
    """`utf-16-le` → UTF-16, as messages name it."""
    return codec.upper().removesuffix("-LE").removesuffix("-BE")


def _codec(setting: str, option: str) -> str:
    try:
        b"x".decode(setting)  # a LookupError for codecs that are no text encoding (base64, zlib)
    except UnicodeDecodeError:
        pass  # half a character of UTF-16
    except LookupError:
        raise UserError(
            f"{option}: {setting!r} is no text encoding; give auto, utf-8, cp949, euc-kr or utf-16"
        ) from None
    return codecs.lookup(setting).name.removesuffix("-sig")


def _guessed(head: bytes, path: str, option: str) -> str:
    if _fits(head, "utf-8") or not _fits(head, "cp949"):
        return "utf-8"
    # A few bad bytes in UTF-8 may make up valid CP949 by chance; then most lines still are UTF-8.
    lines = [line for line in head.split(b"\n") if not line.isascii()]
    if sum(_fits(line, "utf-8", final=True) for line in lines) * 2 > len(lines):
        return "utf-8"
    _tell_cp949(path, option)
    return "cp949"


@cache  # a file may be read twice
def _tell_cp949(path: str, option: str) -> None:
    log.warning("%s: is not UTF-8, read as CP949 (set %s if that is wrong)", path, option)


def _fits(data: bytes, codec: str, final: bool = False) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(data, final)
    except UnicodeDecodeError:
        return False
    return True
