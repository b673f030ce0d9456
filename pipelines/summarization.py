"""The summarization pipeline."""

from pipelines.dag import make_pipeline

pipeline = make_pipeline(
    "hanflow-summarization",
    "summarization",
    "Preprocess, tokenize, train, evaluate and export a Korean summarization model.",
)
