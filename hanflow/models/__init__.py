"""Networks: their architectures, batches and losses. Weights are read and written elsewhere (`hanflow.loading`)."""

import importlib


def register() -> None:
    """Let transformers' Auto classes (AutoConfig, AutoTokenizer, AutoModelFor…) load what our own models saved.

    Imports torch and transformers; may be called any number of times.
    """
    for module in ("cnn", "ensemble", "ffn", "gpt", "rnn"):
        importlib.import_module(f"hanflow.models.{module}")
