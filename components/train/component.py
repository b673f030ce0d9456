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
    pretrained: str,
    architecture: dict,
    seed: int,
    epochs: int,
    max_steps: int,
    batch_tokens: int,
    batch_size: int,
    accumulation: int,
    learning_rate: float,
    schedule: str,
    warmup_ratio: float,
    warmup_steps: int,
    weight_decay: float,
    clip_norm: float,
    class_weights: str,
    epoch_tokens: float,
    label_smoothing: float,
    precision: str,
    backend: str,
    topology: str,
    compilation_cache: str,
    compile: str,
    processes: int,
    log_every: int,
    validate_every: int,
    validation_rows: int,
    validation_beams: int,
    best_metric: str,
    best_mode: str,
    patience: int,
    threshold: float,
    save_every: int,
    save_minutes: float,
    save_total_limit: int,
    checkpoints: str,
    resume: str,
    nonfinite_limit: int,
    nonfinite_dump: bool,
    wandb: bool,
    wandb_project: str,
    wandb_tags: list,
    engine: str,
    job_runtime: str,
    job_workers: int,
    job_min_workers: int,
    job_gpus: int,
    job_accelerator: str,
    job_topology: str,
    job_slices: int,
    job_image: str,
    job_cpu: str,
    job_memory: str,
    job_shared_memory: str,
    job_scratch: str,
    job_namespace: str,
    job_service_account: str,
    job_queue: str,
    job_priority_class: str,
    job_spot: bool,
    job_node_selector: dict,
    job_tolerations: list,
    job_environment: dict,
    job_secrets: dict,
    job_max_restarts: int,
    job_deadline_hours: float,
    run_id: str,
    task_config: dsl.TaskConfig,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Train a model on token ids; the one with the best validation loss is kept.

    Args:
        task: What is learnt.
        shards: URI of the shards artifact; the other arguments are the settings of the same name (job_…: where it runs).
        run_id: Id of the pipeline's run; a job on the cluster is named and labelled by it.
        task_config: What the step's pod was given in the pipeline; handed on to the job's pods.
        model: The model in Hugging Face format, and how it came about.
        metrics: Losses, speed, size.
        report: The curves.

    Returns:
        URI of the model.
    """
    arguments = locals()
    from hanflow.steps.runner import in_pipeline
    from hanflow.steps.train import chosen_run

    return in_pipeline("train", chosen_run(arguments), arguments, inputs=("shards",), output="model")


@dsl.component(base_image=images.CPU, install_kfp_package=False, task_config_passthroughs=_HANDED_ON)
def train_member(
    task: str,
    shards: str,
    member: dict,
    job_runtime: str,
    job_workers: int,
    job_min_workers: int,
    job_gpus: int,
    job_accelerator: str,
    job_topology: str,
    job_slices: int,
    job_image: str,
    job_cpu: str,
    job_memory: str,
    job_shared_memory: str,
    job_scratch: str,
    job_namespace: str,
    job_service_account: str,
    job_queue: str,
    job_priority_class: str,
    job_spot: bool,
    job_node_selector: dict,
    job_tolerations: list,
    job_environment: dict,
    job_secrets: dict,
    job_max_restarts: int,
    job_deadline_hours: float,
    run_id: str,
    task_config: dsl.TaskConfig,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Train one member of an ensemble, as the train step does.

    Args:
        task: What is learnt.
        shards: URI of the shards artifact.
        member: Its name, its settings of the train step, what is left out has its default; and under `job` those that its
            job has of its own, before the other arguments (job_…: where it runs).
        run_id: Id of the pipeline's run; a job on the cluster is named and labelled by it.
        task_config: What the step's pod was given in the pipeline; handed on to the job's pods.
        model: The model in Hugging Face format, and how it came about.
        metrics: Losses, speed, size.
        report: The curves.

    Returns:
        URI of the model.
    """
    arguments = locals()
    from hanflow.steps.runner import in_pipeline
    from hanflow.steps.train import member_run

    run, values = member_run(arguments)
    called = f"train-{member['name']}"
    return in_pipeline("train", run, arguments, inputs=("shards",), output="model", values=values, called=called)


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def remove_jobs(run_id: str, runtime: str, namespace: str):
    """Remove every job of a run that is still there; for the pipeline's exit handler.

    Args:
        run_id: Id of the pipeline's run.
        runtime: Where training ran; where that was no job, no cluster is asked.
        namespace: Namespace of the jobs; empty: that of this step.
    """
    if runtime == "local":
        return
    from hanflow.cluster.cleanup import remove_jobs

    remove_jobs(run_id, namespace)
