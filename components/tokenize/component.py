"""The tokenize step as a Kubeflow component."""

from kfp import dsl

from hanflow import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def tokenize(
    task: str,
    corpus: str,
    shards: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    settings: dict = {},  # noqa: B006, Kubeflow copies it
) -> str:
    """Encode a corpus as token ids, with a pretrained tokenizer or one trained on it.

    Args:
        task: What is learnt.
        corpus: URI of the corpus artifact.
        shards: Arrow files of token ids, and the tokenizer.
        metrics: Rows, tokens, truncated rows.
        settings: Settings of the step by name (`hanflow settings tokenize`).

    Returns:
        URI of the shards.
    """
    arguments = locals()
    from hanflow.steps.runner import in_pipeline
    from hanflow.steps.tokenize import run

    return in_pipeline("tokenize", run, arguments, inputs=("corpus",), output="shards")
