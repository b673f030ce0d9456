"""Language models against GPT-2 and plain torch; documents that do not leak; caches that change nothing."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hanflow.config import SamplingConfig, TrainConfig, build
from hanflow.errors import UserError
from hanflow.generation.sampling import generate
from hanflow.loading import initial
from hanflow.loading.pretrained import CAUSAL_LM, load_model
from hanflow.models import causal_lm as language
from hanflow.models.gpt import GptConfig, GptForCausalLM
from hanflow.models.kernels import attention
from tests.models.test_classifiers import tokenizer_of

EOS = 1
TINY: dict[str, dict[str, Any]] = {
    "gpt": {
        "type": "gpt",
        "d_model": 24,
        "d_ffn": 40,
        "n_layers": 2,
        "nhead": 3,
        "max_position_embeddings": 48,
        "initializer_range": 0.3,
    },
    "ffn": {"type": "ffn", "d_model": 16, "d_ffn": 24, "n_layers": 2, "window": 4, "initializer_range": 0.3},
}


def new(kind: str, seed: int = 0, **settings: Any) -> Any:
    config = TrainConfig(architecture={**TINY[kind], **settings}, seed=seed)
    return initial.language_model(config, tokenizer_of())


def separated(config: Any, separate: bool) -> Any:
    """A model's config with separate documents or without."""
    config = copy.copy(config)
    config.separate_documents = separate
    return config


def chunk(*documents: list[int]) -> np.ndarray:
    """`eos document eos document … eos`, as the rows of the shards are."""
    return np.array([EOS, *[token for document in documents for token in (*document, EOS)]], np.int32)


def gpt2_like(ours: GptForCausalLM) -> GPT2LMHeadModel:
    """transformers' GPT-2 with the same weights."""
    config = ours.config
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_position_embeddings,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.nhead,
            n_inner=config.d_ffn,
            activation_function=config.activation_function,
            bos_token_id=EOS,
            eos_token_id=EOS,
        )
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            source, transposed = counterpart(name)
            value = ours.get_parameter(source)
            parameter.copy_(value.T if transposed else value)
    return theirs.eval()


def counterpart(name: str) -> tuple[str, bool]:
    """Our name of a parameter of GPT-2, and whether it is transposed (its Conv1D)."""
    parts = {
        "transformer.wte": "model.embed_tokens",
        "transformer.wpe": "model.embed_positions",
        "transformer.ln_f": "model.norm",
        "transformer.h.": "model.layers.",
        ".ln_1": ".attention_norm",
        ".ln_2": ".ffn_norm",
        ".attn.c_attn": ".attention.qkv",
        ".attn.c_proj": ".attention.out",
        ".mlp.c_fc": ".up",
        ".mlp.c_proj": ".down",
    }
    source = name
    for theirs, ours in parts.items():
        source = source.replace(theirs, ours)
    return source, ".c_" in name and name.endswith("weight")


@pytest.mark.parametrize("nhead", [1, 2, 6])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_loss_and_gradients_equal_those_of_gpt2(nhead: int, activation: str) -> None:
    ours = new("gpt", nhead=nhead, activation_function=activation)
    theirs = gpt2_like(ours)
    ids = torch.randint(2, 40, (3, 21))
    rows = [(row.numpy().astype(np.int32),) for row in ids]
    total, count = language.loss(ours, language.collate(rows, (3, 21), ours.config), 0.0)
    reference = theirs(input_ids=ids, labels=ids).loss
    assert int(count) == 3 * 20
    # float32, the same sums in another order: a few units in the last place of values around 10.
    torch.testing.assert_close(total / count, reference, rtol=2e-6, atol=1e-6)
    (total / count).backward()
    reference.backward()
    for name, parameter in theirs.named_parameters():
        source, transposed = counterpart(name)
        gradient = ours.get_parameter(source).grad
        torch.testing.assert_close(
            gradient.T if transposed else gradient,
            parameter.grad,
            rtol=1e-4,
            atol=1e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(ids, labels=ids).loss, reference, rtol=2e-6, atol=1e-6)


