"""Launchers that are killed at random moments: each job trains once, its step succeeds in the end, nothing is left.

HANFLOW_TEST_KILLS says how many kills there are (20). The pods' `python` is a shell script that writes a model which was
trained beforehand, so that whole train steps run in seconds.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hanflow.cluster.client import Cluster, NotFound
from hanflow.cluster.job import JOB_LABEL, Origin, PodExtras
from hanflow.cluster.runtimes import KINDS, RUNTIMES, build
from hanflow.cluster.status import phase
from hanflow.config import JobConfig, TrainConfig
from hanflow.config.worker_spec import WorkerSpec
from hanflow.progress import setup_logging
from hanflow.reports.step_report import Report
from hanflow.signals import raise_on_sigterm
from hanflow.steps import train as train_step
from tests.cluster.pods import require_this_machine
from tests.cluster.world import PODS, World
from tests.support import tasks

TASK = "classification"
KILLS = int(os.environ.get("HANFLOW_TEST_KILLS", "20"))
AT_ONCE = 4
"""Jobs that run side by side."""
SECONDS = 900
"""How long a launcher may take."""

pytestmark = pytest.mark.cluster

WORKER = """#!/bin/sh
# Stands for the workers.
for argument; do
    [ "$before" = --output ] && output=$argument
    before=$argument
done
echo "$HOSTNAME" >>"$output.starts"
sleep 2
cp -r "$PREPARED" "$output.part"
mv "$output.part" "$output"
sleep 1
echo trained
"""


@dataclass(frozen=True)
class End:
    """When a launcher is killed."""

    seconds: float
    of_training: bool
    """Counted from the end of the training, else from the launcher's start."""

    @classmethod
    def at_random(cls, chance: random.Random, trained: bool) -> End:
        if trained or chance.random() < 0.6:
            return cls(10 ** chance.uniform(-2, 1), False)  # most things happen in the first second
        return cls(chance.uniform(0, 3), True)


