"""`train.engine=transformers`: the same run by transformers' Trainer.

For people who want the Trainer, and to compare our own loop with it. Model, loss, validation, figures, checkpoints and
stop requests are those of our own engine. What the Trainer does: the loop, its optimizer and schedule, mixed precision,
several workers, and batches of a fixed number of rows padded to their longest. Resuming continues from the same
checkpoint at the same row, with the Trainer's own random states; it is not promised to be bitwise exact.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments

from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.progress import Progress, log
from hanflow.tasks.base import Task
from hanflow.training.backends.base import uses_xla
from hanflow.training.backends.torch import TorchBackend
from hanflow.training.checkpoints.local import MODEL, Checkpoints, model_tensors, on_host
from hanflow.training.checkpoints.resume import best_model, open_checkpoints, resume
from hanflow.training.evaluation import Validator, exhausted
from hanflow.training.loop import Objective
from hanflow.training.optimizer import total_steps, warmup_steps
from hanflow.training.state import LoopState, TrainingResult, TrainingRun
from hanflow.training.step_metrics import StepMetrics
from hanflow.training.stop import Stopped, StopRequest
from hanflow.training.trackers import Trackers

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""Our schedules → transformers' names of the same ones."""

DIFFERENCES = {
    "nonfinite_limit": "without fp16, the first gradient that is not finite ends the run",
    "nonfinite_dump": "nothing is saved of such a step",
    "epoch_tokens": "every epoch has all rows",
    "batch_tokens": "it decides the rows of a batch: as many of the longest row as fit",
}
"""Settings that mean nothing, or something else, to this engine → what happens instead."""


def check(config: TrainConfig, task: Task) -> list[str]:
    """See `hanflow.training.engine.Engine`."""
    if uses_xla(config):
        return ["train.engine=transformers: the Trainer runs on CPUs and GPUs here; set train.engine=hanflow"]
    return []


def fit(run: TrainingRun) -> TrainingResult:
    """See `hanflow.training.engine.Engine`."""
    config = run.config
    with contextlib.closing(TorchBackend(config.precision, "on" if config.compile == "on" else "off")) as backend:
        if backend.precision == "fp16" and backend.device.type == "cpu":
            raise UserError("train.precision=fp16: the Trainer has fp16 on GPUs only; set train.precision=bf16 or fp32")
        checkpoints = open_checkpoints(run, backend)
        state = resume(checkpoints, config, run.identity, backend)
        sized = sizes(config, run.train.lengths(), backend.world_size)
        if backend.is_main:
            _log_start(run, sized, backend)
        with (
            StopRequest() as stop,
            Trackers(checkpoints.folder, state, config, place=checkpoints.place, enabled=backend.is_main) as trackers,
            Progress("training", total=sized.steps, unit="steps", done=state.step) as progress,
        ):
            trainer = TaskTrainer(run, backend, checkpoints, state, sized, stop, trackers, progress)
            trainer.run_to_end()
        checkpoints.wait()
        backend.barrier()
        model = best_model(run.model, checkpoints, state, backend)
        kind, efficiency = backend.device.type, trainer.padding_efficiency
        return TrainingResult(model, state, backend.precision, kind, backend.devices, efficiency, backend.is_main)


@dataclass(frozen=True)
class Sizes:
    """How the Trainer divides a split into batches."""

    rows: int
    """Rows of one forward pass of one worker (`per_device_train_batch_size`)."""
    steps_per_epoch: int
    """Optimizer steps of an epoch."""
    steps: int
    """Optimizer steps of the whole run."""


