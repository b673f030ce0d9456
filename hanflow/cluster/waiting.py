"""Why a job waits, told to people: what its pods lack, and what the cluster warns of."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from hanflow.cluster import status as pods
from hanflow.cluster.client import Cluster, ClusterError
from hanflow.progress import log

REPEAT_SECONDS = 300.0
"""A reason for waiting that stays the same is told again after that time."""
STUCK_SECONDS = 600.0
"""How long a container may wait for what is usually a mistake (a missing image or Secret) before the job is given up."""
EVENTS_SECONDS = 10.0
"""How often warnings about a job that does not run are asked for."""
_EVENTS = "/api/v1/namespaces/{namespace}/events"


class Waits:
    """What one job waits for; every reason is told once in a while.

    Args:
        cluster: where; its namespace is the job's.
        job: name of the job.
    """

    def __init__(self, cluster: Cluster, job: str):
        self._cluster, self._job = cluster, job
        self._since: dict[tuple[str, str], float] = {}
        self._told: dict[str, float] = {}
        self._events_at = 0.0

    def tell(self, job_pods: Iterable[Mapping[str, Any]], phase: pods.Phase) -> str:
        """Say why pods wait; returns why waiting is in vain, empty where it is not."""
        now = time.monotonic()
        reasons = [reason for reason in map(pods.waiting, job_pods) if reason is not None]
        self._since = {(r.pod, r.reason): self._since.get((r.pod, r.reason), now) for r in reasons}
        for reason in reasons:
            self._tell(f"pod {reason.pod} waits: {reason.text}")
            long = now - self._since[reason.pod, reason.reason]
            if reason.reason in pods.HOPELESS or (reason.reason in pods.STUCK and long > STUCK_SECONDS):
                return f"pod {reason.pod} cannot start: {reason.text}"
        if phase.name in ("pending", "suspended", "restarting") and now - self._events_at > EVENTS_SECONDS:
            self._events_at = now
            self._tell_events()
        return ""

    def _tell_events(self) -> None:
        """Warnings about the job itself: a quota, a missing service account, a refusing webhook."""
        for involved in (self._job, f"{self._job}-slice-0"):
            query = {"fieldSelector": f"involvedObject.name={involved},type=Warning"}
            try:
                listed = self._cluster.request("GET", _EVENTS, query=query, patience=5.0)
            except ClusterError:
                return  # a help, not a need
            for event in listed["items"][-5:]:
                self._tell(f"{event.get('reason')}: {event.get('message')}")

    def _tell(self, text: str) -> None:
        now = time.monotonic()
        if now - self._told.get(text, -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._told[text] = now
            log.warning("%s", text)