def test_the_librarys_own_models_are_scored_the_same_way() -> None:
    """`train.pretrained` may be any decoder of transformers, e.g. KoGPT2; separate documents work there too."""
    ours = new("gpt")
    theirs = gpt2_like(ours)
    rows = [(chunk([5, 6, 7], [8, 9]),), (chunk([5], [6, 6, 6]),)]
    for separate in (False, True):
        batch = language.collate(rows, (2, 9), separated(ours.config, separate))
        a, b = language.loss(ours, batch, 0.1)[0], language.loss(theirs, batch, 0.1)[0]
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("kind", TINY)
def test_no_token_sees_what_comes_after(kind: str) -> None:
    model = new(kind)
    ids = torch.randint(2, 40, (1, 12))
    changed = ids.clone()
    changed[0, 7] = 2 + (changed[0, 7] - 1) % 38
    before, after = model(ids).logits[0], model(changed).logits[0]
    assert torch.equal(before[:7], after[:7]) and not torch.allclose(before[7], after[7])


@pytest.mark.parametrize("kind", TINY)
def test_separate_documents_are_scored_as_if_alone(kind: str) -> None:
    """Packed into one row or each in its own: the same loss, so nothing leaks, and positions begin anew."""
    model = new(kind, separate_documents=True)
    documents = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [5, 6, 7]]
    packed = language.collate([(chunk(*documents),)], (1, 20), model.config)
    alone = language.collate([(chunk(document),) for document in documents], (4, 8), model.config)
    assert packed["position_ids"][0, :9].tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    one, n_one = language.loss(model, packed, 0.0)
    other, n_other = language.loss(model, alone, 0.0)
    assert int(n_one) == int(n_other) == 3 + 1 + 5 + 3 + 4
    # Sums of float32 in another order.
    torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-5)
    mixed = language.collate([(chunk(*documents),)], (1, 20), separated(model.config, False))
    leaking, _ = language.loss(model, mixed, 0.0)
    assert abs((leaking - one).item()) > 0.1


@pytest.mark.parametrize("separate", [False, True])
def test_training_on_a_cpu_computes_the_same_gradients(separate: bool) -> None:
    """In bf16 with attention by matrix products against float32: 8 bits, so about 1 % of a gradient's norm."""
    model = new("gpt", max_position_embeddings=160, initializer_range=0.05)
    random = np.random.default_rng(0)
    rows = [(np.where(random.random(161) < 0.1, EOS, random.integers(2, 40, 161)).astype(np.int32),) for _ in range(3)]
    batch = language.collate(rows, (3, 161), separated(model.config, separate))
    parameters = tuple(model.parameters())
    exact = torch.autograd.grad(language.loss(model, batch, 0.0)[0], parameters)
    attention.use_on_cpu(model)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = language.loss(model, batch, 0.0)
    for a, b in zip(torch.autograd.grad(total, parameters), exact, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.03


def test_the_ffn_by_hand() -> None:
    """Embeddings of the window side by side, through one linear layer, residual layers and the tied head."""
    model = new("ffn")
    network, ids = model.model, torch.tensor([[5, 6, 7, 8, 9, 10]])
    padded = F.pad(network.embed_tokens(ids), (0, 0, 3, 0))
    joined = torch.stack([padded[:, at : at + 4].flatten(1) for at in range(6)], dim=1)
    x = network.join(joined)
    for layer in network.layers:
        x = x + layer.down(F.gelu(layer.up(layer.norm(x))))
    expected = network.norm(x) @ network.embed_tokens.weight.T
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(ids, labels=ids).loss, F.cross_entropy(expected[0, :-1], ids[0, 1:]))


