"""Summarization: a source text to a shorter target text, by an encoder-decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hanflow.config import PreprocessConfig, SearchConfig, TrainConfig
from hanflow.config.fields import setting
from hanflow.data.schema import Column, RejectedRow
from hanflow.tasks.base import Config, Task, TextTokenizeConfig, check_length
from hanflow.tasks.data import Facts, Measures, Metric, Predictions, Rows, ShardRow
from hanflow.tasks.predictor import Predictor
from hanflow.text.encoding import plain_text
from hanflow.text.normalize import clean_text

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from hanflow.generation import Generator
    from hanflow.progress import Progress

_SENTENCE = re.compile(r"(?<=[.!?。…])\s+|\n+")

_EXAMPLE = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("huggingface")  # this folder
model = AutoModelForSeq2SeqLM.from_pretrained("huggingface")
inputs = tokenizer("요약할 글을 여기에 넣습니다.", truncation=True, return_tensors="pt")
output = model.generate(**inputs)
# Not skip_special_tokens: some tokenizers (KoBART's) mark emojis special, which belong to the text.
frame = {model.config.decoder_start_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
print(tokenizer.decode([token for token in output[0].tolist() if token not in frame]))"""

_CTRANSLATE2_EXAMPLE = """\
import json
import ctranslate2
from transformers import AutoTokenizer

folder = "ctranslate2/float32"  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = ctranslate2.Translator(folder, compute_type="default")
search = json.load(open(f"{folder}/config.json", encoding="utf-8"))["hanflow"]["search"]  # as it was scored
tokens = tokenizer.convert_ids_to_tokens(tokenizer("요약할 글을 여기에 넣습니다.", truncation=True)["input_ids"])
output = tokenizer.convert_tokens_to_ids(model.translate_batch([tokens], **search)[0].hypotheses[0])
frame = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
print(tokenizer.decode([token for token in output if token not in frame]))"""


@dataclass(frozen=True)
class SummarizationPreprocess(PreprocessConfig):
    """Pairs of a text and its summary, clean and split."""

    drop_short_sources: bool = setting(True, "Reject rows whose source is no longer than its summary.")


@dataclass(frozen=True)
class SummarizationTokenize(TextTokenizeConfig):
    """Token ids of texts and their summaries."""

    max_target_tokens: int = setting(
        100, "Longest target, in tokens, end-of-sequence included; longer ones are truncated.", at_least=2
    )


@dataclass(frozen=True)
class SummarizationTrain(TrainConfig):
    """Shards to a trained summarizer."""

    validation_beams: int = setting(
        1, "Beams of the search when rows are scored at a validation (1: greedy).", at_least=1
    )


@dataclass(frozen=True)
class SummarizationEvaluate(SearchConfig):
    """A summarizer's scores on held-out rows."""

    lead_sentences: int = setting(1, "Sentences that the lead baseline copies.", at_least=1)


