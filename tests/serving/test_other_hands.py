"""A model of ours in other hands, and theirs in ours: nothing but transformers on one side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from hanflow.cli.main import main
from hanflow.config import TokenizeConfig
from hanflow.serving.bundle import answer, open_bundle
from hanflow.serving.sources import open_source
from hanflow.storage.artifacts import read_manifest
from hanflow.text.vocabulary import train_tokenizer
from tests.support.corpora import petitions

PLAIN = """
import json, sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.stdin.read())
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
said = []
for text in texts:
    output = model.generate(**tokenizer(text, truncation=True, return_tensors="pt"))
    said.append(tokenizer.decode(output[0], skip_special_tokens=True))
assert "hanflow" not in sys.modules
print(json.dumps({"limit": tokenizer.model_max_length, "positions": model.config.max_position_embeddings,
                  "ids": tokenizer(texts[0])["input_ids"][-1], "eos": tokenizer.eos_token_id, "said": said}))
"""


def test_transformers_alone_says_what_predict_says(bundle: Path, tmp_path: Path) -> None:
    texts = [text if row % 2 else text[:12].strip() for row, (text, _) in enumerate(petitions(20))]
    opened = open_bundle(str(bundle), {"engine": "transformers"})
    expected = answer(opened, opened.predictor(), texts)
    assert any(expected.cut) and not all(expected.cut), "long texts too, which are cut in the same place"
    run = subprocess.run(
        [sys.executable, "-c", PLAIN, str(bundle / "huggingface")],
        input=json.dumps(texts), cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout.splitlines()[-1])
    whole = [text.rstrip("\ufffd").strip() for text in found["said"]]  # predict leaves out half a character at the end
    assert whole == expected.predictions.texts
    assert found["limit"] == found["positions"] == 64 and found["ids"] == found["eos"]


def test_a_bundle_says_what_opens_it(bundle: Path) -> None:
    import transformers

    libraries = read_manifest(bundle, "bundle").details["libraries"]
    assert libraries["transformers"] == transformers.__version__ and set(libraries) >= {"torch", "ctranslate2"}
    assert f"transformers {transformers.__version__}" in (bundle / "README.md").read_text(encoding="utf-8")


def test_a_part_of_a_bundle_opens_the_bundle(bundle: Path) -> None:
    for part in ("huggingface", "ctranslate2/int8"):
        assert open_source(str(bundle / part)).folder.resolve() == bundle.resolve()


SHAPES: dict[str, Any] = {
    "bart": lambda ids: BartForConditionalGeneration(
        BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                   encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
                   decoder_start_token_id=ids["eos_token_id"], **ids)
    ),
    "bert": lambda ids: BertForSequenceClassification(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                   max_position_embeddings=64, id2label={0: "부정", 1: "긍정"}, label2id={"부정": 0, "긍정": 1},
                   vocab_size=ids["vocab_size"], pad_token_id=ids["pad_token_id"])
    ),
    "gpt2": lambda ids: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, **ids)),
}  # fmt: skip
"""Shape of a published model → one of them at random."""


@pytest.fixture(params=sorted(SHAPES))
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder saved by transformers alone."""
    tokenizer = train_tokenizer([text for text, _ in petitions(20)], TokenizeConfig(vocabulary_size=400))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    SHAPES[request.param]({**ids, "vocab_size": len(tokenizer)}).save_pretrained(tmp_path / request.param)
    tokenizer.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def test_a_folder_of_transformers_predicts(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("첫째 글입니다\n둘째 글입니다\n", encoding="utf-8")
    options = [] if theirs.name == "bert" else ["--max-new-tokens", "4"]
    output = tmp_path / "out.jsonl"
    assert (
        main(["predict", str(theirs), "--input", str(tmp_path / "texts.txt"), "--output", str(output), *options]) == 0
    )
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 2
    if theirs.name == "bert":
        assert {row["prediction"] for row in rows} <= {"부정", "긍정"}


def test_a_prompt_is_written_before_its_continuation(tmp_path: Path, theirs: Path) -> None:
    if theirs.name != "gpt2":
        pytest.skip("continues nothing")
    text = "국민 [PAD] 청원에"
    (tmp_path / "texts.txt").write_text(f"{text}\n", encoding="utf-8")

    def said(*options: str) -> str:
        output = tmp_path / f"{len(options)}.jsonl"
        command = ["predict", str(theirs), "--input", str(tmp_path / "texts.txt"), "--output", str(output), "--greedy"]
        assert main([*command, "--max-new-tokens", "5", *options]) == 0
        return json.loads(output.read_text(encoding="utf-8"))["prediction"]

    assert said("--with-prompt") == text + said()
