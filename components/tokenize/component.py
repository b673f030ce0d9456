"""The tokenize step as a Kubeflow component."""

from kfp import dsl

from hanflow import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def tokenize(
    task: str,
    corpus: str,
    tokenizer: str,
    algorithm: str,
    vocabulary_size: int,
    special_tokens: list,
    max_source_tokens: int,
    max_target_tokens: int,
    chunk_tokens: int,
    morphemes: bool,
    workers: int,
    shards: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Encode a corpus as token ids, with a pretrained tokenizer or one trained on it.

    Args:
        task: What is learnt.
        corpus: URI of the corpus artifact; the other arguments are the settings of the same name.
        shards: Arrow files of token ids, and the tokenizer.
        metrics: Rows, tokens, truncated rows.

    Returns:
        URI of the shards.
    """
    arguments = locals()
    from hanflow.steps.runner import in_pipeline
    from hanflow.steps.tokenize import run

    return in_pipeline("tokenize", run, arguments, inputs=("corpus",), output="shards")
