"""From a raw file's bytes to decoded lines: decompression, encodings, line ends, lines of any size.

Everything streams in blocks of a quarter of a megabyte. What is wrong with one line stays with that line; what is wrong with
the whole file (unreadable, damaged, empty) is a UserError that names it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any

from hanflow.data.schema import Source
from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage import divided, is_remote, open_raw

STANDARD_INPUT = "-"
"""Path that means standard input."""

BLOCK = 1 << 18
"""Bytes read at once; with a megabyte, rows leave the processor's cache before they are used."""

HEAD = 1 << 16
"""Bytes of a file's beginning that its encoding is recognized by."""

ROW_LIMIT = 10_000_000
"""Longest row, in bytes; a longer one is rejected, so that a missing newline cannot fill the memory."""

TOO_LONG = f"the row is longer than {ROW_LIMIT // 1_000_000} MB"
"""Why such a row is rejected."""

RAW_LIMIT = 10_000
"""Characters kept of a rejected row's raw text."""

BAD_BYTE = "\ufdd0"
"""What `as_utf8` puts where bytes could not be decoded: a code point that Unicode keeps for such inner uses."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


_MAGIC = (
    (b"version https://git-lfs.github.com/spec", "a Git LFS pointer, not the file: run git lfs pull"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook, not text: name it .zip, or save it as .csv or .jsonl"),
    (b"PAR1", "a parquet file: name it .parquet"),
    (b"ARROW1", "an Arrow file: name it .arrow"),
    (b"\x1f\x8b", "compressed by gzip: name it .gz"),
)
"""Beginnings of files that hold no lines → what they are, and what to do."""


@dataclass
class Block:
    """Some consecutive lines of a file, without their ends."""

    lines: list[str]
    bad: dict[int, str] = field(default_factory=dict)
    """Index in `lines` → why that line cannot be used; what stands in `lines` is then only to be shown."""


def rereadable(path: str) -> bool:
    """Whether a file can be read a second time: neither standard input nor a pipe."""
    return is_remote(path) or (path != STANDARD_INPUT and os.path.isfile(divided(path)[0]))


def byte_blocks(path: str) -> Iterator[bytes]:
    """The bytes of a file, decompressed if its name ends in .gz.

    Raises:
        UserError: it is missing, unreadable, empty, or damaged gzip.
    """
    done = 0
    try:
        with _opened(path) as stream:
            # What a pipe holds is handed on as it comes, not once a block is full.
            take = stream.read1 if isinstance(stream, io.BufferedReader) else stream.read
            while block := take(BLOCK):
                done += len(block)
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: is cut short or damaged: it cannot be decompressed past {done / 1e6:.1f} MB ({error}); "
            f"fetch it again, then check it with {'unzip -t' if divided(path)[1] else 'gzip -t'}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the path and its rights") from None
    if not done:
        raise empty(path)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    if path == STANDARD_INPUT:
        yield sys.stdin.buffer  # not ours to close
        return
    with open_raw(path) as raw, gzip.open(raw, "rb") if path.lower().endswith(".gz") else raw as stream:
        yield stream


def empty(path: str) -> UserError:
    """The error for a file without a line."""
    return UserError(f"{path}: is empty; remove it or give another file")


def line_blocks(source: Source) -> Iterator[Block]:
    """The decoded lines of a file, split at newlines alone (not at U+2028 or U+0085), carriage returns stripped.

    A file without a newline in its beginning, but with carriage returns (of old Macs), is split at those. A byte-order
    mark before a line is no part of it: files have been joined there.

    Raises:
        UserError: see `byte_blocks`; there is no such encoding, or the file is no text.
    """
    blocks, codec = _decodable(source)
    name = _display_name(codec)
    if codec.startswith(("utf-16", "utf-32", "utf-7", "iso2022", "hz")):
        # Newlines cannot be found in its bytes: recode, with an impossible byte where a character was bad.
        blocks, codec = _recoded(blocks, codec, "\udcff"), "utf-8"
    blocks = _newline_ends(blocks, source.path)
    rest, overlong = b"", ""
    for block in blocks:
        if overlong:  # inside a line that was given up already: pass over the rest of it
            end = block.find(b"\n")
            if end < 0:
                continue
            yield Block([overlong], {0: TOO_LONG})
            block, overlong = block[end + 1 :], ""
        end = block.rfind(b"\n")
        if end < 0:
            rest += block
        else:
            whole, rest = rest + block[:end], block[end + 1 :]
            yield _decoded(whole, codec, name)
        if len(rest) > ROW_LIMIT:
            rest, overlong = b"", _shown(rest, codec)
    if overlong:
        yield Block([overlong], {0: TOO_LONG})
    elif rest:
        yield _decoded(rest, codec, name)


def _newline_ends(blocks: Iterator[bytes], path: str) -> Iterator[bytes]:
    """The blocks, with newlines for carriage returns where those end the lines.

    Raises:
        UserError: these bytes are of a format without lines.
    """
    first = next(blocks, b"")
    found = next((what for magic, what in _MAGIC if first.startswith(magic)), "")
    if found:
        raise UserError(f"{path}: is {found}")
    returns = b"\n" not in first and b"\r" in first[:-1]  # a pipe may hand on half of a line end
    for block in chain([first], blocks):
        yield block.replace(b"\r", b"\n") if returns else block


def _decoded(whole: bytes, codec: str, name: str) -> Block:
    if len(whole) <= ROW_LIMIT:
        try:
            text = whole.decode(codec)
        except UnicodeDecodeError:
            pass
        else:
            if "\r" in text:
                text = text.replace("\r\n", "\n").removesuffix("\r")
            if "\ufeff" in text:
                text = text.removeprefix("\ufeff").replace("\n\ufeff", "\n")
            return Block(text.split("\n"))
    block = Block([])
    for index, line in enumerate(whole.split(b"\n")):
        line = line.removesuffix(b"\r")
        try:
            if len(line) <= ROW_LIMIT:
                block.lines.append(line.decode(codec).removeprefix("\ufeff"))
                continue
            block.bad[index] = TOO_LONG
        except UnicodeDecodeError as error:
            block.bad[index] = f"not valid {name} (byte {error.start + 1} of the row)"
        block.lines.append(_shown(line, codec))
    return block


def _shown(line: bytes, codec: str) -> str:
    return line[: RAW_LIMIT * 4].decode(codec, "backslashreplace")[:RAW_LIMIT]


def as_utf8(source: Source) -> Iterator[bytes]:
    """The bytes of a file as valid UTF-8, whatever it was; BAD_BYTE stands where it could not be decoded.

    Raises:
        UserError: see `line_blocks`.
    """
    return _recoded(*_decodable(source), BAD_BYTE)


def _recoded(blocks: Iterator[bytes], codec: str, mark: str) -> Iterator[bytes]:
    name = f"hanflow.mark-{ord(mark):x}"
    codecs.register_error(name, lambda error: (mark, error.end))  # type: ignore[attr-defined]
    decoder = codecs.getincrementaldecoder(codec)(name)
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogateescape")
    yield decoder.decode(b"", True).encode("utf-8", "surrogateescape")


def _decodable(source: Source) -> tuple[Iterator[bytes], str]:
    """The bytes of a file without its byte-order mark, and the codec that they are to be read with."""
    blocks = byte_blocks(source.path)
    head = b""
    for block in blocks:
        head += block
        if len(head) >= HEAD or not rereadable(source.path):  # who writes a pipe may wait for an answer
            break
    found = encoding_of(head[:HEAD], source.encoding, source.path, source.encoding_option)

    def following() -> Iterator[bytes]:
        if len(head) > len(found.mark):
            yield head[len(found.mark) :]
        yield from blocks

    return following(), found.codec


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


def _display_name(codec: str) -> str:
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
    _log_cp949(path, option)
    return "cp949"


@cache  # a file may be read twice
def _log_cp949(path: str, option: str) -> None:
    log.warning("%s: is not UTF-8, read as CP949 (set %s if that is wrong)", path, option)


def _fits(data: bytes, codec: str, final: bool = False) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(data, final)
    except UnicodeDecodeError:
        return False
    return True
