"""One pod of a PyTorchJob: torchrun as the operator's PET_* say, and an exit status that tells why it ended.

torchrun ends with 1 whatever happened to its workers. The operator makes a pod anew for statuses from 128 on and fails
the job for lower ones, so: 1 and 2 where a worker said that a person must mend something, 143 where a signal ended the
work, 128 + N where a signal N killed a worker, 198 for everything else (a lost peer, a crash).
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hanflow.errors import GRACE_SECONDS, PERMANENT, STOPPED, UNEXPECTED

ENDINGS_VARIABLE = "HANFLOW_ENDINGS"
"""Environment variable: folder in which every worker leaves how it ended, in a file named by its rank."""
PASSING = 128 + UNEXPECTED
_INTERRUPTED = 130
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True)
class Ending:
    """How a worker ended."""

    status: int
    words: str = ""
    """Its error."""


def note_ending(status: int, words: str = "") -> int:
    """Leave how a worker ended for the process that watches over its pod; returns the status."""
    folder = os.environ.get(ENDINGS_VARIABLE)
    if folder:
        Path(folder, os.environ.get("RANK", "0")).write_text(f"{status}\n{words}", encoding="utf-8")
    return status


def _read_endings(folder: str) -> dict[int, Ending]:
    endings = {}
    for path in Path(folder).iterdir():
        status, _, words = path.read_text(encoding="utf-8").partition("\n")
        endings[int(path.name)] = Ending(int(status), words)
    return endings


@dataclass(frozen=True)
class Torchrun:
    """How torchrun ended."""

    status: int = 0
    asked_to_stop: bool = False
    """Whether the pod itself got SIGTERM."""
    lost: str = ""
    """Why the other pods could not be reached, where that is so."""


def pod_status(torchrun: Torchrun, endings: Mapping[int, int], workers: int) -> int:
    """The exit status of the pod.

    Args:
        torchrun: how it ended.
        endings: rank → exit status of the workers that left one.
        workers: how many there were.
    """
    if torchrun.status == 0:
        return 0
    statuses = list(endings.values())
    permanent = [status for status in statuses if status in PERMANENT]
    if permanent:
        return permanent[0]
    if torchrun.asked_to_stop:
        return STOPPED
    if torchrun.lost or UNEXPECTED in statuses:
        return PASSING
    if len(endings) < workers:  # killed before it could say anything: out of memory, mostly
        return _KILLED
    if any(status in (STOPPED, _INTERRUPTED) for status in statuses):
        return STOPPED
    return PASSING


def main(argv: Sequence[str]) -> int:
    """Run the pod's workers with the arguments of `python -m hanflow.steps.train`; returns the pod's exit status."""
    signal.signal(signal.SIGTERM, _stop)  # until torchrun takes over: process 1 has no default action
    with tempfile.TemporaryDirectory(prefix="hanflow-endings-") as folder:
        os.environ[ENDINGS_VARIABLE] = folder
        # What the pod gets to save and end, less what torchrun needs itself; its own default is 30 s.
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_SECONDS - 10))
        torchrun = _torchrun(["-m", "hanflow.steps.train", *argv])
        endings = _read_endings(folder)
    workers = int(os.environ.get("PET_NPROC_PER_NODE", "1"))
    statuses = {rank: ending.status for rank, ending in endings.items()}
    status = pod_status(torchrun, statuses, workers)
    if status:  # the last line is what the cluster keeps as the reason
        deciding = [e.words for e in endings.values() if e.words and e.status in (status, status - 128)]
        print(f"error: {deciding[0] if deciding else _reason(status, torchrun, statuses, workers)}", file=sys.stderr)
    return status


def _reason(status: int, torchrun: Torchrun, statuses: Mapping[int, int], workers: int) -> str:
    """Why a pod ends with `status`, where no worker has said so."""
    if torchrun.lost:
        return f"the other workers cannot be reached, a new attempt goes on from the last checkpoint: {torchrun.lost}"
    if status == _KILLED:
        return (
            f"{workers - len(statuses)} of {workers} workers were killed without a word, mostly for want of memory: raise "
            "job.memory, or lower train.batch_tokens"
        )
    return f"the workers ended with {dict(statuses)}"


def _stop(*_: object) -> NoReturn:
    sys.exit(STOPPED)


def _torchrun(arguments: list[str]) -> Torchrun:
    """Run it; its own account of a failure is left out."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except SignalException:
        return Torchrun(1, asked_to_stop=True)
    except ChildFailedError:
        return Torchrun(1)
    except (RendezvousError, DistError) as error:  # the pod where all meet is preempted, or others have not come
        return Torchrun(1, lost=f"{type(error).__name__}: {error}")
    return Torchrun()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
