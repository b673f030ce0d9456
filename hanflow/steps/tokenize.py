"""Corpus → shards: every text as token ids, in memory-mapped Arrow files beside the tokenizer that made them."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hanflow import system as collection
from hanflow import system as processors
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

AT_ONCE = 2
"""Batches encoded side by side."""

BATCH_ROWS = 2_000
"""Rows encoded at a time: enough to keep every thread busy, few enough to stay small in memory."""


def run(config: TokenizeConfig, *, task: str, output: str, corpus: str) -> Report:
    """Encode a corpus with a pretrained tokenizer, or with one trained on its train split.

    Args:
        config: the step's settings.
        task: name of the task.
        output: URI of the shards to write; must not hold anything yet.
        corpus: URI of the corpus.

    Returns:
        Figures: `rows` of the shards, their `tokens`, tokens in the `vocabulary`, `tokens_per_character` of the texts before
        truncation; rows cut, by sequence, or the share of the shards' room that tokens fill (`packing_efficiency`).

    Raises:
        UserError: the corpus or the tokenizer cannot be used, or nothing can be learnt from the train split.
    """
    # The Rust tokenizers read both when they start their threads.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["RAYON_NUM_THREADS"] = str(config.workers or processors.usable())
    from hanflow.text import vocabulary

    learnt = get_task(task)
    folder, parent = fetched(corpus, "corpus", task=task, only=_splits)
    rows: dict[str, int] = parent.counts["rows"]
    if config.tokenizer:
        tokenizer = vocabulary.pretrained(fetched_model(config.tokenizer), config.special_tokens)
    else:
        if not rows["train"]:
            raise UserError(f"{corpus}: its train split is empty: no tokenizer can be trained; set tokenize.tokenizer")
        log.info("training a %s tokenizer on %s rows", config.algorithm, f"{rows['train']:,}")
        tokenizer = vocabulary.trained(_texts(folder / "train.parquet", learnt, config), config)
    with staged(output, "shards") as target:
        tokenizer.save_pretrained(target / "tokenizer")
        known = [column.role for column in learnt.columns if column.role not in learnt.text_roles]
        facts = learnt.facts(batches(folder / "train.parquet", known, BATCH_ROWS))
        truncated: dict[str, int] = dict.fromkeys(learnt.sequences, 0)
        tokens_before, characters = 0, 0
        with collection.put_off(), Progress("tokenizing", total=sum(rows.values())) as progress:
            for split in SPLITS:
                rest: dict[str, list[int]] | None = None
                of_split = _batches(folder / f"{split}.parquet", learnt)
                with ShardWriter(target / f"{split}.arrow", learnt.sequences) as writer:
                    for encoded in _encoded(of_split, learnt, tokenizer, config, facts):
                        rest = encoded.rest
                        writer.write(encoded.columns)
                        for name, count in encoded.truncated.items():
                            truncated[name] += count
                        tokens_before += encoded.tokens
                        characters += encoded.characters
                        progress.update(encoded.texts)
                    if rest and all(len(row) > 1 for row in rest.values()):
                        writer.write({name: [row] for name, row in rest.items()})
        tokens = {split: Shard(target / f"{split}.arrow", learnt.sequences).lengths() for split in SPLITS}
        everything = np.concatenate(list(tokens.values()))
        per_character = tokens_before / max(characters, 1)
        counts: dict[str, Any] = {
            "rows": {split: len(lengths_of) for split, lengths_of in tokens.items()},
            "tokens": {split: int(lengths_of.sum()) for split, lengths_of in tokens.items()},
            "truncated": truncated,
            "vocabulary": len(tokenizer),
            "tokens_per_character": per_character,
        }
        if learnt.packs:
            room = len(everything) * sum(learnt.longest(config).values())
            counts["packing_efficiency"] = int(everything.sum()) / max(room, 1)
        details: dict[str, Any] = {
            "lengths": {name: lengths.summary(everything[:, i]) for i, name in enumerate(learnt.sequences)},
            "longest": learnt.longest(config),
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
            log.info("%s of %s rows have a %s of more than %d tokens: cut there", count, total, name, longest)
    return Report(
        {
            "rows": total,
            "tokens": int(everything.sum()),
            "vocabulary": len(tokenizer),
            "tokens_per_character": round(per_character, 4),
            **{f"truncated_{name}": count for name, count in truncated.items() if not learnt.packs},
            **({"packing_efficiency": round(counts["packing_efficiency"], 4)} if learnt.packs else {}),
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

    Two at a time where none needs what the one before left: the tokenizer lets go of the interpreter while it works, so
    one batch's ids become lists meanwhile.
    """
    if task.packs:
        rest = None
        for batch in rows:
            encoded = task.encode(batch, tokenizer, config, facts, rest)
            rest = encoded.rest
            yield encoded
        return
    with ThreadPoolExecutor(AT_ONCE) as threads:
        waiting: deque[Future[Encoded]] = deque()
        for batch in rows:
            waiting.append(threads.submit(task.encode, batch, tokenizer, config, facts))
            if len(waiting) > AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _splits(_: Manifest) -> list[str]:
    return [f"{split}.parquet" for split in SPLITS]


def _batches(path: Path, task: Task) -> Iterator[dict[str, list[str]]]:
    return batches(path, [column.role for column in task.columns], BATCH_ROWS)


def _texts(path: Path, task: Task, config: TokenizeConfig) -> Iterator[str]:
    for batch in batches(path, task.text_roles, BATCH_ROWS):
        for role in task.text_roles:
            yield from task.prepare(batch[role], config)


if __name__ == "__main__":
    sys.exit(main("tokenize", run, inputs=("corpus",)))
