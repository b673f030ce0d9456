"""Several workers through torch: what they wait for each other."""

from __future__ import annotations

import datetime
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.multiprocessing

from hanflow.errors import UserError
from hanflow.storage.artifacts import Manifest
from hanflow.tasks.summarization import SummarizationTrain
from hanflow.training.backends import torch as torch_ddp
from hanflow.training.checkpoints.local import Checkpoints
from hanflow.training.checkpoints.resume import identity_of, resume
from hanflow.training.state import LoopState
from hanflow.training.workers import processes


def _begin(rank: int, port: int, folder: str) -> None:
    """Be one of two workers; returns when both are there."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    (Path(folder) / f"{rank}.here").touch()
    while len(list(Path(folder).glob("*.here"))) < 2:
        time.sleep(0.02)


def spawn(worker: Callable[[int, int, str], None], folder: Path) -> None:
    """Run `worker` as two processes; an error of one is raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(folder)), nprocs=2)


def _wait_for_a_slow_one(rank: int, port: int, folder: str) -> None:
    _begin(rank, port, folder)  # else the timeout below would be that of importing torch
    torch_ddp.COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=2)
    backend = torch_ddp.TorchBackend("fp32")
    if rank == 0:
        time.sleep(4)  # an upload, for example
    backend.barrier()
    assert backend.agree(rank, -rank) == (1, 0)
    backend.close()


def test_waiting_for_a_save_outlasts_the_timeout_of_a_step(tmp_path: Path) -> None:
    spawn(_wait_for_a_slow_one, tmp_path)


def test_workers_share_the_processors_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.sched_getaffinity(0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert [processes._environment(0, count, 1)["OMP_NUM_THREADS"] for count in (1, 2)] == ["1", "1"]
    finally:
        os.sched_setaffinity(0, mine)


def _resume(rank: int, port: int, folder: str) -> None:
    _begin(rank, port, folder)
    backend = torch_ddp.TorchBackend("fp32")
    identity = identity_of(SummarizationTrain(), Manifest("shards", "classification", {}, {}))

    def state_of(place: Path) -> LoopState:
        return resume(Checkpoints(place, 2), SummarizationTrain(checkpoints=str(place)), identity, backend)

    shared = Path(folder) / "shared"
    assert state_of(shared).step == 0
    if rank == 0:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        Checkpoints(shared, 2).save(model, optimizer, LoopState(identity, step=5))
    backend.barrier()
    assert state_of(shared).step == 5
    if rank == 0:
        assert state_of(shared).step == 5
    else:
        with pytest.raises(
            UserError, match="step-00000005: another worker sees this checkpoint, this one .rank 1. does"
        ):
            state_of(Path(folder) / "of its own")
    backend.close()


def test_one_worker_chooses_the_checkpoint_and_the_others_go_on_from_it(tmp_path: Path) -> None:
    """A worker that sees another listing must not begin elsewhere in silence."""
    spawn(_resume, tmp_path)
