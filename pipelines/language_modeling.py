"""The language_modeling pipeline."""

from pipelines.dag import make_pipeline

pipeline = make_pipeline(
    "hanflow-language-modeling",
    "language_modeling",
    "Preprocess, tokenize, train, evaluate and export a Korean language model.",
)
