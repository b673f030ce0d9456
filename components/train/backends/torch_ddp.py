"""CPU and CUDA through torch; several workers through DistributedDataParallel, started by torchrun."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from components.shared.config import UserError


class TorchBackend:
    """See `components.train.backends.base.Backend`.

    Args:
        precision: auto, fp32 or bf16.

    Raises:
        UserError: the hardware cannot do the precision.
    """

    static_shapes = False

    def __init__(self, precision: str):
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high")  # TF32 where fp32 is asked for
        if precision == "bf16" and cuda and not torch.cuda.is_bf16_supported():
            raise UserError("train.precision=bf16: this GPU has no bf16; set train.precision=fp32")
        self.precision = _native_precision(self.device) if precision == "auto" else precision
        if self.world_size > 1:
            dist.init_process_group("nccl" if cuda else "gloo")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def prepare(self, module: torch.nn.Module) -> torch.nn.Module:
        module = module.to(self.device)
        if self.world_size == 1:
            return module
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def put(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.device.type == "cpu":
            return dict(batch)
        return {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def accumulate(self, module: torch.nn.Module, last: bool) -> AbstractContextManager:
        if last or not isinstance(module, DistributedDataParallel):
            return contextlib.nullcontext()
        return module.no_sync()

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def seed(self, *position: int) -> None:
        # SeedSequence mixes the numbers well; neighbours in step or rank get unrelated streams.
        torch.manual_seed(int(np.random.SeedSequence([*position, self.rank]).generate_state(1, np.uint64)[0]) >> 1)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()


def _native_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it faster than fp32 (CUDA since Ampere; AMX and AVX-512 BF16 on x86)."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    cpu = torch.cpu.get_capabilities()
    return "bf16" if cpu.get("amx_bf16") or cpu.get("avx512_bf16") else "fp32"
