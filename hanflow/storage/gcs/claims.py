"""The right to write at a place: a note where its record will be, so that of any number of writers one commits."""

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
    """The right to commit at a place, until someone else takes it over."""

    uri: str
    record: str
    """Name of the file that commits."""
    generation: int
    written: list[tuple[str, int]] = field(default_factory=list)
    """(URI, generation) of what was uploaded so far."""


class TakenOver(UserError):
    """Another writer has claimed the place."""

    def __init__(self, uri: str):
        super().__init__(
            f"{uri}: another process writes there, too, and has taken over; nothing of this one's is left, let the other "
            "one finish or give another place"
        )


def claim(uri: str, record: str, *, replace: bool = False) -> Claim:
    """Become the one who writes at a place; what an unfinished writer left there is taken over.

    Args:
        uri: the folder.
        record: name of the file in it that will commit.
        replace: whether something committed may be replaced.

    Raises:
        UserError: the place is taken, or cannot be written to.
    """
    place = service.join(uri, record)
    for _ in range(service.ATTEMPTS * 4):
        there = read(place)
        note = claim_note(there[0]) if there else None
        if note is None and not replace and (there or listing(uri)):
            raise UserError(f"{uri}: already exists and is not empty; give another output folder or remove this one")
        if note is not None:
            log.warning("%s: was left unfinished by %s; writing it anew", uri, note)
        text = json.dumps(
            {UNCOMMITTED: {"host": socket.gethostname(), "since": time.strftime("%FT%TZ", time.gmtime())}}
        )
        try:
            return Claim(uri, record, put_if(place, text.encode(), there[1] if there else 0))
        except exceptions.PreconditionFailed:
            continue  # someone else was faster: look again
    raise TakenOver(uri)


def claim_note(record: bytes) -> str | None:
    """Who claimed a place, from the content of its record; None: it is committed."""
    try:
        note = json.loads(record)[UNCOMMITTED]
        return f"{note['host']} (since {note['since']})"
    except (ValueError, KeyError, TypeError):
        return None


def check(claimed: Claim) -> None:
    """Make sure that a claim still stands; one without a record always does."""
    if claimed.record:
        now = stat(service.join(claimed.uri, claimed.record))
        if now is None or now.generation != claimed.generation:
            raise TakenOver(claimed.uri)


def abandon(claimed: Claim) -> None:
    """Give up a claim: remove it and what was uploaded, as far as that can still be done."""
    with contextlib.suppress(Exception):
        delete(service.join(claimed.uri, claimed.record), claimed.generation, seconds=10.0)
        for uri, generation in claimed.written:
            delete(uri, generation, seconds=10.0)
