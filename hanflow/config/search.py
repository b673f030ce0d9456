"""The settings of tasks that generate texts: by beam search, or by sampling."""

from __future__ import annotations

from dataclasses import dataclass

from hanflow.config.fields import setting
from hanflow.config.steps import EvaluateConfig


@dataclass(frozen=True)
class SearchConfig(EvaluateConfig):
    """A model's scores on held-out rows, for which it generates texts."""

    beams: int = setting(4, "Beams of the search (1: greedy).", at_least=1)
    max_new_tokens: int = setting(100, "Longest generated text, in tokens.", at_least=1)
    min_new_tokens: int = setting(0, "Shortest generated text, in tokens.", at_least=0)
    length_penalty: float = setting(1.0, "Exponent of the length in the beam's score.")
    no_repeat_ngram: int = setting(0, "Never generate the same n-gram of tokens twice (0: allowed).", at_least=0)
    remove_tokens: list = setting(
        [], 'Tokens deleted from generated texts, e.g. ["<usr>"]; begin, end and padding always are.'
    )
    engine: str = setting(
        "auto",
        "What generates; auto: CTranslate2 on a CPU for models that it can run (BART), else transformers. Same texts in float32.",
        choices=("auto", "transformers", "ctranslate2"),
    )
    compute_type: str = setting(
        "float32",
        "Arithmetic of generation; int8 is faster, its texts differ a little, and it needs CTranslate2.",
        choices=("float32", "int8"),
    )


@dataclass(frozen=True)
class SamplingConfig(EvaluateConfig):
    """A language model's scores on held-out documents, and how it continues texts."""

    max_new_tokens: int = setting(100, "Longest continuation, in tokens.", at_least=1)
    greedy: bool = setting(False, "Continue with the likeliest token, without sampling.")
    temperature: float = setting(
        1.0, "Divides the scores before a token is sampled; below 1 favours likely tokens.", above=0
    )
    top_k: int = setting(0, "Only the k likeliest tokens can be sampled (0: all).", at_least=0)
    top_p: float = setting(
        1.0, "Only the likeliest tokens that together have this probability (1: all).", above=0, at_most=1
    )
    with_prompt: bool = setting(False, "Write the text that is continued before its continuation.")
