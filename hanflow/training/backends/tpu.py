"""Around the TPU runtime: the slice that a process belongs to, and where compiled graphs are kept. No torch_xla."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage import copy_file, is_remote, join, local_path, object_names, publish_file, work_folder

HOST_PORT = 8478
"""TCP port on the first host, over which the hosts agree on stops and saves; the TPU runtime itself uses 8471 to 8477."""


@dataclass(frozen=True)
class TpuEnvironment:
    """The variables that GKE injects into the pods of a slice; empty outside of one."""

    device: str
    """PJRT_DEVICE: TPU, CPU; empty: not set."""
    worker: int
    """TPU_WORKER_ID: which host of the slice this is."""
    hostnames: tuple[str, ...]
    """TPU_WORKER_HOSTNAMES: the hosts of the slice; empty: not set, so one."""
    topology: str
    """TPU_TOPOLOGY: chips along each side of the slice; empty: not set."""
    slices: int = 1
    """MEGASCALE_NUM_SLICES: slices that train together."""
    slice: int = 0
    """MEGASCALE_SLICE_ID: which of them this one is."""
    coordinator: str = ""
    """MEGASCALE_COORDINATOR_ADDRESS without its port: first host of the first slice, where there are several."""

    @property
    def hosts(self) -> int:
        """Hosts of all slices."""
        return max(len(self.hostnames), 1) * self.slices

    @property
    def rank(self) -> int:
        """Number of this host among them."""
        return self.slice * max(len(self.hostnames), 1) + self.worker

    @property
    def rendezvous(self) -> str:
        """Address of the hosts' rendezvous, as torch.distributed takes it."""
        return f"tcp://{self.coordinator or self.hostnames[0]}:{HOST_PORT}"

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> TpuEnvironment:
        """From a process's environment.

        Raises:
            ValueError: the variables cannot be understood, or contradict each other.
        """
        names = tuple(name.strip() for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name.strip())
        worker = environment.get("TPU_WORKER_ID", "0") or "0"
        if not worker.isdigit() or int(worker) >= max(len(names), 1):
            raise ValueError(
                f"TPU_WORKER_ID={worker} does not fit TPU_WORKER_HOSTNAMES={','.join(names) or '(not set)'}: expected a "
                f"number from 0 to {max(len(names), 1) - 1}; GKE sets both in the pods of a slice"
            )
        device, topology = environment.get("PJRT_DEVICE", "").upper(), environment.get("TPU_TOPOLOGY", "")
        if topology and not re.fullmatch(r"[0-9]+(x[0-9]+){1,2}", topology):
            raise ValueError(f"TPU_TOPOLOGY={topology}: expected chips along each side, e.g. 2x2x4")
        slices, slice_, address = (
            environment.get(f"MEGASCALE_{name}", "") for name in ("NUM_SLICES", "SLICE_ID", "COORDINATOR_ADDRESS")
        )
        if slices not in ("", "1") and not (
            slices.isdigit() and slice_.isdigit() and address and int(slice_) < int(slices)
        ):
            raise ValueError(
                f"MEGASCALE_NUM_SLICES={slices} does not fit MEGASCALE_SLICE_ID={slice_} and "
                f"MEGASCALE_COORDINATOR_ADDRESS={address}; GKE sets all three in the pods of several slices"
            )
        if slices in ("", "1"):
            return cls(device, int(worker), names, topology)
        return cls(device, int(worker), names, topology, int(slices), int(slice_), address.split(":")[0])

    def problem(self, expected: str, devices: int, processes: int) -> str | None:
        """Why the slice is not the one that training expects; None: it is.

        Args:
            expected: `train.topology`; empty: any.
            devices: devices of all processes, as the runtime counts them (one a chip).
            processes: processes that the runtime found.
        """
        if expected and not re.fullmatch(r"[0-9]+(x[0-9]+){1,2}", expected):
            return f"train.topology={expected}: expected chips along each side, e.g. 2x2x4"
        if expected and self.topology and expected != self.topology:
            return (
                f"train.topology={expected}, but this slice is {self.topology} (TPU_TOPOLOGY); change the setting, or the "
                "node selector cloud.google.com/gke-tpu-topology of the job"
            )
        if self.hostnames and processes != self.hosts:
            return (
                f"TPU_WORKER_HOSTNAMES names {len(self.hostnames)} hosts ({self.slices} slices), the runtime found "
                f"{processes} processes: start one process on every host, all with the same command"
            )
        named = f"train.topology={expected}" if expected else f"TPU_TOPOLOGY={self.topology}"
        if not expected and not self.topology:
            return None
        chips = math.prod(map(int, (expected or self.topology).split("x"))) * self.slices
        if chips == devices:
            return None
        remedy = f"set CPU_NUM_DEVICES={chips}" if self.device == "CPU" else "check that every host has started"
        return (
            f"{named} has {chips} chips in {self.slices} slices, the runtime found {devices} devices in {processes} "
            f"processes (PJRT_DEVICE={self.device or 'not set'}); {remedy}"
        )


class CompilationCache:
    """Compiled graphs kept from run to run, in a folder or in a bucket; the runtime itself can use folders only.

    Args:
        place: a folder, or gs://…; empty: nowhere.
        writes: whether this process adds to it (graphs are the same on all hosts).

    Raises:
        UserError: the place cannot be read or made.
    """

    def __init__(self, place: str, *, writes: bool):
        self.writes = writes
        self.folder: Path | None = None
        """The folder for the runtime."""
        self._bucket = place if is_remote(place) else ""
        self._kept: set[str] = set()
        if self._bucket:
            self.folder = work_folder(place)
            for name in object_names(place):
                if not (self.folder / name).exists():
                    partial = self.folder / f".{name}.partial"
                    copy_file(join(place, name), partial)
                    partial.replace(self.folder / name)
                self._kept.add(name)
            log.info("%s: %d compiled graphs", place, len(self._kept))
        elif place:
            self.folder = local_path(place)
            self.folder.mkdir(parents=True, exist_ok=True)

    def publish(self) -> None:
        """Upload the graphs compiled since the last call; a failure is logged and tried again at the next call."""
        if not (self._bucket and self.writes and self.folder):
            return
        for path in sorted(self.folder.iterdir()):
            if path.name in self._kept or path.name.startswith("."):
                continue
            try:
                publish_file(path, join(self._bucket, path.name), replace=True)
            except UserError as error:
                log.warning("a compiled graph was not kept: %s", error)
                return
            self._kept.add(path.name)
