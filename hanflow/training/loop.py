"""The training loop, over a backend and a task."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from hanflow.config import TrainConfig
from hanflow.progress import Progress, log
from hanflow.tasks.base import Task
from hanflow.training.backends.base import Backend
from hanflow.training.checkpoints.local import Checkpoints
from hanflow.training.evaluation import Validator
from hanflow.training.loader import Data, step_batches, step_data
from hanflow.training.nonfinite import give_up
from hanflow.training.optimizer import learning_rate, make_optimizer, total_steps
from hanflow.training.state import LoopState
from hanflow.training.step_metrics import Window, gradient_norms
from hanflow.training.stop import Stopped, StopRequest
from hanflow.training.trackers import Trackers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Objective(torch.nn.Module):
    """A model with its task's loss as `forward`, so that compilers and DistributedDataParallel see one module."""

    def __init__(self, model: torch.nn.Module, task: Task, label_smoothing: float):
        super().__init__()
        self.model, self._task, self._label_smoothing = model, task, label_smoothing

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of the loss over the batch's target tokens, number of them): float32 and int64 scalars."""
        return self._task.loss(self.model, batch, self._label_smoothing if self.training else 0.0)


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    config: TrainConfig,
    backend: Backend,
    train: Data,
    validation: Data,
    checkpoints: Checkpoints,
    state: LoopState,
) -> LoopState:
    """Train until the last step, from wherever `state` stands; returns the final state.

    The gradient of a step is that of the mean loss over all its target tokens, whatever batches and workers they are
    spread over.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; everything is saved.
        UserError: too many steps in a row had no finite gradient.
    """
    objective = backend.prepare(Objective(model, task, config.label_smoothing))
    optimizer = make_optimizer(model, config, traced=backend.traced)
    if state.step:
        checkpoints.load(checkpoints.path(state.step), model, optimizer)
        backend.load_state(state.backend)
    backend.settle(model, optimizer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    per_epoch = -(-train.plan.batches_per_epoch // config.accumulation)
    last = total_steps(config, per_epoch)
    longest = int(train.plan.lengths.max(axis=0)[-1])
    validator = Validator(task, model, tokenizer, objective, validation, config, backend, longest)
    validate_every, validates = config.validate_every or per_epoch, len(validation.shard) > 0
    window = Window(backend, state)
    saved_step, saved_at = state.step, time.monotonic()
    objective.train()

    def due(every: int) -> bool:
        return state.step == last or (every > 0 and state.step % every == 0)

    def validate() -> None:
        started = time.perf_counter()
        figures = validator.run(state, lambda: any(backend.agree(stop.signum)))
        if figures:
            trackers.write("validation", figures)
        window.pause(time.perf_counter() - started)

    def save() -> None:
        nonlocal saved_step, saved_at
        started = time.perf_counter()
        window.save_to(state)
        state.backend = backend.state()
        if backend.is_main and saved_step != state.step:
            checkpoints.save(model, optimizer, state)
        backend.barrier()  # nobody runs ahead into a sum of gradients: that one is not patient
        saved_step, saved_at = state.step, time.monotonic()
        window.pause(time.perf_counter() - started)

    with (
        StopRequest() as stop,
        Trackers(checkpoints.folder, state, config, place=checkpoints.place, enabled=backend.is_main) as trackers,
        Progress("training", total=last, unit="steps", done=state.step) as progress,
    ):
        if validates and state.validated_step < state.step and due(validate_every):
            validate()  # the run was stopped between a step and its validation
        steps = step_batches(train.plan, state.step, last, per_epoch, config.accumulation)
        for data in step_data(train, task, model, backend, steps, state.step):
            if validator.exhausted(state):
                log.info("no improvement in %d validations: stopping early at step %d", config.patience, state.step)
                break
            logs = (data.step + 1) % config.log_every == 0 or data.step + 1 == last
            loss = backend.number(0.0)
            scale = backend.number(backend.world_size / data.targets)
            for micro, tensors in enumerate(data.tensors):
                backend.seed(config.seed, data.step, micro)
                with backend.accumulate(objective, last=micro == len(data.tensors) - 1):
                    with backend.autocast():
                        part, _ = objective(backend.put(tensors))
                    # DistributedDataParallel averages over the workers; the sum is wanted.
                    backend.backward(part * scale)
                    loss = loss + part.detach()
            layers = gradient_norms(model, backend.gradient_scale()) if logs or backend.traced else {}
            rate = learning_rate(data.step, last, config)
            for group in optimizer.param_groups:
                group["lr"] = backend.number(rate)
            norm = backend.step(optimizer, parameters, config.clip_norm)
            state.step = data.step + 1
            state.saw(batch.rows for batch in data.batches)
            window.add(loss, norm, data.targets, data.tokens)
            backend.flush()

            if logs:
                figures = window.close(state, epoch=state.step / per_epoch, rate=rate, norm=norm)
                state.train.append(figures)
                trackers.write("train", figures, layers)
                progress.update(0, loss=figures["loss"], tokens_per_s=figures["tokens_per_second"])
                if state.skipped_in_row >= config.nonfinite_limit:
                    give_up(data, state, model, config, checkpoints, backend)
            if validates and due(validate_every):
                validate()
            overdue = config.save_minutes > 0 and time.monotonic() - saved_at > config.save_minutes * 60
            signum, save_now = backend.agree(stop.signum, overdue)
            if signum or save_now or due(config.save_every) or due(validate_every) or due(per_epoch):
                save()
            if signum:
                checkpoints.wait()
                backend.barrier()  # whoever ends with a status of its own ends the others, after little grace
                raise Stopped(signum, state.step, checkpoints.place)
            progress.update(1)
    checkpoints.wait()
    backend.barrier()
    return state
