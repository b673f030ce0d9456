"""Language modelling through all steps: packing, perplexity, continuations."""

from __future__ import annotations

import itertools
import json
import logging
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hanflow.config import ExportConfig, PreprocessConfig, SamplingConfig
from hanflow.data.readers import raw_files
from hanflow.data.shards import Shard
from hanflow.errors import UserError
from hanflow.steps.evaluate import run as evaluate
from hanflow.steps.export import run as export
from hanflow.steps.preprocess import run as preprocess
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks import get_task
from tests.support import tasks
from tests.support.model_fixtures import Chain

TASK = "language_modeling"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    return tasks.trained(tasks.make_shards(folder, TASK, tasks.reviews(300)), TASK, epochs=4)


@pytest.fixture(scope="module")
def evaluation(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluation") / "evaluation"
    evaluate(SamplingConfig(untrained=True), task=TASK, output=str(output), **chain.inputs)
    return output


def test_chunks_hold_every_token_once_and_little_else(chain: Chain) -> None:
    """Neighbouring chunks share one token: joined again they are the documents with their separators."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chain.shards / "tokenizer")
    shard = Shard(chain.shards / "train.arrow", ("tokens",))
    chunks = [shard[row][0] for row in range(len(shard))]
    assert all(len(chunk) == 33 for chunk in chunks[:-1])
    assert all(a[-1] == b[0] for a, b in itertools.pairwise(chunks))
    stream = np.concatenate([chunks[0], *(chunk[1:] for chunk in chunks[1:])])
    texts = pq.read_table(chain.corpus / "train.parquet").to_pydict()["text"]
    documents = tokenizer.decode(stream).split(tokenizer.eos_token)
    assert documents == ["", *texts, ""]


def test_batches_of_documents_are_one_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read at a time, chunks are the same, and all but a split's last are full."""
    from hanflow.steps import tokenize as encode

    chain = tasks.make_shards(tmp_path, TASK, tasks.reviews(700))
    monkeypatch.setattr(encode, "BATCH_ROWS", 13)
    report = encode.run(tasks.ENCODING[TASK], task=TASK, output=str(tmp_path / "small"), corpus=str(chain.corpus))
    for split in ("train", "validation", "test"):
        whole, small = (Shard(folder / f"{split}.arrow", ("tokens",)) for folder in (chain.shards, tmp_path / "small"))
        assert len(whole) == len(small)
        for row in range(len(whole)):
            assert np.array_equal(whole[row][0], small[row][0])
    counts = read_manifest(tmp_path / "small", "shards").counts
    assert report.figures["packing_efficiency"] == round(counts["packing_efficiency"], 4) >= 0.99


def test_sources_are_merged_deduplicated_and_split(tmp_path: Path) -> None:
    rows = tasks.reviews(120)
    for name, part in (("a.tsv", rows[:50]), ("b.tsv", rows[40:90])):
        tasks.write_reviews(tmp_path / name, part)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.txt").write_text("".join(f"{text}\n" for _, text in rows[80:]), encoding="utf-8")
    sources = f"{tmp_path}/[ab].tsv, {tmp_path}/more,{tmp_path}/a.tsv"
    report = preprocess(
        PreprocessConfig(source=sources, validation_ratio=0.1, test_ratio=0.1),
        task=TASK,
        output=str(tmp_path / "corpus"),
    )
    splits = {
        split: pq.read_table(tmp_path / "corpus" / f"{split}.parquet").to_pydict()["text"]
        for split in ("train", "validation", "test")
    }
    texts = [text for part in splits.values() for text in part]
    assert len(texts) == len(set(texts)) == report.figures["rows"]
    assert set(texts) == {get_task(TASK).clean_input(text, PreprocessConfig()) for _, text in rows}
    assert len(splits["validation"]) == len(splits["test"]) == round(0.1 * len(texts))
    assert report.figures["rejected"] == 20, "the rows that two sources share; a file named twice is read once"
    with pytest.raises(UserError, match=r"nowhere\.tsv: no such file"):
        preprocess(
            PreprocessConfig(source=f"{tmp_path}/a.tsv,{tmp_path}/nowhere.tsv"), task=TASK, output=str(tmp_path / "x")
        )
    named = tmp_path / "x, y.tsv"
    tasks.write_reviews(named, rows)
    assert raw_files(str(named)) == [str(named)], "a comma in a name separates nothing"


def test_a_prompt_longer_than_the_context_is_reported(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("hanflow"), "propagate", True)
    task = get_task(TASK)
    predictor = task.open_predictor(str(chain.model), SamplingConfig(max_new_tokens=8, greedy=True))
    rows = task.inputs(["길고 긴 이야기 " * 40, "짧은 글"], predictor.tokenizer, tasks.ENCODING[TASK])
    with caplog.at_level(logging.WARNING, logger="hanflow"):
        texts = predictor(rows).texts
    assert len(texts) == 2
    assert any("context" in record.getMessage() for record in caplog.records)


def test_perplexity_is_the_exponential_of_the_loss_and_training_lowers_it(evaluation: Path) -> None:
    systems = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))["systems"]
    trained, untrained = systems["trained model"], systems["untrained model"]
    assert trained["perplexity"] == pytest.approx(math.exp(trained["loss"]))
    assert trained["loss"] < untrained["loss"] - 0.5
    assert trained["bits_per_byte"] < untrained["bits_per_byte"]


