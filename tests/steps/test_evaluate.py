"""Evaluate: the right scores for the right rows, beside what a trivial system reaches."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hanflow.cli.main import main as hanflow
from hanflow.config import to_mapping
from hanflow.data.delimited import safe_cell
from hanflow.errors import UserError
from hanflow.metrics import rouge
from hanflow.reports.html import thinned
from hanflow.reports.step_report import Report
from hanflow.steps.evaluate import run, spread
from hanflow.steps.gate import passed
from hanflow.steps.runner import main
from hanflow.storage.artifacts import lineage, read_manifest
from hanflow.tasks.summarization import SummarizationEvaluate, lead
from tests.support import nasty
from tests.support.corpora import write_corpus
from tests.support.model_fixtures import EVALUATE, Chain, make_chain, rewritten


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return make_chain(tmp_path_factory.mktemp("chain"))


def evaluated(chain: Chain, output: Path, **settings: object) -> Report:
    config = SummarizationEvaluate(**{**to_mapping(EVALUATE), **settings})
    return run(config, task="summarization", output=str(output), **chain.inputs)


@pytest.fixture(scope="module")
def done(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    output = tmp_path_factory.mktemp("done") / "evaluation"
    return output, evaluated(chain, output, untrained=True)


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_predictions_are_the_trained_models_row_by_row(chain: Chain, done: tuple[Path, Report]) -> None:
    """Against transformers itself, fed from the corpus: tokens, order, search and decoding all have to fit."""
    rows = predictions(done[0])
    corpus = pq.read_table(chain.corpus / "test.parquet").to_pydict()
    assert [row["prompt"] for row in rows] == corpus["source"]
    assert [row["reference"] for row in rows] == corpus["target"]
    assert [row["row"] for row in rows] == [str(i) for i in range(6)]
    model = AutoModelForSeq2SeqLM.from_pretrained(chain.model)
    tokenizer = AutoTokenizer.from_pretrained(chain.model)
    for row in rows:
        ids = [*tokenizer(row["prompt"], add_special_tokens=False)["input_ids"][:63], tokenizer.eos_token_id]
        out = model.generate(
            input_ids=torch.tensor([ids]),
            num_beams=2,
            max_new_tokens=12,
            min_new_tokens=4,
            no_repeat_ngram_size=2,
            early_stopping=True,
            renormalize_logits=True,
            forced_eos_token_id=None,
        )
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        text = tokenizer.decode([i for i in out[0].tolist() if i not in special]).rstrip("\ufffd").strip()
        assert row["prediction"] == safe_cell(text)
    assert len({row["prediction"] for row in rows}) > 1  # or the test could not tell one row from another


def test_every_system_is_scored_on_the_same_rows(chain: Chain, done: tuple[Path, Report]) -> None:
    metrics = json.loads((done[0] / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["systems"]) == ["trained model", "lead-1", "untrained model"]
    assert (metrics["rows"], metrics["split"]) == (6, "test")
    rows = predictions(done[0])
    references = [row["reference"] for row in rows]
    leads = rouge.f1_rows([lead(row["prompt"], 1) for row in rows], references)
    for name, values in leads.items():
        assert metrics["systems"]["lead-1"][name] == values.mean()
    scores = metrics["systems"]["trained model"]
    usual = [scores[f"{variant}_morpheme"] for variant in ("rouge1", "rouge2", "rougeL")]
    assert scores.pop("rouge_sum") == pytest.approx(sum(usual))
    for name, value in scores.items():
        low, high = metrics["intervals"]["trained model"][name]
        assert 0 <= low <= value <= high <= 1
        assert sum(float(row[name]) for row in rows) / 6 == pytest.approx(value, abs=1e-6)  # six digits in the file


def test_a_gate_is_kept_or_reported(chain: Chain, tmp_path: Path) -> None:
    evaluated(chain, tmp_path / "good", minimum={"rougeL_morpheme": 0.0})
    assert passed(str(tmp_path / "good"))
    report = evaluated(chain, tmp_path / "bad", minimum={"rougeL_morpheme": 0.99}, maximum={"rouge_sum": -1})
    assert not passed(str(tmp_path / "bad"))
    assert "below evaluate.minimum 0.99" in report.figures["gate"]
    assert "above evaluate.maximum -1" in report.figures["gate"]
    assert read_manifest(tmp_path / "bad", "evaluation").details["figures"] == json.loads(json.dumps(report.figures))
    assert "Not good enough to export" in (tmp_path / "bad" / "report.html").read_text(encoding="utf-8")
    for wrong, message in (
        ({"rougeL": 0.3}, "no score 'rougeL'; known: rouge1_morpheme"),
        ({"rouge_sum": "x"}, "number"),
    ):
        with pytest.raises(UserError, match=message):
            evaluated(chain, tmp_path / "out", minimum=wrong)


def test_an_earlier_model_is_scored_beside_the_trained_one(chain: Chain, tmp_path: Path) -> None:
    """The earlier model is the trained one itself here: it must score the same."""
    evaluated(chain, tmp_path / "out", earlier=str(chain.model))
    systems = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["systems"]
    assert systems["earlier model"] == systems["trained model"]
    with pytest.raises(UserError, match="no such folder"):
        evaluated(chain, tmp_path / "none", earlier="./nothing-there")


def test_memory_does_not_follow_the_rows(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of two rows, nothing but numbers outlives a chunk, and the scores are those of all rows at once."""
    evaluated(chain, tmp_path / "whole", examples=1)
    monkeypatch.setattr("hanflow.steps.evaluate.CHUNK", 2)
    monkeypatch.setattr("hanflow.reports.evaluation.EXTREMES", 1)
    evaluated(chain, tmp_path / "chunks", examples=1)
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / "chunks" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_artifact_names_its_parents_and_the_report_its_figures(chain: Chain, done: tuple[Path, Report]) -> None:
    folder, report = done
    manifest = read_manifest(folder, "evaluation", task="summarization")
    parents = [read_manifest(getattr(chain, kind), kind) for kind in ("model", "shards", "corpus")]
    assert manifest.parents == lineage(*parents)
    assert manifest.counts == {"rows": 6, "split": "test"}
    systems = manifest.details["systems"]
    assert report.html == "report.html"
    assert report.figures == {
        **{name: round(value, 4) for name, value in systems["trained model"].items()},
        "lead-1_rougeL_morpheme": round(systems["lead-1"]["rougeL_morpheme"], 4),
        "untrained_rougeL_morpheme": round(systems["untrained model"]["rougeL_morpheme"], 4),
        "rows": 6,
    }


