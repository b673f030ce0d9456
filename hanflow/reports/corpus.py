"""The HTML report of a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hanflow.config import PreprocessConfig, to_mapping
from hanflow.reports.html import Section, histogram, page, settings, table


def render(
    task: str,
    config: PreprocessConfig,
    counts: Mapping[str, Any],
    details: Mapping[str, Any],
    examples: Mapping[str, str],
) -> str:
    """The page, the same bytes for the same input.

    Args:
        task: name of the task.
        config: the step's settings.
        counts: as in the corpus's manifest.
        details: as in the corpus's manifest.
        examples: reason → the first row rejected for it.
    """
    read = counts["read"]
    rows = [("rows read", read, "")]
    rows += [(name, count, _percent(count, read)) for name, count in counts["rows"].items()]
    rows += [("rejected", counts["rejected"], _percent(counts["rejected"], read))]
    reasons = sorted(counts["reasons"].items(), key=lambda item: -item[1])
    sections = [
        Section("Rows", table(["", "rows", "of all rows read"], rows)),
        Section("Lengths", histogram(details["lengths"], "characters"), "Characters of each text after cleaning."),
    ]
    if reasons:
        sections.append(
            Section(
                "Rejected rows",
                table(
                    ["reason", "rows", "first such row"],
                    [(reason, count, examples.get(reason, "")) for reason, count in reasons],
                ),
                "Every rejected row is in rejected.parquet, with its file, row number, reason and raw text.",
            )
        )
    sections += [
        Section(
            "Sources",
            table(["split", "file", "bytes"], [(s["split"], s["file"], s["bytes"]) for s in details["sources"]]),
        ),
        Section("Settings", settings(to_mapping(config))),
    ]
    return page("Corpus", sections, f"{task}: {sum(counts['rows'].values()):,} rows from {config.source}")


def _percent(count: int, whole: int) -> str:
    return f"{count / whole:.1%}" if whole else ""
