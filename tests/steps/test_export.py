"""Export: a bundle that strangers can load, refused when it is not the trained model."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hanflow import generation
from hanflow.config import ExportConfig
from hanflow.data.shards import Shard
from hanflow.errors import ConfigError, UserError
from hanflow.experiment import step_config
from hanflow.generation import Generator, ctranslate2_engine
from hanflow.serving.verify import Differs, check_loss
from hanflow.steps import export as bundle
from hanflow.steps.evaluate import run as evaluate
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks import get_task, register_task
from hanflow.tasks.summarization import Summarization, Summarizer
from tests.support.model_fixtures import EVALUATE, Chain, make_chain, rewritten


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Chain, Path]:
    folder = tmp_path_factory.mktemp("chain")
    chain = make_chain(folder)
    evaluate(EVALUATE, task="summarization", output=str(folder / "evaluation"), **chain.inputs)
    return chain, folder / "evaluation"


def exported(chain: tuple[Chain, Path], output: Path, config: ExportConfig | None = None) -> Path:
    made, evaluation = chain
    bundle.run(
        config or ExportConfig(check_rows=4, title="나의 모델", license="CC0-1.0"),
        task="summarization",
        output=str(output),
        model=str(made.model),
        evaluation=str(evaluation),
        shards=str(made.shards),
    )
    return output


def test_plain_transformers_gives_the_scored_outputs(chain: tuple[Chain, Path], tmp_path: Path) -> None:
    """Nothing but transformers, nothing but the bundle: the generation settings travel in it."""
    out = exported(chain, tmp_path / "bundle")
    model = AutoModelForSeq2SeqLM.from_pretrained(out / "huggingface")
    tokenizer = AutoTokenizer.from_pretrained(out / "huggingface")
    assert (model.generation_config.num_beams, model.generation_config.max_new_tokens) == (2, 12)
    task = get_task("summarization")
    rows = Shard(chain[0].shards / "test.arrow", task.sequences).rows(range(4))
    expected = task.predictor(task.load_model(str(chain[0].model)), tokenizer, EVALUATE)(rows).texts
    for row, text in zip(rows, expected, strict=True):
        ids = torch.tensor(row[0][None]).long()
        tokens = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        said = tokenizer.decode([int(t) for t in tokens if int(t) not in special])
        assert said.strip().rstrip("\ufffd").strip() == text  # half a character at the end is left out


def test_weights_are_the_trained_ones_bit_by_bit(chain: tuple[Chain, Path], tmp_path: Path) -> None:
    out = exported(chain, tmp_path / "bundle")
    ours, theirs = (load_file(p / "model.safetensors") for p in (out / "huggingface", chain[0].model))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_card_reports_what_a_stranger_needs(
    chain: tuple[Chain, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported(chain, tmp_path / "bundle")
    card = (out / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc0-1.0"
    assert "rougeL_morpheme" in yaml.safe_load(front)["metrics"]
    for expected in (
        "# 나의 모델",
        "rougeL_morpheme",
        "lead-1",
        "| train | 30 |",
        "## Intended use",
        "## Lineage",
        "`ctranslate2/int8`",
    ):
        assert expected in body
    first, second = (part.split("```")[0] for part in body.split("```python\n")[1:])
    exec(compile(first.replace('"huggingface"', f'"{out / "huggingface"}"'), "card", "exec"), {})  # what it tells works
    exec(compile(second.replace('"ctranslate2/', f'"{out}/ctranslate2/'), "card", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == printed[1], "both examples say the same"
    silent = exported(chain, tmp_path / "silent", ExportConfig(check_rows=1))
    assert "No licence was stated" in (silent / "README.md").read_text(encoding="utf-8")
    manifest = read_manifest(out, "bundle", task="summarization")
    assert set(manifest.parents) == {"model", "evaluation", "shards"}


def test_every_format_is_the_model_that_was_scored(chain: tuple[Chain, Path], tmp_path: Path) -> None:
    out = exported(chain, tmp_path / "bundle")
    manifest = read_manifest(out, "bundle", task="summarization")
    formats = manifest.details["formats"]
    assert list(formats) == ["huggingface", "ctranslate2/float32", "ctranslate2/int8"]
    assert manifest.details["skipped"] == {}
    assert (formats["huggingface"]["equal_texts"], formats["ctranslate2/float32"]["equal_texts"]) == (1.0, 1.0)
    assert formats["ctranslate2/float32"]["near_ties"] == 0
    assert set(formats["ctranslate2/int8"]["score_difference"]) == set(manifest.details["scores"]["trained model"])
    assert all(f"{name}/README.md" in manifest.files for name in formats)
    weights = {name: manifest.files[f"{name}/model.bin"]["bytes"] for name in formats if name != "huggingface"}
    assert weights["ctranslate2/int8"] < weights["ctranslate2/float32"]
    task = get_task("summarization")
    rows = Shard(chain[0].shards / "test.arrow", task.sequences).rows(range(6))
    tokenizer = AutoTokenizer.from_pretrained(chain[0].model)
    expected = task.predictor(task.load_model(str(chain[0].model)), tokenizer, EVALUATE)(rows).texts
    generator = Generator.open(out, task.load_model)
    assert generator.description == "ctranslate2, float32"
    assert Summarizer(generator, EVALUATE)(rows).texts == expected
    assert Generator.open(out, task.load_model, "auto", "int8").description == "ctranslate2, int8"


def test_formats_by_choice(chain: tuple[Chain, Path], tmp_path: Path) -> None:
    def folders(**settings: object) -> list[str]:
        out = exported(chain, tmp_path / f"out{len(list(tmp_path.iterdir()))}", ExportConfig(check_rows=1, **settings))
        return sorted(path.parent.relative_to(out).as_posix() for path in out.rglob("config.json"))

    assert folders(formats=["huggingface"]) == ["huggingface"]
    assert folders(formats=["ctranslate2"], compute_types=["int8"]) == ["ctranslate2/int8"]
    assert folders(compute_types=["float32"]) == ["ctranslate2/float32", "huggingface"]


class NoText(Summarization):
    """A task whose bundles CTranslate2 has no use for."""

    def card(self) -> dict[str, Any]:
        return {key: value for key, value in super().card().items() if key != "ctranslate2_example"}


def test_a_format_that_is_impossible_is_skipped_or_refused(
    chain: tuple[Chain, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, model = NoText(), AutoModelForSeq2SeqLM.from_pretrained(chain[0].model)
    formats, skipped = bundle.chosen_formats(ExportConfig(), task, model)
    assert formats == ["huggingface"] and "generates no text" in skipped["ctranslate2"]
    with pytest.raises(UserError, match="asks for ctranslate2, but the task .* generates no text; leave it out"):
        bundle.chosen_formats(ExportConfig(formats=["huggingface", "ctranslate2"]), task, model)
    model.config.activation_function = "tanh"
    assert bundle.chosen_formats(ExportConfig(), get_task("summarization"), model)[0] == ["huggingface"]
    with pytest.raises(ConfigError, match="'ctranslate' is none of auto, huggingface, ctranslate2; did you mean"):
        step_config("export", {"formats": ["huggingface", "ctranslate"]})


@pytest.mark.parametrize("compute_type", ["float32", "int8"])
def test_a_wrong_conversion_is_not_exported(
    chain: tuple[Chain, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute_type: str
) -> None:
    """As when a converter misreads a config: here it leaves the embeddings scaled."""
    convert = generation.convert

    def misread(model: Any, *rest: Any) -> None:
        wrong = copy.deepcopy(model)
        with torch.no_grad():
            wrong.model.shared.weight *= 1.01 if compute_type == "float32" else 3
        convert(wrong, *rest)

    monkeypatch.setattr(generation, "convert", misread)
    config = ExportConfig(check_rows=4, compute_types=[compute_type])
    out = exported(chain, tmp_path / "out", config)
    assert not (out / "ctranslate2" / compute_type).exists()
    details = read_manifest(out, "bundle").details
    skipped = details["skipped"]
    assert list(details["formats"]) == ["huggingface"], "the rest is exported"
    assert "nats a token" in skipped[f"ctranslate2/{compute_type}"]
    assert "nats a token" in (tmp_path / "out" / "README.md").read_text()
    alone = replace(config, formats=["ctranslate2"])
    with pytest.raises(
        UserError, match=f"no format does what the trained model does.*ctranslate2/{compute_type}: its loss"
    ):
        exported(chain, tmp_path / "none", alone)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("kind", "trained", "found", "passes"),
    [
        ("int8", 0.06, 0.10, True),  # a good model: 0.04 a token is much of its loss, and changes no text
        ("int8", 3.0, 3.099, True),
        ("int8", 3.0, 3.11, False),
        ("int8", 0.0, 0.0, True),
        ("int8", 0.0, 0.11, False),
        ("float32", 0.0, 1e-4, True),
        ("float32", 4.0, 4.002, False),
        ("huggingface", 2.0, 2.0, True),
        ("huggingface", 2.0, 2.001, False),
        ("int8", 1.0, float("nan"), False),
    ],
)
def test_verdicts_of_losses_in_nats_a_token(kind: str, trained: float, found: float, passes: bool) -> None:
    if passes:
        assert check_loss(kind, trained, found) == found - trained
    else:
        with pytest.raises(Differs, match="is allowed"):
            check_loss(kind, trained, found)


def test_texts_that_differ_by_more_than_a_tie_are_not_exported(
    chain: tuple[Chain, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are right and the search is not, as when a library changes its defaults."""
    arguments = ctranslate2_engine.search_arguments

    def changed(*given: Any) -> dict[str, Any]:
        return {**arguments(*given), "min_decoding_length": 0, "max_decoding_length": 2}

    monkeypatch.setattr(ctranslate2_engine, "search_arguments", changed)
    exported(chain, tmp_path / "out")
    skipped = read_manifest(tmp_path / "out", "bundle").details["skipped"]
    assert (
        "it predicts another text" in skipped["ctranslate2/float32"]
        and "which is no tie" in skipped["ctranslate2/float32"]
    )