def test_the_page_shows_everything_and_asks_the_network_for_nothing(done: tuple[Path, Report]) -> None:
    page = (done[0] / "report.html").read_text(encoding="utf-8")
    for heading in (
        "Scores",
        "Loss",
        "Learning rate",
        "Predictions",
        "Predicted and reference lengths",
        "Token lengths",
        "Best rows",
        "Examples",
    ):
        assert re.search(rf"<h2>{heading}</h2>", page), heading
    assert page.count('<div class="example">') == 3 + 5 + 5  # evenly spread, best, worst
    assert "<details>" in page or max(len(row["prompt"]) for row in predictions(done[0])) <= 600
    assert re.findall(r"""(?:src|href)=["'](?!#)[^"']*""", page) == []
    assert "<script" not in page
    assert "url(http" not in page


def test_the_same_input_gives_the_same_bytes(chain: Chain, done: tuple[Path, Report], tmp_path: Path) -> None:
    evaluated(chain, tmp_path / "again", untrained=True)
    for path in done[0].iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_fewer_rows_the_other_split_and_more_lead_sentences(chain: Chain, tmp_path: Path) -> None:
    report = evaluated(chain, tmp_path / "out", split="validation", limit_rows=2, lead_sentences=2, examples=0)
    assert report.figures["rows"] == 2
    assert "lead-2_rougeL_morpheme" in report.figures
    expected = pq.read_table(chain.corpus / "validation.parquet").to_pydict()["source"][:2]
    assert [row["prompt"] for row in predictions(tmp_path / "out")] == expected
    assert "Examples" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_an_empty_split_is_refused_with_a_remedy(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, test_rows=0)
    with pytest.raises(UserError, match=r"test split is empty: .*raise preprocess\.test_ratio"):
        evaluated(chain, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parents_of_another_run_are_refused(chain: Chain, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "corpus", {"test": [("다른 본문입니다.", "제목")] * 6})
    with pytest.raises(UserError, match="is not the corpus that .*shards was made from"):
        run(EVALUATE, task="summarization", output=str(tmp_path / "out"), **{**chain.inputs, "corpus": str(other)})
    with pytest.raises(UserError, match="expected a shards artifact, but this is a corpus artifact"):
        run(EVALUATE, task="summarization", output=str(tmp_path / "out"), **{**chain.inputs, "shards": str(other)})


def test_a_model_without_its_history_is_refused(chain: Chain, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(chain.model, model)
    (model / "training.json").unlink()
    rewritten(model, "model")
    with pytest.raises(UserError, match=r"training\.json: is no record of a training"):
        run(EVALUATE, task="summarization", output=str(tmp_path / "out"), **{**chain.inputs, "model": str(model)})


def test_the_command_line(chain: Chain, tmp_path: Path) -> None:
    arguments = [part for name, path in chain.inputs.items() for part in (f"--{name}", path)]
    settings = ["--beams", "1", "--max-new-tokens", "4", "--limit-rows", "1"]
    assert main("evaluate", run, tuple(chain.inputs), ["--output", str(tmp_path / "out"), *arguments, *settings]) == 0
    assert read_manifest(tmp_path / "out", "evaluation").config["beams"] == 1


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x","y")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_text_runs_as_a_formula(text: str) -> None:
    assert safe_cell(text) == f"'{text}"
    assert safe_cell(f"국민 {text}") == f"국민 {text}"


def test_long_histories_are_averaged_and_examples_spread() -> None:
    points = thinned([(float(i), 2.0 * i) for i in range(1000)], 100)
    assert len(points) == 100
    assert points[0] == (4.5, 9.0)
    assert spread(100, 3) == [0, 50, 99]
    assert spread(2, 20) == [0, 1]


def test_nasty_rows_are_scored_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """200 of them, as prompts and as references; `hanflow score` on what was written says the same."""
    texts = [text.encode("utf-8", "backslashreplace").decode() for text in nasty.rows()]
    chain = make_chain(tmp_path, test=list(zip(texts, reversed(texts), strict=True)))
    report = evaluated(chain, tmp_path / "evaluation")
    assert report.figures["rows"] == len(texts) == 200
    rows = predictions(tmp_path / "evaluation")
    assert [row["row"] for row in rows] == [str(number) for number in range(200)]
    assert [row["prompt"] for row in rows] == [safe_cell(text) for text in texts]
    references = tmp_path / "references.jsonl"
    references.write_text("".join(json.dumps({"reference": text}) + "\n" for text in reversed(texts)))
    found = tmp_path / "evaluation" / "predictions.csv"
    arguments = ["score", "--predictions", str(found), "--references", str(references), "--json"]
    capsys.readouterr()
    assert hanflow([*arguments, "--tokenization", "morpheme"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["rows"] == 200
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    trained = {name: value for name, value in metrics["systems"]["trained model"].items() if name in scored["scores"]}
    assert len(trained) == 4
    assert {name: scored["scores"][name] for name in trained} == pytest.approx(trained, abs=1e-9)
    assert 0 < trained["rouge1_morpheme"] < 0.1
