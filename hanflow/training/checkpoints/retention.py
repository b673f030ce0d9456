"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def staying(steps: Iterable[int], saved: int, limit: int, best_of: Callable[[int], int]) -> set[int]:
    """Steps of the checkpoints that stay once `saved` is committed.

    The newest up to it, and the best one of each, without which it could not be gone on from. What lies ahead of it is
    damaged, or of a course that was given up when an earlier checkpoint was asked for.

    Args:
        steps: of all checkpoints, `saved` among them.
        saved: the step that was saved last.
        limit: how many of the newest stay.
        best_of: step → the best step when it was saved; -1: there was none.
    """
    newest = sorted(step for step in steps if step <= saved)[-limit:]
    return {*newest, *map(best_of, newest)}
