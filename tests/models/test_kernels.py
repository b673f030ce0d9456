"""What the models share: cheap dropout, the head's loss in chunks, attention with dropout, checks of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForSequenceClassification

from hanflow.errors import UserError
from hanflow.models import cnn, gpt, rnn
from hanflow.models.architecture import Architectures
from hanflow.models.ffn import FfnConfig, FfnForCausalLM
from hanflow.models.kernels import attention, cross_entropy, dropout
from hanflow.training.backends.torch import TorchBackend
from tests.models.test_classifiers import tokenizer_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_the_asked_share_and_keeps_the_mean(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 999, dtype=dtype, requires_grad=True)
    y = dropout.dropout(x, 0.3, training=True)
    kept = (y != 0).float().mean().item()
    # A share of 1e6 draws has a standard deviation of 0.0005; five of them.
    assert kept == pytest.approx(0.7, abs=0.0025)
    assert y.unique().numel() == 2
    # The factor, 1 / 0.7, is rounded to bf16's 8 bits.
    assert y.max().item() == pytest.approx(1 / 0.7, rel=2**-8 if dtype == torch.bfloat16 else 1e-4)
    y.sum().backward()
    assert torch.equal(x.grad, y), "the gradient passes where the value did"


def test_dropout_follows_the_seed_and_stops_in_evaluation() -> None:
    x = torch.randn(7, 13)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout.dropout(x, 0.5, training=True)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert dropout.dropout(x, 0.5, training=False) is x
    assert dropout.dropout(x, 0.0, training=True) is x


def test_neighbouring_elements_are_dropped_independently() -> None:
    """Four elements share one 64-bit number: none of its bits may be used twice."""
    torch.manual_seed(0)
    zeros = (dropout.kept(torch.Size([200_000, 4]), 0.5, torch.float32) == 0).float()
    correlations = torch.corrcoef(zeros.T)
    # A correlation of 2e5 independent pairs has a standard deviation of 0.0022; five of them.
    assert (correlations - torch.eye(4)).abs().max() < 0.011


def test_a_library_model_gets_cheap_dropout() -> None:
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = BertForSequenceClassification(config).train()
    before = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    dropout.use_on_cpu(model)
    after = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert [module.p for module in after] == before and len(before) >= 4
    assert all(type(module) is dropout.Dropout and module.training for module in after)


def test_training_on_a_cpu_arranges_a_library_model_and_leaves_no_trace(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = BertForSequenceClassification(config)
    TorchBackend("fp32").prepare(torch.nn.ModuleList([model]))
    assert model.bert.config._attn_implementation == attention.NAME
    assert {type(module) for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {dropout.Dropout}
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")
    ids = torch.arange(12).view(2, 6)
    again = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(model.eval()(ids).logits, again(ids).logits)


def test_a_model_with_a_pass_of_its_own_or_no_attention_stays_as_it_is() -> None:
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=20,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
        )
    )
    TorchBackend("fp32").prepare(torch.nn.ModuleList([bart]))
    assert bart.model.config._attn_implementation == "sdpa"
    ffn = FfnForCausalLM(FfnConfig(vocab_size=20))
    TorchBackend("fp32").prepare(torch.nn.ModuleList([ffn]))


def head(N: int, V: int, D: int = 16, seed: int = 0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    hidden = torch.randn(N, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    bias = torch.randn(V, requires_grad=True)
    targets = torch.randint(0, V, (N,))
    targets[::5] = cross_entropy.IGNORED
    return hidden, weight, bias, targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("N", [1, 70, 2700])  # within a slice, over slices, over chunks
def test_the_chunked_loss_is_that_of_torch(N: int, with_bias: bool, smoothing: float) -> None:
    hidden, weight, bias, targets = head(N, 37)
    if N == 1:
        targets[:] = 3
    used = bias if with_bias else None
    ours = cross_entropy.linear_cross_entropy(hidden, weight, targets, used, smoothing)
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    gradients = torch.autograd.grad(ours * 0.5, inputs)
    theirs = F.cross_entropy(F.linear(hidden, weight, used), targets, reduction="sum", label_smoothing=smoothing)
    # float32 sums of up to 2,700 terms in another order: 1e-6 relative.
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-5)
    for a, b in zip(gradients, torch.autograd.grad(theirs * 0.5, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_chunked_loss_computes_only_what_is_asked() -> None:
    hidden, weight, _, targets = head(100, 37)
    with torch.no_grad():
        evaluated = cross_entropy.linear_cross_entropy(hidden, weight, targets)
    frozen = cross_entropy.linear_cross_entropy(hidden, weight.detach(), targets)
    frozen.backward()
    assert torch.equal(evaluated, frozen.detach())
    assert hidden.grad is not None and weight.grad is None


def test_the_chunked_loss_in_bf16_is_as_good_as_autocast() -> None:
    """Against float64: bf16 products have 8 bits; ours must not be worse than torch's own under autocast."""
    hidden, weight, _, targets = head(1500, 300, D=64)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    reference = F.cross_entropy(F.linear(*exact), targets, reduction="sum")
    expected = torch.autograd.grad(reference, exact)

    def errors(loss: torch.Tensor) -> list[float]:
        gradients = torch.autograd.grad(loss, (hidden, weight))
        return [float((a - b).norm() / b.norm()) for a, b in zip(gradients, expected, strict=True)]

    with torch.autocast("cpu", torch.bfloat16):
        ours = cross_entropy.linear_cross_entropy(hidden, weight, targets)
        theirs = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(reference.item(), rel=2**-8)
    for mine, autocast in zip(errors(ours), errors(theirs), strict=True):
        assert mine <= autocast * 1.1


