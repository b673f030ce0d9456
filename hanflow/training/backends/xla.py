"""TPU slices through torch_xla: one program over the mesh of all chips (SPMD), one process a host.

Every process records the same operations on tensors that stand for the whole slice: weights are replicated, batches are
split by rows, and the partitioner adds the sums between the chips. A process sends the rows of its own chips alone.
What is recorded runs at `flush`; a step that was compiled before is only sent there. So nothing may differ from step to
step but the contents of tensors: shapes are those of the batch plan, numbers that change are sent as tensors.

With PJRT_DEVICE=CPU and CPU_NUM_DEVICES=n the same program runs on n virtual devices of this machine's processors.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

# Else the numbers 0 and 1 would be constants of a graph, and each a reason for another one. Read when torch_xla loads.
os.environ.setdefault("XLA_NO_SPECIAL_SCALARS", "1")

import numpy as np
import torch
import torch.distributed as dist
import torch_xla
import torch_xla.backends
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as metrics
import torch_xla.distributed.spmd as spmd
import torch_xla.runtime as runtime

from hanflow.config import TrainConfig
from hanflow.errors import UserError, first_line
from hanflow.models.kernels import static_masks as attention_static
from hanflow.progress import log
from hanflow.training.allocator import peak_bytes
from hanflow.training.backends.tpu import CompilationCache, TpuEnvironment
from hanflow.training.optimizer import TracedAdamW

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HOSTS_TIMEOUT = datetime.timedelta(minutes=5)
"""How long a host waits for the others; longer than the slowest compilation differs between hosts."""

SAVE_TIMEOUT = datetime.timedelta(hours=1)
"""How long a host waits for the one that saves or fetches: every request to a bucket is retried for minutes."""


class XlaBackend:
    """See `hanflow.training.backends.base.Backend`.

    Raises:
        UserError: the devices are not those that the settings expect.
    """

    static_shapes = True
    traced = True
    rank, world_size = 0, 1  # one program computes on all devices: the sum it sees is the sum

    def __init__(self, config: TrainConfig):
        try:
            environment = TpuEnvironment.read(os.environ)
        except ValueError as error:
            raise UserError(str(error)) from error
        self._cache = CompilationCache(config.compilation_cache, writes=environment.rank == 0)
        if self._cache.folder and "XLA_PERSISTENT_CACHE_PATH" not in os.environ:
            runtime.initialize_cache(str(self._cache.folder), readonly=not self._cache.writes)
        with _runtime_errors(environment):
            runtime.use_spmd()
            self.devices = runtime.global_runtime_device_count()
        self.reader, self.readers = runtime.process_index(), runtime.process_count()
        self.row_multiple = runtime.addressable_runtime_device_count()
        problem = environment.problem(config.topology, self.devices, self.readers)
        if problem:
            raise UserError(problem)
        self.device = torch_xla.device()
        self.hardware = xm.xla_device_hw(self.device)
        """TPU or CPU."""
        self.saves_in_background = self.hardware == "TPU"
        self.precision = {"auto": "bf16" if self.hardware == "TPU" else "fp32"}.get(config.precision, config.precision)
        if self.precision == "fp32" and self.hardware == "TPU":
            torch_xla.backends.set_mat_mul_precision("highest")  # TPUs would round the factors to bf16
        self._mesh = spmd.Mesh(np.arange(self.devices), (self.devices,), ("rows",))
        self._parts = config.accumulation
        self._compilations = Compilations(self.is_main)
        self._cpu_copy: PreTrainedModel | None = None
        if self.readers > 1:
            dist.init_process_group(
                "gloo",
                init_method=environment.rendezvous,
                rank=environment.rank,
                world_size=self.readers,
                timeout=HOSTS_TIMEOUT,
            )
            self._saving_group = dist.new_group(backend="gloo", timeout=SAVE_TIMEOUT)

    @property
    def is_main(self) -> bool:
        return self.reader == 0

    def prepare(self, module: torch.nn.Module) -> torch.nn.Module:
        for part in module.modules():
            if hasattr(part, "set_attn_implementation"):
                attention_static.use(part)
        _send(module, self.device)
        if self._parts > 1:
            # The same graph for a step's first part and the others: all add to what is there.
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros(parameter.shape, dtype=parameter.dtype).to(self.device)
        return module

    def pin(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return batch

    def put(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kind = "training" if torch.is_grad_enabled() else "validation"
        first = next(iter(batch.values()))
        self._compilations.expect(f"{kind} of {' + '.join('×'.join(map(str, t.shape)) for t in batch.values())}")
        if first.shape[0] % self.row_multiple:
            raise ValueError(f"{first.shape[0]} rows cannot be split over {self.row_multiple} devices")
        return {name: self._split(tensor) for name, tensor in batch.items()}

    def _split(self, tensor: torch.Tensor) -> torch.Tensor:
        """This process's rows, as its part of a tensor whose rows are split over all devices."""
        names = ("rows",) + (None,) * (tensor.ndim - 1)
        return xm.send_cpu_data_to_device(
            [tensor], self.device, input_sharding=spmd.ShardingSpec(self._mesh, names, minibatch=True)
        )[0]

    def autocast(self) -> AbstractContextManager:
        return torch.autocast("xla", torch.bfloat16, enabled=self.precision == "bf16")

    @contextlib.contextmanager
    def accumulate(self, module: torch.nn.Module, last: bool) -> Iterator[None]:
        yield
        if self._parts > 1:
            self.flush()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def gradient_scale(self) -> float:
        return 1.0

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], clip_norm: float
    ) -> torch.Tensor:
        assert isinstance(optimizer, TracedAdamW)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.grad_scale = (norm / clip_norm).clamp(min=1.0) if clip_norm else None
        optimizer.step()
        optimizer.zero_grad(set_to_none=self._parts == 1)
        self._compilations.expect("update")
        return norm

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        spec = spmd.ShardingSpec(self._mesh, (None,) * tensor.ndim)
        return xm.send_cpu_data_to_device([tensor], self.device, input_sharding=spec)[0]

    def settle(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        # A step leaves its tensors marked as replicated: marked at the start too, or the second step would be another graph.
        tensors = [*model.parameters(), *model.buffers()]
        tensors += [p.grad for p in model.parameters() if p.grad is not None]
        tensors += [value for slots in optimizer.state.values() for value in slots.values()]
        for tensor in {id(tensor): tensor for tensor in tensors}.values():
            spmd.mark_sharding(tensor, self._mesh, (None,) * tensor.ndim)
        self.barrier()

    def number(self, value: float) -> torch.Tensor:
        # One dimension: numbers without any are shared between equal ones, which would be another graph.
        return torch.tensor([value], dtype=torch.float32).to(self.device)

    def flush(self) -> None:
        self._compilations.run()

    def on_cpu(self, model: PreTrainedModel) -> PreTrainedModel:
        if model.device.type == "cpu":
            return model
        if self._cpu_copy is None:
            self._cpu_copy = type(model)(model.config)
        theirs = model.state_dict()
        self._cpu_copy.load_state_dict({name: tensor.cpu() for name, tensor in theirs.items()})
        if hasattr(model, "generation_config"):
            self._cpu_copy.generation_config = model.generation_config
        return self._cpu_copy.eval()

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def sum_of_readers(self, value: torch.Tensor) -> torch.Tensor:
        if self.readers > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def agree(self, *flags: int) -> tuple[int, ...]:
        if self.readers == 1:
            return flags
        shared = torch.tensor(flags)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return tuple(int(flag) for flag in shared)

    def seed(self, *position: int) -> None:
        # The same on every host: they are one program. 31 bits: what the runtime's generator keeps.
        seed = int(np.random.SeedSequence(position).generate_state(1, np.uint32)[0]) >> 1
        xm.set_rng_state(seed, str(self.device))

    def memory_bytes(self) -> int:
        if self.hardware == "TPU":
            info = xm.get_memory_info(self.device)
            return int(info.get("peak_bytes_used", info["bytes_used"]))
        return peak_bytes(self.device)

    def state(self) -> dict[str, Any]:
        self._cache.publish()  # with every checkpoint: a run that resumes from it needs its graphs
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass

    def barrier(self) -> None:
        if self.readers > 1:
            dist.barrier(group=self._saving_group)

    def close(self) -> None:
        self._cache.publish()
        if self.readers > 1:
            dist.destroy_process_group()


class Compilations:
    """Runs what was recorded; logs every graph that is compiled, with a warning where none should have been.

    Args:
        logs: False on processes that do not log.
    """

    def __init__(self, logs: bool):
        self._logs = logs
        self._kinds: list[str] = []
        self._seen: set[tuple[str, ...]] = set()
        self._count, self._seconds = compiled()

    def expect(self, what: str) -> None:
        """Name what is being recorded: each kind of operation, with its shapes, is compiled once."""
        self._kinds.append(what)

    def run(self) -> None:
        """Send what was recorded to the devices; returns before they are done."""
        self._check("something between two steps", again=True)
        kinds = tuple(self._kinds)
        self._kinds.clear()
        torch_xla.sync()
        self._check(", then ".join(kinds) or "a part", again=kinds in self._seen)
        self._seen.add(kinds)

    def _check(self, what: str, again: bool) -> None:
        count, seconds = compiled()
        if count == self._count:
            return
        if self._logs:
            took = seconds - self._seconds
            if again:
                log.warning(
                    "compiled after warm-up: %s (%.1f s, graph %d); steps should not need it", what, took, count
                )
            else:
                log.info("compiled: %s (%.1f s, graph %d)", what, took, count)
        self._count, self._seconds = count, seconds


def compiled() -> tuple[int, float]:
    """(graphs compiled by this process, seconds of compilation)."""
    data = metrics.metric_data("CompileTime")
    return (data[0], data[1] / 1e9) if data else (0, 0.0)


@contextlib.contextmanager
def _runtime_errors(environment: TpuEnvironment) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error)
        raise UserError(
            f"train.backend=xla: the runtime found no devices for PJRT_DEVICE={environment.device or '(not set)'} "
            f"({reason}); on a TPU host check that no other process holds the chips, elsewhere set PJRT_DEVICE=CPU"
        ) from error


def _send(module: torch.nn.Module, device: torch.device) -> None:
    """Move a module's weights to the device, tied ones staying tied (torch's own `to` would separate them)."""
    moved: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    sent = torch.nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad)
                    moved[id(parameter)] = sent
                part._parameters[name] = moved[id(parameter)]  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                if id(buffer) not in moved:
                    moved[id(buffer)] = buffer.to(device)
                part._buffers[name] = moved[id(buffer)]
