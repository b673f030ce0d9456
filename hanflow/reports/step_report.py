"""The report that a step returns to its caller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Report:
    """Results of a step."""

    figures: dict[str, Any] = field(default_factory=dict)
    """Key figures by name, numbers or short texts: the run's table, KFP Metrics."""
    html: str = ""
    """Name of the HTML report inside the artifact; empty: none."""
    confusion: tuple[list[str], Any] | None = None
    """(classes, integer matrix of right class × predicted class), for KFP ClassificationMetrics; None: none."""
