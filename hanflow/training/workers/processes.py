"""Several worker processes on this machine, without torchrun.

torchrun turns every end of a worker into exit status 1. Here the workers' own endings are kept: a worker that was asked
to stop ends with 128 + signal, and so does the command; when one dies, the others are ended too and the one that died
first is named.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hanflow import system as processors
from hanflow.config import TrainConfig, to_mapping
from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.progress import log, setup_logging
from hanflow.reports.step_report import Report
from hanflow.signals import obey_sigterm

POLL_SECONDS = 0.1
GRACE_SECONDS = 15.0
"""What workers get to end by themselves when one of them has failed."""


class WorkersStopped(UserError):
    """The workers were asked to stop and did."""

    def __init__(self, message: str, exit_status: int):
        self.exit_status = exit_status
        super().__init__(message)


def run_processes(config: TrainConfig, count: int, *, task: str, output: str, shards: str) -> Report:
    """Train with `count` workers; returns rank 0's report.

    Raises:
        WorkersStopped: they were asked to stop; everything is saved.
        UserError: a worker failed; names it and says why.
    """
    with tempfile.TemporaryDirectory(prefix="hanflow-") as place:
        job = {"config": to_mapping(config), "task": task, "output": output, "shards": shards}
        (Path(place) / "job.json").write_text(json.dumps(job), encoding="utf-8")
        workers = [_start(rank, count, port, place) for port in [_free_port()] for rank in range(count)]
        with _pass_on_signals(workers):
            first = _wait(workers)
        ending = {rank: _ending(place, rank) for rank in range(count)}
        if first is None:
            return Report(**ending[0]["report"])
        rank, status = first
        message = ending[rank].get("error", "")
        if status > 128 and message:  # a worker's own word: asked to stop, all saved
            raise WorkersStopped(message, status)
        if status < 0:
            name = signal.Signals(-status).name
            hint = " (out of memory?)" if -status == signal.SIGKILL else ""
            message = f"was killed by {name}{hint}; the same command goes on from the last checkpoint"
        raise UserError(f"train worker of rank {rank}: {message or f'ended with status {status}, see the log'}")


def _start(rank: int, count: int, port: int, place: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hanflow.training.workers.processes", place]
    return subprocess.Popen(command, env=_environment(rank, count, port))


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    env = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # Workers must not fight for the same cores.
    env.setdefault("OMP_NUM_THREADS", str(max(processors.usable() // count, 1)))
    if rank:
        env.pop("HANFLOW_EVENTS", None)  # one voice
    return env


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _pass_on_signals(workers: list[subprocess.Popen]) -> Iterator[None]:
    def pass_on(signum: int, _: object) -> None:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def _wait(workers: list[subprocess.Popen]) -> tuple[int, int] | None:
    """(rank, status) of the first worker that did not end well; None: all did."""
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


def _ending(place: str, rank: int) -> dict[str, Any]:
    path = Path(place) / f"{rank}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _worker(place: str) -> int:
    """One worker process; leaves its report or its error beside the job."""
    from hanflow.training.workers.worker import work

    setup_logging()
    obey_sigterm()
    job = json.loads((Path(place) / "job.json").read_text(encoding="utf-8"))
    ending: dict[str, Any] = {}
    status = 0
    try:
        report = work(step_config("train", job.pop("config"), job["task"]), **job)
        ending = {"report": {"figures": report.figures, "html": report.html}}
    except UserError as error:
        ending, status = {"error": str(error)}, error.exit_status
    (Path(place) / f"{os.environ['RANK']}.json").write_text(json.dumps(ending), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(_worker(sys.argv[1]))
