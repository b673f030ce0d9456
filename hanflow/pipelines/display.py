"""Progress of a pipeline on a terminal: one live line per step; elsewhere plain lines."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

LINE_INTERVAL = 15.0
"""Seconds between two plain progress lines of a step."""

PLAIN_WIDTH = 140
"""Columns where standard output is not a terminal."""


class Display:
    """Use as a context manager around the run.

    Args:
        title: what runs.
        folder: where it writes.
    """

    def __init__(self, title: str, folder: str):
        width = None if sys.stdout.isatty() else PLAIN_WIDTH
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True, width=width)
        self._errors = Console(file=sys.stderr, highlight=False, soft_wrap=True, width=width)
        self._live: Live | None = None
        self._since: dict[str, float] = {}
        self._line_at: dict[str, float] = {}
        self._now: dict[str, Text] = {}
        self._console.print(f"[bold]{title}[/] → {folder}")

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            # Redirection stays off: the run's own standard output goes to its log file meanwhile.
            self._live = Live(console=self._console, refresh_per_second=5, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(Text(""))
            self._live.stop()
            self._live = None

    def started(self, step: str) -> None:
        """A step has started."""
        self._since[step] = self._line_at[step] = time.monotonic()
        if self._live:
            self._show(step, Text(f"  {step} …", style="cyan"))
        else:
            self._console.print(f"  {step} …")

    def progress(self, event: Mapping[str, Any]) -> None:
        """Progress of a step: `step`, `label`, `done`, `total`, `unit`, `figures`; several steps may run at once."""
        step = event["step"]
        done, total, unit = event["done"], event["total"], event["unit"]
        count = f"{done:,}/{total:,} {unit}" if total else f"{done:,} {unit}"
        figures = "".join(f" · {name} {value}" for name, value in event["figures"].items())
        seconds = f"{time.monotonic() - self._since[step]:.0f} s"
        if self._live:
            bar = ""
            if total:
                filled = min(24, 24 * done // total)
                bar = "━" * filled + "╌" * (24 - filled) + " "
            text = Text.assemble(
                (f"  {step} ", "cyan"),
                f"{event['label']} ",
                (bar, "green"),
                f"{count}{figures}",
                (f" · {seconds}", "dim"),
            )
            self._show(step, text)
            return
        if time.monotonic() - self._line_at[step] >= LINE_INTERVAL:
            several = f"{step}: " if len(self._since) > 1 else ""
            self._console.print(f"    {several}{event['label']} {count}{figures} · {seconds}", markup=False)
            self._line_at[step] = time.monotonic()

    def finished(self, step: str, seconds: float, figures: Mapping[str, Any]) -> None:
        """A step has succeeded."""
        name = (f"{step:<11}", "bold")
        self._console.print(Text.assemble(("✔ ", "green"), name, f"{_seconds(seconds):>8}  {_figures(figures)}"))
        self._ended(step)

    def failed(self, step: str) -> None:
        """A step has failed."""
        self._ended(step)
        self._console.print(Text.assemble(("✘ ", "red"), (step, "bold")))

    def _ended(self, step: str) -> None:
        self._since.pop(step, None)
        self._show(step, None)

    def _show(self, step: str, text: Text | None) -> None:
        """Update the live line of a step; None removes it."""
        if text is None:
            self._now.pop(step, None)
        else:
            self._now[step] = text
        if self._live:
            self._live.update(Text("\n").join(self._now.values()))

    def summary(self, records: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """The table of the whole run."""
        table = Table(title=f"{_seconds(seconds)} in all", title_justify="left")
        for heading in ("step", "time", "figures", "artifact"):
            table.add_column(heading, overflow="fold", justify="right" if heading == "time" else "left")
        for record in records:
            time_ = _seconds(record["seconds"]) if record["status"] == "done" else record["status"]
            table.add_row(record["name"], time_, Text(_figures(record["figures"])), Text(record["artifact"]))
        self._console.print(table, soft_wrap=False)

    def note(self, text: str) -> None:
        """A plain line."""
        self._console.print(Text(text))

    def failure(self, reason: str, log: Path, excerpt: Sequence[str] = (), hint: str = "") -> None:
        """Why a run failed: an excerpt of its log, where the log is, how to continue, and last the reason."""
        if excerpt:
            self._errors.print(Text("\n".join(f"  │ {line}" for line in excerpt), style="dim"))
        for line in (f"full log: {log}", hint):
            if line:
                self._errors.print(Text(line))
        self.error(reason)

    def error(self, text: str) -> None:
        """The error message; printed last."""
        self._errors.print(Text.assemble(("error: ", "bold red"), text))


_KFP_LINE = re.compile(
    r"\d\d:\d\d:\d\d\.\d+ - [A-Z]+ - |-{20,}$|\s*\[KFP Executor |.*UserWarning: Task '|\s+_warn_local_only_noops"
    r"|(RuntimeError: )?Pipeline '.*' finished with status"
)
_COLOR = re.compile("\x1b\\[[0-9;]*m")


def step_lines(log: Iterable[str], count: int) -> list[str]:
    """The last `count` lines of a run's log that the steps wrote, without those of Kubeflow Pipelines around them."""
    kept: list[str] = []
    in_input = False  # between `Got executor_input:` and the brace that closes that JSON
    for line in log:
        line = _COLOR.sub("", line).rstrip()
        if in_input:
            in_input = line.strip() != "}" or len(line) - len(line.lstrip()) > 4
        elif _KFP_LINE.match(line):
            in_input = line.endswith("Got executor_input:")
        elif line:
            kept.append(line)
    return kept[-count:]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _figures(figures: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in figures.items()
    )
