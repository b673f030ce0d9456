"""Files and artifacts at local paths and gs:// URIs.

Steps work on local copies of what lies in a bucket: `fetched` downloads an artifact's files (in parallel, each verified by
its digest) into a cache, `staged` gives a local folder that is uploaded when complete, its manifest last. Raw data is not
copied: `open_raw` streams it. The cache is `$HANFLOW_CACHE`, else a folder of the user's below the system's folder for
temporary files; when the disk fills, the least recently used copies are removed.
"""

from __future__ import annotations

from hanflow.storage.archives import divided, is_archive
from hanflow.storage.cache import cache_folder, hold, work_folder
from hanflow.storage.fetch import fetched, fetched_model, manifest_at, nothing, with_fetched_model
from hanflow.storage.files import (
    copy_file,
    exists,
    find_raw,
    fingerprint,
    object_names,
    open_raw,
    publish_file,
    refuse_run,
    unpacked,
)
from hanflow.storage.stage import readable_by_umask, staged
from hanflow.storage.uri import is_remote, join, local_path

__all__ = [
    "cache_folder",
    "copy_file",
    "divided",
    "exists",
    "fetched",
    "fetched_model",
    "find_raw",
    "fingerprint",
    "hold",
    "is_archive",
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
    "unpacked",
    "with_fetched_model",
    "work_folder",
]
