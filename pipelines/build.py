"""The five-step DAG as a Kubeflow pipeline, its parameters made from the settings of the steps.

Compiling needs kfp, pyyaml and the standard library, nothing of torch.
"""

from __future__ import annotations

import inspect
from typing import Any

from kfp import dsl, kubernetes

from components.evaluate.component import evaluate, good_enough
from components.export.component import export
from components.preprocess.component import preprocess
from components.shared.config import SECTIONS, Experiment, Setting, all_settings, settings_of
from components.shared.images import DEFAULT, REPOSITORY_VARIABLE, TAG_VARIABLE, Images
from components.tokenize.component import tokenize
from components.train.component import remove_jobs, train

RETRIES = 2
"""A step is tried again that often when it fails; training goes on from its newest checkpoint."""
BACKOFF = ("30s", 2.0, "600s")
"""Pause before the first retry, its growth, and the longest one."""
SECRETS = {"hanflow-wandb": "WANDB_API_KEY", "hanflow-huggingface": "HF_TOKEN"}
"""Secret → the variable that it gives to the steps that ask hubs and trackers, its key of the same name; both optional."""
SMALL = ("500m", "2Gi")
"""CPUs and memory of tasks that compute nothing."""


def make_pipeline(name: str, task: str, description: str, defaults: Experiment, images: Images = DEFAULT) -> Any:
    """A pipeline of preprocess → tokenize → train → evaluate → export.

    Args:
        name: its name in Kubeflow.
        task: what is learnt.
        description: one sentence for the Kubeflow UI.
        defaults: values that its parameters start from; required ones stay without.
        images: where the steps' images are.

    Returns:
        What kfp's compiler and its local runner take. Its parameters are all settings, `train.epochs` under the name
        `train_epochs`, typed and documented for the UI.
    """

    def body(*values: Any) -> None:
        arguments = dict(zip(parameters, values, strict=True))
        settings = {step: {s.name: arguments[s.parameter] for s in settings_of(step)} for step in SECTIONS}
        job = settings["job"]
        cleaner = remove_jobs(
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, runtime=job["runtime"], namespace=job["namespace"]
        )
        with dsl.ExitHandler(cleaner, name="pipeline"):
            corpus = preprocess(task=task, **settings["preprocess"])
            shards = tokenize(task=task, corpus=_uri(corpus), **settings["tokenize"])
            model = train(
                task=task,
                shards=_uri(shards),
                run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                **settings["train"],
                **{f"job_{name}": value for name, value in job.items()},
            )
            evaluation = evaluate(
                task=task, model=_uri(model), shards=_uri(shards), corpus=_uri(corpus), **settings["evaluate"]
            )
            passed = good_enough(evaluation=_uri(evaluation))
            with dsl.If(_uri(passed) == True, "good enough"):  # noqa: E712, a condition of the pipeline
                bundle = export(
                    task=task,
                    model=_uri(model),
                    evaluation=_uri(evaluation),
                    shards=_uri(shards),
                    **settings["export"],
                )
        cluster = settings["cluster"]
        steps = {"preprocess": corpus, "tokenize": shards, "train": model, "evaluate": evaluation, "export": bundle}
        for name, step in steps.items():
            _place(step, images, cluster[f"{name}_cpu"], cluster[f"{name}_memory"], cluster["tolerations"])
            if name != "train":  # what its pod is given, the job's pods get as well
                kubernetes.add_node_selector_json(step, cluster["node_selector"])
        for step in (passed, cleaner):
            _place(step, images, *SMALL, cluster["tolerations"])
            kubernetes.add_node_selector_json(step, cluster["node_selector"])
        # Raw data may change behind its URI, and Kubeflow only compares the URI.
        corpus.set_caching_options(False)
        cleaner.set_caching_options(False)
        for step in (shards, model, evaluation):
            for secret, variable in SECRETS.items():
                kubernetes.use_secret_as_env(step, secret, {variable: variable}, optional=True)
        # The step that starts jobs of its own takes their images from the same place.
        model.set_env_variable(REPOSITORY_VARIABLE, images.repository)
        model.set_env_variable(TAG_VARIABLE, images.tag)

    parameters = {s.parameter: _parameter(s, getattr(getattr(defaults, s.step), s.name)) for s in all_settings()}
    # Parameters without a default come first in a Python signature.
    parameters = dict(sorted(parameters.items(), key=lambda item: item[1].default is not inspect.Parameter.empty))
    body.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    body.__name__ = name.replace("-", "_")
    body.__doc__ = "\n".join([description, "", "Args:", *(f"    {s.parameter}: {s.help}" for s in all_settings())])
    return dsl.pipeline(name=name, description=description)(body)


def _place(task: dsl.PipelineTask, images: Images, cpu: Any, memory: Any, tolerations: Any) -> None:
    """Say what a task's pod is made of: image, resources, no root, taints it bears, retries."""
    task.set_container_image(images.cpu)
    # kfp 2.17 does not carry parameters of resources into a group of tasks by itself.
    task.register_pipeline_channels(
        [value for value in (cpu, memory) if isinstance(value, dsl.pipeline_channel.PipelineChannel)]
    )
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(RETRIES, *BACKOFF)
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.add_toleration_json(task, tolerations)


def _uri(task: dsl.PipelineTask) -> Any:
    """The URI that a step returned: later steps read from there, so Kubeflow itself copies no data."""
    return task.outputs["Output"]


def _parameter(setting: Setting, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        setting.parameter,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        annotation=setting.type,
        default=inspect.Parameter.empty if setting.required and not default else default,
    )


def arguments_of(experiment: Experiment) -> dict[str, Any]:
    """Pipeline parameter → value, for a run of that experiment."""
    return {s.parameter: getattr(getattr(experiment, s.step), s.name) for s in all_settings()}
