"""The parts of training against references: the loss against transformers', schedules against the library's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from hanflow.errors import UserError
from hanflow.loading import initial
from hanflow.models import bart
from hanflow.models.kernels import bart_cpu, dropout
from hanflow.tasks.summarization import SummarizationTrain
from hanflow.training.checkpoints.local import Checkpoints
from hanflow.training.optimizer import learning_rate, make_optimizer
from hanflow.training.state import LoopState

TINY: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}


def tiny_model(seed: int = 0) -> BartForConditionalGeneration:
    torch.manual_seed(seed)
    model = BartForConditionalGeneration(
        BartConfig(vocab_size=50, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, **TINY)
    )
    with torch.no_grad():  # zero by default: make sure that the loss adds it
        model.final_logits_bias.uniform_(-1, 1)
    return model


def rows_of(lengths: list[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    return [tuple(np.append(random.integers(4, 50, n - 1), 2).astype(np.int32) for n in pair) for pair in lengths]  # type: ignore[misc]


@pytest.mark.parametrize("lengths", [[(9, 5), (4, 7), (12, 2)], [(6, 4), (6, 4)], [(1, 1)]])
def test_loss_and_gradients_equal_those_of_transformers(lengths: list[tuple[int, int]]) -> None:
    rows = rows_of(lengths)
    ours, theirs = tiny_model().eval(), tiny_model().eval()
    shape = (len(rows) + 1, 16, 8)  # padded in every direction, by a whole row too
    total, count = bart.loss(ours, bart.collate(rows, shape, ours.config), 0.0)
    total.backward()

    S, T = max(len(s) for s, _ in rows), max(len(t) for _, t in rows)
    inputs = torch.full((len(rows), S), 1)
    labels = torch.full((len(rows), T), -100)
    for i, (source, target) in enumerate(rows):
        inputs[i, : len(source)] = torch.from_numpy(source)
        labels[i, : len(target)] = torch.from_numpy(target)
    reference = theirs(input_ids=inputs, attention_mask=(inputs != 1).long(), labels=labels).loss
    (reference * int(count)).backward()

    assert int(count) == sum(len(t) for _, t in rows)
    # float32 sums in another order: a few units in the last place of values around 4 (1e-6 relative).
    torch.testing.assert_close(total / count, reference, rtol=1e-6, atol=1e-6)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", ["all", "padded", "causal"])
def test_attention_by_matrix_products_is_the_same_attention(kind: str) -> None:
    """In bf16 against the formula in float64; tolerances are those of bf16 (8 bits, 2^-8 = 0.4 %, of sums of 200)."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 200, 48, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    mask, bias = torch.ones(2, 1, 200, dtype=torch.bool), None
    if kind == "padded":
        mask[1, :, 150:] = False
        bias = bart_cpu.padding_bias(mask[:, 0].long(), torch.bfloat16)
    elif kind == "causal":
        mask, bias = torch.ones(1, 200, 200, dtype=torch.bool).tril(), bart_cpu.causal_bias(200, torch.bfloat16)
    ours = bart_cpu.attend(q, k, v, bias, heads=3)
    gradients = torch.autograd.grad(ours.float().square().sum(), (q, k, v))
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    heads = [t.view(2, 200, 3, 16).transpose(1, 2) for t in exact]
    scores = (heads[0] @ heads[1].transpose(-1, -2) / 4).masked_fill(~mask[:, None], float("-inf"))
    reference = (scores.softmax(-1) @ heads[2]).transpose(1, 2).reshape(2, 200, 48)
    expected = torch.autograd.grad(reference.square().sum(), exact)
    torch.testing.assert_close(ours.double(), reference, rtol=0.02, atol=0.02)
    for a, b in zip(gradients, expected, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 0.02


def test_bf16_training_stays_as_close_to_float32_as_transformers_does() -> None:
    """The error of the arranged pass under autocast against that of the library's own, both measured from float32."""
    rows = rows_of([(60, 20), (40, 27)])
    losses: dict[str, float] = {}
    for name, layerdrop in (("ours", 0.0), ("theirs", 1e-12)):  # any layer drop leaves the pass to transformers
        model = tiny_model().train(False)
        model.config.encoder_layerdrop = layerdrop
        assert bart_cpu.applies(model) == (name == "ours")
        batch = bart.collate(rows, (3, 64, 32), model.config)
        with torch.no_grad():
            losses["exact"] = float(bart.loss(model, batch, 0.0)[0])
            with torch.autocast("cpu", torch.bfloat16):
                losses[name] = float(bart.loss(model, batch, 0.0)[0])
    # Each rounds some 10 activations of 8 bits in a row; 0.2 % of the loss is what either may be off.
    assert losses["ours"] == pytest.approx(losses["exact"], rel=2e-3)
    assert losses["theirs"] == pytest.approx(losses["exact"], rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_and_scales_as_it_says(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x, residual = torch.ones(400, 501, dtype=dtype, requires_grad=True), torch.full((400, 501), 2.0, dtype=dtype)
    out = dropout.dropout_add(x, residual, 0.1, training=True)
    kept = out != 2.0
    # 200,400 draws: the standard deviation of the rate is sqrt(0.09 / 200400) = 0.00067; five of them.
    assert abs(float((~kept).float().mean()) - 0.1) < 0.0034
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 2.0 + 1 / 0.9))
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad != 0, kept)
    assert torch.equal(dropout.dropout(x, 0.1, training=False), x)
    torch.manual_seed(3)
    assert torch.equal(dropout.dropout_add(x, residual, 0.1, training=True), out)
    rows = kept.float()
    assert abs(float(((rows[1:] - 0.9) * (rows[:-1] - 0.9)).mean())) < 0.001  # neighbours know nothing of each other


