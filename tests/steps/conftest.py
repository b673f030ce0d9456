"""Fixtures of the steps' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanflow.config import ExportConfig, TokenizeConfig
from hanflow.steps import export
from hanflow.steps.evaluate import run as evaluate
from hanflow.steps.tokenize import run as tokenize
from tests.steps.corpora import petitions, write_corpus
from tests.steps.model_fixtures import EVALUATE, Chain, make_chain


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rows = petitions(48)
    corpus = write_corpus(folder / "corpus", {"train": rows[:40], "validation": rows[40:44], "test": rows[44:]})
    config = TokenizeConfig(vocabulary_size=500, max_source_tokens=64, max_target_tokens=24)
    tokenize(config, task="summarization", output=str(folder / "shards"), corpus=str(corpus))
    return folder / "shards"


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Chain, Path]:
    """A chain, and the folder of its evaluation."""
    folder = tmp_path_factory.mktemp("scored")
    chain = make_chain(folder)
    evaluate(EVALUATE, task="summarization", output=str(folder / "evaluation"), **chain.inputs)
    return chain, folder / "evaluation"


@pytest.fixture(scope="session")
def bundle(scored: tuple[Chain, Path]) -> Path:
    """The bundle of that chain, in all formats."""
    chain, evaluation = scored
    inputs = {"model": str(chain.model), "shards": str(chain.shards), "evaluation": str(evaluation)}
    output = evaluation.with_name("bundle")
    export.run(ExportConfig(check_rows=2, title="나의 요약"), task="summarization", output=str(output), **inputs)
    return output
