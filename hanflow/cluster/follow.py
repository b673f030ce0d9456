"""A job from its submission to its end, as its objects tell it."""

from __future__ import annotations

import contextlib
import datetime
import queue
import time
from collections.abc import Iterator, Mapping
from typing import Any

from hanflow.cluster import status as pods
from hanflow.cluster.client import Cluster, ClusterError
from hanflow.cluster.job import JOB_LABEL
from hanflow.cluster.log_stream import LogFollower
from hanflow.cluster.submission import PATHS
from hanflow.cluster.waiting import Waits
from hanflow.cluster.watch import Change, Watch
from hanflow.errors import UserError
from hanflow.progress import log

TICK_SECONDS = 1.0
INCIDENT_SECONDS = 400.0
"""Workers that lose a peer notice within that time (the timeout of a collective, and some): one incident, not several."""
SETTLE_SECONDS = 5.0
"""How long pods may be behind their job in what the cluster tells."""
DRAIN_SECONDS = 15.0
"""How long the rest of rank 0's log may take."""
TAIL_LINES = 20
_PODS = "/api/v1/namespaces/{namespace}/pods"


class JobFailed(UserError):
    """The job did not succeed; the message gives the pods' reasons and the last lines of their logs."""


class Life:
    """One job, watched.

    Args:
        cluster: where; its namespace is the job's.
        job: as the cluster has it.
        hours: how long it may take from its creation on.
        restarts: how many incidents that may pass a PyTorchJob survives (a JobSet counts for itself).
    """

    def __init__(self, cluster: Cluster, job: Mapping[str, Any], hours: float, restarts: int):
        self.cluster, self.job, self.restarts = cluster, job, restarts
        self.kind, self.name, self.uid = job["kind"], job["metadata"]["name"], job["metadata"]["uid"]
        self.hours, self.until = hours, time.monotonic() + hours * 3600 - _age(job)
        self.pods: dict[str, dict[str, Any]] = {}
        self.endings: dict[str, pods.Ending] = {}
        self.incidents: list[dict[str, Any]] = []
        self.log = LogFollower(cluster)
        self.waits = Waits(cluster, self.name)
        self.phase = pods.Phase("")

    def follow(self) -> None:
        """Return when the job has succeeded.

        Raises:
            JobFailed: it has not, and never will.
        """
        with self._watches() as inbox:
            while not self.phase.over:
                self._check_deadline()
                try:
                    change = inbox.get(timeout=TICK_SECONDS)
                except queue.Empty:
                    hopeless = self.waits.tell(self.pods.values(), self.phase)
                    if hopeless:
                        raise self._failure(hopeless) from None
                    continue
                self._take(change)
            self._settle(inbox)
            self.log.drain(DRAIN_SECONDS)
        if self.phase.name == "failed":
            raise self._failure(self.phase.message or "the cluster does not say why")

    @contextlib.contextmanager
    def _watches(self) -> Iterator[queue.Queue[Change]]:
        inbox: queue.Queue[Change] = queue.Queue()
        watches = [
            Watch(self.cluster, PATHS[self.kind], {"fieldSelector": f"metadata.name={self.name}"}, inbox, name="job"),
            Watch(self.cluster, _PODS, {"labelSelector": f"{JOB_LABEL}={self.name}"}, inbox, name="pods"),
        ]
        for watch in watches:
            watch.start()
        try:
            yield inbox
        finally:
            for watch in watches:
                watch.stop()

    def _take(self, change: Change) -> None:
        if change.kind == "BROKEN":
            raise change.error or ClusterError("a watch broke")
        if change.source == "job":
            own = [job for job in change.objects if job["metadata"]["uid"] == self.uid]
            if (change.kind == "DELETED" and own) or (change.kind == "LIST" and not own):
                raise self._failure("it vanished: somebody deleted it, or its Workflow")
            for job in own:
                self._take_job(job)
        elif change.kind == "LIST":
            now = {pod["metadata"]["uid"]: pod for pod in change.objects}
            for pod in [pod for uid, pod in self.pods.items() if uid not in now]:
                self._take_pod(pod, deleted=True)
            for pod in now.values():
                self._take_pod(pod)
        else:
            for pod in change.objects:
                self._take_pod(pod, deleted=change.kind == "DELETED")

    def _take_job(self, job: dict[str, Any]) -> None:
        before, self.job, self.phase = self.phase, job, pods.phase(job)
        if self.phase.name != before.name and not self.phase.over:
            queue_name = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
            waits = f", waiting for Kueue's queue {queue_name}" if self.phase.name == "suspended" and queue_name else ""
            told = f" ({self.phase.message})" if self.phase.message else ""
            log.info("job %s is %s%s%s", self.name, self.phase.name, waits, told)

    def _take_pod(self, pod: dict[str, Any], *, deleted: bool = False) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        if deleted:
            self.pods.pop(uid, None)
        else:
            self.pods[uid] = pod
        ending = pods.ending(pod, deleted=deleted)
        if ending is not None and uid not in self.endings:
            self.endings[uid] = ending
            if ending.kind != "succeeded":
                log.warning("pod %s failed (%s): %s", name, ending.kind, ending.text)
                self._count(ending)
        zero = pods.rank_zero(self.pods.values())
        if zero is not None and pods.has_started(zero):
            self.log.follow(zero)
        elif deleted and pods.rank_zero([pod]) is not None:
            self.log.follow({**pod, "status": {"phase": "Failed"}})  # what it said can no longer be asked for

    def _count(self, ending: pods.Ending) -> None:
        """Group the endings of pods into incidents, and give up after too many that may not pass after all."""
        now = time.monotonic()
        last = self.incidents[-1] if self.incidents else None
        if last is None or ending.pod in last["pods"] or now - last["at"] > INCIDENT_SECONDS:
            last = {"at": now, "pods": set(), "kinds": set()}
            self.incidents.append(last)
        last["pods"].add(ending.pod)
        last["kinds"].add(ending.kind)
        counted = sum("preempted" not in incident["kinds"] for incident in self.incidents)
        if self.kind == "PyTorchJob" and counted > self.restarts and ending.kind != "permanent":
            raise self._failure(f"it failed {counted} times, and job.max_restarts={self.restarts}")

    def _check_deadline(self) -> None:
        if time.monotonic() > self.until:
            raise self._failure(f"it took longer than job.deadline_hours={self.hours:g}; it was {self.phase.name}")

    def _settle(self, inbox: queue.Queue[Change]) -> None:
        """Take in what the pods' watch still has to say: a job may be told to have ended before its pods are."""
        until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until and not self._settled():
            with contextlib.suppress(queue.Empty):
                change = inbox.get(timeout=TICK_SECONDS / 4)
                if change.source == "pods" and change.kind != "BROKEN":
                    with contextlib.suppress(JobFailed):
                        self._take(change)

    def _settled(self) -> bool:
        if self.phase.name == "failed":
            return any(ending.kind != "succeeded" for ending in self.endings.values())
        zero = pods.rank_zero(self.pods.values())
        return zero is not None and pods.ending(zero) is not None

    def _failure(self, why: str) -> JobFailed:
        """The failure with everything that helps to mend it."""
        failed = [ending for ending in self.endings.values() if ending.kind not in ("succeeded", "preempted")]
        failed = failed or [ending for ending in self.endings.values() if ending.kind == "preempted"]
        told = [f"job {self.name} failed: {why}"]
        told += [f"pod {ending.pod}: {ending.text}" for ending in failed[-4:]]
        zero = pods.rank_zero(self.pods.values())
        others = {ending.pod for ending in failed} - {zero["metadata"]["name"] if zero else ""}
        if zero is not None and pods.has_started(zero):
            self.log.drain(DRAIN_SECONDS)
        if self.log.last:
            told += ["last lines of rank 0:", *(f"  {line}" for line in list(self.log.last)[-TAIL_LINES:])]
        for name in sorted(others)[:2]:
            lines = self._tail(name)
            if lines:
                told += [f"last lines of pod {name}:", *(f"  {line}" for line in lines)]
        return JobFailed("\n".join(told))

    def _tail(self, pod: str) -> list[str]:
        try:
            with self.cluster.stream(f"{_PODS}/{pod}/log", query={"tailLines": TAIL_LINES}, patience=5.0) as lines:
                return [line.decode("utf-8", "replace") for line in lines]
        except ClusterError:
            return []  # gone with its pod


def _age(job: Mapping[str, Any]) -> float:
    """Seconds since the job was created; 0 for one that is new."""
    created = datetime.datetime.fromisoformat(job["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
    return max((datetime.datetime.now(datetime.UTC) - created).total_seconds(), 0.0)
