"""What loads our models in another program, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hanflow.config import TrainConfig
from hanflow.loading import initial
from tests.models import test_causal_lm, test_classifiers


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = (
        "import sys, hanflow.models; "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert run(code) == "[]\n"


def test_register_lets_the_auto_classes_load_everything(tmp_path: Path) -> None:
    """In a process that knows nothing of us but `register`, as the model card tells its readers."""
    tokenizer = test_classifiers.tokenizer_of()
    for kind, settings in test_causal_lm.TINY.items():
        initial.language_model(TrainConfig(architecture=settings), tokenizer).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
    for kind in ("rnn", "cnn"):
        config = TrainConfig(architecture=test_classifiers.TINY[kind])
        initial.classifier(config, tokenizer, ["a", "b"]).save_pretrained(tmp_path / kind)
    code = f"""
from hanflow.models import register
register(); register()
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
for kind in ("gpt", "ffn"):
    print(type(AutoModelForCausalLM.from_pretrained(f"{tmp_path}/{{kind}}")).__name__)
    print(AutoTokenizer.from_pretrained(f"{tmp_path}/{{kind}}").eos_token)
for kind in ("rnn", "cnn"):
    print(type(AutoModelForSequenceClassification.from_pretrained(f"{tmp_path}/{{kind}}")).__name__)
"""
    assert run(code).split() == [
        *("GptForCausalLM", "</s>", "FfnForCausalLM", "</s>"),
        *("RnnForSequenceClassification", "CnnForSequenceClassification"),
    ]
