"""The evaluate step as a Kubeflow component."""

from kfp import dsl

from hanflow import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def evaluate(
    task: str,
    model: str,
    shards: str,
    corpus: str,
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    classification_metrics: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    settings: dict = {},  # noqa: B006, Kubeflow copies it
) -> str:
    """Score a model, trivial baselines and, if wanted, the untrained model on the same held-out rows.

    Args:
        task: What is learnt.
        model: URI of the model artifact.
        shards: URI of the shards artifact.
        corpus: URI of the corpus artifact.
        evaluation: Scores, every prediction, and the report.
        metrics: The trained model's scores, and the best ones of the other systems.
        classification_metrics: The confusion matrix, where predictions are classes.
        report: Scores, curves, lengths and examples as a page.
        settings: Settings of the step by name (`hanflow settings evaluate`).

    Returns:
        URI of the evaluation.
    """
    arguments = locals()
    from hanflow.steps.evaluate import run
    from hanflow.steps.runner import in_pipeline

    return in_pipeline("evaluate", run, arguments, inputs=("model", "shards", "corpus"), output="evaluation")


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def good_enough(evaluation: str) -> bool:
    """Whether an evaluation's scores keep the limits of `evaluate.minimum` and `evaluate.maximum`.

    A component of its own: kfp's local runner resolves a condition on the only output of a task, not on one of several.

    Args:
        evaluation: URI of the evaluation artifact.

    Returns:
        Whether the model may be exported.
    """
    from hanflow.steps.gate import passed

    return passed(evaluation)
