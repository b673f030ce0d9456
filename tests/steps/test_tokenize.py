"""Tokenize: end of sequence always there, nothing lost silently, wrong parents refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from hanflow.data.shards import Shard
from hanflow.errors import UserError
from hanflow.steps.tokenize import run
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks.summarization import SummarizationTokenize
from tests.support.corpora import petitions, write_corpus

SEQUENCES = ("source", "target")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = petitions(60)
    return write_corpus(
        tmp_path_factory.mktemp("corpus") / "corpus", {"train": rows[:50], "validation": rows[50:55], "test": rows[55:]}
    )


def tokenized(corpus: Path, output: Path, **settings: object) -> Path:
    run(SummarizationTokenize(**settings), task="summarization", output=str(output), corpus=str(corpus))  # type: ignore[arg-type]
    return output


@pytest.mark.parametrize("algorithm", ["byte_bpe", "unigram"])
def test_texts_come_back_and_end_is_kept_on_truncation(corpus: Path, tmp_path: Path, algorithm: str) -> None:
    shards = tokenized(corpus, tmp_path / "s", algorithm=algorithm, vocabulary_size=1200, max_source_tokens=64)
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    train = Shard(shards / "train.arrow", SEQUENCES)
    counts = read_manifest(shards, "shards", task="summarization").counts
    assert len(train) == counts["rows"]["train"] == 50
    for (source, target), (body, title) in zip((train[i] for i in range(50)), petitions(50), strict=True):
        assert source[-1] == target[-1] == tokenizer.eos_token_id
        assert len(source) <= 64
        if algorithm == "byte_bpe":
            assert tokenizer.decode(target[:-1], clean_up_tokenization_spaces=False) == title
            assert body.startswith(tokenizer.decode(source[:-1], clean_up_tokenization_spaces=False).rstrip("�"))
    every = np.concatenate([Shard(shards / f"{s}.arrow", SEQUENCES).lengths() for s in ("train", "validation", "test")])
    assert counts["truncated"]["source"] > 0
    assert (every[:, 0] == 64).sum() >= counts["truncated"]["source"]
    assert 0.2 < counts["tokens_per_character"] < 3
    assert counts["tokens"]["train"] == train.lengths().sum()


def test_a_pretrained_tokenizer_from_a_folder_with_more_special_tokens(corpus: Path, tmp_path: Path) -> None:
    first = tokenized(corpus, tmp_path / "a", vocabulary_size=600)
    # A bare tokenizer.json, as KoBART's is often passed on: roles are found by their usual names.
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_bytes((first / "tokenizer" / "tokenizer.json").read_bytes())
    second = tokenized(corpus, tmp_path / "b", tokenizer=str(bare), special_tokens=["#Person1#"])
    tokenizer = AutoTokenizer.from_pretrained(second / "tokenizer")
    assert tokenizer.tokenize("#Person1#: 네")[0] == "#Person1#"
    assert len(tokenizer) == 601
    ids = tokenizer("#Person1# 네", add_special_tokens=False)["input_ids"]
    assert "#Person1#" in tokenizer.decode(ids, skip_special_tokens=True), "content, not dropped as special"
    for split in ("train", "test"):
        a, b = (Shard(s / f"{split}.arrow", SEQUENCES) for s in (first, second))
        assert all(np.array_equal(x, y) for i in range(len(a)) for x, y in zip(a[i], b[i], strict=True))


def test_special_tokens_that_the_texts_spell_otherwise_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("hanflow"), "propagate", True)
    rows = [("#person1#: 어디 가세요? #person2#: 시장에 갑니다. #Address#", "#person2#는 시장에 간다.")]
    corpus = write_corpus(tmp_path / "corpus", {"train": rows * 3, "validation": rows, "test": rows})
    tokenized(corpus, tmp_path / "s", vocabulary_size=300, special_tokens=["#Person1#", "#Person2#", "#Address#"])
    said = (
        "#Person1#, #Person2# occur in no text; near: #person1# (5 times), #person2# (10 times); check their spelling"
    )
    assert f"tokenize.special_tokens: {said}" in caplog.messages


def test_the_same_settings_give_the_same_digest(corpus: Path, tmp_path: Path) -> None:
    digests = {
        read_manifest(tokenized(corpus, tmp_path / name, vocabulary_size=600), "shards").digest for name in ("a", "b")
    }
    assert len(digests) == 1


def test_mistakes_are_reported_and_leave_nothing(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no tokenizer can be loaded from there"):
        tokenized(corpus, out, tokenizer=str(tmp_path))
    with pytest.raises(UserError, match="a unigram vocabulary must hold every character of the corpus"):
        tokenized(corpus, out, algorithm="unigram", vocabulary_size=300)
    with pytest.raises(UserError, match="train split is empty"):
        tokenized(write_corpus(tmp_path / "none", {}), out)
    with pytest.raises(UserError, match="made for the task other"):
        tokenized(write_corpus(tmp_path / "other", {"train": [("가", "나")]}, task="other"), out)
    assert not out.exists() and not list(tmp_path.glob(".*partial*"))


def test_command_line(corpus: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "hanflow.steps.tokenize",
        "--corpus",
        str(corpus),
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run([*command, "--vocabulary-size", "600"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "out", "shards").counts["vocabulary"] == 600
    again = subprocess.run([*command, "--vocabulary-size", "600"], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "already exists and is not empty" in again.stderr.splitlines()[-1]
    wrong = subprocess.run([*command, "--vocabulary-size", "ten"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "tokenize.vocabulary_size: expected a whole number, found 'ten'" in wrong.stderr
