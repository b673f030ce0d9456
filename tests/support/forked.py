"""Runs of the train step and of `hanflow` in processes of their own that can be killed at any point, without importing torch each time.

A zygote imports everything, computes nothing, and forks a child a job; jobs and results are JSON lines.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


class Zygote:
    """Use as a context manager; `run` forks one job and waits for it."""

    def __enter__(self) -> Zygote:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def run(self, **job: Any) -> int:
        """The child's exit status, negative for the signal that killed it.

        Args:
            job: `environment`: variables to set; `pid_file`: where to write the child's process id; `stderr`: file for
                what it says; `stdout`: file for what it prints. `config`, `task`, `output`, `shards` of the train step;
                `kill_at_event`: number of the file operation in the checkpoint folder (from 1) to be killed at, counted into
                `events` (a path); `signal_at_step`: when that step is logged, and `delay` seconds later, `signum` (SIGTERM) to itself;
                `compilations`: a path, gets the number of graphs that torch_xla compiled. Or `step` and the `argv` of its
                command line (`-m hanflow.steps.<step>`). Or `argv` of a `hanflow` command,
                `kill_at_event` (with `signum`, SIGKILL) in the folder `watch`, or `kill_after` so many seconds.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())["status"]


def _command(job: dict[str, Any]) -> int:
    from hanflow.cli.main import main

    count, killed = 0, False

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, killed
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(job["watch"] + os.sep):
            return
        count += 1
        if count == job["kill_at_event"] and not killed:
            killed = True
            os.kill(os.getpid(), job.get("signum", signal.SIGKILL))

    def kill() -> None:
        time.sleep(job["kill_after"])
        os.kill(os.getpid(), signal.SIGKILL)

    if "kill_at_event" in job:
        sys.addaudithook(audit)
    if "kill_after" in job:
        threading.Thread(target=kill, daemon=True).start()
    try:
        return main(job["argv"])
    finally:
        if "events" in job:
            Path(job["events"]).write_text(str(count))


def _child(job: dict[str, Any]) -> int:
    os.environ.update(job.get("environment", {}))
    if "stderr" in job:
        os.dup2(os.open(job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if "stdout" in job:  # by lines: a child ends without flushing
        os.dup2(os.open(job["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if "pid_file" in job:
        Path(job["pid_file"]).write_text(str(os.getpid()))
    if "step" in job:
        sys.argv = [job["step"], *job["argv"]]
        try:
            runpy.run_module(f"hanflow.steps.{job['step']}", run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    if "argv" in job:
        return _command(job)
    from hanflow.errors import UserError
    from hanflow.experiment import step_config
    from hanflow.steps.train import run
    from hanflow.storage import is_remote, work_folder

    config = step_config("train", job["config"], job["task"])
    count = 0
    folder = config.checkpoints

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(folder) or "step-" not in str(arguments[0]):
            return
        count += 1
        if count == job.get("kill_at_event"):
            os.kill(os.getpid(), signal.SIGKILL)

    if "kill_at_event" in job:
        sys.addaudithook(audit)
    if "signal_at_step" in job:
        metrics = work_folder(folder) / "metrics.jsonl" if is_remote(folder) else Path(folder) / "metrics.jsonl"

        def send() -> None:
            while f'"step": {job["signal_at_step"]},' not in (metrics.read_text() if metrics.is_file() else ""):
                time.sleep(0.005)
            time.sleep(job.get("delay", 0.0))
            os.kill(os.getpid(), job.get("signum", signal.SIGTERM))

        threading.Thread(target=send, daemon=True).start()
    try:
        run(config, task=job["task"], output=job["output"], shards=job["shards"])
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    finally:
        if "events" in job:
            Path(job["events"]).write_text(str(count))
        if "compilations" in job:
            import torch_xla.debug.metrics

            data = torch_xla.debug.metrics.metric_data("CompileTime")
            Path(job["compilations"]).write_text(str(data[0] if data else 0))
    return 0


def _zygote() -> None:
    import importlib.util

    import ctranslate2  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import transformers.models.bart.modeling_bart  # noqa: F401

    import hanflow.cli.main
    import hanflow.serving.predict
    import hanflow.steps.train
    import hanflow.training.workers.worker

    if importlib.util.find_spec("torch_xla") is not None:
        import hanflow.training.backends.xla  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 70
            try:
                status = _child(json.loads(line))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, result = os.waitpid(child, 0)
        status = os.waitstatus_to_exitcode(result)
        print(json.dumps({"status": status}), flush=True)


if __name__ == "__main__":
    _zygote()
