"""The classification pipeline."""

from pipelines.dag import make_pipeline

pipeline = make_pipeline(
    "hanflow-classification",
    "classification",
    "Preprocess, tokenize, train, evaluate and export a Korean text classifier.",
)
