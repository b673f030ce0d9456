"""Language modelling: the next token of a text, by a GPT decoder or a feed-forward network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hanflow.config import SamplingConfig, TokenizeConfig
from hanflow.config.fields import setting
from hanflow.data.schema import Column, RejectedRow
from hanflow.progress import log
from hanflow.tasks.base import Config, Task, check_length
from hanflow.tasks.data import Encoded, Facts, Measures, Metric, Predictions, Rest, Rows, ShardRow
from hanflow.tasks.predictor import ModelPredictor
from hanflow.text.encoding import continuation, plain_ids, plain_text
from hanflow.text.normalize import clean_text

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from hanflow.progress import Progress

_EXAMPLE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

from hanflow.models import register  # of hanflow: the architectures that are not in transformers

register()
tokenizer = AutoTokenizer.from_pretrained("huggingface")  # this folder
model = AutoModelForCausalLM.from_pretrained("huggingface").eval()
inputs = tokenizer("이 영화는", return_tensors="pt")  # the end token of the document before comes first
output = model.generate(**inputs, max_new_tokens=40, do_sample=True, top_p=0.9)
print(tokenizer.decode(output[0][1:]))"""


@dataclass(frozen=True)
class LanguageModelingTokenize(TokenizeConfig):
    """Chunks of token ids, filled with documents one after the other."""

    chunk_tokens: int = setting(256, "Documents are packed into chunks of this many tokens.", at_least=8)


