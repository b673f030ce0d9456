"""The DAGs as Kubeflow pipelines, their parameters made from the settings of the steps.

Compiling needs kfp, pyyaml and the standard library, nothing of torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kfp import dsl, kubernetes

from components.evaluate.component import evaluate, good_enough
from components.export.component import export
from components.preprocess.component import preprocess
from components.tokenize.component import tokenize
from components.train.component import remove_jobs, train
from hanflow.config import Experiment, Setting, member_settings, settings_of
from hanflow.images import DEFAULT, REPOSITORY_VARIABLE, TAG_VARIABLE, Images

STEPS = ("preprocess", "tokenize", "train", "evaluate", "export")
"""Steps of a pipeline that trains one model."""
ENSEMBLE_STEPS = ("preprocess", "tokenize", "combine", "evaluate", "export")
"""Steps of the ensemble's pipeline whose settings are its parameters; those of training are in `combine.members`."""
PLACES = ("job", "cluster")
"""Further sections whose settings are parameters of every pipeline."""
MEMBERS = "combine_members"
"""Parameter that holds the members of an ensemble."""

RETRIES = 2
"""A step is tried again that often when it fails; training goes on from its newest checkpoint."""
BACKOFF = ("30s", 2.0, "600s")
"""Pause before the first retry, its growth, and the longest one."""
SECRETS = {"hanflow-wandb": "WANDB_API_KEY", "hanflow-huggingface": "HF_TOKEN"}
"""Secret → the variable that it gives to the steps that ask hubs and trackers, its key of the same name; both optional."""
SMALL = ("500m", "2Gi")
"""CPUs and memory of tasks that compute nothing."""

Settings = Mapping[str, Mapping[str, Any]]
"""Section → name of its setting → value."""


def make_pipeline(name: str, task: str, description: str, defaults: Experiment, images: Images = DEFAULT) -> Any:
    """A pipeline of preprocess → tokenize → train → evaluate → export.

    Args:
        name: its name in Kubeflow.
        task: what is learnt.
        description: one sentence for the Kubeflow UI.
        defaults: values that its parameters start from; required ones stay without.
        images: where the steps' images are.

    Returns:
        What kfp's compiler and its local runner take. Its parameters are all settings of its steps, `train.epochs` under
        the name `train_epochs`, typed and documented for the UI.
    """

    def training(settings: Settings, shards: dsl.PipelineTask) -> dsl.PipelineTask:
        model = train(
            task=task,
            shards=uri(shards),
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            **settings["train"],
            **{f"job_{name}": value for name, value in settings["job"].items()},
        )
        cluster = settings["cluster"]
        place_training(model, images, cluster["train_cpu"], cluster["train_memory"], cluster["tolerations"])
        return model

    return assemble(name, task, description, STEPS, defaults, images, training)


def assemble(
    name: str,
    task: str,
    description: str,
    steps: Sequence[str],
    defaults: Experiment,
    images: Images,
    training: Callable[[Settings, dsl.PipelineTask], dsl.PipelineTask],
) -> Any:
    """A pipeline of preprocess → tokenize → something that trains → evaluate → export.

    Args:
        name, task, description, defaults, images: see `make_pipeline`.
        steps: those whose settings are its parameters.
        training: makes of the settings and the shards what trains, puts it in its place, and returns the task whose
            model is scored.
    """

    def body(settings: Settings) -> None:
        job, cluster = settings["job"], settings["cluster"]
        cleaner = remove_jobs(
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, runtime=job["runtime"], namespace=job["namespace"]
        )
        with dsl.ExitHandler(cleaner, name="pipeline"):
            corpus = preprocess(task=task, **settings["preprocess"])
            shards = tokenize(task=task, corpus=uri(corpus), **settings["tokenize"])
            model = training(settings, shards)
            evaluation = evaluate(
                task=task, model=uri(model), shards=uri(shards), corpus=uri(corpus), **settings["evaluate"]
            )
            passed = good_enough(evaluation=uri(evaluation))
            with dsl.If(uri(passed) == True, "good enough"):  # noqa: E712, a condition of the pipeline
                bundle = export(
                    task=task,
                    model=uri(model),
                    evaluation=uri(evaluation),
                    shards=uri(shards),
                    **settings["export"],
                )
        for step, box in {"preprocess": corpus, "tokenize": shards, "evaluate": evaluation, "export": bundle}.items():
            place(box, images, cluster[f"{step}_cpu"], cluster[f"{step}_memory"], cluster)
        for box in (passed, cleaner):
            place(box, images, *SMALL, cluster)
        # Raw data may change behind its URI, and Kubeflow only compares the URI.
        corpus.set_caching_options(False)
        cleaner.set_caching_options(False)
        for box in (shards, evaluation):
            _give_secrets(box)

    return _with_parameters(name, description, body, (*steps, *PLACES), defaults)


