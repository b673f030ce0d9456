"""Bundles of a classifier and of a language model, as their users meet them: round trip, `hanflow predict`, the demo."""

from __future__ import annotations

import html
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hanflow.cli.main import main
from hanflow.config import ExportConfig
from hanflow.experiment import step_config
from hanflow.serving.bundle import answer, open_bundle
from hanflow.steps.evaluate import run as evaluate
from hanflow.steps.export import run as export
from hanflow.steps.preprocess import run as preprocess
from hanflow.steps.tokenize import run as tokenize
from hanflow.storage.artifacts import read_manifest
from tests.support import tasks
from tests.support.model_fixtures import Chain
from tests.support.pipes import pipe_in

NAMES = {"0": "별로", "1": "좋아요"}
"""Not in the order of their indices as texts: 별로 < 좋아요, and a third class that few rows have comes first."""

RARE = "가끔"
SPECIAL = ["<평점>", "#이름#"]
TEXTS = ["정말 재미있어요 #이름#", "돈이 아깝다", "<평점> 1점", "ㅋㅋㅋ 👍"]


def make_bundle(folder: Path, task: str) -> Path:
    rows = [(NAMES[label], f"{text} {SPECIAL[0]}") for label, text in tasks.reviews(160)]
    rows += [(RARE, f"{number}번 본 영화") for number in range(12)]
    source = tasks.write_reviews(folder / "reviews.tsv", rows)
    chain = Chain(folder / "corpus", folder / "shards", folder / "model")
    cleaning = step_config("preprocess", {"source": str(source), "validation_ratio": 0.1, "test_ratio": 0.1}, task)
    preprocess(cleaning, task=task, output=str(chain.corpus))
    encoding = replace(tasks.ENCODING[task], special_tokens=SPECIAL)
    tokenize(encoding, task=task, output=str(chain.shards), corpus=str(chain.corpus))
    tasks.trained(chain, task, epochs=3)
    own = {"max_new_tokens": 6, "greedy": True} if task == "language_modeling" else {}
    config = step_config("evaluate", own, task)
    evaluate(config, task=task, output=str(folder / "evaluation"), **chain.inputs)
    inputs = {"model": str(chain.model), "shards": str(chain.shards), "evaluation": str(folder / "evaluation")}
    export(ExportConfig(check_rows=4), task=task, output=str(folder / "bundle"), **inputs)
    return folder / "bundle"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("classifier"), "classification")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("decoder"), "language_modeling")


