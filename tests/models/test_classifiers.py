"""Classifiers against plain torch: the same function, whatever the padding; what they save, they load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.loading import initial
from hanflow.loading.pretrained import CLASSIFIER, load_model
from hanflow.models import classifiers, ensemble
from hanflow.models.cnn import CnnConfig, CnnForSequenceClassification
from hanflow.models.rnn import RnnConfig, RnnForSequenceClassification
from hanflow.progress import Progress
from hanflow.tasks.classification import Classification, ClassificationEvaluate, ClassificationTrain, Classifier

TINY: dict[str, dict[str, Any]] = {
    "rnn": {"type": "rnn", "embedding_size": 8, "hidden_size": 6, "n_layers": 3, "initializer_range": 1.0},
    "cnn": {"type": "cnn", "embedding_size": 8, "n_filters": 5, "windows": [2, 3, 4], "initializer_range": 1.0},
    "bert": {
        "type": "bert",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 32,
        "initializer_range": 0.5,
    },
}
LABELS = ["부정", "긍정", "모름"]


def tokenizer_of(words: int = 40, **settings: Any) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"pad_token": "<pad>", "eos_token": "</s>", **settings}
    )


def new(kind: str, seed: int = 0, **settings: Any) -> Any:
    config = TrainConfig(architecture={**TINY[kind], **settings}, seed=seed)
    return initial.classifier(config, tokenizer_of(), LABELS)


def rows_of(*lengths: int) -> list[tuple[np.ndarray, int]]:
    random = np.random.default_rng(0)
    return [(random.integers(2, 40, n).astype(np.int32), i % 3) for i, n in enumerate(lengths)]


def inputs_of(rows: list[tuple[np.ndarray, int]], L: int, model: Any, B: int | None = None) -> dict[str, torch.Tensor]:
    batch = classifiers.collate(rows, (B or len(rows), L), model.config)
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


@pytest.mark.parametrize("kind", TINY)
def test_padding_changes_nothing(kind: str) -> None:
    """A text alone, beside longer ones, in a wider batch and beside missing rows: the same scores, and gradients."""
    model = new(kind)
    rows = rows_of(1, 2, 9, 3, 14)
    alone = torch.cat([model(**inputs_of([row], len(row[0]), model)).logits for row in rows])
    for L, B in ((14, 5), (23, 5), (14, 7)):
        together = model(**inputs_of(rows, L, model, B)).logits[: len(rows)]
        # float32, matrix products of other shapes: 1e-6 relative.
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.manual_seed(1)
    direction = torch.randn_like(alone)
    expected = torch.autograd.grad((alone * direction).sum(), tuple(model.parameters()), allow_unused=True)
    actual = torch.autograd.grad((together * direction).sum(), tuple(model.parameters()), allow_unused=True)
    for a, b in zip(actual, expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_rnn_is_torchs_bidirectional_lstm_over_packed_sequences() -> None:
    model = new("rnn")
    config = model.config
    theirs = nn.LSTM(config.embedding_size, config.hidden_size, config.n_layers, bidirectional=True, batch_first=True)
    for layer in range(config.n_layers):
        for ours, suffix in ((model.forwards[layer], ""), (model.backwards[layer], "_reverse")):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(theirs, f"{name}_l{layer}{suffix}").data.copy_(getattr(ours, f"{name}_l0"))
    rows = rows_of(5, 1, 11, 8)
    inputs = inputs_of(rows, 11, model)
    packed = pack_padded_sequence(
        model.embedding(inputs["input_ids"]), torch.tensor([5, 1, 11, 8]), batch_first=True, enforce_sorted=False
    )
    _, (last_states, _) = theirs(packed)
    expected = model.classifier(torch.cat([last_states[-2], last_states[-1]], dim=-1))
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-5, atol=1e-6)


def test_the_rnn_reads_in_both_directions() -> None:
    model = new("rnn")
    row = rows_of(6)[0][0]
    scores = model(torch.tensor(row)[None].long()).logits
    for at in (0, 5):
        changed = row.copy()
        changed[at] = 2 + (changed[at] - 1) % 38
        assert not torch.allclose(scores, model(torch.tensor(changed)[None].long()).logits, atol=1e-4)


def test_the_cnn_by_hand() -> None:
    """One filter of one window of two tokens, all ones over a one-wide embedding: the largest sum of neighbours."""
    config = CnnConfig(vocab_size=10, embedding_size=1, windows=[2], n_filters=1, id2label={0: "a", 1: "b"})
    model = CnnForSequenceClassification(config).eval()
    with torch.no_grad():
        model.embedding.weight.copy_(torch.tensor([[100.0], [1], [2], [-5], [4], [-9], [0], [0], [0], [0]]))
        model.convolutions[0].weight.fill_(1.0)
        model.convolutions[0].bias.fill_(0.5)
        model.classifier.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.classifier.bias.zero_()
    texts = [[1, 2, 3, 4], [3, 5], [4], [3]]
    batch = classifiers.collate([(np.array(text, np.int32), 0) for text in texts], (4, 4), model.config)
    pooled = model(batch["input_ids"], batch["attention_mask"]).logits[:, 0].tolist()
    # 1+2, 2-5, -5+4 → 3; -5-9 → -14, below 0: ReLU; 4 and nothing → 4; -5 and nothing. Padding (100) never counts.
    assert pooled == [3.5, 0.0, 4.5, 0.0]


def test_the_cnn_is_kims() -> None:
    """Convolution, ReLU, maximum over time, one linear layer (Kim, 2014, section 2), by torch's own modules."""
    model = new("cnn")
    ids = torch.from_numpy(np.stack([row for row, _ in rows_of(9, 9)]).astype(np.int64))
    x_BEL = model.embedding(ids).transpose(1, 2)
    pooled = [F.max_pool1d(F.relu(c(x_BEL)), x_BEL.shape[-1] - c.kernel_size[0] + 1) for c in model.convolutions]
    expected = model.classifier(torch.cat(pooled, dim=1).squeeze(-1))
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["rnn", "cnn"])
def test_the_described_shapes_are_the_defaults(kind: str) -> None:
    model = initial.classifier(TrainConfig(architecture={"type": kind}, seed=0), tokenizer_of(), ["a", "b"])
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert model.config.dropout == 0.3
    if kind == "rnn":
        assert shapes["embedding.weight"] == (40, 128)
        assert shapes["forwards.0.weight_ih_l0"] == (1024, 128)
        assert shapes["backwards.3.weight_ih_l0"] == (1024, 512)
        assert shapes["classifier.weight"] == (2, 512)
    else:
        assert shapes["embedding.weight"] == (40, 256)
        assert [shapes[f"convolutions.{i}.weight"] for i in range(3)] == [(100, 256, 3), (100, 256, 4), (100, 256, 5)]
        assert shapes["classifier.weight"] == (2, 300)


