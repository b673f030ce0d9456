"""The export step as a Kubeflow component."""

from kfp import dsl

from hanflow import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def export(
    task: str,
    model: str,
    evaluation: str,
    shards: str,
    bundle: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    settings: dict = {},  # noqa: B006, Kubeflow copies it
) -> str:
    """Pack a trained model with its model card so that transformers and CTranslate2 load it; checked by loading it again.

    Args:
        task: What is learnt.
        model: URI of the model artifact.
        evaluation: URI of the evaluation artifact.
        shards: URI of the shards artifact.
        bundle: The model in Hugging Face format and in CTranslate2's, and its card.
        metrics: Size, parameters, rows on which the bundle was checked.
        settings: Settings of the step by name (`hanflow settings export`).

    Returns:
        URI of the bundle.
    """
    arguments = locals()
    from hanflow.steps.export import run
    from hanflow.steps.runner import in_pipeline

    return in_pipeline("export", run, arguments, inputs=("model", "evaluation", "shards"), output="bundle")
