"""One pod of a TrainJob or a PyTorchJob: torchrun with the operator's PET_* variables, and an exit status that gives the reason.

torchrun ends with 1 whatever happened to its workers. The training operator restarts a pod for statuses from 128 on and
fails the job for lower ones (a TrainJob names its statuses itself), so: 1 and 2 where a worker reported an error that a
person must fix, 143 where a signal stopped the workers, 128 + N where signal N killed one, 198 for everything else (a lost peer, a crash).
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from hanflow.errors import GRACE_SECONDS, PERMANENT, STOPPED, UNEXPECTED
from hanflow.training.workers.exits import EXITS_VARIABLE, read_exits

TRANSIENT = 128 + UNEXPECTED
_INTERRUPTED = 130
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True)
class Torchrun:
    """How torchrun ended."""

    status: int = 0
    stop_requested: bool = False
    """Whether the pod itself got SIGTERM."""
    lost: str = ""
    """Why the other pods cannot be reached; empty: they can."""


def pod_status(torchrun: Torchrun, statuses: Mapping[int, int], workers: int) -> int:
    """The exit status of the pod.

    Args:
        torchrun: how it ended.
        statuses: rank → exit status of the workers that recorded one.
        workers: how many there were.
    """
    if torchrun.status == 0:
        return 0
    permanent = [status for status in statuses.values() if status in PERMANENT]
    if permanent:
        return permanent[0]
    if torchrun.stop_requested:
        return STOPPED
    if torchrun.lost or UNEXPECTED in statuses.values():
        return TRANSIENT
    if len(statuses) < workers:  # killed before it could record anything: mostly out of memory
        return _KILLED
    if any(status in (STOPPED, _INTERRUPTED) for status in statuses.values()):
        return STOPPED
    return TRANSIENT


def main(argv: Sequence[str]) -> int:
    """Run the pod's workers with the arguments of `hanflow.training.workers.worker`; returns the pod's exit status."""
    signal.signal(signal.SIGTERM, _stop)  # until torchrun takes over: process 1 has no default action
    with tempfile.TemporaryDirectory(prefix="hanflow-exits-") as folder:
        os.environ[EXITS_VARIABLE] = folder
        # The pod's grace period to save and end, less what torchrun itself needs; its default is 30 s.
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_SECONDS - 10))
        torchrun = _torchrun(["-m", "hanflow.training.workers.worker", *argv])
        exits = read_exits(folder)
    workers = int(os.environ.get("PET_NPROC_PER_NODE", "1"))
    statuses = {rank: one.status for rank, one in exits.items()}
    status = pod_status(torchrun, statuses, workers)
    if status:  # the cluster keeps the last line as the reason
        deciding = [one.error for one in exits.values() if one.error and one.status in (status, status - 128)]
        print(f"error: {deciding[0] if deciding else _reason(status, torchrun, statuses, workers)}", file=sys.stderr)
    return status


def _reason(status: int, torchrun: Torchrun, statuses: Mapping[int, int], workers: int) -> str:
    """Why a pod ends with `status`, where no worker has recorded an error."""
    if torchrun.lost:
        return f"the other workers cannot be reached, a new attempt resumes from the last checkpoint: {torchrun.lost}"
    if status == _KILLED:
        return (
            f"{workers - len(statuses)} of {workers} workers were killed without an error, probably out of memory: raise "
            "job.memory, or lower train.batch_tokens"
        )
    return f"the workers ended with {dict(statuses)}"


def _stop(*_: object) -> NoReturn:
    sys.exit(STOPPED)


def _torchrun(arguments: list[str]) -> Torchrun:
    """Run it; its own report of a failure is left out."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except SignalException:
        return Torchrun(1, stop_requested=True)
    except ChildFailedError:
        return Torchrun(1)
    except (RendezvousError, DistError) as error:  # the rendezvous pod is preempted, or others have not started
        return Torchrun(1, lost=f"{type(error).__name__}: {error}")
    return Torchrun()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