@pytest.mark.parametrize("kind", TINY)
def test_saved_and_loaded_bit_by_bit(kind: str, tmp_path: Path) -> None:
    model = new(kind)
    model.config.class_weights = [0.5, 2.0, 1.0]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert loaded.config.label2id == {"부정": 0, "긍정": 1, "모름": 2}
    assert loaded.config.class_weights == [0.5, 2.0, 1.0]
    for key, value in TINY[kind].items():
        assert key == "type" or getattr(AutoConfig.from_pretrained(tmp_path), key) == value
    inputs = inputs_of(rows_of(4, 7), 8, model)
    assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)


@pytest.mark.parametrize("kind", TINY)
def test_a_classifier_learns(kind: str) -> None:
    """Which of two words stands in a text: every architecture finds out in some steps."""
    torch.manual_seed(0)
    model = new(kind).train()
    random = np.random.default_rng(1)
    rows = [
        (np.append(random.integers(10, 40, random.integers(1, 8)), 3 + i % 3).astype(np.int32), i % 3)
        for i in range(60)
    ]
    rows = [(random.permutation(tokens), label) for tokens, label in rows]
    batch = classifiers.collate(rows, (60, 8), model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(40):
        total, count = classifiers.loss(model, batch, 0.0)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        scores = model(batch["input_ids"], batch["attention_mask"]).logits
    assert (scores.argmax(1) == batch["labels"]).float().mean() > 0.9


def test_seeds_decide_the_weights() -> None:
    one, same, other = (new("rnn", seed).state_dict()["forwards.1.weight_hh_l0"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_collate_pads_on_the_right_and_marks_missing_rows() -> None:
    model = new("cnn")
    rows = rows_of(2, 3)
    batch = classifiers.collate(rows, (3, 4), model.config)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["input_ids"][:, -1].tolist() == [0, 0, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["labels"].tolist() == [0, 1, -100]
    full = classifiers.collate([(rows[1][0], np.array([2], np.int32))], (1, 3), model.config)
    assert "attention_mask" not in full and full["labels"].tolist() == [2]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_weighted_cross_entropy(smoothing: float) -> None:
    model = new("cnn")
    rows = rows_of(4, 6, 3, 5, 7)
    counts = [2, 2, 1]
    weights = classifiers.balanced_weights(counts)
    assert sum(w * n for w, n in zip(weights, counts, strict=True)) / 5 == pytest.approx(1.0)
    for chosen in (None, weights):
        model.config.class_weights = chosen
        total, count = classifiers.loss(model, classifiers.collate(rows, (6, 7), model.config), smoothing)
        logits = model(**inputs_of(rows, 7, model)).logits
        labels = torch.tensor([label for _, label in rows])
        criterion = nn.CrossEntropyLoss(chosen and torch.tensor(chosen), label_smoothing=smoothing)
        # Weights of mean 1 over these rows: torch's weighted mean and ours have the same divisor, 5.
        torch.testing.assert_close(total / count, criterion(logits, labels))
        assert int(count) == 5


def test_probabilities_come_for_every_row() -> None:
    model = new("rnn").train()
    rows = [row for row, _ in rows_of(3, 12, 1, 7, 7, 2)]
    sizes: list[int] = []

    class Sizes(Progress):
        def update(self, count: int = 1, **figures: Any) -> None:
            sizes.append(count)

    classifier = Classifier(model, tokenizer_of(), ClassificationEvaluate(batch_tokens=14))
    found = classifier([(row,) for row in rows], Sizes("predicting")).measures["probabilities"]
    assert sizes == [1, 2, 3] and model.training
    model.eval()
    for row, scores in zip(rows, found, strict=True):
        expected = model(torch.tensor(row)[None].long()).logits.softmax(-1)[0]
        torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=1e-5, atol=1e-6)


def test_a_pretrained_classifier_takes_new_labels_and_tokens(tmp_path: Path) -> None:
    torch.manual_seed(3)
    new("bert", seed=5).save_pretrained(tmp_path)
    tokenizer = tokenizer_of()
    tokenizer.add_tokens(["#Person1#"])
    config = ClassificationTrain(pretrained=str(tmp_path))
    model = initial.classifier(config, tokenizer, ["a", "b"])
    assert model.classifier.out_features == 2 and model.config.id2label == {0: "a", 1: "b"}
    assert model.get_input_embeddings().weight.shape[0] == 41
    body = new("bert", seed=5).bert.encoder.state_dict()
    assert all(torch.equal(value, model.bert.encoder.state_dict()[name]) for name, value in body.items())
    again = initial.classifier(config, tokenizer, ["a", "b"])
    assert torch.equal(model.classifier.weight, again.classifier.weight), "the new head comes from the seed"
    with pytest.raises(UserError, match="its pad_token_id is 0, the tokenizer's is 1: they do not belong together"):
        initial.classifier(config, tokenizer_of(pad_token="</s>", eos_token="<pad>"), ["a", "b"])
    with pytest.raises(UserError, match="no config.json can be read from there"):
        initial.classifier(ClassificationTrain(pretrained=str(tmp_path.parent)), tokenizer, ["a", "b"])


def test_mistakes_are_reported() -> None:
    assert [classifiers.ARCHITECTURES.problems(settings) for settings in TINY.values()] == [[], [], []]
    assert "known: rnn, cnn, bert" in classifiers.ARCHITECTURES.problems({"type": "gpt"})[0]
    assert "did you mean n_layers?" in classifiers.ARCHITECTURES.problems({"type": "rnn", "n_layer": 2})[0]
    assert "[3, 3] names one twice" in classifiers.ARCHITECTURES.problems({"type": "cnn", "windows": [3, 3]})[0]
    for wrong in ([], [3, 0], 3):
        assert (
            "does not fit; for example [3, 4, 5]"
            in classifiers.ARCHITECTURES.problems({"type": "cnn", "windows": wrong})[0]
        )
    assert (
        "does not divide hidden_size=10 evenly"
        in classifiers.ARCHITECTURES.problems({"type": "bert", "hidden_size": 10, "num_attention_heads": 4})[0]
    )
    with pytest.raises(UserError, match="set one, e.g."):
        initial.classifier(ClassificationTrain(), tokenizer_of(), LABELS)
    config = ClassificationTrain(architecture=TINY["cnn"])
    for labels in (["a"], [], ["a", "a"]):
        with pytest.raises(UserError, match="needs two different labels or more"):
            initial.classifier(config, tokenizer_of(), labels)
    with pytest.raises(UserError, match="2 class weights for 3 labels"):
        initial.classifier(config, tokenizer_of(), LABELS, [1.0, 1.0])
    with pytest.raises(UserError, match="no padding token"):
        initial.classifier(config, tokenizer_of(pad_token=None), LABELS)


def trained(*kinds: str) -> dict[str, Any]:
    return {f"/models/{kind}-{i}": (new(kind, seed=i), tokenizer_of()) for i, kind in enumerate(kinds)}


def test_an_ensemble_averages_probabilities() -> None:
    members = trained("rnn", "cnn", "bert")
    for weights in (None, [1.0, 0.0, 3.0]):
        combined = ensemble.combine(members, weights)
        inputs = inputs_of(rows_of(4, 9, 2), 9, combined)
        shares = np.array(weights or [1, 1, 1]) / sum(weights or [1, 1, 1])
        parts = [model(**inputs).logits.softmax(-1) for model, _ in members.values()]
        expected = sum(share * part for share, part in zip(shares, parts, strict=True))
        torch.testing.assert_close(combined(**inputs).logits.exp(), expected, rtol=1e-5, atol=1e-6)
    assert combined.config.max_position_embeddings == 32, "as far as its BERT goes"


def test_an_ensemble_is_saved_with_its_members(tmp_path: Path) -> None:
    members = trained("rnn", "bert", "rnn")
    combined = ensemble.combine(members, [2.0, 1.0, 1.0])
    combined.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, CLASSIFIER)
    assert isinstance(loaded, ensemble.EnsembleForSequenceClassification)
    assert loaded.config.weights == [0.5, 0.25, 0.25]
    assert [type(member) for member in loaded.members] == [type(model) for model, _ in members.values()]
    for member, (model, _) in zip(loaded.members, members.values(), strict=True):
        for name, value in model.state_dict().items():
            assert torch.equal(member.state_dict()[name], value), name
    inputs = inputs_of(rows_of(4, 9), 9, combined)
    assert torch.equal(combined(**inputs).logits, loaded(**inputs).logits)
    assert loaded.config.id2label == dict(enumerate(LABELS))


def test_ensemble_members_are_loaded_from_folders(tmp_path: Path) -> None:
    for kind in ("rnn", "cnn"):
        new(kind).save_pretrained(tmp_path / kind)
        tokenizer_of().save_pretrained(tmp_path / kind)
    combined = Classification().combine({kind: str(tmp_path / kind) for kind in ("rnn", "cnn")}, [])
    inputs = inputs_of(rows_of(5), 5, combined)
    expected = sum(new(kind)(**inputs).logits.softmax(-1) for kind in ("rnn", "cnn")) / 2
    torch.testing.assert_close(combined(**inputs).logits.exp(), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "cnn"), PreTrainedTokenizerFast)


def test_members_that_do_not_fit_together_are_refused() -> None:
    model, tokenizer = new("rnn"), tokenizer_of()
    other = initial.classifier(TrainConfig(architecture=TINY["cnn"]), tokenizer, ["긍정", "부정", "모름"])
    with pytest.raises(UserError, match="b: its classes are 긍정, 부정, 모름, those of a are 부정, 긍정, 모름"):
        ensemble.combine({"a": (model, tokenizer), "b": (other, tokenizer)})
    with pytest.raises(UserError, match="b: its tokenizer is not that of a"):
        ensemble.combine({"a": (model, tokenizer), "b": (new("cnn"), tokenizer_of(39))})
    with pytest.raises(UserError, match="needs members"):
        ensemble.combine({})
    with pytest.raises(UserError, match="1 weights for 2 members"):
        ensemble.combine(trained("rnn", "cnn"), [1.0])
    for weights in ([1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(UserError, match="none may be negative, and their sum must be above 0"):
            ensemble.combine(trained("rnn", "cnn"), weights)


def test_dropout_stands_between_the_layers_and_only_in_training() -> None:
    for config, model_class in (
        (
            RnnConfig(vocab_size=40, embedding_size=8, hidden_size=6, n_layers=2, dropout=0.5),
            RnnForSequenceClassification,
        ),
        (CnnConfig(vocab_size=40, embedding_size=8, n_filters=20, dropout=0.5), CnnForSequenceClassification),
    ):
        torch.manual_seed(0)
        model = model_class(config)
        ids = torch.randint(2, 40, (2, 9))
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)
        model.eval()
        assert torch.equal(model(ids).logits, model(ids).logits)