def test_the_score_of_a_text_is_transformers_own(chain: Chain) -> None:
    """Against the loss that the model itself gives for the same tokens, text by text, one longer than its context."""
    task = get_task(TASK)
    model = task.load_model(str(chain.model))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chain.model)
    texts = ["재미있는 영화", "최고", "아주 긴 글입니다. " * 20, ""]
    rows = task.inputs(texts, tokenizer, tasks.ENCODING[TASK])
    measures = task.predictor(model, tokenizer, SamplingConfig(), scoring=True)(rows).measures
    for number, (row,) in enumerate(rows):
        tokens = [*row.tolist(), tokenizer.eos_token_id]
        expected = 0.0
        for at in range(0, len(tokens) - 1, 32):
            piece = torch.tensor([tokens[at : at + 33]])
            with torch.inference_mode():
                logits = model(input_ids=piece[:, :-1]).logits[0]
            expected += float(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum"))
        # float32 sums of up to 200 terms around 6
        assert measures["nats"][number] == pytest.approx(expected, rel=1e-5)
        assert measures["tokens"][number] == len(tokens) - 1
    scores = task.overall(task.score(task.predictor(model, tokenizer, SamplingConfig(), scoring=True)(rows), texts))
    size = sum(len(text.encode()) for text in texts)
    assert scores["bits_per_byte"] == pytest.approx(measures["nats"].sum() / math.log(2) / size)


def test_a_bundle_continues_prompts_of_any_length(chain: Chain, evaluation: Path, tmp_path: Path) -> None:
    inputs = {"model": str(chain.model), "shards": str(chain.shards), "evaluation": str(evaluation)}
    export(ExportConfig(), task=TASK, output=str(tmp_path / "bundle"), **inputs)
    task = get_task(TASK)
    config = SamplingConfig(max_new_tokens=8, greedy=True)
    predictor = task.open_predictor(str(tmp_path / "bundle"), config)
    texts = ["이 영화는", "", "길고 긴 이야기 " * 40]
    found = predictor(task.inputs(texts, predictor.tokenizer, tasks.ENCODING[TASK])).texts
    assert len(found) == 3
    again = task.open_predictor(str(chain.model), config)
    assert again(task.inputs(texts, again.tokenizer, tasks.ENCODING[TASK])).texts == found


def test_an_epoch_can_be_bounded(tmp_path: Path) -> None:
    chain = tasks.make_shards(tmp_path, TASK, tasks.reviews(300))
    tasks.trained(chain, TASK, epochs=3, epoch_tokens=0.0016)
    training = json.loads((chain.model / "training.json").read_text())
    assert training["steps"] == 3 * 3  # 1,600 tokens an epoch are three batches of 16 × 33
