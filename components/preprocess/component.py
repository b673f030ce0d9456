"""The preprocess step as a Kubeflow component."""

from kfp import dsl

from hanflow import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def preprocess(
    task: str,
    settings: dict,
    corpus: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Raw files to a clean, split corpus.

    Args:
        task: What is learnt.
        settings: Settings of the step by name (`hanflow settings preprocess`); source is needed.
        corpus: The corpus.
        metrics: Rows of each split, and rejected rows.
        report: Counts, lengths and reasons of rejection.

    Returns:
        URI of the corpus, for the next step.
    """
    arguments = locals()
    from hanflow.steps.preprocess import run
    from hanflow.steps.runner import in_pipeline

    return in_pipeline("preprocess", run, arguments, inputs=(), output="corpus")
