"""The models: made, loaded, fed and scored."""


def register() -> None:
    """Let transformers' Auto classes (AutoConfig, AutoTokenizer, AutoModelFor…) load what our own models saved.

    Imports torch and transformers; may be called any number of times.
    """
    from components.shared.models import cnn, ensemble, ffn, gpt, rnn  # noqa: F401 – each registers its classes
