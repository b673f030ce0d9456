"""TPU slices on GKE: chips, hosts and topology from a generation and a size."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """A generation of TPUs: its names on GKE, and the shape of its slices."""

    label: str
    """Value of the node label `cloud.google.com/gke-tpu-accelerator`."""
    dimensions: int
    """Dimensions of a slice's topology: 3 (v4, v5p) or 2."""
    cores: int
    """What the names count for each chip: v4-32 has 32 cores on 16 chips, v6e-16 has 16 chips."""


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", 3, 2),
    "v5p": Generation("tpu-v5p-slice", 3, 2),
    "v5e": Generation("tpu-v5-lite-podslice", 2, 1),
    "v6e": Generation("tpu-v6e-slice", 2, 1),
}
_ALIASES = {"v5litepod": "v5e"}
_LONGEST_SIDE = 24  # chips, of a three-dimensional slice
_CHIPS_PER_HOST = 4  # of every slice with more than one host
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))


@dataclass(frozen=True)
class Slice:
    """A TPU slice as node labels and resource requests name it."""

    generation: str
    topology: str
    """Chips along each side, e.g. 2x2x4."""
    chips: int
    hosts: int

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts

    @property
    def label(self) -> str:
        """Value of `cloud.google.com/gke-tpu-accelerator`."""
        return GENERATIONS[self.generation].label


def tpu_slice(accelerator: str, topology: str = "") -> Slice:
    """The slice of that name and topology.

    Args:
        accelerator: generation and size (`v4-32`, `v5litepod-16`), or the generation alone with a topology.
        topology: chips along each side (`2x2x4`); empty: the most cubic one of that size.

    Raises:
        ValueError: no such slice exists, or the two contradict each other; names what exists.
    """
    known = ", ".join(GENERATIONS)
    found = re.fullmatch(r"(v[0-9]+[a-z]*)(?:-([0-9]+))?", accelerator.strip().lower())
    if not found:
        raise ValueError(f"expected a TPU such as v4-32 (generations: {known}), found {accelerator!r}")
    generation, size = _ALIASES.get(found[1], found[1]), found[2]
    if generation not in GENERATIONS:
        raise ValueError(f"{accelerator!r}: no such TPU generation; known: {known}")
    kind = GENERATIONS[generation]
    if not topology and size is None:
        raise ValueError(f"{accelerator!r}: add the size, e.g. {generation}-{16 * kind.cores}, or set a topology")
    if topology:
        sides = _sides(topology, generation)
    else:
        chips, rest = divmod(int(size), kind.cores)
        fitting = [] if rest or not chips else [s for s in _shapes(kind.dimensions) if math.prod(s) == chips]
        if not fitting:
            raise ValueError(f"{accelerator}: no slice has that size; {_near(generation, int(size))}")
        sides = min(fitting, key=sum)
    chips = math.prod(sides)
    if size is not None and int(size) != chips * kind.cores:
        counted = "cores, two per chip" if kind.cores == 2 else "chips"
        raise ValueError(
            f"{accelerator} and topology {topology} do not fit: {topology} has {chips} chips, which is "
            f"{generation}-{chips * kind.cores} (the name counts {counted})"
        )
    return Slice(generation, "x".join(map(str, sides)), chips, hosts=max(chips // _CHIPS_PER_HOST, 1))


def _sides(topology: str, generation: str) -> tuple[int, ...]:
    dimensions = GENERATIONS[generation].dimensions
    if not re.fullmatch("x".join(["[0-9]+"] * dimensions), topology):
        example = "2x2x4" if dimensions == 3 else "4x4"
        raise ValueError(f"topology {topology!r}: {generation} slices have {dimensions} sides, e.g. {example}")
    sides = tuple(int(side) for side in topology.split("x"))
    if sides not in _shapes(dimensions):
        if tuple(sorted(sides)) in _shapes(dimensions):
            ordered = "x".join(map(str, sorted(sides)))
            raise ValueError(f"topology {topology}: write the shorter sides first: {ordered}")
        rule = (
            "2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4"
            if dimensions == 3
            else ", ".join("x".join(map(str, shape)) for shape in _FLAT)
        )
        raise ValueError(f"topology {topology}: no {generation} slice has that shape; there are {rule}")
    return sides


def _shapes(dimensions: int) -> list[tuple[int, ...]]:
    if dimensions == 2:
        return list(_FLAT)
    fours = range(4, _LONGEST_SIDE + 1, 4)
    small = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    return [*small, *(s for s in itertools.combinations_with_replacement(fours, 3))]


def _near(generation: str, size: int) -> str:
    kind = GENERATIONS[generation]
    sizes = sorted({math.prod(shape) * kind.cores for shape in _shapes(kind.dimensions)})
    nearest = sorted(sorted(sizes, key=lambda s: abs(s - size))[:3])
    return f"the nearest are {', '.join(f'{generation}-{s}' for s in nearest)}"
