"""CRC-32C as the service reports it for every object, and the comparison of files with objects."""

from __future__ import annotations

import hashlib
import io
from base64 import b64encode
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from hanflow.storage.gcs.objects import Object


def encoded(checksum: google_crc32c.Checksum) -> str:
    """A checksum as the service writes it: base 64."""
    return b64encode(checksum.digest()).decode()


def crc32c(stream: BinaryIO | io.RawIOBase) -> str:
    """CRC-32C of the rest of a stream, base 64."""
    checksum = google_crc32c.Checksum()
    while block := stream.read(1 << 20):
        checksum.update(block)
    return encoded(checksum)


def file_crc32c(path: Path) -> str:
    """CRC-32C of a file's bytes, base 64."""
    with path.open("rb") as stream:
        return crc32c(stream)


def file_is(path: Path, there: Object, sha256: str = "") -> bool:
    """Whether a file has an object's content: by the expected sha256 (hex) if given, else by the object's CRC-32C."""
    if path.stat().st_size != there.bytes:
        return False
    if not sha256:
        return not there.crc32c or file_crc32c(path) == there.crc32c
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