def test_nothing_to_predict_costs_nothing() -> None:
    hidden, weight, _, targets = head(6, 37)
    targets[:] = cross_entropy.IGNORED
    loss = cross_entropy.linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.item() == 0.0 and not weight.grad.any()


@pytest.mark.parametrize("kind", ["causal", "boolean", "additive"])
def test_attention_by_matrix_products_knows_every_mask(kind: str) -> None:
    """In bf16 against the formula in float64; tolerances are those of bf16 (8 bits, 2^-8 = 0.4 %, of sums of 150)."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 150, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    seen = torch.ones(150, 150, dtype=torch.bool).tril().expand(2, 1, 150, 150)
    mask = {
        "causal": None,
        "boolean": seen,
        "additive": torch.zeros(2, 1, 150, 150).masked_fill(~seen, float("-inf")),
    }[kind]
    ours, _ = attention.attention(torch.nn.Module(), q, k, v, mask, is_causal=True)
    gradients = torch.autograd.grad(ours.float().square().sum(), (q, k, v))
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    scores = (exact[0] @ exact[1].transpose(-1, -2) / 4).masked_fill(~seen, float("-inf"))
    reference = (scores.softmax(-1) @ exact[2]).transpose(1, 2)
    torch.testing.assert_close(ours.double(), reference, rtol=0.02, atol=0.02)
    for a, b in zip(gradients, torch.autograd.grad(reference.square().sum(), exact), strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 0.02


def test_attention_with_dropout_keeps_the_mean() -> None:
    """Averaged over draws, dropout of the probabilities changes nothing."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 20, 8, requires_grad=True) for _ in range(3))
    plain, _ = attention.attention(torch.nn.Module(), q, k, v, None, is_causal=True)
    often = [tensor.expand(4000, -1, -1, -1) for tensor in (q, k, v)]
    drawn, _ = attention.attention(torch.nn.Module(), *often, None, dropout=0.2, is_causal=True)
    assert not torch.equal(drawn[0], drawn[1])
    # One draw has a standard deviation of at most √(p / (1 - p)) · |v| ≈ 0.5 · 3; the mean of 4,000 of 0.024; five.
    torch.testing.assert_close(drawn.mean(0, keepdim=True), plain, rtol=0, atol=0.12)


def test_settings_are_checked_by_kind() -> None:
    def problems(**settings: Any) -> list[str]:
        return gpt.ARCHITECTURE.problems({"type": "gpt", **settings})

    assert problems(d_model=64, dropout=0, separate_documents=True, activation_function="relu") == []
    assert "did you mean d_model?" in problems(d_modle=64)[0]
    assert "known: d_model, d_ffn" in problems(xyz=64)[0]
    for wrong in (0, -3, 2.5, True, "64", None):
        assert "does not fit; for example 256" in problems(d_model=wrong)[0]
    for wrong in (1.0, -0.1, "much", True):
        assert "does not fit; for example 0.1" in problems(dropout=wrong)[0]
    assert "does not fit; for example False" in problems(separate_documents=1)[0]
    assert "'gleu' does not fit" in problems(activation_function="gleu")[0]


def test_an_unknown_architecture_is_reported() -> None:
    known = Architectures("classification", {"rnn": rnn.ARCHITECTURE, "cnn": cnn.ARCHITECTURE}, "x=y")
    assert known.problems({"type": "cnn"}) == []
    assert known.problems({"n_layers": 2}) == [], "the first one is the default"
    assert "set one, e.g. x=y" in known.problems({})[0]
    assert "did you mean rnn?" in known.problems({"type": "rnnn"})[0]
    assert "known: rnn, cnn" in known.problems({"type": 5})[0]
    made = known.build({"n_layers": 2}, tokenizer_of(), 0, ["pad_token_id"])
    assert type(made) is rnn.RnnForSequenceClassification
    with pytest.raises(UserError, match="did you mean rnn?"):
        known.build({"type": "rnnn"}, tokenizer_of(), 0, [])
