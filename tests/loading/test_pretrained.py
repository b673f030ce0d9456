"""What others saved is loaded in one place, and nothing in it is executed."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import hanflow
from hanflow.errors import UserError
from hanflow.loading import initial
from hanflow.loading.pretrained import CAUSAL_LM, CLASSIFIER, load_config, load_model, load_tokenizer
from tests.models.test_classifiers import LABELS, TINY, tokenizer_of

LIBRARY = Path(hanflow.__file__).parent
OWN_CODE = "raise SystemExit('code of the folder was executed')"


def loads(path: Path) -> Iterator[str]:
    """Calls in a module that read a model, a config or a tokenizer that may come from others."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if node.attr == "from_pretrained" or name == "torch.load":
                yield f"{path.relative_to(LIBRARY)}:{node.lineno}: {name}"


def test_models_and_tokenizers_are_loaded_in_one_room() -> None:
    rooms = {path: list(loads(path)) for path in LIBRARY.rglob("*.py")}
    inside = [path for path, found in rooms.items() if found and path.parent.name == "loading"]
    assert len(inside) == 2, "the test sees the calls that there are"
    assert [call for path, found in rooms.items() for call in found if path not in inside] == []


@pytest.mark.parametrize("auto_class", [CLASSIFIER, CAUSAL_LM])
def test_a_folder_s_own_code_is_refused(auto_class: str, tmp_path: Path) -> None:
    config = {"model_type": "foreign", "auto_map": {"AutoConfig": "own.Config", auto_class: "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "own.py").write_text(OWN_CODE, encoding="utf-8")
    with pytest.raises(UserError, match="can be loaded from there"):
        load_model(tmp_path, auto_class)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_config(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}), encoding="utf-8"
    )
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)


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
