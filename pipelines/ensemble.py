"""The ensemble pipeline: classifiers trained side by side on the same shards, combined and scored together."""

import inspect
from typing import Any

from kfp import dsl

from components.combine.component import combine
from components.train.component import train_member
from hanflow.config import Experiment, settings_of
from hanflow.images import DEFAULT, Images
from pipelines.dag import ENSEMBLE_STEPS, Settings, assemble, place, place_training, uri

TASK = "classification"


def make(defaults: Experiment, images: Images = DEFAULT) -> Any:
    """The pipeline, its parameters starting from `defaults`, its steps on `images`."""
    train_members = _training(images)

    def training(settings: Settings, shards: dsl.PipelineTask) -> dsl.PipelineTask:
        cluster = settings["cluster"]
        trained = train_members(
            task=TASK,
            shards=uri(shards),
            members=settings["combine"]["members"],
            cpu=cluster["train_cpu"],
            memory=cluster["train_memory"],
            tolerations=cluster["tolerations"],
            **{f"job_{name}": value for name, value in settings["job"].items()},
        )
        model = combine(task=TASK, shards=uri(shards), models=uri(trained), **settings["combine"])
        place(model, images, cluster["export_cpu"], cluster["export_memory"], cluster)
        return model

    return assemble(
        "hanflow-ensemble",
        TASK,
        "Train several Korean text classifiers side by side and average their probabilities.",
        ENSEMBLE_STEPS,
        defaults,
        images,
        training,
    )


def _training(images: Images) -> Any:
    """What trains the members side by side and returns the URIs of their models, in order.

    A pipeline of its own: kfp's local runner hands the item of a loop to every input of the loop that is an output of
    another task, so inside the loop there may be none.
    """
    jobs = {s.parameter: s.type for s in settings_of("job")}
    kinds = {"task": str, "shards": str, "members": list[dict], "cpu": str, "memory": str, "tolerations": list, **jobs}

    def train_members(**given: Any) -> Any:
        own = {name: given[name] for name in ("task", "shards", *jobs)}
        with dsl.ParallelFor(given["members"]) as member:
            trained = train_member(member=member, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **own)
        place_training(trained, images, given["cpu"], given["memory"], given["tolerations"])
        return dsl.Collected(uri(trained))

    def with_parameters(*values: Any) -> list[str]:
        return train_members(**dict(zip(kinds, values, strict=True)))

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
        for name, kind in kinds.items()
    ]
    with_parameters.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=list[str]
    )
    return dsl.pipeline(name="train-members")(with_parameters)