@pytest.mark.parametrize("kind", TINY)
def test_perplexity_of_an_untrained_model_is_about_the_vocabulary(kind: str) -> None:
    model = new(kind, initializer_range=0.01)
    rows = [(np.random.default_rng(0).integers(2, 40, 41).astype(np.int32),)]
    total, count = language.loss(model, language.collate(rows, (1, 41), model.config), 0.0)
    # A head of standard deviation 0.01 over 16 to 24 unit-variance features: logits of about 0.05.
    assert float((total / count).exp()) == pytest.approx(40, rel=0.02)


def test_collate_shifts_and_ignores_padding() -> None:
    model = new("gpt")
    batch = language.collate([(chunk([5, 6]),), (chunk([7, 8, 9]),)], (3, 6), model.config)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 0, 0], [1, 7, 8, 9, 0], [0, 0, 0, 0, 0]]
    assert batch["targets"].tolist() == [[5, 6, 1, -100, -100], [7, 8, 9, 1, -100], [-100] * 5]
    assert set(batch) == {"input_ids", "targets"}


@pytest.mark.parametrize("kind", TINY)
def test_padding_on_the_right_and_missing_rows_change_nothing(kind: str) -> None:
    model = new(kind, separate_documents=True)
    rows = [(chunk([5, 6], [7]),), (chunk([8, 9, 10, 11]),)]
    total, count = language.loss(model, language.collate(rows, (4, 12), model.config), 0.0)
    parts = [language.loss(model, language.collate([row], (1, len(row[0])), model.config), 0.0)[0] for row in rows]
    assert int(count) == 5 + 5
    torch.testing.assert_close(total, sum(parts), rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("nhead", [2, 8])
def test_a_checkpoint_keeps_its_heads_and_its_tie(nhead: int, tmp_path: Path) -> None:
    """The described system's checkpoint did not hold nhead: trained with 4 heads, evaluated with 8, silently wrong."""
    model = new("gpt", nhead=nhead, d_model=32, dropout=0.25, separate_documents=True)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.nhead, config.dropout, config.separate_documents) == (nhead, 0.25, True)
    ids = torch.randint(2, 40, (2, 9))
    assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    other = GptForCausalLM(GptConfig(**{**model.config.to_dict(), "nhead": 4}))
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(model(ids).logits, other.eval()(ids).logits), "another nhead is another model"


@pytest.mark.parametrize("kind", TINY)
def test_saved_and_loaded_bit_by_bit(kind: str, tmp_path: Path) -> None:
    model = new(kind)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, CAUSAL_LM)
    assert type(loaded) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for key, value in TINY[kind].items():
        assert key == "type" or getattr(loaded.config, key) == value
    assert (loaded.config.eos_token_id, loaded.config.pad_token_id) == (1, 0)


@pytest.mark.parametrize("kind", TINY)
def test_added_tokens_keep_the_tie(kind: str) -> None:
    model = new(kind)
    model.resize_token_embeddings(44)
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.shape[0] == 44
    assert model(torch.tensor([[43, 5]])).logits.shape == (1, 2, 44)


@pytest.mark.parametrize("kind", TINY)
def test_a_language_model_learns(kind: str) -> None:
    """Counting up: after n comes n + 1."""
    model = new(kind, initializer_range=0.1).train()
    rows = [(np.append(np.arange(start, start + 12), EOS).astype(np.int32),) for start in range(2, 27)]
    batch = language.collate(rows, (25, 13), model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(40):
        total, count = language.loss(model, batch, 0.0)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    continued = generate(model, [np.array([10, 11, 12], np.int32)], SamplingConfig(max_new_tokens=4, greedy=True))
    assert continued[0].tolist() == [13, 14, 15, 16]


def test_the_cache_changes_nothing() -> None:
    """Greedy, sampled and beam search of transformers, with and without keys and values kept; prompts of any length."""
    model = new("gpt")
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10], [0, 11, 12, 13]])
    mask = (ids != 0).long()
    settings: list[dict[str, Any]] = [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.9},
        {"do_sample": False, "num_beams": 3},
    ]
    for setting in settings:
        outputs = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            outputs.append(
                model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=20, use_cache=use_cache, **setting)
            )
        assert torch.equal(*outputs)
    whole = model(ids[1:2]).logits[0]
    first = model(ids[1:2, :2], use_cache=True)
    second = model(ids[1:2, 2:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1)[0], whole, rtol=1e-5, atol=1e-5)


