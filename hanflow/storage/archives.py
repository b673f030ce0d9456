"""Files inside zip archives, named as if the archive were a folder: `corpus.zip/part/1.json`."""

from __future__ import annotations

import os
import re
import zipfile
from typing import BinaryIO, cast

from hanflow.errors import UserError
from hanflow.storage.uri import is_remote

_INSIDE = re.compile(r"\.zip(?=/)", re.IGNORECASE)


def is_archive(path: str) -> bool:
    """Whether a path's ending is that of an archive."""
    return path.lower().endswith(".zip")


def divided(path: str) -> tuple[str, str]:
    """(the archive that a file is in, its name there); of any other file the path itself and ""."""
    for end in _INSIDE.finditer(path):
        archive, member = path[: end.end()], path[end.end() + 1 :]
        if is_remote(archive) or os.path.isfile(archive):
            return archive, member
    return path, ""


def open_archive(path: str, stream: BinaryIO) -> zipfile.ZipFile:
    """An archive, its directory read.

    Args:
        path: for messages.
        stream: its bytes, seekable.

    Raises:
        UserError: it is no zip archive.
    """
    try:
        return zipfile.ZipFile(stream)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is no zip archive, or damaged ({error}); fetch it again") from None


def member_names(archive: zipfile.ZipFile) -> list[str]:
    """The names of the files in an archive, sorted; without hidden ones."""
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return sorted(name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/")))


def open_member(path: str, archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """A file in an archive, opened to read bytes.

    Raises:
        UserError: it is not in there, is encrypted, or the archive is damaged.
    """
    try:
        return cast(BinaryIO, archive.open(name))
    except KeyError:
        raise UserError(f"{path}: holds no file {name}; check the name") from None
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # a password, an unknown compression
        raise UserError(f"{path}/{name}: cannot be unpacked ({error}); unpack the archive first") from None
