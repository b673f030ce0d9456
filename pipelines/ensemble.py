"""The ensemble pipeline: classifiers trained side by side on the same shards, combined and scored together."""

from typing import Any

from kfp import dsl

from components.combine.component import combine
from components.train.component import train
from pipelines.dag import make_pipeline, place, place_training, uri


@dsl.pipeline(name="train-members")
def train_members(task: str, shards: str, members: list[dict], cpu: str, memory: str, tolerations: list) -> list[str]:
    """Train the members side by side and return the URIs of their models, in order.

    A pipeline of its own: kfp's local runner hands the item of a loop to every input of the loop that is an output of
    another task, so inside the loop there may be none.
    """
    with dsl.ParallelFor(members) as member:
        trained = train(task=task, shards=shards, member=member, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
    place_training(trained, cpu, memory, tolerations)
    return dsl.Collected(uri(trained))


def train_ensemble(chosen: dsl.PipelineTask, shards: dsl.PipelineTask, task: Any) -> dsl.PipelineTask:
    """Train the members and combine them."""
    trained = train_members(
        task=task,
        shards=uri(shards),
        members=chosen.outputs["members"],
        cpu=chosen.outputs["train_cpu"],
        memory=chosen.outputs["train_memory"],
        tolerations=chosen.outputs["tolerations"],
    )
    model = combine(task=task, shards=uri(shards), models=uri(trained), settings=chosen.outputs["combine"])
    place(model, chosen, chosen.outputs["export_cpu"], chosen.outputs["export_memory"])
    return model


pipeline = make_pipeline(
    "hanflow-ensemble",
    "classification",
    "Train several Korean text classifiers side by side and average their probabilities.",
    train_ensemble,
)