class Summarization(Task):
    """See `hanflow.tasks.base.Task` for the meaning of every attribute and method."""

    name = "summarization"
    settings: Mapping[str, type] = {
        "preprocess": SummarizationPreprocess,
        "tokenize": SummarizationTokenize,
        "train": SummarizationTrain,
        "evaluate": SummarizationEvaluate,
    }
    headline: Mapping[str, str] = {
        "max_source_tokens": "tokenize.max_source_tokens",
        "max_target_tokens": "tokenize.max_target_tokens",
    }
    columns = (
        Column("source", ("news", "article", "dialogue", "document", "source", "body"), text=True, input=True),
        Column("target", ("summary", "script", "abstractive", "target", "title"), text=True),
        Column("id", ("fname", "id"), required=False),
        Column("topic", ("topic",), required=False),
    )
    sequences = ("source", "target")
    generates = True
    verb = "Summarize"
    metrics = (
        Metric("rougeL_morpheme", decides=True, ranks_rows=True, shown=True),
        Metric("rouge1_morpheme", shown=True),
        Metric("rouge2_morpheme", shown=True),
        Metric("rougeLsum_morpheme", shown=True),
        Metric("rouge_sum"),
    )

    def check_settings(self, config: Config) -> list[str]:
        if config.engine == "transformers" and config.compute_type != "float32":
            return [
                f"evaluate.compute_type={config.compute_type} needs CTranslate2: set evaluate.engine=ctranslate2, or leave "
                "it auto"
            ]
        return []

    def clean(self, row: Mapping[str, str], config: Config) -> dict[str, str]:
        source = self.clean_input(row["source"], config)
        target = clean_text(row["target"], config, br="\n")
        if not source:
            raise RejectedRow("the source text is empty")
        if not target:
            raise RejectedRow("the summary is empty")
        check_length("source text", source, config)
        if config.drop_short_sources and len(source) <= len(target):
            raise RejectedRow("the source text is no longer than its summary")
        return {"source": source, "target": target, "id": row.get("id", ""), "topic": row.get("topic", "")}

    def validation_settings(self, config: Config, longest: int, batch_tokens: int) -> SummarizationEvaluate:
        return SummarizationEvaluate(
            beams=config.validation_beams, max_new_tokens=longest, batch_tokens=batch_tokens, engine="transformers"
        )

    def copies(self, config: Config) -> int:
        return config.beams

    def longest(self, config: Config) -> dict[str, int]:
        return {"source": config.max_source_tokens, "target": config.max_target_tokens}

    def models(self) -> ModuleType:
        from hanflow.models import bart

        return bart

    def new_model(self, config: Config, tokenizer: Tokenizer, facts: Facts) -> PreTrainedModel:
        from hanflow.loading import initial

        return initial.encoder_decoder(config, tokenizer)

    def positions(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        return {"max_source_tokens": lengths[:, 0], "max_target_tokens": lengths[:, 1]}

    def predictor(
        self, model: PreTrainedModel, tokenizer: Tokenizer, config: Config, *, scoring: bool = False
    ) -> Summarizer:
        from hanflow.generation import Generator

        return Summarizer(Generator.of(model, tokenizer, config.engine, config.compute_type), config)

    def open_predictor(self, folder: str, config: Config, *, scoring: bool = False) -> Summarizer:
        from hanflow.generation import Generator

        return Summarizer(Generator.open(folder, self.load_model, config.engine, config.compute_type), config)

    def references(self, rows: Rows) -> list[str]:
        return list(rows["target"])

    def reference_of(self, row: ShardRow, tokenizer: Tokenizer, model: PreTrainedModel) -> str:
        return plain_text(row[1][:-1], tokenizer)

    def baselines(self, rows: Rows, config: Config, facts: Facts) -> dict[str, Predictions]:
        leads = [lead(text, config.lead_sentences) for text in rows["source"]]
        return {f"lead-{config.lead_sentences}": Predictions(leads)}

    def score(self, predictions: Predictions, references: Sequence[str]) -> dict[str, np.ndarray]:
        from hanflow.metrics import rouge

        return rouge.f1_rows(predictions.texts, references, "morpheme", rouge.VARIANTS)

    def overall(self, measures: Measures) -> dict[str, float]:
        from hanflow.metrics import rouge

        means = {name: float(values.mean()) if len(values) else 0.0 for name, values in measures.items()}
        return means | {"rouge_sum": sum(means[f"{variant}_morpheme"] for variant in rouge.USUAL)}

    def describe(self, rows: Rows, predictions: Predictions, references: Sequence[str]) -> dict[str, np.ndarray]:
        from hanflow.metrics import summarization as summaries

        return summaries.describe(rows["source"], predictions.texts, references, predictions.measures.get("cut"))

    def reference_settings(self, config: Config) -> Config:
        return replace(config, engine="transformers", compute_type="float32")

    def prepare_export(self, model: PreTrainedModel, config: Config) -> None:
        from hanflow.generation import generation_config

        model.generation_config = generation_config(model, config)

    def card(self) -> dict[str, Any]:
        return {
            "pipeline_tag": "summarization",
            "auto_class": "AutoModelForSeq2SeqLM",
            "example": _EXAMPLE,
            "ctranslate2_example": _CTRANSLATE2_EXAMPLE,
        }


class Summarizer(Predictor):
    """A generator with its search."""

    adjusts = ("beams", "max_new_tokens", "min_new_tokens", "length_penalty", "no_repeat_ngram")

    def __init__(self, generator: Generator, config: Config):
        self.generator, self.options = generator, config
        self.tokenizer, self.description = generator.tokenizer, generator.description

    def __call__(self, rows: Sequence[ShardRow], progress: Progress | None = None) -> Predictions:
        import numpy as np

        found = self.generator.search([row[0] for row in rows], self.options, progress)
        end = self.generator.engine.special["eos_token_id"]
        cut = np.array([not ids or ids[-1] != end for ids in found], dtype=np.float64)
        return Predictions(self.generator.decode(found, self.options.remove_tokens), measures={"cut": cut})

    def with_settings(self, config: Config) -> Summarizer:
        return Summarizer(self.generator, config)


def lead(text: str, sentences: int) -> str:
    """The first sentences of a text: the baseline that every summarizer has to beat."""
    return " ".join(part for part in _SENTENCE.split(text.strip(), maxsplit=sentences)[:sentences] if part)
