"""Export: a bundle that strangers can load, refused when it is not the trained model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from components.evaluate.score import run as evaluate
from components.export import bundle
from components.shared.artifacts import read_manifest
from components.shared.config import ExportConfig, UserError
from components.shared.shards import Shard
from components.shared.tasks import get_task
from components.shared.tasks.summarization import Summarization
from tests.steps.model_fixtures import EVALUATE, Chain, make_chain, rewritten


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
        assert tokenizer.decode([int(t) for t in tokens if int(t) not in special]).strip() == text


def test_weights_are_the_trained_ones_bit_by_bit(chain: tuple[Chain, Path], tmp_path: Path) -> None:
    out = exported(chain, tmp_path / "bundle")
    ours, theirs = (load_file(p / "model.safetensors") for p in (out / "huggingface", chain[0].model))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_card_tells_what_a_stranger_needs(chain: tuple[Chain, Path], tmp_path: Path) -> None:
    out = exported(chain, tmp_path / "bundle")
    card = (out / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc0-1.0"
    assert "rougeL_morpheme" in yaml.safe_load(front)["metrics"]
    for expected in ("# 나의 모델", "rougeL_morpheme", "lead-1", "| train | 30 |", "## Intended use", "## Lineage"):
        assert expected in body
    example = body.split("```python\n")[1].split("```")[0].replace('"huggingface"', f'"{out / "huggingface"}"')
    exec(compile(example, "card", "exec"), {})  # what the card tells to do works
    silent = exported(chain, tmp_path / "silent", ExportConfig(check_rows=1))
    assert "No licence was stated" in (silent / "README.md").read_text(encoding="utf-8")
    manifest = read_manifest(out, "bundle", task="summarization")
    assert set(manifest.parents) == {"model", "evaluation", "shards"}


class Spoilt(Summarization):
    """Saves another model than it was given, as a bug in a library would."""

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
    spoilt = f"{__name__}:Spoilt"
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
        rewritten(copies[kind], kind, task=spoilt, parents=parents)
    with pytest.raises(UserError, match="of the reloaded model differs from the trained one: not exported"):
        bundle.run(
            ExportConfig(),
            task=spoilt,
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
