"""Places: local paths and gs:// URIs, by their names alone."""

from __future__ import annotations

from pathlib import Path

from components.shared.config import UserError

REMOTE = "gs://"


def is_remote(uri: str) -> bool:
    """Whether a URI names something in a bucket."""
    return uri.startswith(REMOTE)


def join(uri: str, name: str) -> str:
    """The URI of something inside a folder."""
    return f"{uri.rstrip('/')}/{name}" if is_remote(uri) else str(local_path(uri) / name)


def local_path(uri: str) -> Path:
    """The path behind a local URI (`/path`, `relative/path`, `file:///path`).

    Raises:
        UserError: the scheme has no reader.
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
