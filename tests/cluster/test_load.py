"""A launcher in a crowded namespace: 1,000 old jobs and 5,000 pods of others, or that share of them which
HANFLOW_TEST_CROWD says (0.1; more may slow down operators that keep all pods in their memory, as Kueue does).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hanflow.cluster.client import Cluster
from hanflow.cluster.runtimes import KINDS
from tests.cluster import world as worlds
from tests.cluster.world import PODS, ROOT, World

CROWD = float(os.environ.get("HANFLOW_TEST_CROWD", "0.1"))
JOBS, OTHER_PODS = round(1_000 * CROWD), round(5_000 * CROWD)
CALLS_A_MINUTE, MEGABYTES = 30, 200
WAITING, RUNNING = 65, 65
"""Seconds for which the job waits and runs: more than a minute each."""

pytestmark = pytest.mark.cluster

LAUNCHER = """
import sys
import hanflow.steps.train  # what a train step has in its memory
from hanflow.cluster.follow import Timing
from tests.cluster.driver import main
sys.exit(main(Timing()))
"""


@pytest.fixture
def crowded(given_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A namespace of its own, removed afterwards."""
    name = f"hanflow-load-{uuid.uuid4().hex[:8]}"
    admin = Cluster(name)
    admin.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    try:
        monkeypatch.setenv("HANFLOW_TEST_NAMESPACE", name)
        with worlds.real(tmp_path, with_proxy=True) as world:
            crowd(world)
            yield world
    finally:
        admin.request("DELETE", PODS, body={"gracePeriodSeconds": 0})  # all of the namespace
        admin.request("DELETE", f"/api/v1/namespaces/{name}")


def crowd(world: World) -> None:
    """Fill the namespace with what costs nothing: jobs that no operator here manages, pods that no scheduler sees."""
    started = time.monotonic()
    accounts = "/api/v1/namespaces/{namespace}/serviceaccounts"
    world.wait("an account", lambda: world.admin.request("GET", accounts)["items"])
    template, first = world.objects(world.body("true", runtime="trainjob", run="old"))
    world.admin.request("POST", KINDS[template["kind"]].path, body=template)

    def job(number: int) -> None:
        runtime = ("trainjob", "pytorchjob")[number % 2]
        body = world.body("true", runtime=runtime, run=f"old-{number}")
        if runtime == "trainjob":
            body["spec"]["runtimeRef"] = first["spec"]["runtimeRef"]
            body["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"
        else:
            body["spec"]["runPolicy"]["managedBy"] = "kueue.x-k8s.io/multikueue"
        path = KINDS[body["kind"]].path
        created = world.admin.request("POST", path, body=body)
        condition = {"type": "Complete" if runtime == "trainjob" else "Succeeded", "status": "True"}
        condition |= {"reason": "Done", "message": "done", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        created["status"] = {"conditions": [condition]}
        world.admin.request("PUT", f"{path}/{body['metadata']['name']}/status", body=created)

    def pod(number: int) -> None:
        labels = {"hanflow/job": f"hanflow-old-{number % JOBS}", "hanflow/run": f"old-{number % JOBS}"}
        spec = {"schedulerName": "none", "containers": [{"name": "main", "image": "none"}]}
        metadata = {"name": f"old-{number}", "labels": labels}
        world.admin.request("POST", PODS, body={"metadata": metadata, "spec": spec})

    _many(job, JOBS)
    _many(pod, OTHER_PODS)
    print(f"{JOBS} jobs and {OTHER_PODS} pods made in {time.monotonic() - started:.0f} s")


def _many(make: Callable[[int], None], count: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in pool.map(make, range(count)):
            pass


class Measured:
    """What a launcher asks of the API server, and its memory."""

    def __init__(self, world: World, process: subprocess.Popen[str]):
        self._world, self._process = world, process
        self._counts: list[tuple[float, int]] = []
        self.megabytes = 0.0

    def look(self) -> None:
        self._counts.append((time.monotonic(), len(self._world.proxy.requests)))
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self._process.pid}/status").read_text())
            self.megabytes = max(self.megabytes, int(found[1]) / 1000 if found else 0.0)

    def wait(self, reached: Callable[[], Any], seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not reached():
            self.look()
            time.sleep(0.5)

    def calls_a_minute(self) -> int:
        """The most in any minute."""
        return max(
            count - before for now, count in self._counts for then, before in self._counts if now - 60 <= then <= now
        )


def start(objects: list[Mapping[str, Any]]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin
    process.stdin.write(json.dumps(objects))
    process.stdin.close()
    process.stdin = None
    return process


def test_a_launcher_in_a_crowded_namespace_asks_little_and_stays_small(crowded: World) -> None:
    world, secret = crowded, f"{crowded.run}-wandb"
    script = f"for i in $(seq {RUNNING}); do echo step $i; sleep 1; done"
    body = world.body(script, runtime="trainjob", secrets={"WANDB_API_KEY": f"{secret}/api-key"})
    world.proxy.requests.clear()
    process = start(world.objects(body))
    measured = Measured(world, process)
    measured.wait(lambda: process.poll() is not None, WAITING)  # its pod waits for the Secret
    assert process.poll() is None, process.communicate()[0]
    waiting = measured.calls_a_minute()
    world.create_secret(secret, "api-key", "local-7c1f")
    measured.wait(lambda: process.poll() is not None, 300)
    output, _ = process.communicate(timeout=1)
    assert process.returncode == 0, output
    assert "not found" in output and f"[rank 0] step {RUNNING}\n" in output
    most = measured.calls_a_minute()
    print(f"the launcher's calls: {waiting} in the first minute, at most {most} in any; {measured.megabytes:.0f} MB")
    for request, status in world.proxy.requests:
        print(f"  {status} {request}")
    assert most < CALLS_A_MINUTE
    assert measured.megabytes < MEGABYTES
    world.assert_nothing_left(body)
