"""Rows of predictions and of references that belong together: in order, or by id."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from tempfile import NamedTemporaryFile

from hanflow.data.lines import rereadable
from hanflow.data.readers import TextRow, read_texts
from hanflow.data.schema import Source
from hanflow.errors import UserError
from hanflow.progress import log

SHOWN = 5
"""Most ids that a message lists."""


class Pairs:
    """The rows of a file of predictions, each with its rows of the files of references.

    Files are paired in their order. Where a file of references and the predictions both have ids, and those differ in
    some row, their rows are joined by id.

    Raises:
        UserError: a file cannot be used (`readers.read_texts`), or the files differ in rows or in ids.
    """

    def __init__(self, predictions: Source, references: Sequence[Source]):
        self.sources = [predictions, *references]
        self.rows: int | None = None
        """Rows of each file; None: one of them can be read only once."""
        self._joined: dict[int, _ById] = {}
        if all(rereadable(source.path) for source in self.sources):  # so that a mistake shows before the work
            self._first_pass()

    def _first_pass(self) -> None:
        counts = [0] * len(self.sources)
        differing: set[int] = set()
        for rows in zip_longest(*map(read_texts, self.sources)):
            for place, row in enumerate(rows):
                counts[place] += row is not None
                if row is not None and rows[0] is not None and _apart(rows[0], row):
                    differing.add(place)
        for place in sorted(differing):
            self._joined[place] = _ById(self.sources[0], self.sources[place])
            log.warning(
                "%s: its rows are in another order than those of %s; they are joined by id",
                self.sources[place].path,
                self.sources[0].path,
            )
        if len(set(counts)) > 1:
            raise _unequal({source.path: count for source, count in zip(self.sources, counts, strict=True)})
        self.rows = counts[0]

    def __iter__(self) -> Iterator[tuple[list[str], list[str]]]:
        """(texts of the prediction, texts of its references) of each row."""
        in_order = [source for place, source in enumerate(self.sources) if place not in self._joined]
        counts = dict.fromkeys((source.path for source in in_order), 0)
        for number, rows in enumerate(zip_longest(*map(read_texts, in_order)), start=1):
            counts.update((source.path, number) for source, row in zip(in_order, rows, strict=True) if row is not None)
            if any(row is None for row in rows):
                continue  # count on, for the message
            other = next((place for place, row in enumerate(rows) if _apart(rows[0], row)), None)
            if other is not None:
                raise UserError(
                    f"{in_order[other].path}: row {number} has the id {rows[other].id!r}, that of {in_order[0].path} "
                    f"{rows[0].id!r}; save both as files, so that their rows can be joined by id"
                )
            left = iter(rows[1:])
            texts = [
                text
                for place in range(1, len(self.sources))
                for text in (self._joined[place].texts(rows[0].id) if place in self._joined else next(left).texts)
            ]
            yield rows[0].texts, texts
        if len(set(counts.values())) > 1:
            raise _unequal(counts)


def _apart(row: TextRow, other: TextRow) -> bool:
    return None not in (row.id, other.id) and row.id != other.id


class _ById:
    """The texts of a file of references by the ids of its rows, on disk: memory does not follow the rows."""

    def __init__(self, predictions: Source, references: Source):
        self._file = NamedTemporaryFile(suffix=".sqlite")  # noqa: SIM115 (as long as this lives)
        self._table = sqlite3.connect(self._file.name, isolation_level=None)
        run = self._table.execute
        run("PRAGMA synchronous = OFF")
        run("PRAGMA journal_mode = OFF")
        run("CREATE TABLE predictions (id TEXT)")
        run('CREATE TABLE "references" (id TEXT, texts TEXT)')
        insert = self._table.executemany
        run("BEGIN")
        insert("INSERT INTO predictions VALUES (?)", ((row.id,) for row in read_texts(predictions)))
        rows = ((row.id, json.dumps(row.texts)) for row in read_texts(references))
        insert('INSERT INTO "references" VALUES (?, ?)', rows)
        run("COMMIT")
        run('CREATE INDEX by_id ON "references" (id)')
        problems = []
        for table, other, source in (
            ("predictions", '"references"', predictions),
            ('"references"', "predictions", references),
        ):
            double = self._ids(f"SELECT id FROM {table} GROUP BY id HAVING count(*) > 1")
            alone = self._ids(f"SELECT id FROM {table} EXCEPT SELECT id FROM {other}")
            problems += [f"{source.path} has several rows of {double}"] if double else []
            problems += [f"{source.path} alone has {alone}"] if alone else []
        if problems:
            raise UserError(
                f"the rows of {predictions.path} and {references.path} have different ids and cannot be joined by their "
                f"ids: {'; '.join(problems)}; give one prediction for every reference, each with an id of its own, or "
                "remove the column of ids from one, to pair the rows in their order"
            )

    def _ids(self, query: str) -> str:
        found = [repr(id) for (id,) in self._table.execute(f"{query} ORDER BY id LIMIT {SHOWN + 1}")]
        return ", ".join(found[:SHOWN]) + (", …" if len(found) > SHOWN else "")

    def texts(self, id: str | None) -> list[str]:
        """The texts of an id."""
        (found,) = self._table.execute('SELECT texts FROM "references" WHERE id = ?', (id,)).fetchone()
        return list(json.loads(found))


def _unequal(rows: Mapping[str, int]) -> UserError:
    """The error for files that do not hold the same number of rows: path → rows."""
    counts = ", ".join(f"{path} {count:,}" for path, count in rows.items())
    return UserError(
        f"the files differ in rows: {counts}; give one prediction for every reference, in the same order (in a file of "
        f"lines a newline inside a text makes two rows: give csv or jsonl then)"
    )
