"""Names of models, of folders and of the hub; what a folder may hold is tried in test_door.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanflow.loading import initial
from hanflow.loading.pretrained import CLASSIFIER, load_config, load_model, load_tokenizer
from tests.models.test_classifiers import LABELS, TINY, tokenizer_of


def test_a_folder_is_preferred_to_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder `klue/bert-base` below the working directory; the hub is not asked."""
    from hanflow.config import TrainConfig

    model = initial.classifier(TrainConfig(architecture=TINY["bert"]), tokenizer_of(), LABELS)
    model.save_pretrained(tmp_path / "klue" / "bert-base")
    tokenizer_of().save_pretrained(tmp_path / "klue" / "bert-base")
    monkeypatch.chdir(tmp_path)
    assert load_model("klue/bert-base", CLASSIFIER).config.hidden_size == 8
    assert load_config("klue/bert-base").hidden_size == 8
    assert len(load_tokenizer("klue/bert-base")) == 40
