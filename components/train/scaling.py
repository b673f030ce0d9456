"""What a step on a TPU slice should take, computed from published figures of the chips: nothing here was measured.

`python -m components.train.scaling` prints the tables of manifests/TPU.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip of a slice, as its maker publishes it (https://cloud.google.com/tpu/docs/v4)."""

    flops: float
    """Peak of bf16 products, FLOP/s."""
    memory_rate: float
    """Bytes/s of HBM."""
    reduce_rate: float
    """Bytes/s of an all-reduce with all six links of a torus: the pod's published 1.1 PB/s over its 4,096 chips."""


V4 = Chip(flops=275e12, memory_rate=1200e9, reduce_rate=1.1e15 / 4096)

REACHED = 0.4
"""Share of the peak that training of models of this size reaches on TPUs, by what others report (0.3 to 0.5)."""


@dataclass(frozen=True)
class EncoderDecoder:
    """An encoder-decoder in BART's shape; the defaults are KoBART's (123.9 million parameters)."""

    width: int = 768
    ffn: int = 3072
    encoder_layers: int = 6
    decoder_layers: int = 6
    vocabulary: int = 30_000
    positions: int = 1026
    heads: int = 16

    @property
    def encoder_layer(self) -> int:
        """Weights in one encoder layer's products."""
        return 4 * self.width**2 + 2 * self.width * self.ffn

    @property
    def parameters(self) -> int:
        """All parameters: matrices, biases and norms, and the two tables of positions; the head is the embedding."""
        width, ffn = self.width, self.ffn
        attention, norm, forward = 4 * (width**2 + width), 2 * width, 2 * width * ffn + ffn + width
        encoder = self.encoder_layers * (attention + forward + 2 * norm)
        decoder = self.decoder_layers * (2 * attention + forward + 3 * norm)
        return encoder + decoder + self.vocabulary * width + 2 * (self.positions + 2) * width + 2 * norm

    def step_flops(self, rows: int, source: int, target: int) -> float:
        """FLOPs of products in one forward and backward pass (2 and 4 for each weight and token).

        Args:
            rows, source, target: rows and padded lengths of the whole batch.
        """
        width = self.width
        on_source = self.encoder_layers * self.encoder_layer + self.decoder_layers * 2 * width**2  # cross keys, values
        on_target = self.decoder_layers * (6 * width**2 + 2 * width * self.ffn) + self.vocabulary * width
        scores = self.encoder_layers * source**2 + self.decoder_layers * (target**2 + source * target)
        return 6.0 * rows * (on_source * source + on_target * target + 2 * width * scores)

    def attention_bytes(self, rows: int, source: int, target: int) -> float:
        """Attention probabilities kept for the backward pass, float32: what grows with the square of the length."""
        each = self.encoder_layers * source**2 + self.decoder_layers * (target**2 + source * target)
        return 4.0 * rows * self.heads * each


@dataclass(frozen=True)
class Step:
    """One optimizer step, in seconds, of a chip that waits for nothing else."""

    rows: int
    """Of the global batch."""
    computing: float
    updating: float
    """Gradients, weights and moments through HBM; does not depend on the batch."""
    reducing: float
    """The all-reduce, if nothing of it hides behind the backward pass; does not depend on the batch either."""

    @property
    def seconds(self) -> float:
        return self.computing + self.updating + self.reducing

    @property
    def busy(self) -> float:
        """Share of the step in which the chip computes on its batch."""
        return self.computing / self.seconds


def collective_bytes(parameters: int, chips: int) -> tuple[float, float]:
    """(bytes of float32 gradients to be summed, bytes that each chip sends in a ring for that) in one step."""
    size = 4.0 * parameters
    return size, 2 * (chips - 1) / chips * size


def step(
    model: EncoderDecoder, rows: int, source: int, target: int, *, chips: int = 16, links: float = 0.5, chip: Chip = V4
) -> Step:
    """The step of a global batch on a slice.

    Args:
        links: share of a torus chip's six links that the worst placed chip of the slice has: of 2x2x4, a mesh without
            wrap-around, half.
    """
    _, sent = collective_bytes(model.parameters, chips)
    computing = model.step_flops(rows, source, target) / chips / (REACHED * chip.flops)
    # float32: gradient read twice (norm, update); weight and two moments read and written.
    updating = 4.0 * model.parameters * (2 + 3 * 2) / chip.memory_rate
    return Step(rows, computing, updating, sent / (links * chip.reduce_rate))


def rows_for(model: EncoderDecoder, busy: float, source: int, target: int, *, chips: int = 16) -> int:
    """Fewest rows of a global batch, a multiple of the chips, that keep them busy for that share of a step."""
    rows = chips
    while step(model, rows, source, target, chips=chips).busy < busy:
        rows += chips
    return rows


def tables() -> str:
    """The tables of manifests/TPU.md, as Markdown."""
    model, chips = EncoderDecoder(), 16
    size, sent = collective_bytes(model.parameters, chips)
    lines = [
        f"KoBART's shape, {model.parameters / 1e6:.1f} million parameters, on a v4-32 (2x2x4, 16 chips). Gradients of one "
        f"step: {size / 1e6:,.0f} MB in float32; each chip sends {sent / 1e6:,.0f} MB in the all-reduce.",
        "",
        "| rows a step (a chip) | source + target | computing | update | all-reduce | step | rows/s | busy | attention a chip |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for rows in (64, 128, 256, 512, 1024, 2048):
        s = step(model, rows, 512, 96, chips=chips)
        lines.append(
            f"| {rows} ({rows // chips}) | 512 + 96 | {s.computing * 1e3:.1f} ms | {s.updating * 1e3:.1f} ms | "
            f"{s.reducing * 1e3:.1f} ms | {s.seconds * 1e3:.1f} ms | {rows / s.seconds:,.0f} | {s.busy:.0%} | "
            f"{model.attention_bytes(rows // chips, 512, 96) / 2**30:.1f} GiB |"
        )
    lines += [
        "",
        "| to keep the chips busy | source + target | rows a step (a chip) | `train.batch_tokens` |",
        "|---|---|---|---|",
    ]
    for busy in (0.5, 0.8, 0.9):
        for source, target in ((512, 96), (256, 48)):
            rows = rows_for(model, busy, source, target, chips=chips)
            lines.append(
                f"| {busy:.0%} | {source} + {target} | {rows} ({rows // chips}) | {rows * (source + target):,} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
