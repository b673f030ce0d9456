"""Where training figures go: log lines, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from components.shared.progress import log
from components.train.checkpoint import LoopState


class Trackers:
    """Writes figures as they come; use as a context manager.

    Args:
        folder: gets `metrics.jsonl` (one object a line: `{"split", "step", …}`) and `tensorboard/`.
        state: a resumed run's state: what it had logged is kept, what came after it is dropped.
    """

    def __init__(self, folder: Path, state: LoopState):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        known = [("train", point) for point in state.train] + [("validation", point) for point in state.validation]
        known.sort(key=lambda pair: pair[1]["step"])
        self._path.write_text("".join(_line(split, point) for split, point in known), encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=state.step + 1)

    def write(self, split: str, figures: Mapping[str, float]) -> None:
        """Log the figures of one step of a split; `figures["step"]` is the number of optimizer steps done."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line(split, figures))
        step = int(figures["step"])
        for name, value in figures.items():
            if name != "step":
                self._board.add_scalar(f"{split}/{name}", value, step)
        if split != "train":
            log.info("%s at step %d: %s", split, step, ", ".join(f"{k} {v:.4g}" for k, v in figures.items() if k != "step"))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()


def _line(split: str, figures: Mapping[str, float]) -> str:
    return json.dumps({"split": split, **figures}) + "\n"