class LanguageModeling(Task):
    """See `hanflow.tasks.base.Task` for the meaning of every attribute and method."""

    name = "language_modeling"
    settings: Mapping[str, type] = {"tokenize": LanguageModelingTokenize, "evaluate": SamplingConfig}
    headline: Mapping[str, str] = {
        "chunk_tokens": "tokenize.chunk_tokens",
        "vocabulary_size": "tokenize.vocabulary_size",
    }
    columns = (
        Column("text", ("text", "document", "review", "content", "sentence", "body", "news"), text=True, input=True),
        Column("id", ("id",), required=False),
    )
    sequences = ("tokens",)
    packs = True
    verb = "Continue"
    metrics = (
        Metric("loss", better="lower", decides=True),
        Metric("perplexity", better="lower"),
        Metric("bits_per_byte", better="lower"),
        Metric("log_probability_per_token", ranks_rows=True, shown=True),
        Metric("tokens", shown=True),
    )

    def clean(self, row: Mapping[str, str], config: Config) -> dict[str, str]:
        text = self.clean_input(row["text"], config)
        if not text:
            raise RejectedRow("the text is empty")
        check_length("text", text, config)
        return {"text": text, "id": row.get("id", "")}

    def clean_input(self, text: str, config: Config) -> str:
        return clean_text(text, config, br="\n")

    def longest(self, config: Config) -> dict[str, int]:
        return {"tokens": config.chunk_tokens + 1}

    def encode(
        self, rows: Rows, tokenizer: Tokenizer, config: Config, facts: Facts, rest: Rest | None = None
    ) -> Encoded:
        """One row a chunk, not a document: see `hanflow.models.causal_lm`."""
        plain = plain_ids(rows["text"], tokenizer)
        end = tokenizer.eos_token_id
        stream = rest["tokens"].copy() if rest else [end]
        for ids in plain:
            stream += ids
            stream.append(end)
        size = config.chunk_tokens
        whole = (len(stream) - 1) // size * size
        chunks = [stream[at : at + size + 1] for at in range(0, whole, size)]
        # The last token of a chunk is the first of the next one.
        left = {"tokens": stream[whole:]}
        return Encoded({"tokens": chunks}, {}, sum(map(len, plain)), sum(map(len, rows["text"])), len(plain), left)

    def frame(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """The end token of the document before, and nothing: a text to be continued has not ended."""
        return [tokenizer.eos_token_id], []

    def models(self) -> ModuleType:
        from hanflow.models import causal_lm

        return causal_lm

    def new_model(self, config: Config, tokenizer: Tokenizer, facts: Facts) -> PreTrainedModel:
        from hanflow.loading import initial

        return initial.language_model(config, tokenizer)

    def positions(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        return {"chunk_tokens": lengths[:, 0] - 1}

    def targets(self, lengths: np.ndarray) -> np.ndarray:
        return lengths[:, 0] - 1

    def predictor(
        self, model: PreTrainedModel, tokenizer: Tokenizer, config: Config, *, scoring: bool = False
    ) -> LikelihoodPredictor | ContinuationPredictor:
        return (LikelihoodPredictor if scoring else ContinuationPredictor)(model, tokenizer, config)

    def references(self, rows: Rows) -> list[str]:
        return list(rows["text"])

    def reference_of(self, row: ShardRow, tokenizer: Tokenizer, model: PreTrainedModel) -> str:
        ids = row[0][1:]
        return plain_text(ids[ids != tokenizer.eos_token_id], tokenizer)  # the separator of documents is no text

    def score(self, predictions: Predictions, references: Sequence[str]) -> dict[str, np.ndarray]:
        import numpy as np

        nats = predictions.measures.get("nats", np.zeros(0))
        tokens = predictions.measures.get("tokens", np.zeros(0))
        return {
            "log_probability_per_token": -nats / np.maximum(tokens, 1),
            "nats": nats,
            "tokens": tokens,
            "bytes": np.array([len(text.encode("utf-8", "replace")) for text in references], dtype=np.float64),
        }

    def overall(self, measures: Measures) -> dict[str, float]:
        """`loss`, nats a token; `perplexity`, its exponential; `bits_per_byte` of the UTF-8 text, which does not depend
        on the tokenizer (Gao et al., 2020, section 3.1)."""
        nats, tokens, size = (float(measures[name].sum()) for name in ("nats", "tokens", "bytes"))
        loss = nats / max(tokens, 1.0)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": nats / math.log(2) / max(size, 1.0),
        }

    def card(self) -> dict[str, Any]:
        return {"pipeline_tag": "text-generation", "auto_class": "AutoModelForCausalLM", "example": _EXAMPLE}


class LikelihoodPredictor(ModelPredictor):
    """The negative log-likelihood of texts: `measures` are `nats` and `tokens` of
    each, the end of the text included; `texts` are empty.

    A text longer than the model's context is computed piece by piece, each without the context of the one before.
    """

    ends = True  # a row is a whole text, after which the end token is predicted too

    def for_chunks(self) -> LikelihoodPredictor:
        chunks = LikelihoodPredictor(self.model, self.tokenizer, self.config)
        chunks.ends = False
        return chunks

    def __call__(self, rows: Sequence[ShardRow], progress: Progress | None = None) -> Predictions:
        import numpy as np

        from hanflow.data.batches import batches
        from hanflow.models import causal_lm, evaluating

        context = getattr(self.model.config, "max_position_embeddings", None) or 1024
        end = np.array([self.tokenizer.eos_token_id], dtype=np.int32)
        pieces = []  # (row, tokens): neighbours share a token, so that each is predicted once
        for number, (tokens, *_) in enumerate(rows):
            ended = not self.ends or (len(tokens) > 1 and tokens[-1] == end[0])
            whole = tokens if ended else np.concatenate([tokens, end])
            pieces += [(number, whole[at : at + context + 1]) for at in range(0, len(whole) - 1, context)]
        nats, counts = np.zeros(len(rows)), np.zeros(len(rows))
        with evaluating(self.model):
            for batch in batches([len(piece) for _, piece in pieces], self.config.batch_tokens):
                found = causal_lm.row_losses(self.model, [pieces[at][1] for at in batch])
                for at, value in zip(batch, found, strict=True):
                    number, piece = pieces[at]
                    nats[number] += value
                    counts[number] += len(piece) - 1
                    if progress is not None and len(piece) < context + 1:
                        progress.update(1)
        return Predictions([""] * len(rows), measures={"nats": nats, "tokens": counts})


class ContinuationPredictor(ModelPredictor):
    """Continuations of texts."""

    adjusts = ("max_new_tokens", "greedy", "temperature", "top_k", "top_p", "with_prompt")

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, config: Config):
        super().__init__(model, tokenizer, config)
        context = getattr(model.config, "max_position_embeddings", None)
        longest = config.max_new_tokens
        if context is not None and longest >= context:
            log.warning("max_new_tokens=%d is cut to %d: the model's context is %d", longest, context - 1, context)
            longest = context - 1
        self.options = replace(config, max_new_tokens=longest)

    def __call__(self, rows: Sequence[ShardRow], progress: Progress | None = None) -> Predictions:
        from hanflow.generation import sampling

        found = sampling.generate(self.model, [row[0] for row in rows], self.options)
        if progress is not None:
            progress.update(len(rows))
        prompts = [row[0][1:].tolist() for row in rows]  # without the end token of the document before
        texts = [continuation(prompt, ids.tolist(), self.tokenizer) for prompt, ids in zip(prompts, found, strict=True)]
        if self.config.with_prompt:
            texts = [plain_text(prompt, self.tokenizer) + text for prompt, text in zip(prompts, texts, strict=True)]
        return Predictions(texts)
