"""The train step as a Kubeflow component."""

from kfp import dsl

from hanflow import images

_HANDED_ON = [
    # What the pipeline gives the step's pod, the job's pods get as well. Not resources, though Kubeflow wants them
    # named here to allow them on the step at all: those of the job are settings.
    dsl.TaskConfigPassthrough(field=passed, apply_to_task=True)
    for passed in (
        dsl.TaskConfigField.RESOURCES,
        dsl.TaskConfigField.ENV,
        dsl.TaskConfigField.KUBERNETES_AFFINITY,
        dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
        dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
        dsl.TaskConfigField.KUBERNETES_VOLUMES,
    )
]


@dsl.component(base_image=images.CPU, install_kfp_package=False, task_config_passthroughs=_HANDED_ON)
def train(
    task: str,
    shards: str,
    task_config: dsl.TaskConfig,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    settings: dict = {},  # noqa: B006, Kubeflow copies it
    job: dict = {},  # noqa: B006
    member: dict = {},  # noqa: B006
    run_id: str = "",
) -> str:
    """Train a model on token ids; the one with the best validation score is kept.

    Args:
        task: What is learnt.
        shards: URI of the shards artifact.
        task_config: What the step's pod was given in the pipeline; handed on to the job's pods.
        model: The model in Hugging Face format, and how it was trained.
        metrics: Losses, speed, size.
        report: The curves.
        settings: Settings of the step by name (`hanflow settings train`).
        job: Where the workers run, by name (`hanflow settings job`); empty: in this step's own pod.
        member: Name, settings and job of one member of an ensemble, in place of those above.
        run_id: Id of the pipeline's run; a job on the cluster is named and labelled by it.

    Returns:
        URI of the model.
    """
    arguments = locals()
    from hanflow.steps.train import in_pipeline

    return in_pipeline({**arguments, **member, "member": member.get("name", "")})


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def remove_jobs(run_id: str, runtime: str, base: dict, members: list, settings: dict):
    """Remove every job of a run that is still there; for the pipeline's exit handler.

    Args:
        run_id: Id of the pipeline's run.
        runtime: Where training ran; where that was no job, no cluster is asked.
        base: Settings that the pipeline starts from.
        members: Of an ensemble; each may have a runtime and a namespace of its own.
        settings: Further settings of the run: job.runtime and job.namespace are read.
    """
    from hanflow.cluster.cleanup import remove_jobs
    from hanflow.steps.configure import job_namespaces

    for namespace in job_namespaces(runtime, base, members, settings):
        remove_jobs(run_id, namespace)
