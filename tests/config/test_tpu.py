"""TPU slices: chips, hosts and shapes as GKE has them."""

from __future__ import annotations

import pytest

from hanflow.config.tpu import tpu_slice


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "hosts", "shape", "label"),
    [
        ("v4-32", "", 16, 4, "2x2x4", "tpu-v4-podslice"),
        ("v4", "2x2x4", 16, 4, "2x2x4", "tpu-v4-podslice"),
        ("v4-32", "2x2x4", 16, 4, "2x2x4", "tpu-v4-podslice"),
        ("v4-8", "", 4, 1, "2x2x1", "tpu-v4-podslice"),
        ("v4-64", "", 32, 8, "2x4x4", "tpu-v4-podslice"),
        ("v4-256", "", 128, 32, "4x4x8", "tpu-v4-podslice"),
        ("v4", "4x4x16", 256, 64, "4x4x16", "tpu-v4-podslice"),
        ("v5p-16", "", 8, 2, "2x2x2", "tpu-v5p-slice"),
        ("v5litepod-16", "", 16, 4, "4x4", "tpu-v5-lite-podslice"),
        ("v5e-1", "", 1, 1, "1x1", "tpu-v5-lite-podslice"),
        ("v6e-256", "", 256, 64, "16x16", "tpu-v6e-slice"),
    ],
)
def test_chips_hosts_and_shape(accelerator: str, topology: str, chips: int, hosts: int, shape: str, label: str) -> None:
    found = tpu_slice(accelerator, topology)
    assert (found.chips, found.hosts, found.topology) == (chips, hosts, shape)
    assert found.label == label
    assert found.chips_per_host * found.hosts == chips
    assert tpu_slice(found.generation, found.topology) == found


@pytest.mark.parametrize(
    ("accelerator", "topology", "said"),
    [
        ("v4-32", "2x2x2", "8 chips, which is v4-16"),
        ("v4-16", "2x2x4", "16 chips, which is v4-32 (the name counts cores, two per chip)"),
        ("v4-31", "", "the nearest are v4-8, v4-16, v4-32"),
        ("v4-4", "", "no slice has that size"),
        ("v4-0", "", "no slice has that size"),
        ("v4", "", "add the size, e.g. v4-32"),
        ("v4-32", "4x2x2", "write the shorter sides first: 2x2x4"),
        ("v4", "2x2x3", "there are 2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4"),
        ("v4-32", "4x4", "v4 slices have 3 sides, e.g. 2x2x4"),
        ("v5e", "2x2x4", "v5e slices have 2 sides"),
        ("v5e", "2x8", "no v5e slice has that shape"),
        ("v9-8", "", "known: v4, v5p, v5e, v6e"),
        ("nvidia-l4", "", "expected a TPU such as v4-32"),
        ("", "2x2x4", "expected a TPU such as v4-32"),
        ("v4-32", "2x2xx4", "v4 slices have 3 sides"),
    ],
)
def test_what_does_not_exist_is_reported(accelerator: str, topology: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        tpu_slice(accelerator, topology)
    assert said in str(caught.value)
