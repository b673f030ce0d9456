"""One folder, one run: whoever comes second is refused by name, and a kill frees the place."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hanflow.errors import UserError
from hanflow.reports.step_report import Report
from hanflow.steps.runner import main
from hanflow.steps.train import run as train
from hanflow.storage import hold, holding, inherited, staged, writing
from hanflow.tasks.summarization import SummarizationTrain

HOLDER = """
import subprocess, sys, time
from hanflow.storage import holding, inherited, writing
with {what}(sys.argv[1]):
    child = subprocess.Popen([sys.executable, "-c", sys.argv[2]], pass_fds=inherited()) if len(sys.argv) > 2 else None
    print(child.pid if child else 0, flush=True)
    time.sleep(100)
"""


def holder(what: str, place: Path, *more: str) -> tuple[subprocess.Popen[str], int]:
    """A process that has locked the place, and the id of its worker, if it was to start one."""
    command = [sys.executable, "-c", HOLDER.format(what=what), str(place), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("what", ["holding", "writing"])
def test_the_second_is_refused_naming_the_first_until_that_is_killed(what: str, tmp_path: Path) -> None:
    place, lock = tmp_path / "place", {"holding": holding, "writing": writing}[what]
    (tmp_path / "link").symlink_to(place)
    process, _ = holder(what, place)
    for way in (place, tmp_path / "link", tmp_path / "other" / ".." / "place", f"file://{place}"):
        since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        with (
            pytest.raises(UserError, match=rf": process {process.pid} on .* \({since}") as refused,
            lock(str(way)),
        ):
            raise AssertionError("unreachable")
        assert str(way) in str(refused.value) and "wait for its end or stop it" in str(refused.value)
    process.kill()
    process.wait()
    with lock(str(place)):
        pass


def test_a_worker_holds_what_its_killed_parent_held(tmp_path: Path) -> None:
    """Else a second training would write into a folder that the first one's worker still writes into."""
    process, worker = holder("holding", tmp_path / "checkpoints", "import time; time.sleep(100)")
    try:
        process.kill()
        process.wait()
        with pytest.raises(UserError, match=f"process {process.pid}"):
            hold(str(tmp_path / "checkpoints"))
    finally:
        os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.01)
    with holding(str(tmp_path / "checkpoints")):
        pass


def test_a_worker_takes_over_the_lock_of_its_parent(tmp_path: Path) -> None:
    with holding(str(tmp_path)):
        code = "import sys; from hanflow.storage import hold; hold(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], pass_fds=inherited(), check=True)


def test_an_output_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "corpus"
    (tmp_path / ".corpus.partial-0badcafe").mkdir()  # a killed process left it
    process, _ = holder("writing", target)
    with pytest.raises(UserError, match=f"process {process.pid}"), staged(str(target)):
        raise AssertionError("unreachable")
    process.kill()
    process.wait()
    with staged(str(target)) as folder:
        (folder / "x").write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"], "neither a lock nor what was half-written"


def test_a_lock_in_a_bucket_is_one_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANFLOW_CACHE", str(tmp_path))
    code = "from hanflow.storage import hold; hold('gs://bucket/run/checkpoints')"
    with holding("gs://bucket/run/checkpoints/"):
        # by way of a shell, so that the second process is no worker of this one
        second = subprocess.run(
            ["sh", "-c", f'{sys.executable} -c "{code}"; exit $?'], capture_output=True, text=True, check=False
        )
    assert second.returncode == 1
    assert re.search(rf"gs://bucket/run/checkpoints: process {os.getpid()} ", second.stderr)


def test_a_worker_goes_on_after_its_parent_was_killed(tmp_path: Path) -> None:
    """It holds the lock that it was given, and so need not ask for it."""
    code = f"""
import os, pathlib, time
from hanflow.storage import hold
parent, place = os.getppid(), pathlib.Path({str(tmp_path)!r})
(place / "ready").touch()
while os.getppid() == parent:
    time.sleep(0.01)
try:
    hold(str(place / "checkpoints"))
    (place / "result").write_text("held")
except BaseException as error:
    (place / "result").write_text(str(error))
"""
    process, _ = holder("holding", tmp_path / "checkpoints", code)
    awaited(tmp_path / "ready")
    process.kill()
    process.wait()
    awaited(tmp_path / "result")
    time.sleep(0.05)  # the text follows the file
    assert (tmp_path / "result").read_text() == "held"


def awaited(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


def test_a_trained_model_may_be_written_by_other_processes_than_the_step(tmp_path: Path) -> None:
    """The pods of a job, which see the step's output on a volume and are no children of it."""
    output = tmp_path / "model"
    code = "import sys; from hanflow.storage import staged\nwith staged(sys.argv[1]) as f: (f / 'x').write_text('x')"

    def launched(*_: object, **__: object) -> Report:
        subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", code, str(output)], check=True)
        return Report({})

    assert main("train", launched, ("shards",), [f"--output={output}", f"--shards={tmp_path}"]) == 0
    assert (output / "x").is_file()


def test_a_training_here_locks_its_output_before_it_reads(tmp_path: Path) -> None:
    process, _ = holder("writing", tmp_path / "model")
    try:
        with pytest.raises(UserError, match=f"process {process.pid}"):
            train(SummarizationTrain(), task="summarization", output=str(tmp_path / "model"), shards="no-such-folder")
    finally:
        process.kill()
        process.wait()
