"""Length statistics of texts and token sequences, for artifacts and reports."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 40


def summary(lengths: np.ndarray) -> dict[str, Any]:
    """Statistics and a histogram of lengths.

    Args:
        lengths: integer array of shape (rows,).

    Returns:
        Plain data: `rows`, `mean`, `median`, `p95`, `max`, and `edges` (bins + 1 floats) with `counts` (bins ints). The
        bins end at the 99th percentile; the last one also counts all longer rows, so that a few outliers do not flatten
        the histogram.
    """
    if len(lengths) == 0:
        return {"rows": 0, "mean": 0.0, "median": 0.0, "p95": 0.0, "max": 0, "edges": [0.0, 1.0], "counts": [0]}
    top = max(float(np.percentile(lengths, 99)), 1.0)
    bins = int(min(BINS, max(top, 1)))
    counts, edges = np.histogram(np.minimum(lengths, top), bins=bins, range=(0.0, top))
    return {
        "rows": len(lengths),
        "mean": float(np.mean(lengths)),
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(np.max(lengths)),
        "edges": [float(edge) for edge in edges],
        "counts": [int(count) for count in counts],
    }