def test_no_mask_where_nothing_is_padded() -> None:
    rows = rows_of([(6, 4), (6, 4)])
    assert "attention_mask" not in bart.collate(rows, (2, 6, 4), tiny_model().config)
    assert "attention_mask" in bart.collate(rows, (2, 7, 4), tiny_model().config)


@pytest.mark.parametrize(
    ("schedule", "library"),
    [
        ("linear", get_linear_schedule_with_warmup),
        ("cosine", get_cosine_schedule_with_warmup),
        ("constant", get_constant_schedule_with_warmup),
    ],
)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_schedules_equal_the_librarys(schedule: str, library: Any, warmup: int) -> None:
    config = SummarizationTrain(learning_rate=0.3, schedule=schedule, warmup_steps=warmup, warmup_ratio=0.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = library(optimizer, warmup) if schedule == "constant" else library(optimizer, warmup, 40)
    for step in range(40):
        assert learning_rate(step, 40, config) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_vectors_are_exempt_from_weight_decay() -> None:
    groups = make_optimizer(tiny_model(), SummarizationTrain(weight_decay=0.1)).param_groups
    assert {g["weight_decay"]: {p.ndim for p in g["params"]} for g in groups} == {0.1: {2}, 0.0: {1}}


def test_architecture_mistakes_are_reported() -> None:
    assert bart.ARCHITECTURES.problems({"type": "bart", **TINY}) == []
    problems = bart.ARCHITECTURES.problems({"d_modle": 4, "dropout": "much", "type": "t5", "encoder_layers": 0})
    assert len(problems) == 4
    assert "did you mean d_model?" in problems[1]
    assert (
        "does not divide d_model=10 evenly"
        in bart.ARCHITECTURES.problems({"d_model": 10, "encoder_attention_heads": 4, "decoder_attention_heads": 2})[0]
    )
    assert "set one" in bart.ARCHITECTURES.problems({})[0]


def tokenizer_of(pad: int, eos: int) -> PreTrainedTokenizerFast:
    vocabulary = {f"w{i}": i for i in range(50)}
    for token, index in (("<pad>", pad), ("</s>", eos)):
        del vocabulary[f"w{index}"]
        vocabulary[token] = index
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w9"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def test_a_pretrained_model_is_fitted_to_its_tokenizer_or_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    config = SummarizationTrain(pretrained=str(tmp_path / "model"))
    tokenizer = tokenizer_of(pad=1, eos=2)
    tokenizer.add_tokens(["#Person1#", "#Person2#"])
    model = initial.encoder_decoder(config, tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == 52
    assert model.final_logits_bias.shape[-1] == 52
    with pytest.raises(UserError, match="its pad_token_id is 1, the tokenizer's is 3: they do not belong together"):
        initial.encoder_decoder(config, tokenizer_of(pad=3, eos=2))
    with pytest.raises(UserError, match="nothing: no such folder"):
        initial.encoder_decoder(SummarizationTrain(pretrained=str(tmp_path / "nothing")), tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no config.json can be read from there"):
        initial.encoder_decoder(SummarizationTrain(pretrained=str(tmp_path / "empty")), tokenizer)


def trained_once(model: torch.nn.Module, seed: int) -> torch.optim.Optimizer:
    optimizer = make_optimizer(model, SummarizationTrain(learning_rate=0.1))
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    return optimizer


def saved(folder: Path, steps: list[int], best: int, limit: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, limit)
    model = tiny_model()
    optimizer = trained_once(model, 1)
    for step in steps:
        checkpoints.save(model, optimizer, LoopState({"a": 1}, step=step, best_step=min(best, step), best_value=0.5))
    return checkpoints


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = trained_once(model, 1)
    checkpoints = Checkpoints(tmp_path, 2)
    state = LoopState({"a": 1}, step=5, best_step=5, best_value=0.25, train=[{"step": 5, "loss": 1.5}])
    checkpoints.save(model, optimizer, state)
    other = tiny_model(seed=9)
    restored = make_optimizer(other, SummarizationTrain(learning_rate=0.1))
    path = checkpoints.path(checkpoints.choose())
    checkpoints.load(path, other, restored)
    assert checkpoints.read_state(path) == state
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(optimizer.state[a][slot], restored.state[b][slot]) for slot in optimizer.state[a])
    assert other.lm_head.weight.data_ptr() == other.model.shared.weight.data_ptr(), "tied weights stay tied"
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.pkl")), "nothing pickled"


def test_old_checkpoints_go_but_never_the_best(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, [1, 2, 3, 4, 5], best=2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000002", "step-00000004", "step-00000005"]
    assert checkpoints.choose() == 5


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


def save(checkpoints: Checkpoints, *states: LoopState) -> None:
    model = tiny_model()
    optimizer = trained_once(model, 1)
    for state in states:
        checkpoints.save(model, optimizer, state)


def test_what_is_kept_can_be_gone_on_from_with_its_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    bests = {1: 1, 2: 1, 3: 1, 4: 1, 5: 5}
    save(checkpoints, *(LoopState({}, step=step, best_step=best) for step, best in bests.items()))
    assert kept(tmp_path) == [1, 4, 5]
    (tmp_path / "step-00000005" / "commit.json").unlink()
    assert checkpoints.choose() == 4
    (tmp_path / "step-00000001" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="step-00000001, the best checkpoint so far: model.safetensors is truncated"):
        checkpoints.choose()


def test_a_course_that_was_given_up_goes_with_the_first_save_of_the_new_one(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, 3), *(LoopState({}, step=step) for step in (100, 900, 1000)))
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.choose(100) == 100, "nothing went on from it yet"
    save(checkpoints, LoopState({}, step=200, resumed=100))
    assert kept(tmp_path) == [100, 200]
    save(checkpoints, LoopState({}, step=300, resumed=100))
    assert kept(tmp_path) == [200, 300]
    assert Checkpoints(tmp_path, 2).choose(100) == 300, "the same command goes on from what its course has saved"
    assert Checkpoints(tmp_path, 2).choose(200) == 200, "another command gives that course up"
    with pytest.raises(UserError, match="step-00000250: was never committed"):
        checkpoints.choose(250)
    for name in ("step-300", "elsewhere/step-00000300"):
        with pytest.raises(UserError, match="is not in the checkpoint folder"):
            checkpoints.step_of(str(tmp_path / name))


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, [1, 2, 3, 4], best=1, limit=4)

    def damage(step: int, name: str, change: Any) -> None:
        path = checkpoints.path(step) / name
        change(path)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    damage(4, "model.safetensors", flip)
    assert checkpoints.problem(checkpoints.path(4)) == "model.safetensors is damaged (its sha256 differs)"
    damage(3, "optimizer.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-1]))
    assert checkpoints.problem(checkpoints.path(3)) == "optimizer.safetensors is truncated"
    damage(2, "commit.json", Path.unlink)
    assert "never committed" in (checkpoints.problem(checkpoints.path(2)) or "")
    assert checkpoints.choose() == 1
    damage(1, "commit.json", lambda p: p.write_text("{"))
    assert checkpoints.choose() == -1
