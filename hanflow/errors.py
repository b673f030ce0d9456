"""Errors that the user can fix, and the exit statuses of commands and workers."""

from __future__ import annotations

import errno
from collections.abc import Sequence

PERMANENT = (1, 2)
"""Exit statuses that a restart cannot help: a UserError, and wrong usage."""
STOPPED = 143
"""Exit status of workers that saved a checkpoint and stopped on request."""
UNEXPECTED = 70
"""Exit status of a worker after an unexpected error (EX_SOFTWARE): a restart may help."""
GRACE_SECONDS = 120
"""Seconds between SIGTERM and SIGKILL that a worker gets to save a checkpoint (spot nodes give less)."""


class UserError(Exception):
    """An error that the user can fix; the message gives the cause, the place and the remedy."""

    exit_status = 1
    """Exit status of a command that ends with this error."""


class ConfigError(UserError):
    """One or more settings are wrong; the message lists them all, and the file if they are of one."""

    def __init__(self, problems: Sequence[str], place: object = ""):
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        head = f"{place}: {count} in the settings:" if place else f"{count} in the settings:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in problems)]))


_CURES = {
    errno.ENOENT: "no such file or folder; check the path",
    errno.EISDIR: "is a folder; give a file",
    errno.ENOTDIR: "a part of the path is a file, not a folder; give another path",
    errno.EEXIST: "exists already and is not a folder; give another path",
    errno.EACCES: "permission denied; check the rights of the file and of its folder",
    errno.EPERM: "permission denied; check the rights of the file and of its folder",
    errno.EROFS: "its disk can only be read; give another path",
    errno.ENOSPC: "no space left on the disk; free some and give the same command again",
    errno.EDQUOT: "the quota of the disk is used up; free some space and give the same command again",
    errno.ENAMETOOLONG: "the name is too long; give a shorter path",
}


def file_error(error: OSError, place: object = None) -> UserError:
    """An error of the file system as one that names the file, the cause and the cure.

    Args:
        place: the file or folder, where `error` does not name it, or names a temporary one.
    """
    reason = _CURES.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)
    return UserError(f"{error.filename if place is None else place}: {reason}")


_FULL = ("No space left on device", "Disk quota exceeded", "StorageFull")
"""How libraries that are not Python's spell a full disk."""


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk, or a full quota, is the cause of an error, whatever library raised it."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or any(text in str(error) for text in _FULL)


def has_no_locks(error: OSError) -> bool:
    """Whether a lock was refused because the file system has none (some of NFS and Lustre)."""
    return error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
