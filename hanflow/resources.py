"""What is not code and travels with the library: experiments, compiled pipelines, sample data."""

from __future__ import annotations

from pathlib import Path

_IN_WHEEL = Path(__file__).parent / "resources"
_IN_CLONE = Path(__file__).parents[1] / "pipelines"


def folder(name: str) -> Path:
    """The folder `experiments`, `compiled` or `sample_data`, of the installed wheel or of the clone."""
    return (_IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CLONE) / name
