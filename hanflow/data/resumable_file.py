"""A file that grows by commits: killed at any moment, the next start resumes after the last commit.

`NAME.partial` grows beside `NAME`; the state in `NAME.partial.json` holds how many of its bytes are committed, and what
they were made from. A commit syncs the bytes first and replaces the state after, so that the state never counts bytes
that are not on the disk.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from hanflow.errors import UserError, has_no_locks
from hanflow.own_files import json_text, read_json, replace_file

_KEYS = {"identity": dict, "done": dict, "bytes": int, "complete": bool}
"""What the state holds."""


class PartialFile:
    """Use by `opened`.

    Args:
        path: the finished file.
        identity: what the content depends on, plain JSON data; a state with another identity is not resumed.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]):
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.state_path = path.with_name(f"{path.name}.partial.json")
        self.done: dict[str, Any] = {}
        """What was given with the last commit; empty: nothing is committed yet."""
        self._identity = json.loads(json.dumps(identity))
        self._bytes = 0
        self._stream: BinaryIO | None = None

    def commit(self, content: bytes, done: Mapping[str, Any]) -> None:
        """Append bytes; from now on, an interrupted run resumes after them.

        Raises:
            UserError: they cannot be written.
        """
        assert self._stream is not None, "only while it is opened"
        with self._writing():
            self._stream.write(content)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._bytes += len(content)
            self._write_state(done, complete=False)

    def finish(self) -> None:
        """Rename the partial file to its final name and remove the state.

        Raises:
            UserError: the file system refuses.
        """
        with self._writing():
            self._write_state(self.done, complete=True)
            os.replace(self.partial, self.path)
            _sync_folder(self.path.parent)
            self.state_path.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}); once that is solved, the same command "
                "resumes where this one stopped; or give another --output"
            ) from error

    def _write_state(self, done: Mapping[str, Any], complete: bool) -> None:
        self.done = dict(done)
        state = {
            "identity": self._identity,
            "done": self.done,
            "bytes": self._bytes,
            "complete": complete,
            "pid": os.getpid(),
        }
        replace_file(self.state_path, json_text(state))
        _sync_folder(self.path.parent)

    def _begin(self, restart: bool, resumable: bool) -> None:
        """Lock the file and cut it to what is committed."""
        self._stream = stream = self.partial.open("ab")
        try:
            # No lock beside it: a kill just before its removal would leave it when all else is done.
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.partial}: {self._writer()} is writing it; let it finish, or give another --output"
            ) from None
        except OSError as error:
            if not has_no_locks(error):
                raise
        size = os.fstat(stream.fileno()).st_size
        state = None if restart else self._state()
        if restart or not (state or size):
            os.ftruncate(stream.fileno(), 0)
            self._write_state({}, complete=False)
            return
        if state is None:
            raise UserError(
                f"{self.partial}: exists without its state ({self.state_path.name}), so its content is unknown; "
                "remove it, or start over with --restart"
            )
        differing = _differences(state["identity"], self._identity)
        if differing:
            raise UserError(
                f"{self.partial}: was started with other settings or inputs: {'; '.join(differing)}; give the same ones, "
                "or start over with --restart"
            )
        if not resumable:
            os.ftruncate(stream.fileno(), 0)
            return
        if size < state["bytes"]:
            raise UserError(
                f"{self.partial}: has {size:,} bytes, {state['bytes']:,} were committed: it was changed; start over with "
                "--restart"
            )
        os.ftruncate(stream.fileno(), state["bytes"])
        self._bytes, self.done = state["bytes"], state["done"]

    def _writer(self) -> str:
        """The process that has the lock, as far as it has left its id."""
        with suppress(UserError):
            state = self._state()
            if state and "pid" in state:
                return f"process {state['pid']}"
        return "another process"

    def _state(self) -> dict[str, Any] | None:
        try:
            return read_json(self.state_path, "remove it, or start over with --restart", keys=_KEYS)
        except FileNotFoundError:
            return None

    def completed(self) -> bool:
        """Whether an earlier process finished the file but was killed before it removed the state; removes it then."""
        if self.partial.exists() or not self.path.exists() or not self.state_path.exists():
            return False
        state = self._state()
        if not state or not state["complete"] or state["identity"] != self._identity:
            return False
        self.done = state["done"]
        self.state_path.unlink()
        return True

    @contextmanager
    def opened(self, restart: bool, resumable: bool = True) -> Iterator[None]:
        """Start, or resume; what is committed stays, whatever ends the block.

        Args:
            restart: start over, whatever exists.
            resumable: whether the content can be produced from its middle on; else a partial file is started over.

        Raises:
            UserError: it was started with another identity, another process works on it, or it cannot be written.
        """
        try:
            with self._writing():
                self._begin(restart, resumable)
            yield
        finally:
            if self._stream is not None:
                self._stream.close()


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two pieces of JSON data, one text each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [t for k in keys for t in _differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [t for i, pair in enumerate(zip(old, new, strict=True)) for t in _differences(*pair, f"{name}[{i}]")]
    return (
        []
        if old == new
        else [f"{name} was {json.dumps(old, ensure_ascii=False)}, is {json.dumps(new, ensure_ascii=False)}"]
    )


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, as far as its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
