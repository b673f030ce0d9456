"""The public Python API: what its names take, give and refuse. docs/api-examples.md shows it in use."""

from __future__ import annotations

import json
import pydoc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hanflow
from hanflow import tasks
from hanflow.errors import ConfigError, UserError
from hanflow.serving.bundle import answer, open_bundle
from hanflow.serving.sources import open_source
from tests.support.corpora import petitions
from tests.support.model_fixtures import Chain, rewritten
from tests.support.tasks import make_shards, reviews, trained

TEXTS = [body for body, _ in petitions(43)[40:]]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("classifier")
    return trained(make_shards(folder, "classification", reviews(120)), "classification", epochs=1)


@pytest.fixture
def run_folder(scored: tuple[Chain, Path], bundle: Path, tmp_path: Path) -> Path:
    """A run's folder, as `hanflow run` leaves it: links to its artifacts."""
    chain, evaluation = scored
    for kind, place in {
        "corpus": chain.corpus,
        "shards": chain.shards,
        "model": chain.model,
        "evaluation": evaluation,
        "bundle": bundle,
    }.items():
        (tmp_path / kind).symlink_to(place)
    return tmp_path


def test_importing_is_light() -> None:
    code = (
        "import sys, hanflow; print([m for m in ('torch', 'numpy', 'kfp', 'transformers', 'yaml') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = "import sys, hanflow; hanflow.Experiment, hanflow.UserError; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_public_names() -> None:
    assert set(hanflow.__all__) == {name for name in dir(hanflow) if not name.startswith("__")} | {"__version__"}
    for name in hanflow.__all__:
        value = getattr(hanflow, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), f"{name} is explained"
    assert sorted(name for names in hanflow._MODULES.values() for name in names) == hanflow.__all__
    with pytest.raises(AttributeError, match="no attribute 'trian'; its public names: "):
        _ = hanflow.trian
    text = pydoc.render_doc(hanflow, renderer=pydoc.plaintext)
    for needed in ("load(source", "run_step(name", "class Predictor", "Raises:"):
        assert needed in text, needed


def test_types_are_seen_by_checkers(tmp_path: Path) -> None:
    """The lazily imported names have types, for mypy and for IDEs."""
    assert (Path(hanflow.__file__).parent / "py.typed").is_file()
    program = tmp_path / "program.py"
    program.write_text(
        "import hanflow\nreveal_type(hanflow.rouge)\nreveal_type(hanflow.load('x'))\nhanflow.rouge(1)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", str(program)]
    reported = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(hanflow.__file__).parents[1]
    )
    assert 'Revealed type is "hanflow.api.prediction.Predictor"' in reported.stdout, reported.stdout
    assert "hanflow.api.scores.Scores" in reported.stdout
    assert 'Missing positional argument "references"' in reported.stdout


def texts_of(predictions: list[hanflow.Prediction]) -> list[str]:
    return [prediction.text for prediction in predictions]


def test_every_source_of_a_run_predicts_alike(run_folder: Path) -> None:
    opened = open_bundle(str(run_folder / "bundle"))
    expected = answer(opened, opened.predictor(), TEXTS)
    of_bundle = hanflow.load(run_folder / "bundle", device="cpu")
    assert of_bundle.task == "summarization" and of_bundle.labels == ()
    found = of_bundle(TEXTS)
    assert texts_of(found) == expected.predictions.texts
    assert [p.tokens for p in found] == expected.tokens and [p.cut for p in found] == expected.cut
    assert found[0].probability is None and str(found[0]) == found[0].text
    assert texts_of(hanflow.load(run_folder)(TEXTS)) == texts_of(found)
    (run_folder / "bundle").unlink()
    for source in (run_folder, run_folder / "model"):
        loaded = hanflow.load(source, engine="transformers", device="cpu")
        assert loaded.settings == {**of_bundle.settings, "engine": "transformers"}
        assert texts_of(loaded(TEXTS)) == texts_of(found), source


