"""The train step as a Kubeflow component."""

from kfp import dsl

from components.shared import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
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
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Train a model on token ids; the one with the best validation loss is kept.

    Args:
        task: What is learnt.
        shards: URI of the shards artifact; the other arguments are the settings of the same name.
        model: The model in Hugging Face format, and how it came about.
        metrics: Losses, speed, size.
        report: The curves.

    Returns:
        URI of the model.
    """
    arguments = locals()
    from components.shared.steps import in_pipeline
    from components.train.worker import run

    return in_pipeline("train", run, arguments, inputs=("shards",), output="model")
