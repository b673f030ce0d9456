"""The settings of the steps, except train's."""

from __future__ import annotations

from dataclasses import dataclass

from hanflow.config.fields import REQUIRED, setting

MISSING = ("nan", "NaN", "None", "NaT", "<NA>", "null", "NULL")
"""What pandas, Python and databases write where there is no value."""


@dataclass(frozen=True)
class PreprocessConfig:
    """Raw files to a clean, split corpus."""

    source: str = setting(
        REQUIRED,
        "Raw data: a file, a folder or a glob (csv, tsv, txt, jsonl, parquet, arrow, json; each also .gz or in a .zip), or several with commas between.",
        required=True,
    )
    validation_source: str = setting(
        "", "Raw data of the validation split, same formats; empty: split off from source."
    )
    test_source: str = setting("", "Raw data of the test split, same formats; empty: split off from source.")
    columns: dict = setting(
        {},
        'Raw column of each role, e.g. {"source": "body", "target": "title"}; roles left out are found by their usual names. Numbers from 1 for a table without a header: {"label": 1, "text": 2}.',
    )
    encoding: str = setting(
        "auto",
        "Text encoding of raw files; auto: by byte-order mark, else UTF-8, else CP949 where the file's beginning fits only that.",
    )
    missing: list = setting(
        list(MISSING), "Words that stand for a missing value, spelt exactly so; empty: only what is empty is missing."
    )
    validation_ratio: float = setting(
        0.05,
        "Fraction of the distinct source texts that goes to validation, when no validation_source is given.",
        at_least=0,
        below=1,
    )
    test_ratio: float = setting(
        0.05,
        "Fraction of the distinct source texts that goes to test, when no test_source is given.",
        at_least=0,
        below=1,
    )
    seed: int = setting(42, "Seed of the split.")
    limit_rows: int = setting(
        0, "Read at most this many raw rows of each source (0: all); for a quick trial.", at_least=0
    )
    unicode: str = setting("NFC", "Unicode normalisation of all text.", choices=("NFC", "NFKC", "none"))
    strip_html: bool = setting(
        True, "Remove tags, unescape entities; <br> becomes a space in sources and a new line in targets."
    )
    collapse_whitespace: bool = setting(True, "Runs of spaces become one space, runs of new lines one new line.")
    max_repeats: int = setting(
        0, "Shorten runs of one repeated character (ㅋㅋㅋㅋ) to this many (0: leave them).", at_least=0
    )
    min_source_chars: int = setting(1, "Reject rows whose source text is shorter, in characters.", at_least=0)
    max_source_chars: int = setting(
        0, "Reject rows whose source text is longer, in characters (0: no limit).", at_least=0
    )
    deduplicate: bool = setting(True, "Reject exact duplicates of an earlier row.")
    speaker_format: str = setting(
        "#Person{n}#: ",
        "AI-Hub dialogues: text before each utterance; {n} counts speakers from 1, {id} is the raw speaker id. Empty: nothing.",
    )


@dataclass(frozen=True)
class TokenizeConfig:
    """Corpus to token ids."""

    tokenizer: str = setting(
        "", "Pretrained tokenizer: hub name or folder; empty: train one on the corpus's train split."
    )
    algorithm: str = setting("byte_bpe", "What to train when no tokenizer is given.", choices=("byte_bpe", "unigram"))
    vocabulary_size: int = setting(8000, "Vocabulary of the trained tokenizer, special tokens included.", at_least=300)
    special_tokens: list = setting(
        [], 'Tokens never split, e.g. ["#Person1#", "#PhoneNumber#"]; added to the vocabulary if missing.'
    )
    workers: int = setting(0, "Tokenizer threads (0: one a core).", at_least=0)


@dataclass(frozen=True)
class CombineConfig:
    """Trained models to one that averages their predictions; a step of the ensemble pipeline alone."""

    members: list = setting(
        [],
        'Models that are trained side by side, e.g. [{"name": "rnn", "architecture": {"type": "rnn"}, "epochs": 2}, …]: a name each, and what differs from the settings of train.',
    )
    weights: list = setting(
        [], "How much each member counts in the average, in their order, none negative; empty: all the same."
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """A model's scores on held-out rows."""

    split: str = setting("test", "Which split is scored.", choices=("test", "validation"))
    limit_rows: int = setting(0, "Score at most this many rows (0: all).", at_least=0)
    batch_tokens: int = setting(32768, "Most padded source tokens times beams in one generation batch.", at_least=16)
    earlier: str = setting(
        "", "Another model of the task to score on the same rows: folder of a bundle or of a model; empty: none."
    )
    minimum: dict = setting(
        {}, 'Lowest scores that are good enough to export, e.g. {"rougeL_morpheme": 0.3}; below them export is skipped.'
    )
    maximum: dict = setting({}, 'The same for scores where less is better, e.g. {"perplexity": 40}.')
    untrained: bool = setting(False, "Also score the model as it was before training, on the same rows.")
    examples: int = setting(20, "Examples shown in the report.", at_least=0)


@dataclass(frozen=True)
class ExportConfig:
    """A trained model to a bundle that others can load."""

    formats: list = setting(
        ["auto"],
        "Formats of the bundle: huggingface, ctranslate2; auto: huggingface, and ctranslate2 where the model can be converted.",
        choices=("auto", "huggingface", "ctranslate2"),
    )
    compute_types: list = setting(
        ["float32", "int8"],
        "Arithmetic of the CTranslate2 models, one folder each; int8 takes a quarter of the space.",
        choices=("float32", "int8"),
    )
    check_rows: int = setting(
        8, "Real rows on which every format, reloaded, must give the trained model's outputs.", at_least=1
    )
    title: str = setting("", "Name of the model in its card; empty: the experiment's name.")
    license: str = setting("", "Licence of the weights, for the model card; empty: the card has none.")
    intended_use: str = setting("", "Intended use of the model, for the model card.")
