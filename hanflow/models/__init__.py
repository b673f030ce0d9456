"""Networks: their architectures, batches and losses. Weights are read and written elsewhere (`hanflow.loading`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def register() -> None:
    """Register our own models with transformers' Auto classes (AutoConfig, AutoTokenizer, AutoModelFor…).

    Imports torch and transformers; may be called any number of times.
    """
    from hanflow.models import cnn, ensemble, ffn, gpt, rnn  # noqa: F401  (each registers its own)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """A model in evaluation mode and without gradients; its own mode is restored at the end."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