@dataclass(frozen=True)
class Step:
    """A train step as a job; what a launcher's process gets."""

    config: TrainConfig
    shards: str
    output: Path
    run: str
    job: JobConfig
    extras: PodExtras

    @property
    def name(self) -> str:
        return build(self.job, self.spec, Origin(self.run))[-1]["metadata"]["name"]

    @property
    def spec(self) -> WorkerSpec:
        return WorkerSpec(TASK, self.config, self.shards, str(self.output))

    def launch(self, kubeconfig: str, end: End | None) -> None:
        """The body of a launcher's process, which is killed at its end, if it has one."""
        os.environ["KUBECONFIG"] = kubeconfig
        log = os.open(f"{self.output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        setup_logging()
        raise_on_sigterm()
        if end is not None:
            threading.Thread(target=self._kill, args=(end,), daemon=True).start()
        self.train()

    def train(self) -> Report:
        """As the step's command line does."""
        where = {"output": str(self.output), "shards": self.shards}
        return train_step.run(self.config, task=TASK, **where, job=self.job, run_id=self.run, extras=self.extras)

    def _kill(self, end: End) -> None:
        while end.of_training and not self.trained:
            time.sleep(0.02)
        time.sleep(end.seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    @property
    def trained(self) -> bool:
        """Whether the pod has written the model."""
        return (self.output / "model.json").exists()

    def moment(self, cluster: Cluster) -> str:
        """How far the job has come, as the cluster shows it."""
        kind, trained = RUNTIMES[self.job.runtime], self.trained
        try:
            job = cluster.request("GET", f"{kind.path}/{self.name}")
        except NotFound:
            if trained:
                return "6 the job is removed"
            left = self.objects(cluster)
            return f"1 {' and '.join(left)} alone" if left else "0 nothing is there"
        if job["metadata"].get("deletionTimestamp"):
            return "6 the job is being removed"
        if phase(job).finished:
            return "5 the job has succeeded"
        if trained:
            return "4 the model is written"
        pods = cluster.request("GET", PODS, query={"labelSelector": f"{JOB_LABEL}={self.name}"})["items"]
        running = any(pod["status"]["phase"] == "Running" for pod in pods)
        return "3 its pod runs" if running else "2 the job has no running pod yet"

    def objects(self, cluster: Cluster) -> list[str]:
        """Kinds of the objects of the job's name that exist."""
        found = []
        for kind in KINDS.values():
            items = cluster.request("GET", kind.path, query={"fieldSelector": f"metadata.name={self.name}"})["items"]
            found += [kind.kind] if items else []
        return found


def killed_until_it_ends(step: Step, cluster: Cluster, kubeconfig: str, kills: Kills, chance: random.Random) -> None:
    """Start launchers, one after the other is killed, until one ends by itself: with success."""
    processes = multiprocessing.get_context("forkserver")
    while True:
        end = End.at_random(chance, step.trained) if kills.take() else None
        process = processes.Process(target=step.launch, args=(kubeconfig, end))
        process.start()
        process.join(SECONDS)
        if process.exitcode == -signal.SIGKILL and end is not None:
            kills.moments[step.moment(cluster)] += 1
            continue
        if end is not None:
            kills.give_back()
        process.kill()
        assert process.exitcode == 0, Path(f"{step.output}.log").read_text(encoding="utf-8")
        return


class Kills:
    """How many kills there may still be, and in which moments there were some."""

    def __init__(self, number: int):
        self._left = threading.Semaphore(number)
        self.moments: collections.Counter[str] = collections.Counter()

    def take(self) -> bool:
        """Whether another launcher may be killed."""
        return self._left.acquire(blocking=False)

    def give_back(self) -> None:
        """The launcher ended before it was killed."""
        self._left.release()


@pytest.fixture
def new_step(world: World, tmp_path: Path) -> Callable[[int], Step]:
    """Makes train steps whose pods see the test's folder."""
    require_this_machine()
    chain = tasks.make_shards(tmp_path, TASK, tasks.reviews(80))
    config = tasks.settings(TASK, max_steps=1)
    train_step.run(config, task=TASK, output=str(chain.model), shards=str(chain.shards))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(WORKER, encoding="utf-8")
    (tmp_path / "bin" / "python").chmod(0o755)
    tmp_path.chmod(0o777)  # the pods' user writes there
    extras = PodExtras(
        volumes=[{"name": "data", "hostPath": {"path": str(tmp_path)}}],
        volume_mounts=[{"name": "data", "mountPath": str(tmp_path)}],
    )

    def new(number: int) -> Step:
        job = JobConfig(
            runtime=("trainjob", "pytorchjob")[number % 2],
            namespace=world.cluster.namespace,
            image="busybox:1.36",
            service_account="default",
            gpus=0,
            cpu="10m",
            memory="32Mi",
            scratch="16Mi",
            environment={"PATH": f"{tmp_path}/bin:/bin", "PREPARED": str(chain.model)},
        )
        return Step(config, str(chain.shards), tmp_path / f"model-{number}", world.run, job, extras)

    return new


def test_launchers_that_are_killed_lose_no_job_leave_none_and_run_none_twice(
    world: World, new_step: Callable[[int], Step]
) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.cluster.pods", "hanflow.steps.train"])
    first = processes.Process(target=time.time)
    first.start()
    first.join()  # later ones need not wait until everything is imported
    kubeconfig = os.environ["KUBECONFIG"]
    kills, steps, numbers = Kills(KILLS), list[Step](), itertools.count()

    def jobs(thread: int) -> None:
        chance = random.Random(thread)
        while kills.take():
            kills.give_back()
            step = new_step(next(numbers))
            steps.append(step)
            killed_until_it_ends(step, world.admin, kubeconfig, kills, chance)

    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(jobs, thread) for thread in range(AT_ONCE)]:
            done.result()
    print(f"{kills.moments.total()} kills of the launchers of {len(steps)} jobs in {time.monotonic() - started:.0f} s:")
    for moment, count in sorted(kills.moments.items()):
        print(f"  {count:4} when {moment[2:]}")
    for step in steps:
        starts = Path(f"{step.output}.starts").read_text(encoding="utf-8").splitlines()
        assert len(starts) == 1, f"{step.name} trained {len(starts)} times: {starts}"
        assert step.trained
    world.wait("no jobs", lambda: world.jobs() == [], 60)
    selector = {"labelSelector": f"{JOB_LABEL} in ({','.join(step.name for step in steps)})"}
    world.wait("no pods", lambda: world.admin.request("GET", PODS, query=selector)["items"] == [], 60)
    assert {step.name: left for step in steps if (left := step.objects(world.admin))} == {}


def test_a_launcher_killed_while_it_removes_its_job_has_a_successor_that_removes_the_rest(
    world: World, new_step: Callable[[int], Step]
) -> None:
    """The model is there, the TrainJob is gone already, its TrainingRuntime is not: nothing is trained again."""
    step = new_step(0)
    shutil.copytree(step.job.environment["PREPARED"], step.output)
    template, _ = build(step.job, step.spec, Origin(step.run))
    world.admin.request("POST", KINDS[template["kind"]].path, body=template)
    report = step.train()
    assert report.figures["steps"] == 1 and step.objects(world.admin) == []
    assert not Path(f"{step.output}.starts").exists()
