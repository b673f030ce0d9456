"""CPU and CUDA through torch; several workers through DistributedDataParallel."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hanflow.errors import UserError
from hanflow.models.kernels import attention, bart_cpu, dropout
from hanflow.progress import log
from hanflow.training.allocator import peak_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=5)
"""How long a worker waits for the others; a lost rank must not block the others for torch's ten minutes."""

SAVE_TIMEOUT = datetime.timedelta(hours=1)
"""How long a worker waits for the one that saves or fetches: every request to a bucket is retried for minutes."""


def system_compiler(device: str) -> str | None:
    """The program by which torch.compile builds its kernels (C++, CPU) or their launchers (C, CUDA); None: not installed."""
    variable, usual = ("CC", ("gcc", "clang")) if device == "cuda" else ("CXX", ("g++", "clang++"))
    named = os.environ.get(variable)
    return next((found for name in ([named] if named else usual) if (found := shutil.which(name))), None)


def compiles(setting: str, device: str, compiler: str | None) -> bool:
    """Whether a model is compiled, by `train.compile` (auto: on GPUs, if there is a compiler).

    Raises:
        UserError: `train.compile=on`, and there is no compiler.
    """
    if setting == "on" and compiler is None:
        raise UserError(
            "train.compile=on: torch.compile needs a C compiler and found none; install gcc and Python's headers (in the gpu "
            "image: build it with COMPILER), or set train.compile=auto"
        )
    if setting == "auto" and device == "cuda" and compiler is None:
        log.info("train.compile=auto: there is no C compiler here, so the model is not compiled")
    return setting == "on" or (setting == "auto" and device == "cuda" and compiler is not None)


class TorchBackend:
    """See `hanflow.training.backends.base.Backend`.

    Args:
        precision: auto, fp32, bf16 or fp16.
        compile: auto, on or off.

    Raises:
        UserError: the hardware cannot do the precision, or there is no compiler for `compile=on`.
    """

    static_shapes = False
    traced = False
    row_multiple = 1

    def __init__(self, precision: str, compile: str = "off"):
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.reader, self.readers, self.devices = self.rank, self.world_size, self.world_size
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        self.saves_in_background = cuda
        if cuda:
            torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high")  # TF32 for fp32
        if precision == "bf16" and cuda and not torch.cuda.is_bf16_supported():
            raise UserError("train.precision=bf16: this GPU has no bf16; set train.precision=fp32 or fp16")
        self.precision = native_precision(self.device) if precision == "auto" else precision
        self._compile = compiles(compile, self.device.type, system_compiler(self.device.type))
        if self._compile and cuda:
            self.static_shapes = True  # a graph a shape, and at most eight shapes
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._host_group: Any = None
        self._saving_group: Any = None
        if self.world_size > 1:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT)
            # Flags are exchanged between CPUs: over NCCL every step would wait for the device.
            self._host_group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if cuda else None
            self._saving_group = dist.new_group(backend="gloo", timeout=SAVE_TIMEOUT)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def prepare(self, module: torch.nn.Module) -> torch.nn.Module:
        module = module.to(self.device)
        if self.device.type == "cpu":
            model = next((part for part in module.modules() if hasattr(part, "set_attn_implementation")), None)
            if model is not None and not bart_cpu.applies(model):
                attention.use_on_cpu(model)
                dropout.use_on_cpu(model)
        if self._compile:
            module.compile(dynamic=False)
        if self.world_size == 1:
            return module
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def pin(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.device.type == "cpu":
            return batch
        return {name: tensor.pin_memory() for name, tensor in batch.items()}

    def put(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def autocast(self) -> AbstractContextManager:
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def accumulate(self, module: torch.nn.Module, last: bool) -> AbstractContextManager:
        if last or not isinstance(module, DistributedDataParallel):
            return contextlib.nullcontext()
        return module.no_sync()

    def backward(self, loss: torch.Tensor) -> None:
        self._scaler.scale(loss).backward()

    def gradient_scale(self) -> float:
        return self._scaler.get_scale()

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], clip_norm: float
    ) -> torch.Tensor:
        self._scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        largest = clip_norm or float("inf")
        if self._scaler.is_enabled():
            torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        else:
            # The fused optimizer takes these from a scaler. It skips a step that is not finite on the device, so that
            # nothing here waits for the norm, and divides each gradient while it reads it anyway.
            optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
            optimizer.grad_scale = (norm / largest).clamp(min=1.0) if clip_norm else None  # type: ignore[attr-defined]
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)

    def settle(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        pass

    def number(self, value: float) -> float:
        return value

    def flush(self) -> None:
        pass

    def on_cpu(self, model: PreTrainedModel) -> PreTrainedModel:
        return model.cpu()

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def sum_of_readers(self, value: torch.Tensor) -> torch.Tensor:
        return self.sum(value.to(self.device)).cpu()

    def agree(self, *flags: int) -> tuple[int, ...]:
        if self.world_size == 1:
            return flags
        shared = torch.tensor(flags)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self._host_group)
        return tuple(int(flag) for flag in shared)

    def seed(self, *position: int) -> None:
        # SeedSequence mixes the numbers well; neighbours in step or rank get unrelated streams.
        torch.manual_seed(int(np.random.SeedSequence([*position, self.rank]).generate_state(1, np.uint64)[0]) >> 1)

    def memory_bytes(self) -> int:
        return peak_bytes(self.device)

    def state(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self._saving_group)

    def close(self) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()


def native_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it faster than fp32 (CUDA since Ampere; AMX and AVX-512 BF16 on x86)."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    cpu = torch.cpu.get_capabilities()
    return "bf16" if cpu.get("amx_bf16") or cpu.get("avx512_bf16") else "fp32"
