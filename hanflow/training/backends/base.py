"""The interface between the training loop and the device layer, and which layer a run uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from hanflow.config import TrainConfig
from hanflow.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Backend(Protocol):
    """One worker's device and its rank among the workers."""

    device: torch.device
    rank: int
    """Rank among the workers that each compute a part of the loss; their parts are summed by `sum`."""
    world_size: int
    """How many such workers there are; 1 where one program computes on all devices."""
    reader: int
    """Which part of every global batch this process reads."""
    readers: int
    """How many processes split a global batch among them."""
    row_multiple: int
    """Devices that a process's part is split over: its rows are a multiple of them."""
    devices: int
    """Devices that compute, of all processes."""
    precision: str
    """fp32, bf16 or fp16: the arithmetic of the forward pass."""
    static_shapes: bool
    """Whether batches must have exactly their planned shape (a compiler would recompile), or may drop missing rows."""
    traced: bool
    """Whether steps are recorded and compiled as a whole: each has to compute the same, or another graph is compiled."""
    saves_in_background: bool
    """Whether checkpoints are written by a thread while training continues (the CPU is idle then)."""

    @property
    def is_main(self) -> bool:
        """Whether this worker logs and saves."""

    def prepare(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module on the device, ready for `backward`: compiled and replicated over the workers if the settings ask for it."""

    def pin(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch in main memory, where the device can fetch it without waiting."""

    def put(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch on the device."""

    def autocast(self) -> AbstractContextManager:
        """Context of a forward pass in the chosen precision."""

    def accumulate(self, module: torch.nn.Module, last: bool) -> AbstractContextManager:
        """Context of one forward and backward pass; gradients are exchanged in the last of a step only."""

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of a loss, scaled as the precision needs."""

    def gradient_scale(self) -> float:
        """What `backward` has multiplied the gradients by, until `step` undoes it."""

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], clip_norm: float
    ) -> torch.Tensor:
        """Clip the gradients to a global norm (0: do not), take an optimizer step, clear the gradients.

        A step whose gradient is not finite changes nothing.

        Returns:
            The global norm before clipping: float32 scalar on the device, not finite if the step was skipped.
        """

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor from main memory on every device, to be updated there."""

    def settle(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called once before the first step: weights and the optimizer's state are what training begins with."""

    def number(self, value: float) -> Any:
        """A number that differs from step to step as the device takes it: itself, or a float32 tensor of shape (1,)."""

    def flush(self) -> None:
        """Called after a step or a part of one: where operations are only recorded, have the device run them."""

    def on_cpu(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with its weights in main memory: moved there, or a copy that a later call renews."""

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all workers."""

    def sum_of_readers(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes of a tensor in main memory, in main memory."""

    def agree(self, *flags: int) -> tuple[int, ...]:
        """The largest of each flag over all workers, without waiting for the device."""

    def seed(self, *position: int) -> None:
        """Seed dropout from a position: a worker's random numbers follow from where it is, so none need saving."""

    def memory_bytes(self) -> int:
        """Most memory used so far, of the device or, on a CPU, of the process."""

    def state(self) -> dict[str, Any]:
        """Plain data that a resumed run needs (the fp16 scaler's)."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""

    def barrier(self) -> None:
        """Wait for all workers, with a long timeout: one of them may be saving or fetching for longer than `agree` and the
        sums of gradients wait."""

    def close(self) -> None:
        """Leave the group of workers."""


def uses_xla(config: TrainConfig) -> bool:
    """Whether a run with these settings, in this environment, computes through torch_xla."""
    return config.backend == "xla" or (config.backend == "auto" and os.environ.get("PJRT_DEVICE") == "TPU")


def open_backend(config: TrainConfig) -> Backend:
    """The device layer for the settings and this machine.

    Raises:
        UserError: it is not installed, or does not fit the settings.
    """
    if not uses_xla(config):
        from hanflow.training.backends.torch import TorchBackend

        return TorchBackend(config.precision, config.compile)
    try:
        from hanflow.training.backends.xla import XlaBackend
    except ImportError as error:
        raise UserError(
            f"train.backend=xla: torch_xla cannot be imported ({error}); install it in an environment of its own: "
            "pip install 'hanflow[tpu]', or `make test-xla` for one with virtual devices"
        ) from None
    return XlaBackend(config)
