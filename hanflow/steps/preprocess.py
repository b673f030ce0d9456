"""Raw files to a corpus: read, clean, drop duplicates, split without leaks.

Two passes. The first reads the sources (test first, so that train can be kept free of it), cleans, and appends what is
good to a temporary file; of every row it keeps two digests in memory, nothing else. The second deals those rows out to
the splits. So memory grows with the number of rows (about 200 bytes each) and not with their size.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hanflow.config import PreprocessConfig, to_mapping
from hanflow.data.ingest import ACCEPTED, FLUSH_CHARS, FLUSH_ROWS, SPELLINGS, TEST, TRAIN, VALIDATION, Intake
from hanflow.data.readers import raw_files
from hanflow.data.schema import check_columns
from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.metrics import lengths
from hanflow.progress import log
from hanflow.reports.step_report import Report
from hanflow.steps.reuse import reads_sources
from hanflow.steps.runner import main
from hanflow.storage import containers, fingerprint, shown, staged, stamp
from hanflow.storage.artifacts import SPLITS, Manifest, write_manifest
from hanflow.system import gc_paused
from hanflow.tasks import get_task
from hanflow.tasks.base import Task

Names = dict[str, dict[str, Counter[str]]]
"""Role → split → rows of each name in that column."""

MOST_NAMES = 50
"""Names that the train split lacks which the manifest lists."""


def run(config: PreprocessConfig, *, task: str, output: str) -> Report:
    """Read raw files, clean and split them, and write a corpus.

    Returns:
        Figures: `rows` accepted, `train`, `validation`, `test`, and `rejected`, in rows.

    Raises:
        UserError: a source, a file, a column or a setting that cannot be used, or no row that can.
    """
    chosen = get_task(task)
    check_columns(config.columns, chosen.columns)
    ratios = _ratios(config)
    sources = _sources(config)
    before = _stamps(sources)
    with staged(output, "corpus") as folder:
        with (
            Intake(chosen.columns, chosen.text_roles, chosen.split_role, chosen.clean, config, folder) as intake,
            gc_paused(),
        ):
            for split, files in sources:
                intake.read_source(split, files)
        intake.refuse_nothing()
        parts = assign(intake.split_array(), intake.digest_array(), ratios, chosen.split_role)
        rows, names = _deal_out(folder, parts, chosen)
        unknown = _unknown_names(names, config)
        counts = {"rows": rows, "read": intake.read, "rejected": intake.rejected, "reasons": dict(intake.reasons)}
        details = {
            "merged": intake.merged(),
            "unknown": unknown,
            "lengths": {role: lengths.summary(np.concatenate(found)) for role, found in intake.lengths.items()},
            "sources": _described(sources),
        }
        if _stamps(sources) != before:
            raise UserError("a source was replaced while it was read; give the same command again")
        from hanflow.reports.corpus import render

        (folder / "report.html").write_text(
            render(chosen.name, config, counts, details, intake.examples), encoding="utf-8"
        )
        write_manifest(folder, Manifest("corpus", chosen.name, to_mapping(config), counts, details))
    if intake.rejected:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in intake.reasons.most_common(10))
        log.warning(
            "rejected %s of %s rows: %s (see rejected.parquet)", f"{intake.rejected:,}", f"{intake.read:,}", reasons
        )
    merged = intake.merged()
    if merged:
        shown = "; ".join(
            f"{name} is " + ", ".join(f"{spelt!r} ({count:,})" for spelt, count in spellings.items())
            for name, spellings in list(merged.items())[:10]
        )
        log.warning("several spellings are one name: %s; preprocess.labels=exact keeps them apart", shown)
    return Report({"rows": sum(rows.values()), **rows, "rejected": intake.rejected}, html="report.html")


def _ratios(config: PreprocessConfig) -> dict[int, float]:
    """Split → the fraction of the source's distinct texts that it gets; only those that are split off."""
    ratios = {
        TEST: 0.0 if config.test_source else config.test_ratio,
        VALIDATION: 0.0 if config.validation_source else config.validation_ratio,
    }
    if sum(ratios.values()) >= 1:
        raise UserError(
            f"preprocess.validation_ratio + preprocess.test_ratio is {sum(ratios.values()):g}: nothing is left to "
            f"train on; make them smaller"
        )
    return {split: ratio for split, ratio in ratios.items() if ratio > 0}


def sources_fit(corpus: Manifest) -> bool:
    """Whether the raw files are still those that a corpus was made of.

    Raises:
        UserError: they cannot be found.
    """
    config = step_config("preprocess", corpus.config, corpus.task)
    return _described(_sources(config)) == corpus.details["sources"]


reads_sources("preprocess", sources_fit)


def _stamps(sources: list[tuple[int, list[str]]]) -> list[tuple[int, ...]]:
    return [stamp(path) for _, files in sources for path in containers(files)]


def _described(sources: list[tuple[int, list[str]]]) -> list[dict[str, Any]]:
    """What the manifest says of the raw files: a change of their content is a change of the corpus."""
    return [
        {"split": SPLITS[split], "file": shown(path), **{k: v for k, v in fingerprint(path).items() if k != "path"}}
        for split, files in sources
        for path in containers(files)
    ]


def _sources(config: PreprocessConfig) -> list[tuple[int, list[str]]]:
    """The given sources, in the order that they are read: what is held out comes first."""
    given = ((TEST, config.test_source), (VALIDATION, config.validation_source), (TRAIN, config.source))
    return [(split, raw_files(uri)) for split, uri in given if uri]


