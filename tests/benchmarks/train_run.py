"""One training run of one engine, in a process of its own; prints one JSON line with what was measured.

`python -m tests.benchmarks.train_run '{"engine": …}'`
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

STARTED = time.monotonic()
WARM_UP = 3
"""Steps left out of the speed: first touches of memory and, on GPUs, kernels to load. They are part of the start-up."""


def ours(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """hanflow's own loop, as the train step runs it."""
    from hanflow.steps.train import run
    from hanflow.tasks.summarization import SummarizationTrain
    from hanflow.training import loop

    begun: list[float] = []
    clock: list[tuple[float, int, int]] = []

    class StepMetrics(loop.StepMetrics):  # made when everything is loaded, before the first step
        def __init__(self, *arguments: Any):
            begun.append(time.monotonic() - STARTED)
            super().__init__(*arguments)

        def add(self, loss: Any, norm: Any, targets: int, tokens: int) -> None:
            super().add(loss, norm, targets, tokens)
            if len(clock) == WARM_UP - 1:
                _synchronize()
            clock.append((time.perf_counter(), tokens, targets))

        def close(self, *arguments: Any, **named: Any) -> dict[str, float]:
            figures = super().close(*arguments, **named)
            clock[-1] = (time.perf_counter(), *clock[-1][1:])
            return figures

    loop.StepMetrics = StepMetrics  # type: ignore[misc]
    config = SummarizationTrain(
        architecture=job["architecture"],
        epochs=1,
        max_steps=job.get("max_steps", 0),
        batch_size=job["batch_size"],
        learning_rate=job["learning_rate"],
        precision=job["precision"],
        processes=job.get("processes", 1),
        compile=job.get("compile", "auto"),
        log_every=10 if job.get("processes", 1) == 1 else 1,  # as the Trainer's below, where the clock is ours
        save_every=0,
        validate_every=10**9,
        save_total_limit=1,
    )
    run(config, task=job.get("task", "summarization"), output=str(folder / "model"), shards=job["shards"])
    training = json.loads((folder / "model" / "training.json").read_text())
    points = training["history"]["train"]
    validation = training["history"]["validation"]
    if clock:
        tokens, targets = (sum(step[place] for step in clock[WARM_UP:]) for place in (1, 2))
        seconds = clock[-1][0] - clock[WARM_UP - 1][0]
    else:  # workers of their own tell by their log
        tokens, targets = sum(point["tokens"] for point in points[WARM_UP:]), 0
        seconds = sum(point["tokens"] / point["tokens_per_second"] for point in points[WARM_UP:])
    return {
        "tokens": tokens,
        "targets": targets,
        "seconds": seconds,
        "validation_loss": validation[-1]["loss"] if validation else None,
        "padding_efficiency": training["padding_efficiency"],
        "peak_gb": points[-1]["memory_gb"],
        "startup_seconds": begun[0] if begun else None,
    }


def theirs(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """transformers' Seq2SeqTrainer with DataCollatorForSeq2Seq, as its users write it."""
    import torch
    from torch.utils.data import Dataset
    from transformers import (
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
    )

    from hanflow.data.shards import Shard
    from hanflow.tasks import get_task
    from hanflow.tasks.summarization import SummarizationTrain

    task = get_task("summarization")
    tokenizer = AutoTokenizer.from_pretrained(Path(job["shards"]) / "tokenizer")
    model = task.new_model(SummarizationTrain(architecture=job["architecture"]), tokenizer, {})

    class Rows(Dataset):
        def __init__(self, split: str):
            shard = Shard(Path(job["shards"]) / f"{split}.arrow", task.sequences)
            self.rows = [
                {"input_ids": s.tolist(), "labels": t.tolist()} for s, t in (shard[i] for i in range(len(shard)))
            ]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            return self.rows[index]

    class Counting(DataCollatorForSeq2Seq):
        tokens: ClassVar[list[int]] = []
        """Of every batch, in the order they are computed."""
        padded = 0

        def __call__(self, features: Any, return_tensors: Any = None) -> Any:
            batch = super().__call__(features, return_tensors)
            self.tokens.append(sum(len(f["input_ids"]) + sum(t != -100 for t in f["labels"]) for f in features))
            Counting.padded += batch["input_ids"].numel() + batch["labels"].numel()
            return batch

    class Clock(TrainerCallback):
        at: ClassVar[list[float]] = []
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            Clock.started = Clock.started or time.monotonic() - STARTED
            _synchronize()
            self.at.append(time.perf_counter())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.on_step_begin()

    cuda = torch.cuda.is_available()
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=job["batch_size"] // job.get("processes", 1),
        per_device_eval_batch_size=job["batch_size"],
        learning_rate=job["learning_rate"],
        weight_decay=0.01,
        warmup_steps=0.1,  # a fraction of all steps
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        bf16=job["precision"] == "bf16",
        use_cpu=not cuda,
        seed=42,
        report_to=[],
        save_strategy="no",
        eval_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
        **({"train_sampling_strategy": "group_by_length"} if job["engine"] == "trainer-grouped" else {}),
        **job.get("arguments", {}),
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=Rows("train"),
        eval_dataset=Rows("validation"),
        data_collator=Counting(tokenizer, model=model),
        callbacks=[Clock()],
    )
    trainer.train()
    times = Clock.at
    peak, padded, tokens = _peak_gb(), Counting.padded, list(Counting.tokens)  # before the evaluation
    assert len(times) == len(tokens) + 1
    loss = trainer.evaluate()["eval_loss"] if job.get("validate") else None
    return {
        "tokens": sum(tokens[WARM_UP:]) * job.get("processes", 1),
        "seconds": times[-1] - times[WARM_UP],
        "padding_efficiency": sum(tokens) / padded,
        "validation_loss": loss,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else peak,
        "startup_seconds": Clock.started,
    }


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    job = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="hanflow-bench-") as place:
        if job["engine"] == "hanflow":
            result = ours(job, Path(place))
        elif job["engine"].startswith("trainer"):
            result = theirs(job, Path(place))
        else:
            from tests.benchmarks.plain_loops import LOOPS

            result = LOOPS[job["engine"]](job)
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
