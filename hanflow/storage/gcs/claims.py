"""Claims: a note in place of a record, so that of any number of writers exactly one commits."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import dataclass, field

from google.api_core import exceptions

from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage.artifacts import UNCOMMITTED
from hanflow.storage.gcs import service
from hanflow.storage.gcs.objects import delete, listing, put_if, stat
from hanflow.storage.gcs.reader import read


@dataclass
class Claim:
    """The right to commit at a URI, until another writer takes it over."""

    uri: str
    record: str
    """Name of the file that commits."""
    generation: int
    written: list[tuple[str, int]] = field(default_factory=list)
    """(URI, generation) of what was uploaded so far."""


class TakenOver(UserError):
    """Another writer has claimed the URI."""

    def __init__(self, uri: str):
        super().__init__(
            f"{uri}: another process writes there, too, and has taken over; this one has left nothing: let the other "
            "one finish, or give another output"
        )


def claim(uri: str, record: str, *, replace: bool = False) -> Claim:
    """Claim a URI for writing; what an earlier writer left unfinished there is taken over.

    Args:
        uri: the folder.
        record: name of the file in it that will commit.
        replace: whether something committed may be replaced.

    Raises:
        UserError: something is committed there, or it cannot be written to.
    """
    place = service.join(uri, record)
    for _ in range(service.ATTEMPTS * 4):
        there = read(place)
        note = claim_note(there[0]) if there else None
        if note is None and not replace and (there or listing(uri)):
            raise UserError(f"{uri}: already exists and is not empty; give another output folder or remove this one")
        if note is not None:
            log.warning("%s: was left unfinished by %s; writing it again", uri, note)
        text = json.dumps(
            {UNCOMMITTED: {"host": socket.gethostname(), "since": time.strftime("%FT%TZ", time.gmtime())}}
        )
        try:
            return Claim(uri, record, put_if(place, text.encode(), there[1] if there else 0))
        except exceptions.PreconditionFailed:
            continue  # another writer was faster: read again
    raise TakenOver(uri)


def claim_note(record: bytes) -> str | None:
    """Who holds the claim, from the content of the record; None: it is committed."""
    try:
        note = json.loads(record)[UNCOMMITTED]
        return f"{note['host']} (since {note['since']})"
    except (ValueError, KeyError, TypeError):
        return None


def check(claimed: Claim) -> None:
    """Raise `TakenOver` if a claim is no longer ours; one without a record always is."""
    if claimed.record:
        now = stat(service.join(claimed.uri, claimed.record))
        if now is None or now.generation != claimed.generation:
            raise TakenOver(claimed.uri)


def abandon(claimed: Claim) -> None:
    """Give up a claim: remove it and what was uploaded, as far as possible."""
    with contextlib.suppress(Exception):
        delete(service.join(claimed.uri, claimed.record), claimed.generation, seconds=10.0)
        for uri, generation in claimed.written:
            delete(uri, generation, seconds=10.0)
