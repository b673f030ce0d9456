"""Google Cloud Storage: objects found, streamed, fetched and published. Only `hanflow.storage` and checkpoints
in a bucket use this package, and import it when they meet a gs:// URI.

Several objects cannot be written at once, so what consists of several is committed by one of them, its record (an
artifact's manifest, a checkpoint's commit record):

1. claim: the record becomes a note that someone writes here, on condition that it is still what was looked at;
2. every other file is uploaded, on condition that it is still what it was after the claim;
3. commit: the record becomes the real one, on condition that it still is our claim.

So of any number of writers one commits and the others learn of it; a writer that was believed dead cannot spoil what its
successor wrote; and what was killed half-way has a note where a record would be: nobody takes it for whole.
"""

from __future__ import annotations

from hanflow.storage.gcs.claims import Claim, TakenOver, abandon, claim, claim_note
from hanflow.storage.gcs.downloads import Damaged, download, file_is
from hanflow.storage.gcs.objects import Object, check_bucket, listing, put, stat
from hanflow.storage.gcs.publishing import publish, put_new, remove
from hanflow.storage.gcs.reader import Reader, content, read
from hanflow.storage.gcs.service import split

__all__ = [
    "Claim",
    "Damaged",
    "Object",
    "Reader",
    "TakenOver",
    "abandon",
    "check_bucket",
    "claim",
    "claim_note",
    "content",
    "download",
    "file_is",
    "listing",
    "publish",
    "put",
    "put_new",
    "read",
    "remove",
    "split",
    "stat",
]