def test_generation_equals_that_of_gpt2() -> None:
    ours = new("gpt")
    theirs = gpt2_like(ours)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    a, b = (model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0) for model in (ours, theirs))
    assert torch.equal(a, b)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize(
    "options",
    [
        {"greedy": True},
        {"temperature": 1.3},
        {"temperature": 0.8, "top_k": 7},
        {"top_p": 0.8},
    ],
)
def test_a_continuation_does_not_depend_on_its_batch(kind: str, options: dict[str, Any]) -> None:
    model = new(kind)
    prompts = [np.array(tokens, np.int32) for tokens in ([5], [6, 7, 8, 9, 10, 11], [5, 6], [12, 13, 14], [5])]
    settings = SamplingConfig(max_new_tokens=15, **options)
    together = generate(model, prompts, settings)
    alone = [generate(model, [prompt], settings)[0] for prompt in prompts]
    in_pairs = generate(model, prompts, SamplingConfig(max_new_tokens=15, batch_tokens=40, **options))
    for row in range(4):
        assert together[row].tolist() == alone[row].tolist() == in_pairs[row].tolist()
        assert together[row].dtype == np.int32 and EOS not in together[row]
    same = together[0].tolist() == together[4].tolist()
    assert same == options.get("greedy", False), "a prompt that stands twice is drawn twice"


def test_seeds_decide_what_is_drawn() -> None:
    model = new("gpt")
    prompts = [np.array([5, 6], np.int32)]

    def drawn(seed: int) -> list[int]:
        return generate(model, prompts, SamplingConfig(max_new_tokens=20), seed)[0].tolist()

    assert drawn(1) == drawn(1) != drawn(2)


def test_drawing_follows_the_models_probabilities() -> None:
    """The share of each first token over many seeds against the softmax, limited as asked."""
    model = new("gpt")
    prompt = np.array([5, 6], np.int32)
    scores = model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1].double()
    expected = torch.softmax(scores / 0.5, -1)
    expected[expected < expected.topk(4).values[-1]] = 0.0
    expected /= expected.sum()
    options = SamplingConfig(max_new_tokens=1, temperature=0.5, top_k=4)
    drawn = generate(model, [prompt] * 4000, options)
    counts = np.bincount([row[0] if len(row) else EOS for row in drawn], minlength=40) / 4000
    # A share of 4,000 draws has a standard deviation of at most 0.008; five of them.
    assert np.abs(counts - expected.detach().numpy()).max() < 0.04


def test_a_nucleus_of_almost_nothing_is_greedy() -> None:
    model = new("gpt")
    prompts = [np.array([5, 6], np.int32)]
    greedy = generate(model, prompts, SamplingConfig(max_new_tokens=10, greedy=True))
    assert generate(model, prompts, SamplingConfig(max_new_tokens=10, top_p=1e-9))[0].tolist() == greedy[0].tolist()
    assert generate(model, prompts, SamplingConfig(max_new_tokens=10, top_k=1))[0].tolist() == greedy[0].tolist()


def test_the_end_of_sequence_ends_a_continuation() -> None:
    model = new("gpt")
    prompts = [np.array([5, 6], np.int32), np.array([9], np.int32)]
    model.config.eos_token_id = 39  # which these two never say
    free = [row.tolist() for row in generate(model, prompts, SamplingConfig(max_new_tokens=12, greedy=True))]
    assert [len(row) for row in free] == [12, 12]
    model.config.eos_token_id = free[0][3]
    stopped = generate(model, prompts, SamplingConfig(max_new_tokens=12, greedy=True))
    assert stopped[0].tolist() == free[0][: free[0].index(free[0][3])]
    assert len(generate(model, [], SamplingConfig())) == 0


