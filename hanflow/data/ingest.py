"""The first pass over raw files: read, clean, drop duplicates; good rows to a temporary file, the others to
`rejected.parquet`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hanflow.config import PreprocessConfig
from hanflow.data.lines import RAW_LIMIT
from hanflow.data.readers import read
from hanflow.data.schema import Column, RejectedRow, Row, corpus_source
from hanflow.errors import UserError
from hanflow.progress import Progress, log
from hanflow.storage.artifacts import SPLITS

TRAIN, VALIDATION, TEST = range(len(SPLITS))

ACCEPTED = "accepted.arrow"
"""Temporary file between the passes, inside the staging folder."""

REASONS = 50
"""Kinds of reasons that are counted apart; a task that makes up ever new ones ends in `OTHER`."""

OTHER = "other reasons"

SPELLINGS = 10_000
"""Spellings of the names of a column that are counted apart."""

FLUSH_ROWS, FLUSH_CHARS = 16_384, 8_000_000
"""Rows or characters gathered before they are written."""

_REJECTED = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])


@dataclass
class Intake:
    """The first pass: what was read, accepted and rejected so far."""

    columns: tuple[Column, ...]
    """Columns of the corpus."""
    text_roles: tuple[str, ...]
    """Those whose lengths are counted."""
    split_role: str
    """The one whose text may stand in one split only."""
    clean: Callable[[Mapping[str, str], PreprocessConfig], dict[str, str]]
    """Raw row (role → text) → corpus row; raises RejectedRow."""
    config: PreprocessConfig
    folder: Path
    """Where the files are written."""
    read: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """Kind of reason → its first row, as `file:row: reason`."""

    def __post_init__(self) -> None:
        self.roles = tuple(column.role for column in self.columns)
        # What makes two rows the same: their texts, not an id or a topic that may differ.
        self.compared = [c.role for c in self.columns if c.required and c.role != self.split_role]
        # The seed salts the digests: their order is then the seeded order that the splits are drawn in.
        self.salt = (self.config.seed % (1 << 128)).to_bytes(16, "little")
        self.spellings: dict[str, Counter[tuple[str, str]]] = {c.role: Counter() for c in self.columns if c.category}
        """Role → rows of each (name in the corpus, what stood in the file), as far as those differ in few ways."""
        self.seen: set[bytes] = set()
        self.held_out: dict[bytes, int] = {}
        """Digest of a text of a given validation or test source → the split."""
        self.lengths: dict[str, list[np.ndarray]] = {role: [np.zeros(0, np.int64)] for role in self.text_roles}
        self.digests: list[bytes] = []
        self.splits: list[np.ndarray] = []

    def __enter__(self) -> Intake:
        with ExitStack() as stack:
            schema = pa.schema([(role, pa.string()) for role in self.roles])
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self.accepted_file = stack.enter_context(
                pa.ipc.new_file(str(self.folder / ACCEPTED), schema, options=options)
            )
            self.rejected_file = stack.enter_context(
                pq.ParquetWriter(self.folder / "rejected.parquet", _REJECTED, compression="zstd")
            )
            self.progress = stack.enter_context(Progress("reading", unit="rows"))
            self._open = stack.pop_all()
        self._accepted: list[dict[str, str]] = []
        self._rejected: list[tuple[str, int, str, str]] = []
        self._chars = self._rejected_chars = 0
        return self

    def __exit__(self, *error: object) -> None:
        with self._open:
            if error[0] is None:
                self._flush_rejected()

    def read_source(self, split: int, files: list[str]) -> None:
        """Take in every row of one source, at most `limit_rows` of them."""
        left = self.config.limit_rows or None
        accepted = 0
        for path in files:
            for rows in read(corpus_source(path, self.columns, self.config), self.folder):
                if left is not None:
                    rows = rows[:left]
                    left -= len(rows)
                accepted += self._take(split, path, rows)
                self.progress.update(len(rows))
                if left == 0:
                    break
            if left == 0:
                break
        self._flush_accepted(split)
        if not accepted and split != TRAIN:
            log.warning("no usable row for the %s split in %s", SPLITS[split], ", ".join(files[:3]))

    def _take(self, split: int, path: str, rows: list[Row]) -> int:
        """Clean some rows and keep the good ones; returns how many those are."""
        clean, config, salt, split_role = self.clean, self.config, self.salt, self.split_role
        compared, seen, held_out, accepted = self.compared, self.seen, self.held_out, self._accepted
        digests = []
        spelt: dict[str, list[tuple[str, str]]] = {role: [] for role in self.spellings}
        self.read += len(rows)
        for row in rows:
            values = row.values
            if values is None:
                self._reject(path, row, row.reason)
                continue
            try:
                cleaned = clean(values, config)
                text = cleaned[split_role]
                hasher = blake2b(text.encode(), digest_size=16, salt=salt)
                digest = hasher.digest()
                if held_out and held_out.get(digest, split) != split:
                    raise RejectedRow(f"the text is also in the {SPLITS[held_out[digest]]} split")
                if config.deduplicate:
                    if compared:
                        for role in compared:
                            hasher.update(b"\xff" + cleaned[role].encode())  # a byte that no UTF-8 holds: no ambiguity
                        whole = hasher.digest()
                    else:
                        whole = digest
                    if whole in seen:
                        raise RejectedRow("the row is a duplicate of an earlier one")
                    seen.add(whole)
            except RejectedRow as error:
                self._reject(path, row, str(error))
                continue
            for role, found in spelt.items():
                found.append((cleaned[role], values[role]))
            digests.append(digest)
            accepted.append(cleaned)
            self._chars += len(text)
            if len(accepted) >= FLUSH_ROWS or self._chars >= FLUSH_CHARS:
                self._flush_accepted(split)
        for role, found in spelt.items():
            for name, count in Counter(found).items():
                if name in self.spellings[role] or len(self.spellings[role]) < SPELLINGS:
                    self.spellings[role][name] += count
        if split != TRAIN:
            held_out.update(dict.fromkeys(digests, split))
        self.digests.append(b"".join(digest[:8] for digest in digests))
        self.splits.append(np.full(len(digests), split, np.int8))
        return len(digests)

    def _flush_accepted(self, split: int) -> None:
        if self._accepted:
            rows = self._accepted
            columns = {role: [row[role] for row in rows] for role in self.roles}
            for role, found in self.lengths.items():
                found.append(np.fromiter(map(len, columns[role]), np.int64, len(rows)))
            self.accepted_file.write(
                pa.record_batch([pa.array(columns[role], pa.string()) for role in self.roles], self.roles)
            )
            rows.clear()
            self._chars = 0

    def _reject(self, path: str, row: Row, reason: str) -> None:
        self.rejected += 1
        kind = re.sub(r"(?<![\w-])\d+", "N", reason)  # UTF-8 and CP949 keep theirs
        if kind not in self.reasons and len(self.reasons) >= REASONS:
            kind = OTHER
        self.reasons[kind] += 1
        if kind not in self.examples:
            self.examples[kind] = f"{path}:{row.number}: {reason}"
        raw = row.shown()[:RAW_LIMIT].encode("utf-8", "replace").decode()  # a lone surrogate is no text to parquet
        self._rejected.append((path, row.number, reason, raw))
        self._rejected_chars += len(raw)
        if len(self._rejected) >= FLUSH_ROWS or self._rejected_chars >= FLUSH_CHARS:
            self._flush_rejected()

    def _flush_rejected(self) -> None:
        if self._rejected:
            columns = zip(*self._rejected, strict=True)
            arrays = [pa.array(column, kind.type) for column, kind in zip(columns, _REJECTED, strict=True)]
            self.rejected_file.write_batch(pa.record_batch(arrays, schema=_REJECTED))
            self._rejected, self._rejected_chars = [], 0

    def merged(self) -> dict[str, dict[str, int]]:
        """`role name` → rows of each spelling in the files, of the names that have several."""
        found: dict[str, dict[str, int]] = {}
        for role, spellings in self.spellings.items():
            for (name, spelt), count in spellings.items():
                counts = found.setdefault(f"{role} {name}", {})
                counts[spelt.strip()] = counts.get(spelt.strip(), 0) + count
        return {name: counts for name, counts in found.items() if len(counts) > 1}

    def refuse_nothing(self) -> None:
        """Refuse sources without a single good row.

        Raises:
            UserError: with the reasons' counts and the first example.
        """
        reasons = "".join(f"\n  {count:,} × {reason}" for reason, count in self.reasons.most_common(5))
        if not self.read:
            given = ", ".join(
                filter(None, (self.config.source, self.config.validation_source, self.config.test_source))
            )
            raise UserError(f"{given}: no rows, only headers or blank lines; give a source with data")
        if self.rejected == self.read:
            raise UserError(
                f"all {self.read:,} rows were rejected:{reasons}\nthe first: {next(iter(self.examples.values()))}\n"
                f"check that preprocess.columns and preprocess.encoding fit these files, or loosen the rules "
                f"(preprocess.drop_short_sources, min_source_chars, max_source_chars, deduplicate)"
            )
        if not any(len(found) and found[0] == TRAIN for found in self.splits):
            raise UserError(
                f"{self.config.source}: no usable row to train on; rejected in all sources:{reasons or ' none'}"
            )

    def split_array(self) -> np.ndarray:
        """int8 array of shape (rows accepted,): the split whose source each row came from."""
        return np.concatenate(self.splits)

    def digest_array(self) -> np.ndarray:
        """uint64 array of shape (rows accepted,): seeded digests of the texts that may stand in one split only.

        64 bits are enough here: two texts that share one merely go to the same split.
        """
        return np.frombuffer(b"".join(self.digests), dtype=">u8").astype(np.uint64)
