"""The HTML report of a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hanflow.config import PreprocessConfig, last_part, to_mapping
from hanflow.reports.html import Section, histogram, page, settings, table

MOST_SPELLINGS = 200
"""Rows of the table of spellings."""


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
    merged = [(name, spelt, n) for name, spellings in details["merged"].items() for spelt, n in spellings.items()]
    if merged:
        sections.append(
            Section(
                "Spellings",
                table(["name", "as it stands in the files", "rows"], merged[:MOST_SPELLINGS]),
                "Several spellings of one name; preprocess.labels=exact keeps them apart.",
            )
        )
    sources = [(source["split"], last_part(source["file"]), source["bytes"]) for source in details["sources"]]
    sections += [
        Section("Sources", table(["split", "file", "bytes"], sources)),
        Section("Settings", settings(to_mapping(config))),
    ]
    return page("Corpus", sections, f"{task}: {sum(counts['rows'].values()):,} rows from {last_part(config.source)}")


def _percent(count: int, whole: int) -> str:
    return f"{count / whole:.1%}" if whole else ""
