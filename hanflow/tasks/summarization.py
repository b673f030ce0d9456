"""Summarization: a source text to a shorter target text, by an encoder-decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hanflow.config import EvaluateConfig, PreprocessConfig, TokenizeConfig, TrainConfig
from hanflow.tasks.common import CommonTask, check_length
from hanflow.tasks.data import Column, Predictions, Rejected
from hanflow.text.encoding import plain_text
from hanflow.text.normalize import clean_text

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hanflow.generation import Generator
    from hanflow.progress import Progress

_SENTENCE = re.compile(r"(?<=[.!?。…])\s+|\n+")

_EXAMPLE = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("huggingface")  # this folder
model = AutoModelForSeq2SeqLM.from_pretrained("huggingface")
text = "요약할 글을 여기에 넣습니다." + tokenizer.eos_token  # it was trained with the end of sequence on its sources
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
output = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
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
text = "요약할 글을 여기에 넣습니다." + tokenizer.eos_token
tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
output = tokenizer.convert_tokens_to_ids(model.translate_batch([tokens], **search)[0].hypotheses[0])
frame = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
print(tokenizer.decode([token for token in output if token not in frame]))"""


class Summarization(CommonTask):
    """See `hanflow.tasks.base.Task` for the meaning of every member."""

    name = "summarization"
    columns = (
        Column("source", ("news", "article", "dialogue", "document", "source", "body")),
        Column("target", ("summary", "script", "abstractive", "target", "title")),
        Column("id", ("fname", "id"), required=False),
        Column("topic", ("topic",), required=False),
    )
    text_roles = ("source", "target")
    input_role = "source"
    split_role = "source"
    sequences = ("source", "target")
    generates = True
    labels = False
    packs = False
    verb = "Summarize"
    best_metric = "rougeL_morpheme"
    rank_by = "rougeL_morpheme"
    shown_measures = ("rouge1_morpheme", "rouge2_morpheme", "rougeL_morpheme", "rougeLsum_morpheme")

    def clean(self, row: Mapping[str, str], config: PreprocessConfig) -> dict[str, str]:
        source = self.clean_input(row["source"], config)
        target = clean_text(row["target"], config, br="\n")
        if not source:
            raise Rejected("the source text is empty")
        if not target:
            raise Rejected("the summary is empty")
        check_length("source text", source, config)
        if config.drop_short_sources and len(source) <= len(target):
            raise Rejected("the source text is no longer than its summary")
        return {"source": source, "target": target, "id": row.get("id", ""), "topic": row.get("topic", "")}

    def longest(self, config: TokenizeConfig) -> dict[str, int]:
        return {"source": config.max_source_tokens, "target": config.max_target_tokens}

    def models(self) -> ModuleType:
        from hanflow.models import bart

        return bart

    def new_model(
        self, config: TrainConfig, tokenizer: PreTrainedTokenizerBase, facts: Mapping[str, Any]
    ) -> PreTrainedModel:
        from hanflow.loading import initial

        return initial.encoder_decoder(config, tokenizer)

    def positions(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        return {"max_source_tokens": lengths[:, 0], "max_target_tokens": lengths[:, 1]}

    def predictor(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: EvaluateConfig,
        *,
        scoring: bool = False,
    ) -> Summarizer:
        from hanflow.generation import Generator

        return Summarizer(Generator.of(model, tokenizer, config.engine, config.compute_type), config)

    def open_predictor(self, folder: str, config: EvaluateConfig, *, scoring: bool = False) -> Summarizer:
        from hanflow.generation import Generator

        return Summarizer(Generator.open(folder, self.load_model, config.engine, config.compute_type), config)

    def references(self, rows: Mapping[str, Sequence[str]]) -> list[str]:
        return list(rows["target"])

    def reference_of(
        self, row: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> str:
        return plain_text(row[1][:-1], tokenizer)

    def baselines(
        self, rows: Mapping[str, Sequence[str]], config: EvaluateConfig, facts: Mapping[str, Any]
    ) -> dict[str, Predictions]:
        leads = [lead(text, config.lead_sentences) for text in rows["source"]]
        return {f"lead-{config.lead_sentences}": Predictions(leads)}

    def score(self, predictions: Predictions, references: Sequence[str]) -> dict[str, np.ndarray]:
        from hanflow.metrics import rouge

        return rouge.f1_rows(predictions.texts, references, "morpheme", rouge.VARIANTS)

    def overall(self, measures: Mapping[str, np.ndarray]) -> dict[str, float]:
        from hanflow.metrics import rouge

        means = {name: float(values.mean()) if len(values) else 0.0 for name, values in measures.items()}
        return means | {"rouge_sum": sum(means[f"{variant}_morpheme"] for variant in rouge.USUAL)}

    def describe(
        self, rows: Mapping[str, Sequence[str]], predictions: Predictions, references: Sequence[str]
    ) -> dict[str, np.ndarray]:
        from hanflow.metrics import summarization as summaries

        return summaries.describe(rows["source"], predictions.texts, references, predictions.measures.get("cut"))

    def prepare_export(self, model: PreTrainedModel, config: EvaluateConfig) -> None:
        from hanflow.generation import GenerationOptions, generation_config

        model.generation_config = generation_config(model, GenerationOptions.of(config))

    def card(self) -> dict[str, Any]:
        return {
            "pipeline_tag": "summarization",
            "auto_class": "AutoModelForSeq2SeqLM",
            "example": _EXAMPLE,
            "ctranslate2_example": _CTRANSLATE2_EXAMPLE,
        }


class Summarizer:
    """A generator with its search, see `hanflow.tasks.predictor.Predictor`."""

    adjusts = ("beams", "max_new_tokens", "min_new_tokens", "length_penalty", "no_repeat_ngram")

    def __init__(self, generator: Generator, config: EvaluateConfig):
        from hanflow.generation import GenerationOptions

        self.generator, self.options = generator, GenerationOptions.of(config)
        self.tokenizer, self.description = generator.tokenizer, generator.description

    def __call__(self, rows: Sequence[Sequence[np.ndarray]], progress: Progress | None = None) -> Predictions:
        import numpy as np

        found = self.generator.search([row[0] for row in rows], self.options, progress)
        end = self.generator.engine.special["eos_token_id"]
        cut = np.array([not ids or ids[-1] != end for ids in found], dtype=np.float64)
        return Predictions(self.generator.decode(found, self.options.remove_tokens), measures={"cut": cut})

    def with_settings(self, config: EvaluateConfig) -> Summarizer:
        """The same model with another search; nothing is loaded again."""
        return Summarizer(self.generator, config)


def lead(text: str, sentences: int) -> str:
    """The first sentences of a text: the baseline that every summarizer has to beat."""
    return " ".join(part for part in _SENTENCE.split(text.strip(), maxsplit=sentences)[:sentences] if part)
