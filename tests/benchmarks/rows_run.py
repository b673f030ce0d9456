"""Preprocess and tokenize a million reviews: hanflow's two steps, or the same work in pandas and `datasets.map`.

`python -m tests.benchmarks.rows_run '{"engine": "hanflow" | "pandas", "source": …, "tokenizer": …, "output": …}'` prints
one JSON line: rows that came out, and the lengths of their texts in tokens, added up.
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST = 100
"""Tokens of a text, its end included."""

HELD_OUT = 0.05
"""Share of the rows of validation, and of test."""


def ours(job: dict[str, Any]) -> dict[str, int]:
    """The two steps as a pipeline runs them."""
    from hanflow.data.shards import Shard
    from hanflow.steps.preprocess import run as preprocess
    from hanflow.steps.tokenize import run as tokenize
    from hanflow.tasks.classification import ClassificationPreprocess, ClassificationTokenize

    folder = Path(job["output"])
    config = ClassificationPreprocess(source=job["source"], validation_ratio=HELD_OUT, test_ratio=HELD_OUT)
    preprocess(config, task="classification", output=str(folder / "corpus"))
    encoding = ClassificationTokenize(tokenizer=job["tokenizer"], max_source_tokens=LONGEST)
    tokenize(encoding, task="classification", output=str(folder / "shards"), corpus=str(folder / "corpus"))
    lengths = [
        Shard(folder / "shards" / f"{split}.arrow", ("text",)).lengths() for split in ("train", "validation", "test")
    ]
    return {"rows": sum(map(len, lengths)), "tokens": int(sum(length.sum() for length in lengths))}


def theirs(job: dict[str, Any]) -> dict[str, int]:
    """The same by hand: read, clean, drop what is empty or double, split by text, tokenize in batches, save."""
    import pandas
    from datasets import Dataset, DatasetDict
    from transformers import AutoTokenizer

    tags, invisible = (
        re.compile(r"</?[a-zA-Z][^<>]*>"),
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\ufeff]",
    )
    frame = pandas.read_csv(job["source"], sep="\t", quoting=3, dtype=str, keep_default_na=False)
    frame["text"] = (
        frame["document"]
        .str.replace(tags, "", regex=True)
        .map(html.unescape)
        .str.replace(invisible, "", regex=True)
        .str.normalize("NFC")
        .str.replace(r"\s+", " ", regex=True)
        .str.strip()
    )
    frame = frame[(frame["text"] != "") & (frame["label"] != "")].drop_duplicates(["text", "label"])
    texts = frame["text"].drop_duplicates().sample(frac=1.0, random_state=42)
    count = round(HELD_OUT * len(texts))
    test, validation = set(texts[:count]), set(texts[count : 2 * count])
    part = frame["text"].map(lambda text: "test" if text in test else "validation" if text in validation else "train")
    labels = {label: index for index, label in enumerate(sorted(frame["label"].unique()))}
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    end = tokenizer.eos_token_id

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        ids = tokenizer(
            batch["text"],
            add_special_tokens=False,
            truncation=True,
            max_length=LONGEST - 1,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return {"input_ids": [[*row, end] for row in ids], "labels": [labels[label] for label in batch["label"]]}

    splits = DatasetDict(
        {
            name: Dataset.from_pandas(frame[part == name][["id", "text", "label"]], preserve_index=False).map(
                encode, batched=True, remove_columns=["id", "text", "label"]
            )
            for name in ("train", "validation", "test")
        }
    )
    splits.save_to_disk(f"{job['output']}/dataset")
    lengths = [sum(map(len, batch["input_ids"])) for split in splits.values() for batch in split.iter(10_000)]
    return {"rows": sum(map(len, splits.values())), "tokens": sum(lengths)}


ENGINES = {"hanflow": ours, "pandas": theirs}


def write_rows(sources: list[Path], count: int, target: Path) -> None:
    """Reviews as NSMC's `id, document, label`, again and again, from the second time on with a word of their own: so
    none is a duplicate that its first appearance was not."""

    def reviews() -> Iterator[tuple[str, str]]:
        for round_ in range(10**6):
            for path in sources:
                with path.open(encoding="utf-8") as stream:
                    next(stream)
                    for line in stream:
                        fields = line.rstrip("\n").split("\t")
                        if len(fields) == 3:
                            yield f"{fields[1]} {round_}회차" if round_ and fields[1] else fields[1], fields[2]

    with target.open("w", encoding="utf-8") as stream:
        stream.write("id\tdocument\tlabel\n")
        for number, (text, label) in zip(range(count), reviews(), strict=False):
            stream.write(f"{number}\t{text}\t{label}\n")


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own does with a job: `rows`, `tokens`, `seconds`, and `peak_gb` of it and its children."""
    import psutil

    command = [sys.executable, "-m", "tests.benchmarks.rows_run", json.dumps(job)]
    environment = {**os.environ, "HF_DATASETS_CACHE": f"{job['output']}/cache", "TOKENIZERS_PARALLELISM": "true"}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        tree = psutil.Process(process.pid)
        while not ended.wait(0.2):
            try:
                # Unshared: pages that are mapped from files or shared by a fork count once, or not at all.
                peak = max(peak, sum(p.memory_full_info().uss for p in (tree, *tree.children(recursive=True))))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    out, errors = process.communicate()
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{job} failed:\n{errors[-3000:]}")
    result = {**json.loads(out.splitlines()[-1]), "seconds": seconds, "peak_gb": peak / 1e9}
    print(f"  {job['engine']}: {result}", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    print(json.dumps(ENGINES[settings["engine"]](settings)))
