"""What a validation measures while training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from components.shared.config import TrainConfig
from components.shared.shards import Shard
from components.shared.tasks import get_task
from components.train.backends.torch_ddp import TorchBackend
from components.train.checkpoint import LoopState
from components.train.data import Data
from components.train.loop import Objective
from components.train.validate import Validator
from tests.steps import tasks


@pytest.fixture(scope="module")
def language_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tasks.make_shards(tmp_path_factory.mktemp("lm"), "language_modeling", tasks.reviews(150)).shards


def validator(shards: Path, task: str, config: TrainConfig) -> Validator:
    """The validator of a model that has learnt nothing yet."""
    learnt = get_task(task)
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    facts = {"labels": ["0", "1"], "counts": [1, 1]}
    model = learnt.new_model(config, tokenizer, facts)
    data = Data.of(Shard(shards / "validation.arrow", learnt.sequences), learnt, config, shuffle=False)
    backend = TorchBackend("fp32")
    objective = backend.prepare(Objective(model, learnt, config.label_smoothing))
    return Validator(learnt, model, tokenizer, objective, data, config, backend, 8)


def measured(shards: Path, task: str, **settings: object) -> dict[str, float]:
    """The figures of one validation."""
    figures = validator(shards, task, tasks.settings(task, **settings)).run(LoopState({}, step=1), lambda: False)
    assert figures is not None
    return figures


def test_the_loss_is_of_the_whole_split_also_where_some_rows_are_scored(language_shards: Path) -> None:
    whole = measured(language_shards, "language_modeling")
    scored = measured(language_shards, "language_modeling", validation_rows=1)
    assert scored["loss"] == whole["loss"]
    assert list(scored)[:2] == ["step", "loss"] and "perplexity" in scored