def assign(given: np.ndarray, digests: np.ndarray, ratios: dict[int, float], what: str) -> np.ndarray:
    """The split of every row; rows with one digest go to one split, whatever the order of the rows.

    Of n distinct digests in increasing order, the first round(test ratio · n) are the test split, the next
    round(validation ratio · n) validation, the rest train; every split asked for gets at least one.

    Args:
        given: int8 array of shape (rows,), the split whose source a row came from; only those of TRAIN are dealt out.
        digests: uint64 array of shape (rows,).
        ratios: split → fraction in (0, 1); their sum is below 1.
        what: name of the text that is counted, for the message.

    Returns:
        int8 array of shape (rows,).

    Raises:
        UserError: too few distinct digests to go round.
    """
    own = given == TRAIN
    distinct = np.unique(digests[own])
    if len(distinct) <= len(ratios):
        wanted = [*(SPLITS[split] for split in ratios), SPLITS[TRAIN]]
        raise UserError(
            f"preprocess.source: {len(distinct)} distinct {what} text{'s' * (len(distinct) != 1)} cannot fill "
            f"{' and '.join(wanted)}, at least {len(wanted)} are needed; give more data"
            + (", or set preprocess.test_ratio=0 or preprocess.validation_ratio=0" if ratios else "")
        )
    parts = given.copy()
    room = len(distinct) - len(ratios)  # what may go beyond one each, with one left to train on
    start = 0
    for split, ratio in ratios.items():
        extra = min(max(round(ratio * len(distinct)) - 1, 0), room - 1 if room else 0)
        room -= extra
        stop = start + 1 + extra
        parts[own & (digests >= distinct[start]) & (digests <= distinct[stop - 1])] = split
        start = stop
    return parts


def _unknown_names(names: Names, config: PreprocessConfig) -> dict[str, dict[str, Any]]:
    """Split → the names of a category in it that the train split lacks, told to the person.

    Raises:
        UserError: a split has no other ones.
    """
    found: dict[str, dict[str, Any]] = {}
    for role, counts in names.items():
        known = counts[SPLITS[TRAIN]]
        if len(known) > MOST_NAMES and sum(known.values()) < 2 * len(known):
            continue  # hardly a name twice: these are no names, which the task says
        for split in SPLITS:
            total = sum(counts[split].values())
            absent = {name: count for name, count in counts[split].most_common() if name not in known}
            if not absent:
                continue
            rows = sum(absent.values())
            shown = ", ".join(f"{name} ({count:,})" for name, count in list(absent.items())[:10])
            if rows == total:
                there = ", ".join(f"{name} ({count:,})" for name, count in known.most_common(10))
                given = getattr(config, f"{split}_source")
                raise UserError(
                    f"{given or config.source}: no row of the {split} split has a {role} that the train split has; "
                    f"{split}: {shown}; train: {there}; spell both alike, or give the {split} split rows of these classes "
                    f"({f'preprocess.{split}_source' if given else f'preprocess.{split}_ratio, preprocess.seed'})"
                )
            log.warning(
                "the %s split has %s of %s rows with a %s that the train split lacks: %s; they count as wrong",
                split,
                f"{rows:,}",
                f"{total:,}",
                role,
                shown,
            )
            found[split] = {"role": role, "rows": rows, "of": total, "names": dict(list(absent.items())[:MOST_NAMES])}
    return found


def _deal_out(folder: Path, parts: np.ndarray, task: Task) -> tuple[dict[str, int], Names]:
    """The second pass: write every split's file; returns its rows, and the names of each column of categories."""
    roles = [column.role for column in task.columns]
    schema = pa.schema([(role, pa.string()) for role in roles])
    repeated = [role for role in roles if role not in task.text_roles]  # texts hardly repeat: no dictionary of them
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd", use_dictionary=repeated)
            )
            for name in SPLITS
        ]
        waiting: list[list[pa.RecordBatch]] = [[] for _ in SPLITS]
        names: Names = {c.role: {split: Counter() for split in SPLITS} for c in task.columns if c.category}
        done = 0
        for batch in _accepted_batches(folder):
            part = parts[done : done + batch.num_rows]
            done += batch.num_rows
            for split, writer in enumerate(writers):
                mine = batch.filter(pa.array(part == split))
                if mine.num_rows:
                    waiting[split].append(mine)
                for role in names:
                    for count in mine.column(role).value_counts().to_pylist():
                        names[role][SPLITS[split]][count["values"]] += count["counts"]
                if (
                    sum(map(len, waiting[split])) >= FLUSH_ROWS
                    or sum(b.nbytes for b in waiting[split]) >= 4 * FLUSH_CHARS
                ):
                    writer.write_table(pa.Table.from_batches(waiting[split]))
                    waiting[split] = []
            many = [role for role, counts in names.items() if any(len(found) > SPELLINGS for found in counts.values())]
            for role in many:  # it holds no names; a later step says so
                del names[role]
        for writer, batches in zip(writers, waiting, strict=True):
            if batches:
                writer.write_table(pa.Table.from_batches(batches))
    (folder / ACCEPTED).unlink()
    return {name: int((parts == split).sum()) for split, name in enumerate(SPLITS)}, names


def _accepted_batches(folder: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(folder / ACCEPTED)) as stream, pa.ipc.open_file(stream) as reader:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


if __name__ == "__main__":
    sys.exit(main("preprocess", run, inputs=()))
