"""Starts several workers as processes on this machine, without torchrun.

torchrun ends with exit status 1 whatever happened to its workers. Here their own statuses are kept: workers that stop
on a signal end with 128 + signal, and so does the command; when one fails, the others are ended too, and the error names
the one that failed first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

from hanflow import system
from hanflow.config import TrainConfig
from hanflow.config.worker_spec import WorkerSpec, train_arguments
from hanflow.errors import UserError
from hanflow.progress import EVENTS_VARIABLE, log
from hanflow.signals import handled
from hanflow.storage import inherited
from hanflow.training.backends.base import uses_xla
from hanflow.training.workers.exits import EXITS_VARIABLE, WorkerExit, read_exits

POLL_SECONDS = 0.1
GRACE_SECONDS = 15.0
"""How long workers may take to end by themselves when one of them has failed."""


def count(config: TrainConfig) -> int:
    """How many workers a run on this machine has; 1 inside of torchrun, which has started this process as one of them."""
    if "RANK" in os.environ or uses_xla(config):
        return 1
    if config.processes:
        return config.processes
    import torch

    return max(torch.cuda.device_count(), 1)


def run(spec: WorkerSpec, workers: int) -> None:
    """Train with that many workers; returns when the model is saved.

    Raises:
        UserError: a worker failed; the message names it and gives its error. Or they stopped on a signal, everything is
            saved: the exit status is that of the workers then.
    """
    with tempfile.TemporaryDirectory(prefix="hanflow-") as exits:
        port = _free_port()
        command = [sys.executable, "-m", "hanflow.training.workers.worker", *train_arguments(spec)]
        processes: list[subprocess.Popen] = []

        forwarded: list[int] = []

        def forward(signum: int, _: object = None) -> None:
            forwarded.append(signum)
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signum)

        try:  # from the first worker on: none outlives this process
            with handled(forward, signal.SIGTERM, signal.SIGINT):
                for rank in range(workers):
                    env = {**_environment(rank, workers, port), EXITS_VARIABLE: exits}
                    processes.append(subprocess.Popen(command, env=env, pass_fds=inherited()))
                for signum in forwarded.copy():  # it came before the last worker
                    forward(signum)
                failed = _wait(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if failed is None:
            return
        rank, status = failed
        error = read_exits(exits).get(rank, WorkerExit(status)).error
    if status > 128 and error:  # it stopped on a signal, all saved
        stopped = UserError(error)
        stopped.exit_status = status
        raise stopped
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (out of memory?)" if -status == signal.SIGKILL else ""
        error = f"was killed by {name}{hint}; the same command continues from the last checkpoint"
    raise UserError(f"train worker of rank {rank}: {error or f'ended with status {status}, see the log'}")


def _environment(rank: int, workers: int, port: int) -> dict[str, str]:
    env = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # Each worker gets its share of the CPUs.
    env.setdefault("OMP_NUM_THREADS", str(max(system.available_cpus() // workers, 1)))
    if rank:
        env.pop(EVENTS_VARIABLE, None)  # only one reports progress
    return env


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(workers: list[subprocess.Popen]) -> tuple[int, int] | None:
    """(rank, status) of the first worker that did not end with status 0; None: all did."""
    first: tuple[int, int] | None = None
    deadline = float("inf")
    while any(worker.poll() is None for worker in workers):
        for rank, worker in enumerate(workers):
            status = worker.poll()
            if status and first is None:
                first, deadline = (rank, status), time.monotonic() + GRACE_SECONDS
                if status <= 128:
                    log.error("train worker of rank %d ended with status %d: ending the others", rank, status)
                    for other in workers:
                        if other.poll() is None:
                            other.terminate()
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    if first is None:
        first = next(((rank, w.returncode) for rank, w in enumerate(workers) if w.returncode), None)
    return first
