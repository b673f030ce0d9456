"""Foreign checkpoints: every weight arrives or the import is refused, and no stranger's code runs."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, BartForConditionalGeneration

from hanflow.cli.main import main
from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.loading import initial
from hanflow.loading.pretrained import ENCODER_DECODER, load_model
from hanflow.loading.state_dict import load_weights, read_weights
from tests.generation.test_generation import tokenizer  # noqa: F401  (a fixture)

CONFIG: dict[str, Any] = {
    "vocab_size": 330,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 3,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 1,
}


def model(seed: int, **settings: Any) -> BartForConditionalGeneration:
    torch.manual_seed(seed)
    return BartForConditionalGeneration(BartConfig(**{**CONFIG, **settings})).eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model.", "net.bart."])
@pytest.mark.parametrize("nest", ["", "state_dict", "model_state_dict"])
def test_every_weight_arrives_whatever_stands_before_its_name(tmp_path: Path, prefix: str, nest: str) -> None:
    saved, ours = model(1), model(2)
    state = prefixed(saved.state_dict(), prefix)
    torch.save({nest: state, "epoch": 3, "global_step": 9} if nest else state, tmp_path / "w.ckpt")
    done = load_weights(ours, read_weights(tmp_path / "w.ckpt").tensors, "w.ckpt")
    assert same(ours, saved)
    assert done.prefix == (f"-{prefix}" if prefix else "")
    assert (done.derived, done.ignored) == ([], [])


def test_the_bare_base_model_and_half_precision_are_taken(tmp_path: Path) -> None:
    saved, ours = model(1).half(), model(2)
    torch.save(prefixed(saved.model.state_dict(), "module."), tmp_path / "base.pt")
    done = load_weights(ours, read_weights(tmp_path / "base.pt").tensors, "base.pt")
    assert same(ours, saved.float())
    assert done.prefix == "-module. +model."
    assert done.derived == ["final_logits_bias", "lm_head.weight"]


def test_tied_weights_follow_from_any_one_of_them(tmp_path: Path) -> None:
    saved, ours = model(1), model(2)
    tied = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    state = {key: value.clone() for key, value in saved.state_dict().items() if key not in tied}
    save_file(state, tmp_path / "w.safetensors")
    done = load_weights(ours, read_weights(tmp_path / "w.safetensors").tensors, "w")
    assert same(ours, saved)
    assert sorted(done.derived) == sorted(tied)
    torn = {**saved.state_dict(), "lm_head.weight": saved.lm_head.weight + 1}
    with pytest.raises(UserError, match="3 different in the file, one and the same .tied. in the model:\n .*lm_head"):
        load_weights(ours, torn, "w")


def test_what_does_not_fit_is_reported_and_nothing_is_changed(tmp_path: Path) -> None:
    ours, before = model(2), model(2)
    deeper = model(1, decoder_layers=3).state_dict()
    with pytest.raises(UserError) as caught:
        load_weights(ours, deeper, "deep.ckpt")
    message = str(caught.value)
    assert "26 unexpected: the file has them" in message and "… and 16 more" in message
    assert message.count("model.decoder.layers.2.") == 10
    with pytest.raises(UserError, match=r"26 missing: the model has them.*\n.*decoder\.layers\.1.*(\n.*)*and 16 more"):
        load_weights(ours, model(1, decoder_layers=1).state_dict(), "flat.ckpt")
    with pytest.raises(UserError, match=r"model\.shared\.weight: \(331, 16\) in the file, \(330, 16\) in the model"):
        load_weights(ours, model(1, vocab_size=331).state_dict(), "wide.ckpt")
    assert same(ours, before)


def test_keys_that_are_no_part_of_the_model_are_passed_over_on_demand() -> None:
    saved, ours = model(1), model(2)
    state = {**prefixed(saved.state_dict(), "model."), "loss_fn.weight": torch.ones(3), "metric.total": torch.ones(1)}
    with pytest.raises(UserError, match="2 unexpected: .*\n    loss_fn.weight\n    metric.total"):
        load_weights(ours, state, "w.ckpt")
    assert load_weights(ours, state, "w.ckpt", ["loss_fn.*", "metric.*"]).ignored == ["loss_fn.weight", "metric.total"]
    assert same(ours, saved)


def test_settings_that_lightning_saves_beside_the_weights_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written with classes of these names, and read where their packages are not installed."""
    name = "lightning_fabric.utilities.data"
    module = types.ModuleType(name)
    for package in ("lightning_fabric", "lightning_fabric.utilities", name):
        monkeypatch.setitem(sys.modules, package, module)
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": name})  # type: ignore[attr-defined]
    saved, ours = model(1), model(2)
    content = {
        "state_dict": prefixed(saved.state_dict(), "model."),
        "hyper_parameters": module.AttributeDict(lr=3e-5, folder=tmp_path / "data"),
        "ema_state_dict": saved.state_dict(),
        "hparams": argparse.Namespace(batch_size=8),
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(1.5)}},
        "pytorch-lightning_version": "2.5.0",
    }
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.undo()
    read = read_weights(tmp_path / "last.ckpt")
    load_weights(ours, read.tensors, "last.ckpt")
    assert same(ours, saved)
    assert read.under == "state_dict" and f"ema_state_dict ({len(saved.state_dict())} tensors)" in read.passed_over
    assert "callbacks (1 tensor)" in read.passed_over and "hparams" in read.passed_over


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self._path}",))