@register_task
class Spoilt(Summarization):
    """Saves another model than it was given, as a bug in a library would."""

    name = "spoilt"

    def prepare_export(self, model, config) -> None:  # type: ignore[no-untyped-def]
        super().prepare_export(model, config)
        save = model.save_pretrained

        def wrong(folder: Path) -> None:
            save(folder)
            weights = load_file(folder / "model.safetensors")
            weights["model.shared.weight"][3, 3] += 1e-3
            save_file(weights, folder / "model.safetensors", {"format": "pt"})

        model.save_pretrained = wrong


def test_a_bundle_that_differs_is_not_exported(tmp_path: Path, chain: tuple[Chain, Path]) -> None:
    made, evaluation = chain
    paths = {"shards": made.shards, "model": made.model, "evaluation": evaluation}
    copies: dict[str, Path] = {}
    for kind, path in paths.items():  # the same chain under the spoilt task's name
        copies[kind] = tmp_path / kind
        copies[kind].mkdir()
        for file in path.rglob("*"):
            if file.is_file():
                (copies[kind] / file.relative_to(path)).parent.mkdir(exist_ok=True, parents=True)
                (copies[kind] / file.relative_to(path)).write_bytes(file.read_bytes())
        parents = {k: read_manifest(copies[k], k).digest for k in copies if k != kind}
        rewritten(copies[kind], kind, task=Spoilt.name, parents=parents)
    with pytest.raises(UserError, match="huggingface: .* of the reloaded model differs from the trained one"):
        bundle.run(
            ExportConfig(formats=["huggingface"]),
            task=Spoilt.name,
            output=str(tmp_path / "out"),
            **{kind: str(path) for kind, path in copies.items()},
        )
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*partial*"))


def test_another_models_evaluation_is_refused(chain: tuple[Chain, Path], tmp_path: Path) -> None:
    other = make_chain(tmp_path / "other", test_rows=7)
    mixed = (replace(chain[0], model=other.model, shards=other.shards), chain[1])
    with pytest.raises(UserError, match="is not the model that .* was made from"):
        exported(mixed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert json.loads((chain[1] / "evaluation.json").read_text())["parents"]