def place(task: dsl.PipelineTask, images: Images, cpu: Any, memory: Any, cluster: Mapping[str, Any]) -> None:
    """Say what a task's pod is made of and where it may run: image, resources, no root, nodes, retries.

    Args:
        cpu, memory: a quantity or a parameter of the pipeline.
        cluster: settings of the section `cluster`.
    """
    _equip(task, images, cpu, memory, cluster["tolerations"])
    kubernetes.add_node_selector_json(task, cluster["node_selector"])


def place_training(task: dsl.PipelineTask, images: Images, cpu: Any, memory: Any, tolerations: Any) -> None:
    """The same for a task that trains or starts jobs that do: what its pod is given, the job's pods get as well."""
    _equip(task, images, cpu, memory, tolerations)
    _give_secrets(task)
    # The jobs' images come from the same place.
    task.set_env_variable(REPOSITORY_VARIABLE, images.repository)
    task.set_env_variable(TAG_VARIABLE, images.tag)


def _equip(task: dsl.PipelineTask, images: Images, cpu: Any, memory: Any, tolerations: Any) -> None:
    task.set_container_image(images.cpu)
    # kfp 2.17 does not carry parameters of resources into a group of tasks by itself.
    task.register_pipeline_channels(
        [value for value in (cpu, memory) if isinstance(value, dsl.pipeline_channel.PipelineChannel)]
    )
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(RETRIES, *BACKOFF)
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.add_toleration_json(task, tolerations)


def _give_secrets(task: dsl.PipelineTask) -> None:
    for secret, variable in SECRETS.items():
        kubernetes.use_secret_as_env(task, secret, {variable: variable}, optional=True)


def uri(task: dsl.PipelineTask) -> Any:
    """The URI that a step returned: later steps read from there, so Kubeflow itself copies no data."""
    return task.outputs["Output"]


def _with_parameters(
    name: str, description: str, body: Callable[[Settings], None], sections: Sequence[str], defaults: Experiment
) -> Any:
    """A pipeline whose parameters are the settings of some sections."""
    settings = [s for section in sections for s in settings_of(section)]

    def pipeline(*values: Any) -> None:
        arguments = dict(zip(parameters, values, strict=True))
        body({section: {s.name: arguments[s.parameter] for s in settings_of(section)} for section in sections})

    starting = _values(settings, defaults)
    parameters = {s.parameter: _parameter(s, starting[s.parameter]) for s in settings}
    # Parameters without a default come first in a Python signature.
    parameters = dict(sorted(parameters.items(), key=lambda item: item[1].default is not inspect.Parameter.empty))
    pipeline.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    pipeline.__name__ = name.replace("-", "_")
    pipeline.__doc__ = "\n".join([description, "", "Args:", *(f"    {s.parameter}: {s.help}" for s in settings)])
    return dsl.pipeline(name=name, description=description)(pipeline)


def _parameter(setting: Setting, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        setting.parameter,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        # A loop over a list must know what its items are.
        annotation=list[dict] if setting.parameter == MEMBERS else setting.type,
        default=inspect.Parameter.empty if setting.required and not default else default,
    )


def parameters_of(experiment: Experiment) -> list[Setting]:
    """The settings that are parameters of the pipeline that runs an experiment."""
    steps = ENSEMBLE_STEPS if experiment.combine.members else STEPS
    return [s for section in (*steps, *PLACES) for s in settings_of(section)]


def arguments_of(experiment: Experiment) -> dict[str, Any]:
    """Pipeline parameter → value, for a run of that experiment."""
    return _values(parameters_of(experiment), experiment)


def _values(settings: Sequence[Setting], experiment: Experiment) -> dict[str, Any]:
    values = {s.parameter: getattr(getattr(experiment, s.step), s.name) for s in settings}
    return {**values, MEMBERS: member_settings(experiment)} if MEMBERS in values else values


def boxes(experiment: Experiment) -> list[str]:
    """What is run, in order, as the steps call themselves: a member of an ensemble is `train-<name>`."""
    if not experiment.combine.members:
        return list(STEPS)
    members = [f"train-{member['name']}" for member in experiment.combine.members]
    return ["preprocess", "tokenize", *members, "combine", "evaluate", "export"]
