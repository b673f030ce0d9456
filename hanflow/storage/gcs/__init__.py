"""Google Cloud Storage: listing, streaming, downloading and publishing objects. Used by `hanflow.storage` and by
checkpoints in a bucket alone, which import it when they are given a gs:// URI.

Several objects cannot be written atomically, so a group of them is committed by one, its record (an artifact's manifest,
a checkpoint's commit record):

1. claim: the record is replaced by a note of who writes here, on condition that its generation has not changed since it
   was read;
2. every other file is uploaded, on condition that its generation has not changed since the claim;
3. commit: the note is replaced by the record, on condition that it is still our note.

So of any number of writers exactly one commits and the others get an error; a writer that was given up for dead cannot
overwrite what its successor wrote; and a group whose writer was killed has a note in place of a record, so that it is
never taken for complete.
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
