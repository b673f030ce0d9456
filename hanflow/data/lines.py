"""From a raw file's bytes to decoded lines: decompression, encodings, line ends, lines of any size.

Everything streams in blocks of about a megabyte. What is wrong with one line stays with that line; what is wrong with
the whole file (unreadable, damaged, empty) is a UserError that names it.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from hanflow.data.encodings import HEAD, display_name, encoding_of
from hanflow.errors import UserError
from hanflow.storage import open_raw

BLOCK = 1 << 20
"""Bytes read at once."""

ROW_LIMIT = 10_000_000
"""Longest row, in bytes; a longer one is rejected, so that a missing newline cannot fill the memory."""

TOO_LONG = f"the row is longer than {ROW_LIMIT // 1_000_000} MB"
"""Why such a row is rejected."""

RAW_LIMIT = 10_000
"""Characters kept of a rejected row's raw text."""

BAD_BYTE = "\ufdd0"
"""What `as_utf8` puts where bytes could not be decoded: a code point that Unicode keeps for such inner uses."""


@dataclass
class Block:
    """Some consecutive lines of a file, without their ends."""

    lines: list[str]
    bad: dict[int, str] = field(default_factory=dict)
    """Index in `lines` → why that line cannot be used; what stands in `lines` is then only for showing."""


def byte_blocks(path: str) -> Iterator[bytes]:
    """The bytes of a file, decompressed if its name ends in .gz.

    Raises:
        UserError: it is missing, unreadable, empty, or damaged gzip; says which.
    """
    compressed = path.lower().endswith(".gz")
    done = 0
    try:
        with open_raw(path) as raw, gzip.open(raw, "rb") if compressed else raw as stream:
            while block := stream.read(BLOCK):
                done += len(block)
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: is cut short or damaged: it cannot be decompressed past {done / 1e6:.1f} MB ({error}); "
            f"fetch it again, then check it with gzip -t"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the path and its rights") from None
    if not done:
        raise empty(path)


def empty(path: str) -> UserError:
    """What is said of a file without a line."""
    return UserError(f"{path}: is empty; remove it or give another file")


def line_blocks(path: str, encoding: str) -> Iterator[Block]:
    """The decoded lines of a file, split at newlines alone (not at U+2028 or U+0085), carriage returns stripped.

    Args:
        path: the file; .gz is decompressed.
        encoding: a codec's name, or `auto`: by byte-order mark, else UTF-8, else CP949 where only that fits.

    Raises:
        UserError: see `byte_blocks`; or no such encoding.
    """
    blocks, codec = decoded_blocks(path, encoding)
    name = display_name(codec)
    if not _line_safe(codec):
        # Newlines cannot be found in its bytes: recode, with an impossible byte where a character was bad.
        blocks, codec = _recoded(blocks, codec, "\udcff"), "utf-8"
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
            rest, overlong = b"", rest[: RAW_LIMIT * 4].decode(codec, "backslashreplace")[:RAW_LIMIT]
    if overlong:
        yield Block([overlong], {0: TOO_LONG})
    elif rest:
        yield _decoded(rest, codec, name)


def _decoded(whole: bytes, codec: str, name: str) -> Block:
    if len(whole) <= ROW_LIMIT:
        try:
            text = whole.decode(codec)
        except UnicodeDecodeError:
            pass
        else:
            if "\r" in text:
                text = text.replace("\r\n", "\n").removesuffix("\r")
            return Block(text.split("\n"))
    block = Block([])
    for index, line in enumerate(whole.split(b"\n")):
        line = line.removesuffix(b"\r")
        if len(line) > ROW_LIMIT:
            block.bad[index] = TOO_LONG
            block.lines.append(line[: RAW_LIMIT * 4].decode(codec, "backslashreplace")[:RAW_LIMIT])
            continue
        try:
            block.lines.append(line.decode(codec))
        except UnicodeDecodeError as error:
            block.bad[index] = f"not valid {name} (byte {error.start + 1} of the row)"
            block.lines.append(line[:ROW_LIMIT].decode(codec, "backslashreplace")[:RAW_LIMIT])
    return block


def decoded_blocks(path: str, encoding: str) -> tuple[Iterator[bytes], str]:
    """The bytes of a file without its byte-order mark, and the codec that they are to be read with.

    Raises:
        UserError: see `byte_blocks`; or `encoding` is no text encoding that Python knows.
    """
    blocks = byte_blocks(path)
    head = b""
    for block in blocks:
        head += block
        if len(head) >= HEAD:
            break
    found = encoding_of(head[:HEAD], encoding, path, "preprocess.encoding")

    def following() -> Iterator[bytes]:
        if len(head) > len(found.mark):
            yield head[len(found.mark) :]
        yield from blocks

    return following(), found.codec


def _line_safe(codec: str) -> bool:
    """Whether the byte 0x0A is always a newline in that encoding, so that bytes can be split before decoding."""
    return not codec.startswith(("utf-16", "utf-32", "utf-7", "iso2022", "hz"))


def as_utf8(path: str, encoding: str) -> Iterator[bytes]:
    """The bytes of a file as valid UTF-8, whatever it was; BAD_BYTE stands where it could not be decoded."""
    blocks, codec = decoded_blocks(path, encoding)
    return _recoded(blocks, codec, BAD_BYTE)


def _recoded(blocks: Iterator[bytes], codec: str, mark: str) -> Iterator[bytes]:
    name = f"hanflow.mark-{ord(mark):x}"
    codecs.register_error(name, lambda error: (mark, error.end))  # type: ignore[attr-defined]
    decoder = codecs.getincrementaldecoder(codec)(name)
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogateescape")
    yield decoder.decode(b"", True).encode("utf-8", "surrogateescape")