class Stranger:
    """A class that only its own program has."""


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_checkpoint_executes_nothing(tmp_path: Path, legacy: bool) -> None:
    mark, evil = tmp_path / "ran", tmp_path / "evil.ckpt"
    content = {"state_dict": model(1).state_dict(), "hyper_parameters": Malice(mark)}
    torch.save(content, evil, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"evil\.ckpt: holds more than weights .*nothing ran.*save the weights alone"):
        read_weights(evil)
    assert not mark.exists()
    torch.load(evil, weights_only=False)  # the file is a real attack: who trusts it gets hit
    assert mark.exists()


def test_a_bare_pickle_and_strange_classes_are_refused(tmp_path: Path) -> None:
    mark, bare, strange = tmp_path / "ran", tmp_path / "bare.pt", tmp_path / "strange.pt"
    bare.write_bytes(pickle.dumps(Malice(mark)))
    with pytest.raises(UserError, match=r"bare\.pt: "):
        read_weights(bare)
    assert not mark.exists()
    torch.save({"state_dict": model(1).state_dict(), "task": Stranger()}, strange)
    with pytest.raises(UserError, match=rf"holds more than weights \({Stranger.__module__}\.Stranger\)"):
        read_weights(strange)


@pytest.mark.parametrize("name", ["torn.ckpt", "torn.safetensors"])
def test_files_that_are_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        read_weights(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "missing.ckpt")
    torch.save({"epoch": 3, "optimizer": {"lr": 1.0}}, tmp_path / "empty.ckpt")
    with pytest.raises(UserError, match="holds no weights .found epoch, optimizer"):
        read_weights(tmp_path / "empty.ckpt")


def test_the_command_makes_a_folder_that_training_starts_from(
    tmp_path: Path,
    tokenizer: Any,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = model(1, vocab_size=len(tokenizer))
    torch.save({"state_dict": prefixed(saved.state_dict(), "model.")}, tmp_path / "best.ckpt")
    saved.config.save_pretrained(tmp_path / "config")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = ["import", str(tmp_path / "best.ckpt"), "--tokenizer", str(tmp_path / "tokenizer")]
    arguments += ["--output", str(tmp_path / "out")]
    assert main([*arguments, "--model", str(tmp_path / "config")]) == 0
    assert "prefix of the keys: -model." in capsys.readouterr().out
    assert same(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out"), saved)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer.get_vocab()
    assert same(initial.encoder_decoder(TrainConfig(pretrained=str(tmp_path / "out")), tokenizer), saved)
    assert main([*arguments, "--model", str(tmp_path / "config" / "config.json")]) == 1
    assert "already exists and is not empty" in capsys.readouterr().err
    assert main([*arguments, "--model", str(tmp_path / "nowhere")]) == 1
    assert "give the config.json of the model that was saved" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"best\.ckpt: is a file.*hanflow import"):
        load_model(tmp_path / "best.ckpt", ENCODER_DECODER)