def sizes(config: TrainConfig, lengths: np.ndarray, world_size: int) -> Sizes:
    """Batches of a fixed number of rows, whatever their lengths.

    Args:
        config: `batch_size` rows of the whole job; 0: as many of the longest row as fit `batch_tokens`.
        lengths: tokens of every sequence of the train split's rows: int64 array of shape (rows, sequences).
        world_size: workers; each takes an equal number of rows.
    """
    longest = int(lengths.max(axis=0).sum())
    # A token budget is never exceeded, so rows that fit are rounded down; a number of rows is rounded up.
    rows = -(-config.batch_size // world_size) if config.batch_size else config.batch_tokens // longest // world_size
    rows = max(rows, 1)
    batches = -(-len(lengths) // (rows * world_size))
    steps_per_epoch = -(-batches // config.accumulation)
    return Sizes(rows, steps_per_epoch, total_steps(config, steps_per_epoch))


def training_arguments(
    config: TrainConfig, sized: Sizes, *, precision: str, device: str, world_size: int = 1
) -> dict[str, Any]:
    """The settings as keyword arguments of `TrainingArguments`.

    Args:
        precision: fp32, bf16 or fp16.
        device: cpu or cuda.
        world_size: workers.
    """
    cuda = device == "cuda"
    return {
        "per_device_train_batch_size": sized.rows,
        "gradient_accumulation_steps": config.accumulation,
        "max_steps": sized.steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": SCHEDULES[config.schedule],
        "warmup_steps": warmup_steps(config, sized.steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.clip_norm,
        "optim": "adamw_torch_fused",
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not cuda,
        # auto leaves it off: every batch of the Trainer has a shape of its own, and each would be compiled.
        "torch_compile": config.compile == "on",
        "dataloader_pin_memory": cuda,
        "remove_unused_columns": False,
        "ddp_backend": None if world_size == 1 else "nccl" if cuda else "gloo",
        "ddp_find_unused_parameters": False,
        # Figures, validations and checkpoints are due by our own rules, see TaskTrainer.
        "logging_strategy": "no",
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "push_to_hub": False,
    }


def differences(config: TrainConfig) -> list[str]:
    """What was set and means nothing, or something else, to this engine: one text each."""
    defaults = TrainConfig()
    return [
        f"train.{name} ({instead})"
        for name, instead in DIFFERENCES.items()
        if getattr(config, name) != getattr(defaults, name) and not (name == "batch_tokens" and config.batch_size)
    ]


class TaskTrainer(Seq2SeqTrainer):
    """transformers' Trainer on any task: the task's batches and loss, and our own validation, figures and checkpoints.

    The Trainer's model is `Objective`, which returns a sum and a count.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the targets of the whole optimizer step

    def __init__(
        self,
        run: TrainingRun,
        backend: TorchBackend,
        checkpoints: Checkpoints,
        state: LoopState,
        sized: Sizes,
        stop: StopRequest,
        trackers: Trackers,
        progress: Progress,
    ):
        self.run, self.backend, self.checkpoints, self.sized = run, backend, checkpoints, sized
        self.loop_state, self.stop, self.trackers, self.progress = state, stop, trackers, progress
        self._validate_every = run.config.validate_every or sized.steps_per_epoch
        self._real, self._padded = state.backend.get("real", 0), state.backend.get("padded", 0)
        self._targets = self._tokens = 0  # of the optimizer step, on all workers
        self._loss = torch.zeros((), device=backend.device)
        self._staging = checkpoints.folder / ".step-trainer.partial"
        """Where the Trainer writes its checkpoint before it is committed."""
        precision, device = backend.precision, backend.device.type
        arguments = training_arguments(
            run.config, sized, precision=precision, device=device, world_size=backend.world_size
        )
        args = Seq2SeqTrainingArguments(str(self._staging), **arguments)
        if args.n_gpu > 1:
            args._n_gpu = 1  # else one process would spread every batch over all GPUs (DataParallel)
        objective = Objective(run.model, run.task, run.config.label_smoothing)
        super().__init__(objective, args, data_collator=self._collate, train_dataset=run.train)
        self.remove_callback(PrinterCallback)  # prints on standard output
        self.validator = Validator(run, objective, backend)
        self.metrics = StepMetrics(backend, state)
        self._saved_at = time.monotonic()

    def run_to_end(self) -> None:
        """Train from where the state stands until the last step.

        Raises:
            Stopped: SIGTERM or Ctrl-C came; a checkpoint is saved.
        """
        state, resumed = self.loop_state, None
        if state.step:
            resumed = self.checkpoints.path(state.step)
            self._load_from_checkpoint(str(resumed))
            if state.validated_step < state.step and self._due(self._validate_every):
                self._validate()  # the run was stopped between a step and its validation
        if state.step < self.sized.steps and not exhausted(state, self.run.config):
            self.train(resume_from_checkpoint=str(resumed) if resumed else None)
        if self.backend.is_main:
            shutil.rmtree(self._staging, ignore_errors=True)

    @property
    def padding_efficiency(self) -> float:
        """Real tokens / padded tokens of this process's batches, between 0 and 1."""
        return self._real / self._padded if self._padded else 1.0

    def _due(self, every: int) -> bool:
        step = self.loop_state.step
        return step == self.sized.steps or (every > 0 and step % every == 0)

    # ---- One optimizer step

    def _collate(self, rows: Sequence[Sequence[np.ndarray]]) -> dict[str, Any]:
        lengths = np.array([[len(sequence) for sequence in row] for row in rows])
        shape = (len(rows), *map(int, lengths.max(axis=0)))
        real = int(lengths.sum())
        self._real += real
        self._padded += len(rows) * sum(shape[1:])
        tensors = self.run.task.collate(rows, shape, self.run.model)
        return {"tensors": tensors, "targets": int(self.run.task.targets(lengths).sum()), "tokens": real}

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> int:
        """Target tokens of an optimizer step, of all its forward passes on all workers."""
        counts = torch.tensor([[batch["targets"], batch["tokens"]] for batch in batch_samples]).sum(0)
        if self.backend.world_size > 1:
            counts = self.backend.sum_of_readers(counts)
        self._targets, self._tokens = map(int, counts)
        return self._targets

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This pass's part of the mean loss over the optimizer step's target tokens, float32 scalar."""
        total, _ = model(inputs["tensors"])
        self._loss = self._loss + total.detach()
        return total * (self.backend.world_size / max(num_items_in_batch, 1))  # workers' gradients are averaged

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *_: Any, learning_rate: Any = None, **__: Any
    ) -> None:
        """Called after every optimizer step: what our own loop does there, see `hanflow.training.loop.train`."""
        config, state = self.run.config, self.loop_state
        if state.step == self.state.global_step:
            return  # called once more at the end of an epoch
        state.step = self.state.global_step
        self.metrics.add(self._loss, grad_norm, self._targets, self._tokens)
        self._loss = torch.zeros_like(self._loss)
        if self._due(config.log_every):
            epoch = state.step / self.sized.steps_per_epoch
            figures = self.metrics.close(state, epoch=epoch, rate=learning_rate, norm=grad_norm)
            state.train.append(figures)
            self.trackers.write("train", figures)
            self.progress.update(0, loss=figures["loss"], tokens_per_s=figures["tokens_per_second"])
            # Of the Trainer's optimizers only fp16's scaler skips such steps.
            if state.skipped_in_row >= (config.nonfinite_limit if self.backend.precision == "fp16" else 1):
                raise UserError(
                    f"the gradient was not finite up to step {state.step}; lower train.learning_rate, set "
                    "train.precision=fp32, or use train.engine=hanflow, which skips such steps"
                )
        if self._due(self._validate_every):
            self._validate()
            if exhausted(state, config):
                log.info("no improvement in %d validations: stopping early at step %d", config.patience, state.step)
                self.control.should_training_stop = True
        overdue = config.save_minutes > 0 and time.monotonic() - self._saved_at > config.save_minutes * 60
        signum, save_now = self.backend.agree(self.stop.signum, overdue)
        due = any(map(self._due, (config.save_every, self._validate_every, self.sized.steps_per_epoch)))
        if signum or save_now or due:
            self._save_checkpoint(model, trial)
        if signum:
            self.checkpoints.wait()
            self.backend.barrier()  # the first worker that ends has the others killed after a short grace period
            raise Stopped(signum, state.step, self.checkpoints.place)
        self.progress.update(1)

    def _validate(self) -> None:
        if not len(self.run.validation):
            return
        started = time.perf_counter()
        figures = self.validator.run(self.loop_state, lambda: any(self.backend.agree(self.stop.signum)))
        if figures:
            self.trackers.write("validation", figures)
        self.metrics.pause(time.perf_counter() - started)

    # ---- Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.perf_counter()
        self.metrics.save_to(self.loop_state)
        self.loop_state.backend = {"real": self._real, "padded": self._padded}
        super()._save_checkpoint(model, trial)
        self.backend.barrier()  # every worker has written its random state
        if self.backend.is_main:
            self.checkpoints.adopt(self._staging / f"checkpoint-{self.loop_state.step}", self.loop_state)
        self.backend.barrier()
        self._saved_at = time.monotonic()
        self.metrics.pause(time.perf_counter() - started)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The weights as our own engine saves them, so that either engine's best model is loaded the same way."""
        folder = Path(output_dir or self._staging)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(on_host(model_tensors(self.run.model)), folder / MODEL)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.checkpoints.load(Path(resume_from_checkpoint), self.run.model)


def _log_start(run: TrainingRun, sized: Sizes, backend: TorchBackend) -> None:
    different = differences(run.config)
    if different:
        log.warning("train.engine=transformers reads some settings differently: %s", "; ".join(different))
    log.info(
        "%s parameters; %d × %d × %d rows a step, %d steps an epoch; %s on %s, by transformers",
        f"{run.model.num_parameters():,}",
        backend.world_size,
        run.config.accumulation,
        sized.rows,
        sized.steps_per_epoch,
        backend.precision,
        backend.device.type,
    )
