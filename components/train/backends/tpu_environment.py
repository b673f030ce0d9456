"""What GKE and the TPU runtime tell a process about its slice, and whether that is what training expects. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

HOST_PORT = 8478
"""TCP port of the first host on which the hosts agree about stops and saves; the TPU runtime itself uses 8471 to 8477."""


@dataclass(frozen=True)
class TpuEnvironment:
    """The variables that GKE injects into the pods of a slice; empty outside of one."""

    device: str
    """PJRT_DEVICE: TPU, CPU; empty: not said."""
    worker: int
    """TPU_WORKER_ID: which host of the slice this is."""
    hostnames: tuple[str, ...]
    """TPU_WORKER_HOSTNAMES: the hosts of the slice; empty: not said, so one."""
    topology: str
    """TPU_TOPOLOGY: chips along each side of the slice; empty: not said."""

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
        return cls(device, int(worker), names, topology)

    def problem(self, expected: str, devices: int, processes: int) -> str | None:
        """Why the slice is not the one that training expects; None: it is.

        Args:
            expected: `train.topology`; empty: whatever is there.
            devices: devices of all processes, as the runtime counts them (one a chip).
            processes: processes that the runtime knows.
        """
        hosts = max(len(self.hostnames), 1)
        if expected and not re.fullmatch(r"[0-9]+(x[0-9]+){1,2}", expected):
            return f"train.topology={expected}: expected chips along each side, e.g. 2x2x4"
        if expected and self.topology and expected != self.topology:
            return (
                f"train.topology={expected}, but this slice is {self.topology} (TPU_TOPOLOGY); change the setting, or the "
                "node selector cloud.google.com/gke-tpu-topology of the job"
            )
        if self.hostnames and processes != hosts:
            return (
                f"TPU_WORKER_HOSTNAMES names {hosts} hosts, the runtime found {processes} processes: start one process on "
                "every host, all with the same command"
            )
        wanted = math.prod(map(int, (expected or self.topology or str(devices)).split("x")))
        if wanted != devices:
            cure = f"set CPU_NUM_DEVICES={wanted}" if self.device == "CPU" else "look for hosts that are not up"
            return (
                f"{'train.topology=' + expected if expected else 'TPU_TOPOLOGY=' + self.topology} has {wanted} chips, the "
                f"runtime found {devices} devices in {processes} processes (PJRT_DEVICE={self.device or 'not set'}); {cure}"
            )
        return None
