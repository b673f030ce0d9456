"""The pipeline of any installed task: what is learnt is one of its parameters."""

from pipelines.dag import make_pipeline

pipeline = make_pipeline(
    "hanflow-any-task", "", "Preprocess, tokenize, train, evaluate and export a model of any installed task."
)
