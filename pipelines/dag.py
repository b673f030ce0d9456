"""The DAG as a Kubeflow pipeline: a form of about twelve parameters, one task that checks them, and the steps.

Compiling needs kfp, pyyaml and the standard library, nothing of torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from kfp import dsl, kubernetes

from components.configure.component import configure
from components.evaluate.component import evaluate, good_enough
from components.export.component import export
from components.preprocess.component import preprocess
from components.tokenize.component import tokenize
from components.train.component import remove_jobs, train
from hanflow.experiment.form import MEMBERS, SETTINGS_HELP, Field, form_of
from hanflow.images import DEFAULT, REPOSITORY_VARIABLE, TAG_VARIABLE

RETRIES = 2
"""A step is tried again that often when it fails; training resumes from its newest checkpoint."""
BACKOFF = ("30s", 2.0, f"{14 * 24 * 3600}s")
"""Pause before the first retry and its growth; and how long after the first attempt a retry may still begin or run: Argo's
`maxDuration` counts from the first attempt's start, so it is longer than a job's deadline."""
SECRETS = {"hanflow-wandb": "WANDB_API_KEY", "hanflow-huggingface": "HF_TOKEN"}
"""Secret → the variable that it gives to the steps that ask hubs and trackers, its key of the same name; both optional."""
SMALL = ("500m", "2Gi")
"""CPUs and memory of tasks that compute nothing."""
Train = Callable[[dsl.PipelineTask, dsl.PipelineTask, str], dsl.PipelineTask]
"""Makes of the configured settings, the shards and the task's name what trains; returns the task whose model is scored."""


def make_pipeline(name: str, task: str, description: str, training: Train | None = None) -> Any:
    """A pipeline of configure → preprocess → tokenize → train → evaluate → export.

    Args:
        name: its name in Kubeflow.
        task: what is learnt; empty: it is a parameter.
        description: one sentence for the Kubeflow UI.
        training: what trains, in place of the train step.

    Returns:
        What kfp's compiler takes. Parameters have no defaults yet: `hanflow.pipelines.packages` writes those of an
        experiment into the compiled package.
    """
    fields = form_of(task, ensemble=training is not None)
    if not task:
        fields.insert(1, Field("task", "", str, "What is learnt: the name of an installed task."))

    def body(form: dict[str, Any]) -> None:
        learnt, settings = form.pop("task", task), form.pop("settings")
        members = form.pop(MEMBERS, [])
        for name, parameter in inspect.signature(configure.python_func).parameters.items():
            if name in form and parameter.default == "":  # of some tasks only: as text, so that absence has a value
                form[name] = str(form[name])
        base = {"name": name}  # hanflow.pipelines.packages writes the settings of an experiment here
        cleaner = remove_jobs(
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            runtime=form["runtime"],
            base=base,
            members=members,
            settings=settings,
        )
        with dsl.ExitHandler(cleaner, name="pipeline"):
            chosen = configure(task=learnt, members=members, base=base, settings=settings, **form)
            corpus = preprocess(task=learnt, settings=chosen.outputs["preprocess"])
            shards = tokenize(task=learnt, corpus=uri(corpus), settings=chosen.outputs["tokenize"])
            model = (training or _train)(chosen, shards, learnt)
            evaluation = evaluate(
                task=learnt,
                model=uri(model),
                shards=uri(shards),
                corpus=uri(corpus),
                settings=chosen.outputs["evaluate"],
            )
            passed = good_enough(evaluation=uri(evaluation))
            with dsl.If(uri(passed) == True, "good enough"):  # noqa: E712, a condition of the pipeline
                bundle = export(
                    task=learnt,
                    model=uri(model),
                    evaluation=uri(evaluation),
                    shards=uri(shards),
                    settings=chosen.outputs["export"],
                )
        for step, box in {"preprocess": corpus, "tokenize": shards, "evaluate": evaluation, "export": bundle}.items():
            place(box, chosen, chosen.outputs[f"{step}_cpu"], chosen.outputs[f"{step}_memory"])
        place(passed, chosen, *SMALL)
        for box in (chosen, cleaner):  # before and after what knows of nodes
            _equip(box, *SMALL)
        # Raw data may change behind its URI, and Kubeflow only compares the URI.
        corpus.set_caching_options(False)
        cleaner.set_caching_options(False)
        for box in (shards, evaluation):
            _give_secrets(box)

    return _with_form(name, description, body, fields)


def _train(chosen: dsl.PipelineTask, shards: dsl.PipelineTask, task: Any) -> dsl.PipelineTask:
    model = train(
        task=task,
        shards=uri(shards),
        settings=chosen.outputs["train"],
        job=chosen.outputs["job"],
        run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
    )
    place_training(model, *(chosen.outputs[name] for name in ("train_cpu", "train_memory", "tolerations")))
    return model


def place(task: dsl.PipelineTask, chosen: dsl.PipelineTask, cpu: Any, memory: Any) -> None:
    """Say what a task's pod is made of and where it may run: resources, no root, nodes, retries."""
    _equip(task, cpu, memory)
    kubernetes.add_toleration_json(task, chosen.outputs["tolerations"])
    kubernetes.add_node_selector_json(task, chosen.outputs["node_selector"])


def place_training(task: dsl.PipelineTask, cpu: Any, memory: Any, tolerations: Any) -> None:
    """The same for a task that trains or starts jobs that do: what its pod is given, the job's pods get as well."""
    _equip(task, cpu, memory)
    kubernetes.add_toleration_json(task, tolerations)
    _give_secrets(task)
    # The jobs' images come from the same place.
    task.set_env_variable(REPOSITORY_VARIABLE, DEFAULT.repository)
    task.set_env_variable(TAG_VARIABLE, DEFAULT.tag)


def _equip(task: dsl.PipelineTask, cpu: Any, memory: Any) -> None:
    # kfp 2.17 does not carry parameters of resources into a group of tasks by itself.
    task.register_pipeline_channels(
        [value for value in (cpu, memory) if isinstance(value, dsl.pipeline_channel.PipelineChannel)]
    )
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(RETRIES, *BACKOFF)
    kubernetes.set_security_context(task, run_as_non_root=True)


def _give_secrets(task: dsl.PipelineTask) -> None:
    for secret, variable in SECRETS.items():
        kubernetes.use_secret_as_env(task, secret, {variable: variable}, optional=True)


def uri(task: dsl.PipelineTask) -> Any:
    """The URI that a step returned: later steps read from there, so Kubeflow itself copies no data."""
    return task.outputs["Output"]


def _with_form(name: str, description: str, body: Callable[[dict[str, Any]], None], fields: list[Field]) -> Any:
    """A pipeline whose parameters are the fields of a form, and `settings`."""
    fields = [*fields, Field("settings", "", dict, SETTINGS_HELP)]

    def pipeline(*values: Any) -> None:
        body(dict(zip([field.name for field in fields], values, strict=True)))

    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=field.type,
            )
            for field in fields
        ]
    )
    pipeline.__name__ = name.replace("-", "_")
    pipeline.__doc__ = "\n".join([description, "", "Args:", *(f"    {f.name}: {f.help}" for f in fields)])
    return dsl.pipeline(name=name, description=description)(pipeline)
