"""The settings of the train step."""

from __future__ import annotations

from dataclasses import dataclass

from hanflow.config.fields import setting


@dataclass(frozen=True)
class TrainConfig:
    """Shards to a trained model."""

    pretrained: str = setting(
        "", "Pretrained model to start from: hub name or folder; empty: random weights of the `architecture`."
    )
    architecture: dict = setting(
        {},
        'Architecture of a model with random weights, e.g. {"type": "bart", "d_model": 256}; keys are those of its transformers config.',
    )
    seed: int = setting(42, "Seed of the weights, of dropout and of the order of the data.")
    epochs: int = setting(3, "Passes over the train split.", at_least=1)
    max_steps: int = setting(0, "Stop after this many optimizer steps (0: the epochs decide).", at_least=0)
    batch_tokens: int = setting(
        8192,
        "Padded source and target tokens in one forward pass of the whole job; sequences of similar length share a batch.",
        at_least=16,
    )
    batch_size: int = setting(
        0, "Sequences in one forward pass of the whole job; 0: as many as fit batch_tokens.", at_least=0
    )
    accumulation: int = setting(1, "Forward passes to one optimizer step.", at_least=1)
    learning_rate: float = setting(3e-5, "Peak learning rate of AdamW.", above=0)
    schedule: str = setting("linear", "Learning rate after warm-up.", choices=("linear", "cosine", "constant"))
    warmup_ratio: float = setting(
        0.1, "Fraction of all optimizer steps with rising learning rate.", at_least=0, at_most=1
    )
    warmup_steps: int = setting(
        0, "Optimizer steps with rising learning rate; overrides warmup_ratio when above 0.", at_least=0
    )
    weight_decay: float = setting(0.01, "AdamW's decoupled weight decay; biases and norms are exempt.", at_least=0)
    clip_norm: float = setting(1.0, "Largest global gradient norm (0: no clipping).", at_least=0)
    epoch_tokens: float = setting(
        0.0, "Most tokens of one epoch, in millions, drawn again for every epoch (0: all of them).", at_least=0
    )
    label_smoothing: float = setting(0.0, "Label smoothing of the training loss.", at_least=0, below=1)
    precision: str = setting(
        "auto",
        "Arithmetic of the forward pass; auto: bf16 where the hardware multiplies it natively, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    backend: str = setting(
        "auto",
        "Device layer: torch (CPU, CUDA) or xla (a TPU slice, or virtual devices with PJRT_DEVICE=CPU); auto: xla where PJRT_DEVICE=TPU, else torch.",
        choices=("auto", "torch", "xla"),
    )
    topology: str = setting(
        "",
        "xla: chips along each side of the slice that training expects, e.g. 2x2x4; another one is refused. Empty: any.",
    )
    compilation_cache: str = setting(
        "",
        "xla: folder (gs://… too) where compiled graphs are kept from run to run; empty: none.",
    )
    compile: str = setting("auto", "torch.compile of the model; auto: on GPUs.", choices=("auto", "on", "off"))
    processes: int = setting(
        1, "Worker processes on this machine (0: one a GPU); under torchrun it decides instead.", at_least=0
    )
    log_every: int = setting(10, "Optimizer steps between two logged figures.", at_least=1)
    validate_every: int = setting(
        0, "Optimizer steps between two validations (0: at the end of every epoch).", at_least=0
    )
    validation_rows: int = setting(
        0, "Rows that are also generated and scored at every validation (0: validation loss alone).", at_least=0
    )
    best_metric: str = setting(
        "loss",
        "Which validation figure decides which model is best: loss, or a score such as rougeL_morpheme or rouge_sum.",
    )
    best_mode: str = setting(
        "auto",
        "Whether its best value is the smallest or the largest; auto: by the figure (smallest for loss).",
        choices=("auto", "min", "max"),
    )
    patience: int = setting(0, "Stop after this many validations in a row without improvement (0: never).", at_least=0)
    threshold: float = setting(
        0.0, "By how much a validation must improve to count as better for patience.", at_least=0
    )
    save_every: int = setting(
        500, "Optimizer steps between two checkpoints (0: at validations and epoch ends only).", at_least=0
    )
    save_minutes: float = setting(
        0.0, "Also save a checkpoint when this many minutes have passed since the last (0: no).", at_least=0
    )
    save_total_limit: int = setting(
        2, "Checkpoints kept, the newest ones; the best one of each is kept beside them.", at_least=1
    )
    checkpoints: str = setting(
        "", "Folder of checkpoints, metrics.jsonl, train.log and TensorBoard events; empty: beside the model."
    )
    resume: str = setting(
        "auto",
        "auto: resume from the newest intact checkpoint in the folder, if any; never: refuse a folder that holds some; or the path of one checkpoint to resume from: at the first save the later ones are deleted, and the same command then resumes from the new ones.",
    )
    nonfinite_limit: int = setting(
        10,
        "Stop after this many steps in a row whose gradient is not finite; single ones are skipped and counted.",
        at_least=1,
    )
    nonfinite_dump: bool = setting(False, "Save weights and batch of a step that led to that stop, to reproduce it.")
    wandb: bool = setting(False, "Also log to Weights & Biases (needs the wandb package; WANDB_MODE=offline works).")
    wandb_project: str = setting("hanflow", "Project of the Weights & Biases run.")
    wandb_tags: list = setting([], "Tags of the Weights & Biases run.")
    engine: str = setting(
        "hanflow",
        "Training engine: hanflow's own loop, or transformers' Trainer.",
        choices=("hanflow", "transformers"),
    )


FREE_SETTINGS = (
    "backend",
    "checkpoints",
    "compilation_cache",
    "compile",
    "log_every",
    "nonfinite_dump",
    "processes",
    "resume",
    "save_every",
    "save_minutes",
    "save_total_limit",
    "topology",
    "wandb",
    "wandb_project",
    "wandb_tags",
)
"""Settings that may differ between a run and its continuation: they do not change the model."""
