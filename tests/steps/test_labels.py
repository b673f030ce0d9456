"""A label means the same in every file, every split and every model."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.steps.evaluate import run as evaluate
from hanflow.steps.preprocess import run as preprocess
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks import get_task
from hanflow.tasks.classification import ClassificationEvaluate
from hanflow.text.labels import label_of
from tests.support import tasks
from tests.support.model_fixtures import Chain

TASK = "classification"

MEANINGS = [
    ("0", ["0", "0.0", " 0", "0.", "-0", "+0.00", "0e0", "\uff10", "\ufeff0", "0\u200b", "\uff10\uff0e\uff10"]),
    ("1", ["1", "1.0", "+1", "1.000", "1e0", "\uff11"]),
    ("1.5", ["1.5", "1.50", "15e-1"]),
    ("-2", ["-2", "-2.0", "\uff0d2"]),
    ("1000", ["1000", "1e3", "1E+03", "1000.0"]),
    ("true", ["true", "True", "TRUE", "tRuE", "\uff34rue", " true "]),
    ("false", ["false", "False", "FALSE"]),
    ("01", ["01", "\uff10\uff11"]),
    ("v1.0", ["v1.0", "\uff561.0"]),
    ("1.0.0", ["1.0.0"]),
    ("1,000", ["1,000"]),
    (
        "아주 좋음",
        ["아주 좋음", " 아주  좋음 ", "아주\u3000좋음", "아주\n좋음", unicodedata.normalize("NFD", "아주 좋음")],
    ),
    ("긍정", ["긍정", "\ufeff긍정", "긍\u200b정", unicodedata.normalize("NFD", "긍정")]),
    ("A+", ["A+", "\uff21\uff0b"]),
    ("㈜", ["㈜"]),
    ("9" * 100, ["9" * 100]),
    ("1e999", ["1e999"]),
    ("", ["", "  ", "\ufeff"]),
]


@pytest.mark.parametrize(("meaning", "spellings"), MEANINGS)
def test_spellings_of_one_label(meaning: str, spellings: list[str]) -> None:
    assert {label_of(spelt) for spelt in spellings} == {meaning}
    assert label_of(meaning) == meaning


def labels_of(corpus: Path) -> Counter[str]:
    return Counter(pq.read_table(corpus / "train.parquet").to_pydict()["label"])


def corpus_of(folder: Path, source: Path, **settings: Any) -> Path:
    output = folder / f"corpus-{len(list(folder.iterdir()))}"
    values = {"source": str(source), "validation_ratio": 0, "test_ratio": 0, **settings}
    preprocess(step_config("preprocess", values, TASK), task=TASK, output=str(output))
    return output


SPELLINGS = [0, 0.0, "0", "0.0", 1.5, "1.50", True, "True", "TRUE", "01", "v1.0", " 아주  좋음 ", "아주 좋음"]
WANTED = Counter({"0": 4, "1.5": 2, "true": 3, "01": 1, "v1.0": 1, "아주 좋음": 2})


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
def test_every_spelling_in_every_format(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": f"글 {number:02}", "label": label} for number, label in enumerate(SPELLINGS)]
    if name.endswith("jsonl"):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif name.endswith("json"):
        content = json.dumps(rows, ensure_ascii=False)
    else:
        mark = "," if name.endswith("csv") else "\t"
        content = f"text{mark}label\n" + "".join(f"{row['text']}{mark}{row['label']}\n" for row in rows)
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert labels_of(corpus_of(tmp_path, path)) == WANTED
    assert "several spellings are one name" in caplog.text and "label 1.5 is" in caplog.text
    merged = read_manifest(corpus_of(tmp_path, path), "corpus").details["merged"]
    assert sum(merged["label 0"].values()) == 4 and len(merged["label true"]) >= 2
    caplog.clear()
    exact = labels_of(corpus_of(tmp_path, path, labels="exact"))
    assert len(exact) == (11 if "json" in name else 10)  # a plain table writes True for true
    assert "several spellings" not in caplog.text


@pytest.mark.parametrize(
    ("values", "kind", "wanted"),
    [
        ([0, 1, 1, 0], pa.int8(), {"0": 2, "1": 2}),
        ([0, 1, 1, 0], pa.uint64(), {"0": 2, "1": 2}),
        ([0.0, 1.0, 1.0, 0.0], pa.float64(), {"0": 2, "1": 2}),
        ([0.0, 1.0, 1.0, 0.0], pa.float32(), {"0": 2, "1": 2}),
        ([True, False, True, False], pa.bool_(), {"true": 2, "false": 2}),
        (["1.0", "0", "1", "\ufeff0"], pa.large_string(), {"0": 2, "1": 2}),
        (["1.0", "0", "1", "0.0"], pa.dictionary(pa.int32(), pa.string()), {"0": 2, "1": 2}),
        ([b"1", b"0", b"1", b"0"], pa.binary(), {"0": 2, "1": 2}),
        (["1.50", "0.00", "1.50", "0.00"], pa.string(), {"0": 2, "1.5": 2}),
        ([float("nan"), 1.0, 0.0, None], pa.float64(), {"0": 1, "1": 1}),
    ],
)
def test_every_type_of_parquet(tmp_path: Path, values: list[Any], kind: pa.DataType, wanted: dict[str, int]) -> None:
    table = pa.table({"document": [f"글 {number}" for number in range(4)], "label": pa.array(values, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    corpus = corpus_of(tmp_path, tmp_path / "a.parquet", missing=[])
    assert labels_of(corpus) == wanted
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    assert labels_of(corpus_of(tmp_path, tmp_path / "a.arrow", missing=[])) == wanted


def test_exact_labels_are_dropped_by_their_own_spelling(tmp_path: Path) -> None:
    path = tasks.write_reviews(tmp_path / "a.tsv", [("2.0", "가"), ("2", "나"), ("1", "다"), ("0", "라")])
    assert labels_of(corpus_of(tmp_path, path, drop_labels=[2])) == {"1": 1, "0": 1}
    assert labels_of(corpus_of(tmp_path, path, drop_labels=["2"], labels="exact")) == {"2.0": 1, "1": 1, "0": 1}


# Splits


def train_file(folder: Path) -> Path:
    return tasks.write_reviews(folder / "train.tsv", [(f"{n % 2}.0", f"글 번호 {n}") for n in range(8)])


def test_labels_that_training_lacks_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    test = tasks.write_reviews(tmp_path / "test.tsv", [("1", "스물하나"), ("중립", "스물둘"), ("0", "스물셋")])
    corpus = corpus_of(tmp_path, train_file(tmp_path), test_source=str(test))
    assert "the test split has 1 of 3 rows with a label that the train split lacks: 중립 (1)" in caplog.text
    found = read_manifest(corpus, "corpus").details["unknown"]
    assert found == {"test": {"role": "label", "rows": 1, "of": 3, "names": {"중립": 1}}}


def test_a_split_without_a_known_label_is_refused(tmp_path: Path) -> None:
    test = tasks.write_reviews(tmp_path / "test.tsv", [("pos", "서른하나"), ("neg", "서른둘")])
    with pytest.raises(
        UserError, match=r"no row of the test split .*: pos \(1\), neg \(1\); train: 1 \(4\), 0 \(4\)|0 \(4\), 1"
    ):
        corpus_of(tmp_path, train_file(tmp_path), test_source=str(test))
    assert not list(tmp_path.glob("corpus-*"))


# Models


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    rows = [({"0": "부정", "1": "긍정"}[label], text) for label, text in tasks.reviews(200)]
    return tasks.trained(tasks.make_shards(tmp_path_factory.mktemp("labels"), TASK, rows), TASK, epochs=4)


def permuted(model: Path, folder: Path, names: list[str] | None = None) -> Path:
    """The same classifier, its classes in reverse order (or these names in their place)."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    old = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]
    new = names or old[::-1]
    config["id2label"] = {str(i): name for i, name in enumerate(new)}
    config["label2id"] = {name: i for i, name in enumerate(new)}
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    if names is None:
        tensors = load_file(folder / "model.safetensors")
        for key in [key for key in tensors if key.split(".")[-2] == "classifier"]:
            tensors[key] = tensors[key].flip(0).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.json").unlink()
    return folder


