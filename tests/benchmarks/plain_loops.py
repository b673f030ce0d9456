"""Training loops as people write them by hand: what the rows of rnn, cnn and gpt are compared with.

Each takes a job (`shards`, `architecture`, `batch_size`, `precision`, `learning_rate`, `max_steps`) and returns `targets`
(labelled rows, or predicted tokens) and `seconds`, both without the first WARM_UP steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

from hanflow.config import TrainConfig
from hanflow.data.shards import Shard
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks import get_task

WARM_UP = 3


class PackedRnn(nn.Module):
    """The same network as `models/rnn.py`, by torch's own layers: an LSTM over packed sequences."""

    def __init__(self, vocabulary: int, settings: dict[str, Any], classes: int):
        super().__init__()
        width, hidden = settings["embedding_size"], settings["hidden_size"]
        self.embedding = nn.Embedding(vocabulary, width)
        self.rnn = nn.LSTM(
            width,
            hidden,
            settings["n_layers"],
            batch_first=True,
            bidirectional=True,
            dropout=settings["dropout"] if settings["n_layers"] > 1 else 0.0,
        )
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.rnn(packed)
        return self.head(torch.cat([hidden[-2], hidden[-1]], dim=-1))


def classifier(job: dict[str, Any], *, own_layers: bool = True) -> dict[str, Any]:
    """A DataLoader that shuffles, a collate that pads to the batch's longest row, AdamW, clipping.

    Args:
        own_layers: whether the network is hanflow's module; else torch's LSTM over packed sequences.
    """
    from transformers import AutoTokenizer

    torch.manual_seed(42)
    task, folder = get_task("classification"), Path(job["shards"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    facts = read_manifest(folder, "shards").details["facts"]
    if own_layers:
        ours = task.new_model(TrainConfig(architecture=job["architecture"]), tokenizer, facts)
        model: nn.Module = ours

        def scores(ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            return ours(input_ids=ids, attention_mask=mask).logits
    else:
        model = PackedRnn(len(tokenizer), job["architecture"], len(facts["labels"]))
        scores = model
    shard = Shard(folder / "train.arrow", task.sequences)
    rows = [
        (torch.from_numpy(text.astype(np.int64)), int(label[0]))
        for text, label in map(shard.__getitem__, range(len(shard)))
    ]

    def collate(batch: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        texts, labels = zip(*batch, strict=True)
        padded = pad_sequence(texts, batch_first=True, padding_value=tokenizer.pad_token_id)
        return padded, torch.tensor([len(text) for text in texts]), torch.tensor(labels)

    loader = DataLoader(rows, job["batch_size"], shuffle=True, collate_fn=collate)  # type: ignore[arg-type]

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
        ids, lengths, labels = batch
        return F.cross_entropy(scores(ids, lengths).float(), labels), len(labels)

    return _timed(job, model, loader, loss_of)


class Block(nn.Module):
    """A block of nanoGPT: pre-norm, causal attention by scaled_dot_product_attention, GELU."""

    def __init__(self, width: int, inner: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = (
            part.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for part in self.attention(self.norm_1(x)).split(D, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x + F.dropout(self.projection(y.transpose(1, 2).reshape(B, T, D)), dropout)
        return x + F.dropout(self.outer(F.gelu(self.inner(self.norm_2(x)))), dropout)


class NanoGpt(nn.Module):
    """nanoGPT's model: learnt positions, blocks, a last norm, a head tied to the embeddings."""

    def __init__(self, vocabulary: int, settings: dict[str, Any]):
        super().__init__()
        width, self.dropout = settings["d_model"], settings["dropout"]
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(settings["max_position_embeddings"], width)
        self.blocks = nn.ModuleList(
            Block(width, settings["d_ffn"], settings["nhead"], self.dropout) for _ in range(settings["n_layers"])
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        self.tokens.weight = self.head.weight

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def gpt(job: dict[str, Any]) -> dict[str, Any]:
    """nanoGPT's loop: random places of one long array of tokens, AdamW with two groups, clipping."""
    from transformers import AutoTokenizer

    torch.manual_seed(42)
    folder, settings, size = Path(job["shards"]), job["architecture"], job["architecture"]["max_position_embeddings"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    shard = Shard(folder / "train.arrow", ("tokens",))
    stream = np.concatenate([shard[row][0][1:] for row in range(len(shard))]).astype(np.uint16)
    model = NanoGpt(len(tokenizer), settings)

    def batches() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            starts = torch.randint(len(stream) - size, (job["batch_size"],))
            ids, targets = (
                torch.stack([torch.from_numpy(stream[i + shift : i + shift + size].astype(np.int64)) for i in starts])
                for shift in (0, 1)
            )
            yield ids, targets

    return _timed(job, model, batches(), lambda batch: (model(*batch), batch[1].numel()))


def _timed(
    job: dict[str, Any], model: nn.Module, batches: Iterable[Any], loss_of: Callable[[Any], tuple[torch.Tensor, int]]
) -> dict[str, Any]:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=job["learning_rate"])
    bf16, last = job["precision"] == "bf16", job.get("max_steps") or math.inf
    model.train()
    targets, started = 0, 0.0
    for step, batch in enumerate(batches):
        if step == WARM_UP:
            targets, started = 0, time.perf_counter()
        if step >= last:
            break
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, count = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        targets += count
        if step % 10 == 9:
            loss.item()  # logged, as everybody does
    return {"targets": targets, "seconds": time.perf_counter() - started, "tokens": targets}


LOOPS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "padded": classifier,
    "packed": lambda job: classifier(job, own_layers=False),
    "nanogpt": gpt,
}
