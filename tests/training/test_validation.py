"""What a validation measures while training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from hanflow.data.shards import Shard
from hanflow.steps.tokenize import run as tokenize
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks import get_task
from hanflow.tasks.summarization import SummarizationTrain
from hanflow.training import evaluation as validate
from hanflow.training.backends.torch import TorchBackend
from hanflow.training.evaluation import Validator
from hanflow.training.loop import Objective
from hanflow.training.state import LoopState, TrainingRun
from tests.support import tasks
from tests.support.corpora import ARCHITECTURE
from tests.support.model_fixtures import rewritten


@pytest.fixture(scope="module")
def language_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tasks.make_shards(tmp_path_factory.mktemp("lm"), "language_modeling", tasks.reviews(150)).shards


def validator(shards: Path, task: str, config: SummarizationTrain) -> Validator:
    """The validator of a model that has learnt nothing yet."""
    learnt = get_task(task)
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    facts = {"labels": ["0", "1"], "counts": [1, 1]}
    model = learnt.new_model(config, tokenizer, facts)
    train, validation = (Shard(shards / f"{split}.arrow", learnt.sequences) for split in ("train", "validation"))
    run = TrainingRun(learnt, config, tokenizer, model, train, validation, checkpoints="", identity={})
    backend = TorchBackend("fp32")
    return Validator(run, backend.prepare(Objective(model, learnt, config.label_smoothing)), backend)


def measured(shards: Path, task: str, **settings: object) -> dict[str, float]:
    """The figures of one validation."""
    figures = validator(shards, task, tasks.settings(task, **settings)).run(LoopState({}, step=1), lambda: False)
    assert figures is not None
    return figures


def test_the_loss_is_of_the_whole_split_also_where_some_rows_are_scored(language_shards: Path) -> None:
    whole = measured(language_shards, "language_modeling")
    scored = measured(language_shards, "language_modeling", validation_rows=1)
    assert scored["loss"] == whole["loss"]
    assert list(scored)[:2] == ["step", "loss"] and "perplexity" in scored


def test_perplexity_is_that_of_the_loss_when_all_rows_are_scored(language_shards: Path) -> None:
    """Rows are chunks cut anywhere: an end of the text that they do not have must not be judged."""
    figures = measured(language_shards, "language_modeling", validation_rows=10**6)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]), rel=1e-5)  # float32, batched otherwise
    shard = Shard(language_shards / "validation.arrow", ("tokens",))
    targets = int(shard.lengths().sum()) - len(shard)
    texts = pq.read_table(language_shards.parent / "corpus" / "validation.parquet")["text"].to_pylist()
    size = sum(len(text.encode()) for text in texts)
    # A syllable that a chunk's end cuts in two becomes two marks of three bytes.
    assert figures["bits_per_byte"] == pytest.approx(figures["loss"] * targets / math.log(2) / size, rel=0.02)


def test_rows_of_a_class_that_training_never_saw_do_not_lower_the_loss(tmp_path: Path) -> None:
    chain = tasks.make_shards(tmp_path, "classification", tasks.reviews(60))
    path = chain.corpus / "validation.parquet"
    table = pq.read_table(path)
    labels = ["7", "7", "7", *table["label"].to_pylist()[3:]]
    column = table.column_names.index("label")
    pq.write_table(table.set_column(column, "label", pa.array(labels, pa.string())), path)
    rewritten(chain.corpus, "corpus")
    shards = tmp_path / "unknown"
    tokenize(tasks.ENCODING["classification"], task="classification", output=str(shards), corpus=str(chain.corpus))
    assert read_manifest(shards, "shards").details["facts"]["labels"] == ["0", "1"]

    config = tasks.settings("classification")
    subject = validator(shards, "classification", config)
    figures = subject.run(LoopState({}, step=1), lambda: False)
    assert figures is not None
    rows = subject._data.shard.rows(range(3, len(labels)))
    task, model = subject._task, subject._model.eval()
    with torch.inference_mode():
        total, count = task.loss(model, task.collate(rows, (len(rows), 40, 1), model), 0.0)
    assert int(count) == len(labels) - 3
    # float32 sums of a handful of rows in another order
    assert figures["loss"] == pytest.approx(float(total / count), rel=1e-5)


def test_a_stop_is_noticed_between_two_batches_of_generation(shards: Path) -> None:
    """Beam search takes minutes where a cluster waits two: what is not given up ends in SIGKILL."""
    config = SummarizationTrain(architecture=ARCHITECTURE, validation_rows=4, precision="fp32")
    subject = validator(shards, "summarization", config)
    asked = 0

    def stop_in(calls: int) -> Callable[[], bool]:
        def stop() -> bool:
            nonlocal asked
            asked += 1
            return asked > calls

        return stop

    state = LoopState({}, step=1)
    figures = subject.run(state, stop_in(10**6))
    assert figures is not None and state.validation == [figures]
    loss_batches, all_calls = len(subject._data.plan.epoch(0)), asked
    assert all_calls > loss_batches
    asked, state = 0, LoopState({}, step=1)
    assert subject.run(state, stop_in(loss_batches)) is None
    assert state == LoopState({}, step=1), "nothing was noted: the resumed run validates"
    assert subject._model.training and asked == loss_batches + 1


def test_scores_do_not_depend_on_how_rows_are_batched(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SummarizationTrain(architecture=ARCHITECTURE, validation_rows=4, validation_beams=2, precision="fp32")
    whole = validator(shards, "summarization", config).run(LoopState({}, step=1), lambda: False)
    monkeypatch.setattr(validate, "BATCH_TOKENS", 64)
    single = validator(shards, "summarization", config).run(LoopState({}, step=1), lambda: False)
    assert whole is not None and whole == single and whole["rouge1_morpheme"] >= 0.0
