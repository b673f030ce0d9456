"""Classification through all steps: labels, scores, bad input."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from hanflow.config import ExportConfig
from hanflow.errors import UserError
from hanflow.steps.evaluate import run as evaluate
from hanflow.steps.export import run as export
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks import get_task
from hanflow.tasks.classification import ClassificationEvaluate
from tests.support import tasks
from tests.support.model_fixtures import Chain

TASK = "classification"
NAMES = {"0": "별로예요", "1": "좋아요 👍"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    rows = [(NAMES[label], text) for label, text in tasks.reviews(400)]
    return tasks.trained(tasks.make_shards(tmp_path_factory.mktemp("chain"), TASK, rows), TASK, epochs=6)


@pytest.fixture(scope="module")
def evaluation(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluation") / "evaluation"
    report = evaluate(ClassificationEvaluate(top_classes=2), task=TASK, output=str(output), **chain.inputs)
    assert report.confusion is not None
    assert report.confusion[0] == sorted(NAMES.values())
    assert report.confusion[1].sum() == report.figures["rows"]
    return output


def test_it_learns(chain: Chain, evaluation: Path) -> None:
    """The model fits the reviews it saw; 40 unseen ones are too few for a score to be sure of."""
    history = json.loads((chain.model / "training.json").read_text(encoding="utf-8"))["history"]
    losses = [entry["loss"] for entry in history["train"]]
    assert sum(losses[:5]) / 5 == pytest.approx(math.log(2), abs=0.1)
    assert sum(losses[-20:]) / 20 < 0.75 * math.log(2)
    systems = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))["systems"]
    assert 0 < systems["trained model"]["loss"] < systems["most frequent class"]["loss"] + 1


def test_every_row_has_its_class_and_probabilities(chain: Chain, evaluation: Path) -> None:
    with (evaluation / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    corpus = pq.read_table(chain.corpus / "test.parquet").to_pydict()
    assert [row["prompt"] for row in rows] == corpus["text"]
    assert [row["reference"] for row in rows] == corpus["label"]
    for row in rows:
        top = json.loads(row["top"])
        assert next(iter(top)) == row["prediction"]
        assert sum(top.values()) == pytest.approx(1, abs=1e-5)
        assert float(row["right"]) == (row["prediction"] == row["reference"])
    page = (evaluation / "report.html").read_text(encoding="utf-8")
    for heading in ("Classes", "Confusion matrix", "Reliability", "Best rows"):
        assert f"<h2>{heading}</h2>" in page


def test_classes_survive_save_export_and_load(chain: Chain, evaluation: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    inputs = {"model": str(chain.model), "shards": str(chain.shards), "evaluation": str(evaluation)}
    export(ExportConfig(), task=TASK, output=str(bundle), **inputs)
    assert read_manifest(bundle, "bundle").details["facts"]["labels"] == sorted(NAMES.values())
    task = get_task(TASK)
    loaded = task.open_predictor(str(bundle), ClassificationEvaluate())
    texts = ["정말 재미있게 봤어요", "최악의 영화", "", "ㅋㅋㅋ"]
    rows = task.inputs(texts, loaded.tokenizer, tasks.ENCODING[TASK])
    direct = task.predictor(task.load_model(str(chain.model)), loaded.tokenizer, ClassificationEvaluate())
    assert loaded(rows).texts == direct(rows).texts
    assert set(loaded(rows).texts) <= set(NAMES.values())
    with pytest.raises(UserError, match=r"export\.formats asks for ctranslate2"):
        export(ExportConfig(formats=["ctranslate2"]), task=TASK, output=str(tmp_path / "other"), **inputs)


def test_balanced_classes_and_rare_ones(tmp_path: Path) -> None:
    rows = [("자주", text) for _, text in tasks.reviews(90)] + [("드물게", f"드문 글 {n}") for n in range(10)]
    chain = tasks.trained(tasks.make_shards(tmp_path, TASK, rows), TASK, class_weights="balanced")
    counts = read_manifest(chain.shards, "shards").details["facts"]["counts"]
    weights = json.loads((chain.model / "config.json").read_text())["class_weights"]
    assert weights == [sum(counts) / (2 * count) for count in counts]


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only the label '1': nothing can be told apart"):
        tasks.make_shards(tmp_path, TASK, [("1", text) for _, text in tasks.reviews(60)])


def test_a_column_that_holds_no_classes_is_refused(tmp_path: Path) -> None:
    """A million different labels: reported after the first thousand, not after a model of a million classes."""
    from hanflow.tasks.classification import MOST_CLASSES

    rows = [(str(number), f"글 {number}") for number in range(3000)]
    with pytest.raises(UserError, match="holds more than 1,000 different ones"):
        tasks.make_shards(tmp_path, TASK, rows)
    read = 0

    def column() -> Iterator[dict[str, list[str]]]:
        nonlocal read
        for start in range(0, 1_000_000, 2_000):
            read += 2_000
            yield {"label": [str(number) for number in range(start, start + 2_000)]}

    with pytest.raises(UserError, match="say which column is the label"):
        get_task(TASK).facts(column())
    assert read <= 2 * MOST_CLASSES, "the rest need not be read"


def test_unwanted_labels_and_empty_texts_are_rejected(tmp_path: Path) -> None:
    rows = [*tasks.reviews(80), ("2", "애매한 글"), ("1", "  "), ("", "이름 없는 글")]
    chain = tasks.make_shards(tmp_path, TASK, rows, drop_labels=[2])
    rejected = pq.read_table(chain.corpus / "rejected.parquet").to_pydict()["reason"]
    assert any("the label 2 is one of preprocess.drop_labels" in reason for reason in rejected)
    assert any("the text is empty" in reason for reason in rejected)
    assert any("the label is empty" in reason for reason in rejected)
    assert read_manifest(chain.shards, "shards").details["facts"]["labels"] == ["0", "1"]


def test_a_class_that_training_never_saw_counts_as_wrong(tmp_path: Path) -> None:
    from hanflow.steps.preprocess import run as preprocess
    from hanflow.steps.tokenize import run as tokenize
    from hanflow.tasks.classification import ClassificationPreprocess

    train = tasks.write_reviews(tmp_path / "train.tsv", tasks.reviews(100))
    test = tasks.write_reviews(tmp_path / "test.tsv", [("1", "재미있어요"), ("9", "새로운 갈래")])
    chain = Chain(tmp_path / "corpus", tmp_path / "shards", tmp_path / "model")
    config = ClassificationPreprocess(source=str(train), test_source=str(test), validation_ratio=0.1)
    preprocess(config, task=TASK, output=str(chain.corpus))
    tokenize(tasks.ENCODING[TASK], task=TASK, output=str(chain.shards), corpus=str(chain.corpus))
    tasks.trained(chain, TASK, epochs=1)
    evaluate(ClassificationEvaluate(), task=TASK, output=str(tmp_path / "evaluation"), **chain.inputs)
    scores = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["systems"]["trained model"]
    assert scores["accuracy"] <= 0.5
    assert math.isfinite(scores["loss"])
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "1 rows have a class that the train split has not" in page


def test_label_order_is_that_of_numbers() -> None:
    facts = get_task(TASK).facts([{"label": ["10", "9", "2", "가"], "text": [""] * 4}])
    assert facts["labels"] == ["2", "9", "10", "가"]


def test_morphemes_reach_vocabulary_and_inputs_alike() -> None:
    from dataclasses import replace

    prepared = get_task(TASK).prepare
    config = replace(tasks.ENCODING[TASK], morphemes=True)
    assert prepared(["영화가 재미있었다", ""], config) == ["영화 가 재미있 었 다", ""]
    assert prepared(["영화가"], tasks.ENCODING[TASK]) == ["영화가"]


@pytest.mark.parametrize("kind", ["rnn", "bert"])
def test_other_architectures_train_by_their_name(tmp_path: Path, kind: str) -> None:
    architectures = {
        "rnn": {"type": "rnn", "embedding_size": 8, "hidden_size": 8, "n_layers": 1},
        "bert": {
            "type": "bert",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 64,
        },
    }
    chain = tasks.make_shards(tmp_path, TASK, tasks.reviews(100))
    tasks.trained(chain, TASK, epochs=1, architecture=architectures[kind])
    model = get_task(TASK).load_model(str(chain.model))
    assert kind in model.config.model_type
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()