def test_a_model_keeps_what_the_bundle_would_have(run_folder: Path) -> None:
    bundle, model = open_source(str(run_folder / "bundle")), open_source(str(run_folder / "model"))
    assert (model.cleaning, model.encoding, model.settings) == (bundle.cleaning, bundle.encoding, bundle.settings)
    assert model.encoding.max_source_tokens == 64
    kept = json.loads((run_folder / "model" / "model.json").read_text(encoding="utf-8"))["details"]["cleaning"]
    assert not any(name.endswith("source") for name in kept), "no path of the machine that made it"
    (run_folder / "evaluation").unlink()
    assert open_source(str(run_folder / "model")).settings.beams == 4, "the default, as nothing scored it"
    (run_folder / "experiment.yaml").write_text("evaluate: {beams: 3}\n", encoding="utf-8")
    assert open_source(str(run_folder / "model")).settings.beams == 3
    assert open_source(str(run_folder / "model"), {"beams": 5}).settings.beams == 5


def test_the_evaluation_of_another_model_decides_nothing(run_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run_folder / "evaluation", other)
    (run_folder / "evaluation").unlink()
    rewritten(other, "evaluation", parents={"model": "0" * 64})
    other.rename(run_folder / "evaluation")
    assert open_source(str(run_folder / "model")).settings.beams == 4


def test_labels_with_probabilities(classifier: Chain) -> None:
    predictor = hanflow.load(classifier.model, device="cpu")
    texts = [text for _, text in reviews(30)]
    found = predictor(texts)
    assert predictor.labels == ("0", "1")
    for prediction in found:
        assert list(prediction.probabilities.values()) == sorted(prediction.probabilities.values(), reverse=True)
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert prediction.text == next(iter(prediction.probabilities))
        assert prediction.probability == max(prediction.probabilities.values()) >= 0.5
    streamed = list(predictor.stream(texts, batch_rows=7))
    assert texts_of(streamed) == texts_of(found)
    assert predictor([]) == []
    assert [p.text for p in predictor.stream([{"id": "1", "Review": texts[0]}])] == [found[0].text]
    assert [p.text for p in predictor.stream([{"id": texts[0]}], column="id")] == [found[0].text]
    with pytest.raises(UserError, match="a row has no text or document or .*its columns: id, body"):
        list(predictor.stream([{"id": "1", "body": "가"}]))
    with pytest.raises(TypeError, match="put it into a list"):
        predictor("하나")


def test_streaming_takes_rows_as_they_are_needed(classifier: Chain) -> None:
    taken = 0

    def rows() -> object:
        nonlocal taken
        for _, text in reviews(100):
            taken += 1
            yield text

    stream = hanflow.load(classifier.model, device="cpu").stream(rows(), batch_rows=10)  # type: ignore[arg-type]
    next(stream)
    assert taken == 10


def test_settings_change_without_loading_again(run_folder: Path) -> None:
    predictor = hanflow.load(run_folder, device="cpu")
    greedy = predictor.with_settings(beams=1, max_new_tokens=5)
    assert greedy.settings["beams"] == 1 and predictor.settings["beams"] == 2
    assert texts_of(greedy(TEXTS)) == texts_of(hanflow.load(run_folder, device="cpu", beams=1, max_new_tokens=5)(TEXTS))
    with pytest.raises(UserError, match="engine: cannot be changed in a loaded model; those that can: beams"):
        predictor.with_settings(engine="transformers")
    with pytest.raises(ConfigError, match="evaluate.beams: must be at least 1"):
        predictor.with_settings(beams=0)


