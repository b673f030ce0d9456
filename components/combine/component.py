"""The combine step as a Kubeflow component."""

from kfp import dsl

from hanflow import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def combine(
    task: str,
    shards: str,
    models: list,
    settings: dict,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Make one model of several trained ones: it averages their probabilities, nothing is trained.

    Args:
        task: What is learnt.
        shards: URI of the shards artifact that all were trained on.
        models: URI of every member's model artifact, in the order of members.
        settings: Settings of the step by name (`hanflow settings combine`); members is needed.
        model: The combined model in Hugging Face format, and how its members were trained.
        metrics: Members and parameters.

    Returns:
        URI of the model.
    """
    arguments = locals()
    from hanflow.steps.combine import run
    from hanflow.steps.runner import in_pipeline

    return in_pipeline("combine", run, arguments, inputs=("shards", "models"), output="model")
