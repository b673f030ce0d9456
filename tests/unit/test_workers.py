"""Several workers through torch: what they wait for each other."""

from __future__ import annotations

import datetime
import os
import socket
import time
from pathlib import Path

import torch.multiprocessing

from components.train.backends import torch_ddp


def _wait_for_a_slow_one(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    (Path(folder) / str(rank)).touch()
    while len(list(Path(folder).iterdir())) < 2:  # else the timeout below would be that of importing torch
        time.sleep(0.02)
    torch_ddp.COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=2)
    backend = torch_ddp.TorchBackend("fp32")
    if rank == 0:
        time.sleep(4)  # an upload, for example
    backend.barrier()
    assert backend.agree(rank, -rank) == (1, 0)
    backend.close()


def test_waiting_for_a_save_outlasts_the_timeout_of_a_step(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_wait_for_a_slow_one, (port, str(tmp_path)), nprocs=2)
