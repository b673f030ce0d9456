"""For all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hanflow.progress import log

if TYPE_CHECKING:
    from tests.support.model_fixtures import Chain


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """A command that a test ran in this process has set up its log: on a stream that is gone by the next test."""
    yield
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 48 petitions."""
    from hanflow.steps.tokenize import run as tokenize
    from hanflow.tasks.summarization import SummarizationTokenize
    from tests.support.corpora import petitions, write_corpus

    folder = tmp_path_factory.mktemp("shards")
    rows = petitions(48)
    corpus = write_corpus(folder / "corpus", {"train": rows[:40], "validation": rows[40:44], "test": rows[44:]})
    config = SummarizationTokenize(vocabulary_size=500, max_source_tokens=64, max_target_tokens=24)
    tokenize(config, task="summarization", output=str(folder / "shards"), corpus=str(corpus))
    return folder / "shards"


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Chain, Path]:
    """A chain, and the folder of its evaluation."""
    from hanflow.steps.evaluate import run as evaluate
    from tests.support.model_fixtures import EVALUATE, make_chain

    folder = tmp_path_factory.mktemp("scored")
    chain = make_chain(folder)
    evaluate(EVALUATE, task="summarization", output=str(folder / "evaluation"), **chain.inputs)
    return chain, folder / "evaluation"


@pytest.fixture(scope="session")
def bundle(scored: tuple[Chain, Path]) -> Path:
    """The bundle of that chain, in all formats."""
    from hanflow.config import ExportConfig
    from hanflow.steps import export

    chain, evaluation = scored
    inputs = {"model": str(chain.model), "shards": str(chain.shards), "evaluation": str(evaluation)}
    output = evaluation.with_name("bundle")
    export.run(ExportConfig(check_rows=2, title="나의 요약"), task="summarization", output=str(output), **inputs)
    return output
