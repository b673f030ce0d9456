"""Fixtures of the steps' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.shared.config import TokenizeConfig
from components.tokenize.encode import run as tokenize
from tests.steps.corpora import petitions, write_corpus


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rows = petitions(48)
    corpus = write_corpus(folder / "corpus", {"train": rows[:40], "validation": rows[40:44], "test": rows[44:]})
    config = TokenizeConfig(vocabulary_size=500, max_source_tokens=64, max_target_tokens=24)
    tokenize(config, task="summarization", output=str(folder / "shards"), corpus=str(corpus))
    return folder / "shards"
