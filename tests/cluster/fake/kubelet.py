"""Containers as processes of this machine: started, ended, and their status and output reported."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.cluster.fake.store import Refused, Store, now
from tests.cluster.schemas import ROOT

GRACE_SECONDS = 2.0
"""In place of a pod's own grace period, to keep tests short."""


class Run:
    """A container that runs as a process here."""

    def __init__(self, command: list[str], environment: dict[str, str], changed: threading.Condition):
        self.lines: list[tuple[str, str]] = []
        self.over = False
        self.deadline = float("inf")
        self._changed = changed
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
            with self._changed:
                self.lines.append((stamp, line.rstrip("\n")))
                self._changed.notify_all()

    def ended(self) -> int | None:
        """The exit status as containers have it; None: it runs."""
        status = self.process.poll()
        if status is None:
            if time.monotonic() > self.deadline:
                self.signal(signal.SIGKILL)
            return None
        self._reader.join(0.5)
        self.over = True
        return status if status >= 0 else 128 - status

    def signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signum) if signum == signal.SIGTERM else os.killpg(self.process.pid, signum)

    def terminate(self, grace: float) -> None:
        if self.deadline == float("inf"):
            self.deadline = time.monotonic() + grace
            self.signal(signal.SIGTERM)


class Kubelet:
    """Starts, ends and reports the containers of pods."""

    def __init__(self, store: Store):
        self.store = store
        self.runs: dict[str, Run] = {}
        self.evicted: set[str] = set()
        self.grace = GRACE_SECONDS
        self.port = 23456
        """MASTER_PORT of pods that share one machine here."""

    def stop(self) -> None:
        for run in self.runs.values():
            run.signal(signal.SIGKILL)
            run.process.wait()
            run._reader.join(2)

    def look_after(self, pod: dict[str, Any]) -> None:
        name, uid, status = pod["metadata"]["name"], pod["metadata"]["uid"], pod.get("status", {})
        if pod["metadata"].get("deletionTimestamp"):
            self.take_away(pod)
            return
        if status.get("phase") in ("Succeeded", "Failed"):
            return
        run = self.runs.get(uid)
        if run is None:
            waiting = self._obstacle(pod)
            if waiting is None:
                run = self.runs[uid] = self._start(pod)
                waiting = {
                    "phase": "Running",
                    "containerStatuses": [self._container(pod, {"running": {"startedAt": now()}})],
                }
            self.store.update("pods", name, lambda p: p.update(status=waiting))
            return
        code = run.ended()
        if code is not None:
            self._report(pod, code)

    def _obstacle(self, pod: dict[str, Any]) -> dict[str, Any] | None:
        """The status of a pod that cannot start; None: it can."""
        spec = pod["spec"]
        if "hanflow.test/nowhere" in spec.get("nodeSelector", {}):
            message = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            return {"phase": "Pending", "conditions": [condition]}
        container = spec["containers"][0]
        reason = message = ""
        if container["image"] != container["image"].lower():
            reason, message = "InvalidImageName", f'Failed to apply default image tag "{container["image"]}"'
        elif ".invalid/" in container["image"]:
            reason, message = "ErrImagePull", f'failed to pull image "{container["image"]}": no such host'
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference and ("secrets", reference["name"]) not in self.store.objects:
                reason, message = "CreateContainerConfigError", f'secret "{reference["name"]}" not found'
        if not reason:
            return None
        state = {"waiting": {"reason": reason, "message": message}}
        return {"phase": "Pending", "containerStatuses": [self._container(pod, state)]}

    def _start(self, pod: dict[str, Any]) -> Run:
        container = pod["spec"]["containers"][0]
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PET_MASTER_PORT": str(self.port),
            "OMP_NUM_THREADS": "1",
        }
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                secret = self.store.get("secrets", reference["name"])
                environment[variable["name"]] = secret["stringData"][reference["key"]]
            else:
                environment[variable["name"]] = _expanded(variable["value"], environment)
        command = [_expanded(argument, environment) for argument in container["command"]]
        return Run(command, environment, self.store.changed)

    @staticmethod
    def _container(pod: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": pod["spec"]["containers"][0]["name"],
            "restartCount": 0,
            "ready": "running" in state,
            "state": state,
        }

    def _report(self, pod: dict[str, Any], code: int) -> None:
        run = self.runs[pod["metadata"]["uid"]]
        message = "\n".join(text for _, text in run.lines[-5:]) if code else ""
        terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
        status: dict[str, Any] = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [self._container(pod, {"terminated": terminated})],
        }
        if pod["metadata"]["uid"] in self.evicted:
            message = "Eviction API: evicting"
            status.update(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
            status["conditions"] = [
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": message}
            ]
        self.store.update("pods", pod["metadata"]["name"], lambda p: p.update(status=status))

    def evict(self, pod: dict[str, Any]) -> None:
        self.evicted.add(pod["metadata"]["uid"])
        run = self.runs.get(pod["metadata"]["uid"])
        if run is not None:
            run.terminate(self.grace)

    def take_away(self, pod: dict[str, Any]) -> None:
        """Delete a pod: SIGTERM, then it goes with its processes."""
        name, run = pod["metadata"]["name"], self.runs.get(pod["metadata"]["uid"])
        if run is not None and run.ended() is None:
            self.store.update("pods", name, lambda p: p["metadata"].setdefault("deletionTimestamp", now()))
            run.terminate(self.grace)
            return
        if run is not None and pod.get("status", {}).get("phase") == "Running":
            self._report(pod, run.ended() or 0)
        with contextlib.suppress(Refused):
            self.store.delete("pods", name)


def _expanded(argument: str, environment: dict[str, str]) -> str:
    """$(NAME) by the variable of that name, if there is one; $$ by $."""

    def replacement(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else environment.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replacement, argument)
