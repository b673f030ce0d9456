"""The tokenize step: every text of a corpus as token ids, in memory-mapped Arrow files beside their tokenizer."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hanflow import system
from hanflow.config import TokenizeConfig, to_mapping
from hanflow.data.corpus import batches
from hanflow.data.shards import Shard, ShardWriter
from hanflow.errors import UserError
from hanflow.metrics import lengths
from hanflow.progress import Progress, log
from hanflow.reports.step_report import Report
from hanflow.steps.runner import main
from hanflow.storage import artifacts, fetched, fetched_model, staged
from hanflow.storage.artifacts import SPLITS, Manifest
from hanflow.tasks import get_task
from hanflow.tasks.base import Task
from hanflow.tasks.data import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONCURRENT = 2
"""Batches encoded at once."""

BATCH_ROWS = 2_000
"""Rows in a batch: enough to keep every thread busy, few enough to use little memory."""


def run(config: TokenizeConfig, *, task: str, output: str, corpus: str) -> Report:
    """Encode a corpus with a pretrained tokenizer, or with one trained on its train split.

    Args:
        corpus: URI of the corpus.

    Returns:
        Figures: `rows` of the shards, their `tokens`, size of the `vocabulary`, `tokens_per_character` before truncation;
        truncated rows by sequence, or the share of the chunks that tokens fill (`packing_efficiency`).

    Raises:
        UserError: the corpus or the tokenizer cannot be used, or the train split is empty.
    """
    # The Rust library reads both variables when it starts its threads.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["RAYON_NUM_THREADS"] = str(config.workers or system.available_cpus())
    from hanflow.loading.pretrained import load_encoding_tokenizer
    from hanflow.text.vocabulary import train_tokenizer, unused_tokens

    chosen_task = get_task(task)
    folder, parent = fetched(corpus, "corpus", task=task, only=lambda _: [f"{split}.parquet" for split in SPLITS])
    rows: dict[str, int] = parent.counts["rows"]
    if config.tokenizer:
        tokenizer = load_encoding_tokenizer(fetched_model(config.tokenizer), config.special_tokens)
    else:
        if not rows["train"]:
            raise UserError(f"{corpus}: its train split is empty: no tokenizer can be trained; set tokenize.tokenizer")
        log.info("training a %s tokenizer on %s rows", config.algorithm, f"{rows['train']:,}")
        tokenizer = train_tokenizer(_texts(folder / "train.parquet", chosen_task, config), config)
    if config.special_tokens:
        paths = [folder / f"{split}.parquet" for split in SPLITS]
        unused = unused_tokens((text for p in paths for text in _texts(p, chosen_task, config)), config.special_tokens)
        if unused:
            log.warning("tokenize.special_tokens: %s; check their spelling", unused)
    with staged(output, "shards") as target:
        tokenizer.save_pretrained(target / "tokenizer")
        roles = [column.role for column in chosen_task.columns]
        known = [role for role in roles if role not in chosen_task.text_roles]
        facts = chosen_task.facts(batches(folder / "train.parquet", known, BATCH_ROWS))
        truncated: dict[str, int] = dict.fromkeys(chosen_task.sequences, 0)
        tokens_before, characters = 0, 0
        with system.gc_paused(), Progress("tokenizing", total=sum(rows.values())) as progress:
            for split in SPLITS:
                rest: dict[str, list[int]] | None = None
                of_split = batches(folder / f"{split}.parquet", roles, BATCH_ROWS)
                with ShardWriter(target / f"{split}.arrow", chosen_task.sequences) as writer:
                    for encoded in _encoded(of_split, chosen_task, tokenizer, config, facts):
                        rest = encoded.rest
                        writer.write(encoded.columns)
                        for name, count in encoded.truncated.items():
                            truncated[name] += count
                        tokens_before += encoded.tokens
                        characters += encoded.characters
                        progress.update(encoded.texts)
                    if rest and all(len(row) > 1 for row in rest.values()):
                        writer.write({name: [row] for name, row in rest.items()})
        tokens = {split: Shard(target / f"{split}.arrow", chosen_task.sequences).lengths() for split in SPLITS}
        lengths_of_rows = np.concatenate(list(tokens.values()))
        per_character = tokens_before / max(characters, 1)
        counts: dict[str, Any] = {
            "rows": {split: len(lengths_of) for split, lengths_of in tokens.items()},
            "tokens": {split: int(lengths_of.sum()) for split, lengths_of in tokens.items()},
            "truncated": truncated,
            "vocabulary": len(tokenizer),
            "tokens_per_character": per_character,
        }
        if chosen_task.packs:
            capacity = len(lengths_of_rows) * sum(chosen_task.longest(config).values())
            counts["packing_efficiency"] = int(lengths_of_rows.sum()) / max(capacity, 1)
        details: dict[str, Any] = {
            "lengths": {name: lengths.summary(lengths_of_rows[:, i]) for i, name in enumerate(chosen_task.sequences)},
            "longest": chosen_task.longest(config),
            "facts": facts,
            "cleaning": parent.config,
        }
        artifacts.write_manifest(
            target,
            Manifest("shards", task, to_mapping(config), counts, details, artifacts.lineage(parent)),
        )
    total = sum(counts["rows"].values())
    for name, count in truncated.items():
        if count:
            longest = details["longest"][name]
            log.info("%s of %s rows have a %s of more than %d tokens and were truncated", count, total, name, longest)
    return Report(
        {
            "rows": total,
            "tokens": int(lengths_of_rows.sum()),
            "vocabulary": len(tokenizer),
            "tokens_per_character": round(per_character, 4),
            **{f"truncated_{name}": count for name, count in truncated.items() if not chosen_task.packs},
            **({"packing_efficiency": round(counts["packing_efficiency"], 4)} if chosen_task.packs else {}),
        }
    )


def _encoded(
    rows: Iterable[dict[str, list[str]]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TokenizeConfig,
    facts: Mapping[str, Any],
) -> Iterator[Encoded]:
    """Batches of a split as token ids, in order.

    Two at once where no batch needs the rest of the one before: the tokenizer releases the interpreter lock while it
    works, so the ids of another batch become lists in the meantime.
    """
    if task.packs:
        rest = None
        for batch in rows:
            encoded = task.encode(batch, tokenizer, config, facts, rest)
            rest = encoded.rest
            yield encoded
        return
    with ThreadPoolExecutor(CONCURRENT) as threads:
        pending: deque[Future[Encoded]] = deque()
        for batch in rows:
            pending.append(threads.submit(task.encode, batch, tokenizer, config, facts))
            if len(pending) > CONCURRENT:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _texts(path: Path, task: Task, config: TokenizeConfig) -> Iterator[str]:
    for batch in batches(path, task.text_roles, BATCH_ROWS):
        for role in task.text_roles:
            yield from task.prepare(batch[role], config)


if __name__ == "__main__":
    sys.exit(main("tokenize", run, inputs=("corpus",)))