def figures(chain: Chain, folder: Path, pretrained: Path) -> dict[str, Any]:
    again = Chain(chain.corpus, chain.shards, folder / "model")
    tasks.trained(again, TASK, epochs=1, learning_rate=1e-12, pretrained=str(pretrained), architecture={})
    evaluate(ClassificationEvaluate(), task=TASK, output=str(folder / "evaluation"), **again.inputs)
    return json.loads((folder / "evaluation" / "metrics.json").read_text())["systems"]["trained model"]


def test_permuting_the_classes_of_a_model_changes_no_figure(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = figures(chain, tmp_path / "plain", permuted(chain.model, tmp_path / "same", ["긍정", "부정"]))
    turned = figures(chain, tmp_path / "turned", permuted(chain.model, tmp_path / "reversed"))
    assert turned == pytest.approx(plain, abs=1e-6)
    assert "taken over by name: 긍정, 부정; drawn anew: none" in caplog.text
    assert plain["accuracy"] != 1 - plain["accuracy"]


def test_rows_of_other_names_are_drawn_anew(chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from hanflow.loading import initial
    from hanflow.loading.pretrained import load_tokenizer
    from hanflow.models import classifiers

    old = classifiers.head(get_task(TASK).load_model(str(chain.model))).weight.detach()
    folder = permuted(chain.model, tmp_path / "named", [unicodedata.normalize("NFD", "긍정"), "LABEL_1"])
    config = tasks.settings(TASK, pretrained=str(folder), architecture={})
    tokenizer = load_tokenizer(chain.model)
    new = classifiers.head(initial.classifier(config, tokenizer, ["중립", "긍정", "부정"])).weight.detach()
    assert torch.equal(new[1], old[0])
    assert not torch.equal(new[0], old[0]) and not torch.equal(new[2], old[1])
    assert "taken over by name: 긍정; drawn anew: 중립, 부정; not used: LABEL_1" in caplog.text
    again = classifiers.head(initial.classifier(config, tokenizer, ["중립", "긍정", "부정"])).weight
    assert torch.equal(new, again)


def test_labels_kept_apart_keep_their_own_rows(chain: Chain, tmp_path: Path) -> None:
    from hanflow.loading import initial
    from hanflow.loading.pretrained import load_tokenizer
    from hanflow.models import classifiers

    old = classifiers.head(get_task(TASK).load_model(str(chain.model))).weight.detach()
    folder = permuted(chain.model, tmp_path / "exact", ["1", "1.0"])
    config = tasks.settings(TASK, pretrained=str(folder), architecture={})
    tokenizer = load_tokenizer(chain.model)
    same = classifiers.head(initial.classifier(config, tokenizer, ["1", "1.0"])).weight
    assert torch.equal(same, old)
    more = classifiers.head(initial.classifier(config, tokenizer, ["1.0", "2", "1.00"])).weight
    assert torch.equal(more[0], old[1]) and torch.equal(more[2], old[0])


def test_a_pretrained_model_that_is_no_folder_is_called_so(chain: Chain, tmp_path: Path) -> None:
    from hanflow.loading import initial
    from hanflow.loading.pretrained import load_tokenizer

    tokenizer = load_tokenizer(chain.model)
    for place, words in (
        (tmp_path / "nowhere", "no such folder"),
        (chain.model / "model.safetensors", "is a file, expected a folder"),
    ):
        with pytest.raises(UserError, match=words):
            initial.classifier(tasks.settings(TASK, pretrained=str(place), architecture={}), tokenizer, ["0", "1"])


def test_a_text_is_no_label(tmp_path: Path) -> None:
    path = tasks.write_reviews(tmp_path / "a.tsv", [("가" * 1001, "하나"), ("나" * 1000, "둘"), ("1", "셋")])
    corpus = corpus_of(tmp_path, path)
    assert labels_of(corpus) == {"나" * 1000: 1, "1": 1}
    assert read_manifest(corpus, "corpus").counts["rejected"] == 1


def test_measures_do_not_follow_a_models_order() -> None:
    import numpy as np

    from hanflow.tasks.data import Predictions

    table = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], dtype=np.float32)
    task, names = get_task(TASK), ["10", "9", "True"]
    plain = task.score(Predictions(["10", "9"], {}, {"probabilities": table}, tuple(names)), ["10.0", "true"])
    turned = task.score(
        Predictions(["10", "9"], {}, {"probabilities": table[:, ::-1]}, tuple(names[::-1])), ["10.0", "true"]
    )
    assert {name: values.tolist() for name, values in plain.items()} == {n: v.tolist() for n, v in turned.items()}
    assert plain["right"].tolist() == [1.0, 0.0] and plain["label"].tolist() == [1.0, 2.0]