def test_a_bare_hugging_face_model_gets_its_task_from_its_architecture(
    classifier: Chain, run_folder: Path, tmp_path: Path
) -> None:
    for source, task in ((classifier.model, "classification"), (run_folder / "model", "summarization")):
        folder = tmp_path / task
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.json", "training.json", "report.html"))
        predictor = hanflow.load(folder, device="cpu", batch_tokens=1024)
        assert predictor.task == task
        assert len(predictor(TEXTS)) == len(TEXTS)
        opened = open_source(str(folder))
        assert opened.encoding.max_source_tokens == (64 if task == "summarization" else 512)
        assert opened.manifest.digest == open_source(str(folder)).manifest.digest
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BartModel"]}), encoding="utf-8")
    assert open_source(str(folder)).task.name == "summarization", "an encoder-decoder saved without its head"
    odd = {**config, "model_type": "bert", "is_encoder_decoder": False, "architectures": ["BertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(odd), encoding="utf-8")
    with pytest.raises(UserError, match="its architecture is BertForMaskedLM, which is of no task"):
        hanflow.load(folder)


def test_what_cannot_be_loaded(run_folder: Path, classifier: Chain, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was made for the task summarization, not for classification"):
        hanflow.load(run_folder, task="classification")
    with pytest.raises(UserError, match="was made for the task classification, not for summarization"):
        hanflow.load(classifier.model, task="summarization")
    with pytest.raises(UserError, match="is a shards artifact, which cannot predict"):
        hanflow.load(run_folder / "shards")
    with pytest.raises(UserError, match="no such folder; give a bundle, a run"):
        hanflow.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="device='gpu': no such device"):
        hanflow.load(run_folder, device="gpu")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "experiment.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(UserError, match="is a run that has no model yet"):
        hanflow.load(begun)
    old = tmp_path / "old"
    shutil.copytree(classifier.model, old)
    rewritten(old, "model", details={})
    with pytest.raises(UserError, match="an older hanflow has made it; train or export"):
        hanflow.load(old)
    with (old / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="was changed or damaged"):
        hanflow.load(old)


def test_rouge() -> None:
    predictions, references = ["비가 온다", ""], ["비가 내린다", "눈이 온다"]
    scores = hanflow.rouge(predictions, references, tokenization="word")
    assert scores["rouge1_word"] == pytest.approx(0.25) and scores.rows["rouge1_word"].tolist() == [0.5, 0.0]
    low, high = scores.intervals(confidence=0.9, seed=1)["rouge1_word"]
    assert 0 <= low <= 0.25 <= high <= 0.5
    for arguments, message in (
        ((["가"], []), "1 predictions for 0 references"),
        ((["가"], [[]]), "row 0 has no reference"),
    ):
        with pytest.raises(UserError, match=message):
            hanflow.rouge(*arguments)
    with pytest.raises(UserError, match="rouge: .*wordd"):
        hanflow.rouge(predictions, references, tokenization="wordd")
    with pytest.raises(UserError, match=r"confidence=95: give a number between 0 and 1"):
        scores.intervals(confidence=95)


def test_scores_of_tasks(classifier: Chain) -> None:
    texts, labels = [text for _, text in reviews(40)], [label for label, _ in reviews(40)]
    found = hanflow.load(classifier.model, device="cpu")(texts)
    scores = hanflow.score("classification", found, labels)
    right = np.mean([prediction.text == label for prediction, label in zip(found, labels, strict=True)])
    assert scores["accuracy"] == pytest.approx(right)
    likely = [prediction.probabilities[label] for prediction, label in zip(found, labels, strict=True)]
    assert scores["loss"] == pytest.approx(-np.mean(np.log(likely)), rel=1e-5)
    bare = hanflow.score("classification", texts_of(found), labels)
    assert set(bare) == {"accuracy", "macro_f1", "micro_f1"}, "labels alone have no probabilities"
    assert bare == {name: pytest.approx(scores[name]) for name in bare}
    assert set(bare.intervals()) == set(bare)
    assert hanflow.score("summarization", ["가 나"], ["가 나"])["rougeL_morpheme"] == 1.0
    with pytest.raises(UserError, match="scored by how likely"):
        hanflow.score("language_modeling", ["가"], ["가"])
    with pytest.raises(UserError, match="1 predictions for 2 references"):
        hanflow.score("classification", ["1"], ["1", "0"])
    with pytest.raises(UserError, match="did you mean classification"):
        hanflow.score("clasification", ["1"], ["1"])


def test_rows_of_files(tmp_path: Path) -> None:
    table, lines, json_lines = tmp_path / "a.csv", tmp_path / "a.txt", tmp_path / "a.jsonl"
    table.write_text('id,글\n1,"첫 줄\n둘째 줄"\n2,끝\n', encoding="utf-8")
    lines.write_text("하나\n둘\n", encoding="utf-8")
    json_lines.write_text('{"a": "x", "b": "y"}\n', encoding="utf-8")
    assert list(hanflow.read_rows(table)) == [{"id": "1", "글": "첫 줄\n둘째 줄"}, {"id": "2", "글": "끝"}]
    assert list(hanflow.read_rows(table, ["글"])) == [{"글": "첫 줄\n둘째 줄"}, {"글": "끝"}]
    assert list(hanflow.read_rows(lines)) == [{"text": "하나"}, {"text": "둘"}]
    assert list(hanflow.read_rows(json_lines)) == [{"a": "x", "b": "y"}]
    with pytest.raises(UserError, match="has no column 'text'"):
        list(hanflow.read_rows(table, ["text"]))
    with pytest.raises(UserError, match="cannot be read .*No such file"):
        list(hanflow.read_rows(tmp_path / "none.csv"))


def test_an_experiment_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 3, architecture: {type: bart}}\n", encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text("base: base.yaml\nname: mine\npreprocess: {source: ./a.csv}\n", encoding="utf-8")
    experiment = hanflow.Experiment.from_yaml(path, name="other", train={"learning_rate": "1e-4"}, **{"train.seed": 7})
    assert (experiment.name, experiment.train.epochs, experiment.train.seed) == ("other", 3, 7)
    assert experiment.train.learning_rate == 1e-4
    assert experiment.preprocess.source == str(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match=r"2 problems(?s:.*)train.epoch: no such setting; did you mean train.epochs"):
        hanflow.Experiment.from_yaml(path, train={"epoch": 1, "seed": "x"})
    with pytest.raises(UserError, match="no such experiment file"):
        hanflow.Experiment.from_yaml(tmp_path / "none.yaml")


def test_steps_refuse_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step 'tokenise': no such step; did you mean tokenize"):
        hanflow.run_step("tokenise", output=tmp_path / "x", corpus="c")
    with pytest.raises(UserError, match="step tokenize: takes corpus, not shards"):
        hanflow.run_step("tokenize", output=tmp_path / "x", shards="c")
    with pytest.raises(ConfigError, match="tokenize.vocabulary: no such setting"):
        hanflow.run_step("tokenize", {"vocabulary": 3}, output=tmp_path / "x", corpus="c")
    with pytest.raises(UserError, match="several models"):
        hanflow.train(hanflow.Experiment.from_yaml("sample-ensemble"), output=tmp_path)


def test_training_again_keeps_what_is_finished(classifier: Chain, tmp_path: Path) -> None:
    experiment = hanflow.Experiment.from_yaml(
        "sample-classification",
        train={"epochs": 1, "architecture": {"type": "cnn", "embedding_size": 8, "n_filters": 4}, "log_every": 1},
        evaluate={"top_classes": 2},
    )
    model = hanflow.train(experiment, shards=str(classifier.shards), output=tmp_path)
    written = (tmp_path / "model" / "model.json").stat().st_mtime_ns
    again = hanflow.train(experiment, shards=str(classifier.shards), output=tmp_path)
    assert again == model and (tmp_path / "model" / "model.json").stat().st_mtime_ns == written
    assert {path.name for path in tmp_path.iterdir()} >= {"model"} and not (tmp_path / "corpus").exists()
    assert model.load(device="cpu").labels == ("0", "1")
    assert model.settings == {"top_classes": 2}
    assert open_source(model.uri, model.settings).settings.top_classes == 2
    frames = hanflow.figures(model)
    assert {"step", "loss", "learning_rate"} <= set(frames["training"].columns) and len(frames["validation"]) >= 1


def test_the_figures_of_an_evaluation(scored: tuple[Chain, Path]) -> None:
    _, evaluation = scored
    frames = hanflow.figures(evaluation)
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    scores = frames["scores"].set_index(["system", "score"])
    assert (
        scores.loc[("trained model", "rougeL_morpheme"), "value"]
        == metrics["systems"]["trained model"]["rougeL_morpheme"]
    )
    assert (frames["scores"]["low"] <= frames["scores"]["value"]).all()
    assert list(frames["predictions"]["row"]) == list(range(metrics["rows"]))
    with pytest.raises(UserError, match="holds no figures"):
        hanflow.figures(evaluation.parent / "corpus")


def test_figures_without_pandas(scored: tuple[Chain, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="needs pandas, which is not installed; pip install pandas"):
        hanflow.figures(scored[1])


def test_tasks_are_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from hanflow.tasks.classification import Classification

    monkeypatch.setattr(tasks, "_registered", {})

    @hanflow.register_task
    class Stars(Classification):
        name = "stars"

    assert isinstance(tasks.get_task("stars"), Stars) and "stars" in tasks.known_tasks()
    with pytest.raises(UserError, match="task Empty: lacks settings, headline, columns"):
        hanflow.register_task(type("Empty", (), {"name": "empty"}))
