"""The one door to files: raw data to read, artifacts to fetch and to publish, at local paths and gs:// URIs.

What lies in a bucket is worked on from copies on this machine: `fetched` downloads an artifact's files (in parallel, each
compared with its digest) into a cache, `staged` gives a local folder that is uploaded when whole, its manifest last. Raw
data is not copied: `open_raw` streams it. The cache is `$HANFLOW_CACHE`, else a folder of the user's in the system's
folder for temporary files; what was not used for longest goes when the disk fills.
"""

from __future__ import annotations

from hanflow.storage.cache import cache_folder, work_folder
from hanflow.storage.fetch import fetched, fetched_model, manifest_at, nothing, with_fetched_model
from hanflow.storage.files import copy_file, exists, object_names, publish_file, refuse_run
from hanflow.storage.locks import hold
from hanflow.storage.raw import find_raw, fingerprint, open_raw
from hanflow.storage.stage import readable_by_umask, staged
from hanflow.storage.uri import is_remote, join, local_path

__all__ = [
    "cache_folder",
    "copy_file",
    "exists",
    "fetched",
    "fetched_model",
    "find_raw",
    "fingerprint",
    "hold",
    "is_remote",
    "join",
    "local_path",
    "manifest_at",
    "nothing",
    "object_names",
    "open_raw",
    "publish_file",
    "readable_by_umask",
    "refuse_run",
    "staged",
    "with_fetched_model",
    "work_folder",
]
