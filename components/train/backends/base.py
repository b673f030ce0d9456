"""What the training loop asks of the device layer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch


class Backend(Protocol):
    """One worker's device and its place among the workers."""

    device: torch.device
    rank: int
    world_size: int
    precision: str
    """fp32 or bf16: the arithmetic of the forward pass."""
    static_shapes: bool
    """Whether batches must have exactly their planned shape (a compiler would recompile), or may drop missing rows."""

    @property
    def is_main(self) -> bool:
        """Whether this worker logs and saves."""
        ...

    def prepare(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module on the device, its gradients averaged over the workers by `backward`."""
        ...

    def put(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch on the device."""
        ...

    def autocast(self) -> AbstractContextManager:
        """Context of a forward pass in the chosen precision."""
        ...

    def accumulate(self, module: torch.nn.Module, last: bool) -> AbstractContextManager:
        """Context of one forward and backward pass; gradients are exchanged in the last of a step only."""
        ...

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all workers."""
        ...

    def seed(self, *position: int) -> None:
        """Seed dropout from a position: a worker's random numbers follow from where it is, so none need saving."""
        ...

    def barrier(self) -> None:
        """Wait for all workers."""
        ...

    def close(self) -> None:
        """Leave the group of workers."""
        ...
