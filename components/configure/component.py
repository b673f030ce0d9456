"""The first task of every pipeline: its form becomes the settings of the steps, checked before anything else starts."""

from typing import NamedTuple

from kfp import dsl

from hanflow import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def configure(
    task: str,
    data: str,
    test_data: str = "none",
    model: str = "new",
    epochs: int = 3,
    learning_rate: float = 3e-5,
    batch_tokens: int = 8192,
    runtime: str = "local",
    nodes: int = 1,
    gpus_per_node: int = 1,
    node_type: str = "any",
    max_source_tokens: str = "",
    max_target_tokens: str = "",
    morphemes: str = "",
    chunk_tokens: str = "",
    vocabulary_size: str = "",
    members: list = [],  # noqa: B006, Kubeflow copies it
    base: dict = {},  # noqa: B006
    settings: dict = {},  # noqa: B006
) -> NamedTuple(  # type: ignore[valid-type]
    "Settings",
    [
        ("preprocess", dict),
        ("tokenize", dict),
        ("train", dict),
        ("combine", dict),
        ("evaluate", dict),
        ("export", dict),
        ("job", dict),
        ("members", list),
        ("node_selector", dict),
        ("tolerations", list),
        ("preprocess_cpu", str),
        ("preprocess_memory", str),
        ("tokenize_cpu", str),
        ("tokenize_memory", str),
        ("train_cpu", str),
        ("train_memory", str),
        ("evaluate_cpu", str),
        ("evaluate_memory", str),
        ("export_cpu", str),
        ("export_memory", str),
    ],
):
    """Check the parameters of a pipeline and give every step its settings.

    Args:
        task: What is learnt.
        data: Raw data (preprocess.source); the arguments down to node_type are those of the pipeline's form.
        max_source_tokens: This and the next four are on the forms of some tasks, as text; empty: not on this one.
        members: Members of an ensemble; empty: one model is trained.
        base: Settings that the pipeline starts from: section, name, value.
        settings: Further settings: section, name, value; they win.

    Returns:
        Settings of each step, of the job, and the resources of the steps' pods.
    """
    from collections import namedtuple

    from hanflow.steps.configure import OUTPUTS, run

    form = {
        "data": data,
        "test_data": test_data,
        "model": model,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_tokens": batch_tokens,
        "runtime": runtime,
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "node_type": node_type,
    }
    own = {
        "max_source_tokens": max_source_tokens,
        "max_target_tokens": max_target_tokens,
        "morphemes": morphemes,
        "chunk_tokens": chunk_tokens,
        "vocabulary_size": vocabulary_size,
    }
    found = run(task, base=base, form=form, own=own, members=members, settings=settings)
    return namedtuple("Settings", OUTPUTS)(**found)