def test_a_prompt_longer_than_the_context_keeps_its_end(caplog: pytest.LogCaptureFixture) -> None:
    model = new("gpt")
    long = np.random.default_rng(0).integers(2, 40, 100).astype(np.int32)
    options = SamplingConfig(max_new_tokens=8, greedy=True)
    with caplog.at_level(logging.WARNING, logger="hanflow"):
        logging.getLogger("hanflow").propagate = True
        kept = generate(model, [long, long[:5]], options)
    assert "1 of 2 prompts are longer than 40 tokens" in caplog.text
    assert kept[0].tolist() == generate(model, [long[-40:]], options)[0].tolist()
    with pytest.raises(
        UserError, match="max_new_tokens=48 leaves no room for a prompt: the model's context is 48 tokens"
    ):
        generate(model, [long], SamplingConfig(max_new_tokens=48))


def test_the_ffn_takes_a_prompt_of_any_length() -> None:
    model = new("ffn")
    long = np.random.default_rng(0).integers(2, 40, 100).astype(np.int32)
    options = SamplingConfig(max_new_tokens=8, greedy=True)
    assert generate(model, [long], options)[0].tolist() == generate(model, [long[-4:]], options)[0].tolist()


def test_an_empty_prompt_is_the_beginning_of_a_document() -> None:
    model = new("gpt")
    options = SamplingConfig(max_new_tokens=8, greedy=True)
    empty, start = np.zeros(0, np.int32), np.array([EOS], np.int32)
    assert generate(model, [empty], options)[0].tolist() == generate(model, [start], options)[0].tolist()


def test_generation_leaves_the_model_as_it_was() -> None:
    model = new("gpt").train()
    own = model.generation_config
    generate(model, [np.array([5], np.int32)], SamplingConfig(max_new_tokens=2))
    assert model.training and model.generation_config is own


def test_mistakes_are_reported() -> None:
    assert [language.ARCHITECTURES.problems(settings) for settings in TINY.values()] == [[], []]
    assert "did you mean gpt?" in language.ARCHITECTURES.problems({"type": "gtp"})[0]
    assert "5 does not divide d_model=24 evenly" in language.ARCHITECTURES.problems({**TINY["gpt"], "nhead": 5})[0]
    assert "did you mean window?" in language.ARCHITECTURES.problems({"type": "ffn", "windw": 3})[0]
    with pytest.raises(UserError, match="set one, e.g."):
        initial.language_model(TrainConfig(), tokenizer_of())
    with pytest.raises(UserError, match="no end-of-sequence token"):
        initial.language_model(TrainConfig(architecture=TINY["gpt"]), tokenizer_of(eos_token=None))
    wrong = {"temperature": 0, "top_k": -1, "top_p": 0, "max_new_tokens": 0}
    problems = build(SamplingConfig, wrong, "evaluate", require=False)[1]
    assert len(problems) == 4 and "evaluate.temperature" in problems[0]


def test_a_pretrained_decoder_takes_new_tokens(tmp_path: Path) -> None:
    gpt2_like(new("gpt")).save_pretrained(tmp_path)
    tokenizer = tokenizer_of()
    tokenizer.add_tokens(["<br>"])
    model = initial.language_model(TrainConfig(pretrained=str(tmp_path)), tokenizer)
    assert isinstance(model, GPT2LMHeadModel) and model.lm_head.weight.shape[0] == 41
    with pytest.raises(UserError, match="its eos_token_id is 1, the tokenizer's is 0"):
        initial.language_model(TrainConfig(pretrained=str(tmp_path)), tokenizer_of(pad_token="</s>", eos_token="<pad>"))