@pytest.fixture(params=["classifier", "decoder"])
def either(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def said(bundle: Path, **changes: object) -> list[str]:
    opened = open_bundle(str(bundle), changes)
    return answer(opened, opened.predictor(), TEXTS).predictions.texts


def test_labels_keep_their_index_from_shards_to_bundle(classifier: Path) -> None:
    labels = [RARE, "별로", "좋아요"]
    folder = classifier.parent
    assert read_manifest(folder / "shards", "shards").details["facts"]["labels"] == labels
    for place in (folder / "model", classifier / "huggingface"):
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        assert [config["id2label"][str(index)] for index in range(3)] == labels
        assert config["label2id"] == {label: index for index, label in enumerate(labels)}
    opened = open_bundle(str(classifier), {"top_classes": 3})
    found = answer(opened, opened.predictor(), TEXTS).predictions
    assert found.classes == tuple(labels)
    for text, top in zip(found.texts, found.columns["top"], strict=True):
        assert set(json.loads(top)) == set(labels) and next(iter(json.loads(top))) == text


def test_special_tokens_stay_whole_from_shards_to_bundle(either: Path) -> None:
    from transformers import AutoTokenizer

    for place in (either.parent / "shards" / "tokenizer", either.parent / "model", either / "huggingface"):
        tokenizer = AutoTokenizer.from_pretrained(place)
        for token in SPECIAL:
            ids = tokenizer(f"글 {token} 끝", add_special_tokens=False)["input_ids"]
            assert tokenizer.convert_tokens_to_ids(token) in ids
            assert token in tokenizer.decode(ids, skip_special_tokens=True), "content, not a mark to be dropped"


def test_the_tokenizer_alone_encodes_as_training_did(either: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, opened = AutoTokenizer.from_pretrained(either / "huggingface"), open_bundle(str(either))
    texts = [*TEXTS, "길고 긴 글 " * 60]
    rows = opened.task.inputs(texts, opened.predictor().tokenizer, opened.encoding)
    limit = tokenizer.model_max_length
    assert limit == {"classification": 40, "language_modeling": 32}[opened.task.name]
    for text, row in zip(texts, rows, strict=True):
        encoded = tokenizer(text, truncation=True)
        assert encoded["input_ids"] == row[0][:limit].tolist() and set(encoded) <= {"input_ids", "attention_mask"}


def test_settings_change_without_loading_again(either: Path) -> None:
    opened = open_bundle(str(either))
    predictor = opened.predictor()
    assert predictor.adjusts
    changes = {"top_classes": 2} if opened.task.labels else {"max_new_tokens": 3}
    adjusted = predictor.with_settings(opened.with_settings(**changes).settings)
    assert adjusted.model is predictor.model  # type: ignore[attr-defined]
    again = open_bundle(str(either), changes)
    ours, theirs = (answer(again, p, TEXTS).predictions for p in (adjusted, again.predictor()))
    assert (ours.texts, ours.columns) == (theirs.texts, theirs.columns)


def piped(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], *options: str
) -> list[str]:
    pipe_in(monkeypatch, "".join(f"{text}\n" for text in TEXTS).encode())
    assert main(["predict", str(bundle), "--input", "-", *options]) == 0
    return capfdbinary.readouterr().out.decode().splitlines()


def test_a_pipe_of_texts_becomes_labels_and_texts(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    expected = said(classifier)
    lines = piped(classifier, monkeypatch, capfdbinary)
    assert lines == [f"{label}\t{text}" for label, text in zip(expected, TEXTS, strict=True)]
    for line, label in zip(piped(classifier, monkeypatch, capfdbinary, "--top-classes", "2"), expected, strict=True):
        first, second = line.split("\t")[0].split(" ")
        assert first == label != second
    assert piped(classifier, monkeypatch, capfdbinary, "--format", "lines") == expected


def test_a_pipe_of_prompts_becomes_continuations(
    decoder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def lines(*options: str) -> list[str]:
        return piped(decoder, monkeypatch, capfdbinary, *options)

    assert lines() == [" ".join(text.splitlines()) for text in said(decoder)]
    short = lines("--max-new-tokens", "1")
    assert short == [" ".join(text.splitlines()) for text in said(decoder, max_new_tokens=1)]
    drawn = said(decoder, greedy=False, temperature=2.0, top_k=50, top_p=0.9)
    opened = open_bundle(str(decoder), {"greedy": False})
    assert opened.settings.greedy is False
    assert drawn != said(decoder), "60 draws at a high temperature are not all the likeliest token"


def test_an_output_of_other_settings_is_not_gone_on_with(decoder: Path, tmp_path: Path) -> None:
    """Each of them changes what is predicted, so a partial file of other settings belongs to another run."""
    from hanflow.serving import predict as stream

    assert set(open_bundle(str(decoder)).predictor().adjusts) <= set(stream.SEARCH)  # type: ignore[attr-defined]
    assert "top_classes" in stream.SEARCH


testing = pytest.importorskip("streamlit.testing.v1", reason="Streamlit is not installed: pip install 'hanflow[demo]'")
PAGE = Path(__file__).parents[2] / "hanflow" / "serving" / "demo.py"


def page_of(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> testing.AppTest:
    monkeypatch.setattr(sys, "argv", ["demo.py", str(bundle)])
    page = testing.AppTest.from_file(str(PAGE), default_timeout=60).run()
    assert not page.exception
    return page


def pressed(page: testing.AppTest) -> testing.AppTest:
    page.text_area(key="text").set_value(TEXTS[0])
    page.button[0].click().run()
    assert not page.exception
    return page


def shown(page: testing.AppTest) -> list[str]:
    return [html.unescape(re.sub("<[^>]*>", "", element.proto.body)) for element in page.get("html")]


def bars(page: testing.AppTest) -> dict[str, int]:
    """Class → length of its bar, in hundredths, as shown."""
    return {bar.proto.text.split(":")[0]: bar.proto.value for bar in page.get("progress")}


def test_the_demo_shows_classes_as_bars(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(classifier, monkeypatch)
    assert [slider.label for slider in page.slider] == ["Classes shown"] and not page.toggle
    assert page.button[0].label == "Classify"
    pressed(page)
    assert shown(page) == [said(classifier)[0]]
    found = bars(page)
    assert set(found) == {RARE, "별로", "좋아요"} and abs(sum(found.values()) - 100) <= 2
    assert max(found, key=lambda label: found[label]) == shown(page)[0] == next(iter(found))
    page.slider[0].set_value(2)
    assert len(bars(pressed(page))) == 2


def test_the_demo_continues_as_the_sliders_say(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(decoder, monkeypatch)
    assert [s.label for s in page.slider] == ["Longest text, in tokens", "Temperature", "Top k", "Top p"]
    assert page.toggle[0].value is True, "as it was scored"
    assert shown(pressed(page)) == [said(decoder)[0]]
    page.slider[0].set_value(2)
    assert shown(pressed(page)) == [said(decoder, max_new_tokens=2)[0]]
    page.toggle[0].set_value(False)
    page.slider[1].set_value(2.0)
    drawn = said(decoder, max_new_tokens=2, greedy=False, temperature=2.0)[0]
    assert shown(pressed(page)) == ([drawn] if drawn else [])
