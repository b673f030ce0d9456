"""Compiled graphs kept from run to run, in a folder or in a bucket: the runtime itself knows folders alone."""

from __future__ import annotations

from pathlib import Path

from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage import copy_file, is_remote, join, local_path, object_names, publish_file, work_folder


class CompilationCache:
    """Where compiled graphs are kept.

    Args:
        place: a folder, or gs://…; empty: nowhere.
        writes: whether this process adds to it; graphs are the same on all hosts.

    Raises:
        UserError: the place cannot be read or made.
    """

    def __init__(self, place: str, *, writes: bool):
        self.writes = writes
        self.folder: Path | None = None
        """The folder for the runtime."""
        self._bucket = place if is_remote(place) else ""
        self._kept: set[str] = set()
        if self._bucket:
            self.folder = work_folder(place)
            for name in object_names(place):
                if not (self.folder / name).exists():
                    beside = self.folder / f".{name}.partial"
                    copy_file(join(place, name), beside)
                    beside.replace(self.folder / name)
                self._kept.add(name)
            log.info("%s: %d compiled graphs", place, len(self._kept))
        elif place:
            self.folder = local_path(place)
            self.folder.mkdir(parents=True, exist_ok=True)

    def publish(self) -> None:
        """Put graphs compiled since the last call where they are kept; what fails is told and tried again next time."""
        if not (self._bucket and self.writes and self.folder):
            return
        for path in sorted(self.folder.iterdir()):
            if path.name in self._kept or path.name.startswith("."):
                continue
            try:
                publish_file(path, join(self._bucket, path.name), replace=True)
            except UserError as error:
                log.warning("a compiled graph was not kept: %s", error)
                return
            self._kept.add(path.name)
