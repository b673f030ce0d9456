"""One pod of a PyTorchJob: torchrun as the operator's PET_* say, and an exit status that tells why it ended.

torchrun ends with 1 whatever happened to its workers. The operator makes a pod anew for statuses from 128 on and fails
the job for lower ones, so: 1 and 2 where a worker said that a person must mend something, 143 where a signal ended the
work, 128 + N where a signal N killed a worker, 198 for everything else (a lost peer, a crash).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from components.train.jobs import PERMANENT, STOPPED

ENDINGS_VARIABLE = "HANFLOW_ENDINGS"
"""Environment variable: folder in which every worker leaves its exit status, in a file named by its rank."""
UNEXPECTED = 70
"""Exit status of a worker that met an error it did not expect (EX_SOFTWARE): trying again may help."""
PASSING = 128 + UNEXPECTED
_INTERRUPTED = 130
_KILLED = 128 + signal.SIGKILL


def note_ending(status: int) -> int:
    """Leave a worker's exit status for the process that watches over its pod; returns it."""
    folder = os.environ.get(ENDINGS_VARIABLE)
    if folder:
        Path(folder, os.environ.get("RANK", "0")).write_text(str(status), encoding="utf-8")
    return status


def pod_status(torchrun: int, endings: Mapping[int, int], workers: int, asked_to_stop: bool) -> int:
    """The exit status of the pod.

    Args:
        torchrun: torchrun's own.
        endings: rank → exit status of the workers that left one.
        workers: how many there were.
        asked_to_stop: whether the pod itself got SIGTERM.
    """
    if torchrun == 0:
        return 0
    statuses = list(endings.values())
    permanent = [status for status in statuses if status in PERMANENT]
    if permanent:
        return permanent[0]
    if asked_to_stop:
        return STOPPED
    if UNEXPECTED in statuses:
        return PASSING
    if len(endings) < workers:  # killed before it could say anything: out of memory, mostly
        return _KILLED
    if any(status in (STOPPED, _INTERRUPTED) for status in statuses):
        return STOPPED
    return PASSING


def main(argv: Sequence[str]) -> int:
    """Run the pod's workers with the arguments of `python -m components.train`; returns the pod's exit status."""
    asked_to_stop = False
    with tempfile.TemporaryDirectory(prefix="hanflow-endings-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "-m", "components.train", *argv],
            env={**os.environ, ENDINGS_VARIABLE: folder},
        )

        def pass_on(signum: int, _: object) -> None:
            nonlocal asked_to_stop
            asked_to_stop = True
            process.send_signal(signum)

        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, pass_on)
        status = process.wait()
        endings = {int(path.name): int(path.read_text(encoding="utf-8")) for path in Path(folder).iterdir()}
    return pod_status(status, endings, int(os.environ.get("PET_NPROC_PER_NODE", "1")), asked_to_stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
