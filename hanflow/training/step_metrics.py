"""Training figures, summed on the device; read, which waits for the device, only when they are logged."""

from __future__ import annotations

import time

import torch

from hanflow.training.backends.base import Backend
from hanflow.training.state import LoopState


class StepMetrics:
    """Figures of the optimizer steps since the last logged one.

    Args:
        backend: where the sums are kept.
        state: of a resumed run: its open sums are continued; `save_to` stores them there.
    """

    def __init__(self, backend: Backend, state: LoopState):
        self._backend = backend
        # Sums are of all ranks together; a resumed sum is that already, so only one rank adds it.
        self._begin(state.window.get("loss", 0.0) if backend.rank == 0 else 0.0, state.window.get("targets", 0.0))
        self._skipped = backend.send(torch.tensor([state.skipped]))
        self._in_row = backend.send(torch.tensor([state.skipped_in_row]))
        self._tokens = int(state.window.get("tokens", 0))
        self._timed_tokens = 0  # of this process: a resumed run's clock starts again
        self._started = time.perf_counter()
        self._paused = 0.0

    def add(self, loss: torch.Tensor, norm: torch.Tensor, targets: int, tokens: int) -> None:
        """One optimizer step.

        Args:
            loss: this rank's sum of the loss over its target tokens, on the device.
            norm: the gradient's global norm, on the device; not finite means that the step was skipped.
            targets: target tokens of all ranks.
            tokens: real tokens of all ranks.
        """
        good = torch.isfinite(norm) & torch.isfinite(loss)
        self._loss += torch.where(good, loss, 0.0)
        self._targets += good * self._backend.number(targets)
        self._skipped += ~torch.isfinite(norm)
        self._in_row = torch.where(torch.isfinite(norm), 0, self._in_row + 1)
        self._tokens += tokens
        self._timed_tokens += tokens

    def pause(self, seconds: float) -> None:
        """Leave time that was not training (a validation, a save) out of the speed."""
        self._paused += seconds

    def close(self, state: LoopState, *, epoch: float, rate: float, norm: torch.Tensor) -> dict[str, float]:
        """The figures since the last call; counts of skipped steps are stored in the state."""
        loss, targets = self._sums()  # waits for the device
        seconds = time.perf_counter() - self._started - self._paused
        state.skipped, state.skipped_in_row = int(self._skipped), int(self._in_row)
        figures = {
            "step": state.step,
            "epoch": round(epoch, 6),
            "loss": loss / targets if targets else float("nan"),
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "tokens": self._tokens,
            "tokens_per_second": self._timed_tokens / max(seconds, 1e-9),
            "memory_gb": self._backend.memory_bytes() / 1e9,
            "skipped_steps": state.skipped,
        }
        self._begin(0.0, 0.0)
        self._tokens, self._timed_tokens, self._started, self._paused = 0, 0, time.perf_counter(), 0.0
        return figures

    def save_to(self, state: LoopState) -> None:
        """Store the open sums in the state."""
        loss, targets = self._sums()
        state.window = {"loss": loss, "targets": targets, "tokens": self._tokens}
        state.skipped, state.skipped_in_row = int(self._skipped), int(self._in_row)

    def _begin(self, loss: float, targets: float) -> None:
        # float64: a sum over many steps must not depend on where a resumption cut it in two. Sent, and of one dimension:
        # a traced device would make constants of its graph of values made there, and of numbers without dimension.
        self._loss = self._backend.send(torch.tensor([loss], dtype=torch.float64))
        self._targets = self._backend.send(torch.tensor([targets], dtype=torch.float64))

    def _sums(self) -> tuple[float, float]:
        return float(self._backend.sum(self._loss)), float(self._targets)


def gradient_norms(model: torch.nn.Module, scale: float) -> dict[str, torch.Tensor]:
    """Norm of the gradient of each layer: float32 scalars on the device.

    A layer is an item of a numbered list (`model.encoder.layers.3`), or else the module that holds the parameter.

    Args:
        scale: what the gradients have been multiplied by (`Backend.gradient_scale`).
    """
    grads: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grads.setdefault(_layer(name), []).append(parameter.grad)
    norms = {
        layer: torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))) for layer, tensors in grads.items()
    }
    return norms if scale == 1.0 else {layer: norm / scale for layer, norm in norms.items()}


def _layer(name: str) -> str:
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ".".join(parts[:-1]) or name
