"""Rows a second of beam search: one engine in a process of its own, as its users run it; prints one JSON line.

`python -m tests.benchmarks.generation_run FOLDER fit` makes the model, `… FOLDER ENGINE [kept]` measures one of ENGINES;
`kept`: with freed memory kept, as in hanflow's training. `… FOLDER compare` scores what all of them said.

Random weights give noise that rounding decides, so the model first learns to say how each of the rows begins: texts and
scores can then be compared. Speed does not depend on it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from hanflow.config import SearchConfig, TrainConfig
from hanflow.data.shards import Shard
from hanflow.generation import Generator
from hanflow.tasks import get_task
from hanflow.tasks.data import Predictions
from hanflow.training.allocator import keep_freed_memory
from hanflow.training.optimizer import make_optimizer
from tests.benchmarks.data import KOBART, make_shards

ROWS, NEW_TOKENS, BATCH = 24, 64, 8
FIT_STEPS, FIT_LOSS, FIT_SOURCE = (100, 12), 0.05, 96
"""Steps on the first tokens of all rows, then on whole rows; the loss, in nats a token, that ends either; those tokens."""
ENGINES = ("float32", "int8", "transformers")


def main() -> None:
    folder, what = Path(sys.argv[1]), sys.argv[2]
    if what == "fit":
        make_model(folder)
    elif what == "compare":
        print(json.dumps(compared(folder), ensure_ascii=False))
    else:
        if "kept" in sys.argv:
            keep_freed_memory()
        print(json.dumps({"rows_per_second": ROWS / measured(folder, what)}))


def make_model(folder: Path) -> None:
    """Shards, and a model that knows how their first rows begin."""
    keep_freed_memory()
    shards = make_shards(folder, 180)
    task, tokenizer = get_task("summarization"), AutoTokenizer.from_pretrained(shards / "tokenizer")
    model = task.new_model(TrainConfig(architecture={**KOBART, "dropout": 0.0}), tokenizer, {})
    fit(model, known_rows(folder))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def known_rows(folder: Path) -> list[tuple[np.ndarray, ...]]:
    """Rows of (source, its first NEW_TOKENS tokens): int32 arrays of shape (length,)."""
    path = next(folder.glob("**/train.arrow"))
    sources = [row[0] for row in Shard(path, get_task("summarization").sequences).rows(range(ROWS))]
    return [(source, source[:NEW_TOKENS]) for source in sources]


def measured(folder: Path, engine: str) -> float:
    """Seconds that an engine takes for all rows; what it found is left in the folder."""
    task, tokenizer = get_task("summarization"), AutoTokenizer.from_pretrained(folder / "model")
    sources, model = task.sources(known_rows(folder)), task.load_model(str(folder / "model")).eval()
    options = SearchConfig(beams=4, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    if engine == "transformers":
        theirs(model, sources[:1], 2)  # the first products of a process are slow
        started = time.perf_counter()
        found = theirs(model, sources, NEW_TOKENS)
    else:
        ours = Generator.of(model, tokenizer, "ctranslate2", engine)
        ours.search(sources[:2], options)
        started = time.perf_counter()
        found = ours.search(sources, options)
    seconds = time.perf_counter() - started
    (folder / f"{engine}.json").write_text(json.dumps(found), encoding="utf-8")
    return seconds


def compared(folder: Path) -> dict[str, Any]:
    """Share of texts equal to transformers' and ROUGE-L of every engine; how many texts differ, and one."""
    task, tokenizer = get_task("summarization"), AutoTokenizer.from_pretrained(folder / "model")
    model = task.load_model(str(folder / "model"))
    decode = Generator.of(model, tokenizer, "transformers").decode
    texts = {engine: decode(json.loads((folder / f"{engine}.json").read_text(encoding="utf-8"))) for engine in ENGINES}
    references = [task.reference_of(row, tokenizer, model) for row in known_rows(folder)]
    theirs = texts["transformers"]
    return {
        "equal": {
            kind: float(np.mean([a == b for a, b in zip(made, theirs, strict=True)])) for kind, made in texts.items()
        },
        "rougeL_morpheme": {
            kind: task.overall(task.score(Predictions(list(made)), references))["rougeL_morpheme"]
            for kind, made in texts.items()
        },
        "distinct": len(set(theirs)),
        "example": theirs[0],
    }


def fit(model: Any, rows: list[tuple[np.ndarray, ...]]) -> float:
    """Train on all rows at once until they are known; returns the last loss, in nats a token."""
    task = get_task("summarization")
    optimizer = make_optimizer(model, TrainConfig(learning_rate=5e-4))
    model.train()
    step, loss = 0, float("inf")
    for steps, longest in zip(FIT_STEPS, (FIT_SOURCE, None), strict=True):
        known = [(source[:longest], target) for source, target in rows]
        batch = task.collate(known, (len(known), *(max(len(row[i]) for row in known) for i in range(2))), model)
        for _ in range(steps):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = 5e-4 * min(1.0, step / 10)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                total, count = task.loss(model, batch, 0.0)
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss = float(total.detach() / count)
            if loss < FIT_LOSS:
                break
        print(f"{step} steps: loss {loss:.2f}", file=sys.stderr, flush=True)
    return loss


def theirs(model: Any, sources: list[np.ndarray], new_tokens: int) -> list[list[int]]:
    """transformers' `generate` as its users run it: batches of a fixed size, in the rows' order, padded."""
    pad, made = model.config.pad_token_id, []
    for start in range(0, len(sources), BATCH):
        part = sources[start : start + BATCH]
        width = max(map(len, part))
        ids = np.full((len(part), width), pad, dtype=np.int64)
        for i, source in enumerate(part):
            ids[i, : len(source)] = source
        with torch.inference_mode():
            out = model.generate(
                input_ids=torch.from_numpy(ids),
                attention_mask=torch.from_numpy((ids != pad).astype(np.int64)),
                num_beams=4,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                early_stopping=True,  # as BART's own configs say
                renormalize_logits=True,
                forced_eos_token_id=None,
            )
        made += [row[1 : new_tokens + 1] for row in out.tolist()]
    return made


if __name__ == "__main__":
    main()
