"""Files and artifacts at local paths and gs:// URIs.

Steps work on local copies of what lies in a bucket: `fetched` downloads an artifact's files (in parallel, each verified by
its digest) into a cache, `staged` gives a local folder that is uploaded when complete, its manifest last. Raw data is not
copied: `open_raw` streams it. The cache is `$HANFLOW_CACHE`, else a folder of the user's below the system's folder for
temporary files; when the disk fills, the least recently used copies are removed.
"""

from __future__ import annotations

from hanflow.storage.archives import divided, is_archive
from hanflow.storage.fetch import fetched, fetched_model, manifest_at, nothing, with_fetched_model
from hanflow.storage.files import (
    check_output,
    containers,
    copy_file,
    exists,
    find_raw,
    fingerprint,
    object_names,
    open_raw,
    publish_file,
    refuse_run,
    stamp,
    unpacked,
)
from hanflow.storage.folders import cache_folder, work_folder
from hanflow.storage.locks import hold, holding, inherited, writing
from hanflow.storage.stage import readable_by_umask, staged
from hanflow.storage.uri import is_remote, join, local_path, portable, shown

__all__ = [
    "cache_folder",
    "check_output",
    "containers",
    "copy_file",
    "divided",
    "exists",
    "fetched",
    "fetched_model",
    "find_raw",
    "fingerprint",
    "hold",
    "holding",
    "inherited",
    "is_archive",
    "is_remote",
    "join",
    "local_path",
    "manifest_at",
    "nothing",
    "object_names",
    "open_raw",
    "portable",
    "publish_file",
    "readable_by_umask",
    "refuse_run",
    "shown",
    "staged",
    "stamp",
    "unpacked",
    "with_fetched_model",
    "work_folder",
    "writing",
]
