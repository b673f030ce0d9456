"""Decisions of the launcher: how to get a job, and what to do next, given what the API server reported about it.

Nothing here has a clock, a network or a thread: `launcher.py` reports objects and the time, and carries out the decisions.
`now` is always seconds of one monotonic clock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hanflow.cluster import status
from hanflow.cluster.job import DIGEST_ANNOTATION, QUEUE_LABEL, RUN_LABEL, Runtime
from hanflow.errors import UserError

TAIL_LINES = 20
"""Lines of a pod's log in the message of a failure."""


@dataclass(frozen=True)
class Timing:
    """Waiting times of the launcher, in seconds."""

    tick: float = 1.0
    """Without a change for so long, the pods that wait are looked at."""
    incident: float = 400.0
    """Workers that lose a peer notice within this time (the timeout of a collective, and a margin): one incident."""
    settle: float = 5.0
    """How long the reported pods may lag behind their job."""
    log_rest: float = 15.0
    """How long the rest of rank 0's log may take once its pod has ended."""
    log_retry: float = 2.0
    """Before a broken log stream is opened again."""
    watch_retry: float = 1.0
    """Before the objects are listed again after a watch broke."""
    repeat: float = 300.0
    """A reason for waiting that stays the same is logged again after this time."""
    stuck: float = 600.0
    """How long a container may wait for what is usually a mistake (a missing image or Secret) before the job fails."""
    events: float = 10.0
    """Between two requests for the warnings about a job that does not run."""
    removal_poll: float = 1.0
    """Between two looks at a job that is being removed."""
    removal: float = 180.0
    """How long an earlier attempt's job may take to disappear (its pods get their grace period)."""
    remove: float = 60.0
    """How long removing the job at the end is retried."""
    terminate: float = 0.9
    """The same after SIGTERM: a step that is terminated has about a second."""


class JobFailed(UserError):
    """The job did not succeed; the message has the pods' reasons and the last lines of their logs."""


@dataclass(frozen=True)
class Plan:
    """How to get an object, a job or what it refers to."""

    action: Literal["create", "adopt", "replace", "wait", "refuse"]
    """replace: delete the one that exists, and then wait until it is gone."""
    why: str = ""


def plan(wanted: Mapping[str, Any], found: Mapping[str, Any] | None, made: Mapping[str, Any] | None = None) -> Plan:
    """How to get the wanted object: a step that is retried, or that runs twice, finds that of the other attempt.

    Args:
        wanted: as it is to be created.
        found: the object of its kind and name; None: there is none.
        made: the object of the job's name that a controller made of an earlier job, where the controller knows it by name.
    """
    name = wanted["metadata"]["name"]
    if found is None:
        return Plan("wait", f"{made['kind']} {name} of an earlier attempt is being removed") if made else Plan("create")
    if found["metadata"].get("deletionTimestamp"):
        return Plan("wait", f"{wanted['kind']} {name} of an earlier attempt is being removed")
    if not same_run(found, wanted):
        return Plan("refuse", f"{wanted['kind']} {name} exists already and belongs to another run; rename or remove it")
    if status.phase(found).name == "failed":
        return Plan("replace", "it failed")
    if not same_settings(found, wanted):
        return Plan("replace", "it was made from other settings")
    owners, own = _owners(found), _owners(wanted)
    if owners and own and owners.isdisjoint(own):  # the cluster deletes it soon
        return Plan("replace", "its Workflow is gone")
    return Plan("adopt")


def _owners(body: Mapping[str, Any]) -> set[str]:
    return {owner["uid"] for owner in body["metadata"].get("ownerReferences", ())}


def same_run(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether an object of the cluster belongs to the run of a job."""
    return found["metadata"].get("labels", {}).get(RUN_LABEL) == wanted["metadata"]["labels"][RUN_LABEL]


def same_settings(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether an object of the cluster was made from the settings of a job."""
    digest = found["metadata"].get("annotations", {}).get(DIGEST_ANNOTATION)
    return digest == wanted["metadata"]["annotations"][DIGEST_ANNOTATION]


def may_remove(wanted: Mapping[str, Any], uid: str, found: Mapping[str, Any] | None) -> bool:
    """Whether the launcher of a job may remove what has the job's name: not another run's, nor another attempt's.

    Args:
        wanted: the job as it was to be created.
        uid: of the job; empty: it is not known whether it was created.
        found: the job that has its name now; None: there is none.
    """
    return found is None or (same_run(found, wanted) and uid in ("", found["metadata"]["uid"]))


def past_the_queue(runtime: Runtime, answer: Mapping[str, Any]) -> str:
    """Why a job with a queue name would run past the queue; empty: it would wait there.

    Kueue suspends the jobs that it manages. Where it or its integration of that kind is missing, the name is ignored.

    Args:
        runtime: the kind of the job.
        answer: what the API server would make of the job.
    """
    if status.suspended(answer):
        return ""
    return (
        f"job.queue={answer['metadata']['labels'][QUEUE_LABEL]}: Kueue does not manage a {runtime.kind} on this cluster, which "
        f"would start at once, outside of the queue. Install Kueue, or add {runtime.integration} to integrations.frameworks "
        "in the configuration of its controller; or leave job.queue empty"
    )


def events_about(job: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events about a job, what its controller makes of it, and its place in a queue of Kueue."""
    name = job["metadata"]["name"]
    names = (name, f"{job['kind'].lower()}-{name}-")  # Kueue derives its object's name from the job's
    return [event for event in events if event["involvedObject"]["name"].startswith(names)]


@dataclass(frozen=True)
class Decision:
    """What the launcher is to do."""

    messages: Sequence[tuple[int, str]] = ()
    """To log: level and text."""
    streams: Sequence[Mapping[str, Any]] = ()
    """The pods whose logs are to be streamed, if they are not yet."""
    read_events: bool = False
    """Whether to ask for the warnings about the job."""
    failure: str = ""
    """Why the job is to be given up; empty: it is not."""


@dataclass
class _Incident:
    """Pods that ended for what is taken to be one cause."""

    since: float
    pods: set[str] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)


class JobFollower:
    """What is known about one job, and what follows from it.

    Args:
        job: as the API server has it.
        hours: how long it may take from its creation on, waiting included.
        restarts: how many retryable incidents it survives; None: its controller counts them itself.
        started: when it was created.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        *,
        hours: float,
        restarts: int | None,
        started: float,
        timing: Timing | None = None,
    ):
        self.name, self.uid = job["metadata"]["name"], job["metadata"]["uid"]
        self.phase = status.Phase("")
        self.pods: dict[str, Mapping[str, Any]] = {}
        """Those that exist, by uid."""
        self.ended: dict[str, status.Termination] = {}
        """How pods ended, by uid; also of pods that are gone."""
        self._hours, self._deadline, self._restarts = hours, started + hours * 3600, restarts
        self._timing = timing or Timing()
        self._incidents: list[_Incident] = []
        self._waiting_since: dict[tuple[str, str], float] = {}
        self._logged_at: dict[str, float] = {}
        self._events_at = float("-inf")
        self._refused_since = float("inf")

    def on_job(self, kind: str, jobs: Iterable[Mapping[str, Any]], now: float) -> Decision:
        """The watch of the job reported a change of this kind (LIST, ADDED, MODIFIED, DELETED)."""
        own = [job for job in jobs if job["metadata"]["uid"] == self.uid]
        if (kind == "DELETED" and own) or (kind == "LIST" and not own):
            return Decision(
                failure="it was deleted by somebody else (kubectl, another attempt of this step), or together with its Workflow"
            )
        messages = [message for job in own for message in self._new_phase(job)]
        return Decision(messages, failure=self._overdue(now))

    def _new_phase(self, job: Mapping[str, Any]) -> list[tuple[int, str]]:
        before, self.phase = self.phase, status.phase(job)
        if self.phase.name == before.name or self.phase.finished:
            return []
        queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
        waits = f", waiting in Kueue's queue {queue}" if self.phase.name == "suspended" and queue else ""
        reason = f" ({self.phase.message})" if self.phase.message else ""
        return [(logging.INFO, f"job {self.name} is {self.phase.name}{waits}{reason}")]

    def on_pods(self, kind: str, pods: Sequence[Mapping[str, Any]], now: float) -> Decision:
        """The watch of the pods reported a change of this kind (LIST: these are all pods that exist)."""
        deleted, present = (pods, []) if kind == "DELETED" else ([], pods)
        if kind == "LIST":
            listed = {pod["metadata"]["uid"] for pod in pods}
            deleted = [pod for uid, pod in self.pods.items() if uid not in listed]
        for pod in deleted:
            self.pods.pop(pod["metadata"]["uid"], None)
        self.pods.update({pod["metadata"]["uid"]: pod for pod in present})
        messages: list[tuple[int, str]] = []
        failure = self._overdue(now)
        for pod, gone in [*((pod, True) for pod in deleted), *((pod, False) for pod in present)]:
            uid, end = pod["metadata"]["uid"], status.termination(pod, deleted=gone)
            if end is not None and uid not in self.ended:
                self.ended[uid] = end
                if end.kind != "succeeded":
                    messages.append((logging.WARNING, f"pod {end.pod} failed ({end.kind}): {end.text}"))
                    failure = failure or self._count(end, now)
        # A log whose pod is gone gets no more lines.
        streams: list[Mapping[str, Any]] = [
            {**pod, "status": {"phase": "Failed"}} for pod in deleted if status.rank_zero([pod])
        ]
        zero = status.rank_zero(self.pods.values())
        if zero is not None and status.has_started(zero):
            streams.append(zero)
        return Decision(messages, streams=streams, failure=failure)

    def _count(self, end: status.Termination, now: float) -> str:
        """Group the ends of pods into incidents; why the job is given up after too many of them, else empty."""
        last = self._incidents[-1] if self._incidents else None
        if last is None or end.pod in last.pods or now - last.since > self._timing.incident:
            last = _Incident(now)
            self._incidents.append(last)
        last.pods.add(end.pod)
        last.kinds.add(end.kind)
        counted = sum("preempted" not in incident.kinds for incident in self._incidents)
        if self._restarts is not None and counted > self._restarts and end.kind != "permanent":
            return f"it failed {counted} times, and job.max_restarts={self._restarts}"
        return ""

    def on_quiet(self, now: float) -> Decision:
        """Nothing has changed for a while: say why pods wait, and give up where waiting cannot help."""
        reasons = [reason for reason in map(status.waiting, self.pods.values()) if reason is not None]
        self._waiting_since = {
            (reason.pod, reason.reason): self._waiting_since.get((reason.pod, reason.reason), now) for reason in reasons
        }
        messages = [m for reason in reasons for m in self._once(f"pod {reason.pod} waits: {reason.text}", now)]
        failure = self._overdue(now)
        for reason in reasons:
            stuck = now - self._waiting_since[reason.pod, reason.reason] > self._timing.stuck
            if reason.reason in status.HOPELESS or (reason.reason in status.STUCK and stuck):
                failure = failure or f"pod {reason.pod} cannot start: {reason.text}"
        waits = self.phase.name in ("pending", "suspended", "restarting")
        read_events = waits and now - self._events_at > self._timing.events
        if read_events:
            self._events_at = now
        return Decision(messages, read_events=read_events, failure=failure)

    def on_events(self, events: Sequence[Mapping[str, Any]], now: float) -> Decision:
        """Warnings about the job itself: a quota, a missing service account, a webhook that refuses, a full queue."""
        texts = {f"{event.get('reason')}: {event.get('message')}": event for event in events[-5:]}
        messages = [
            message
            for text, event in texts.items()
            for message in self._once(text, now, logging.INFO if event.get("type") == "Normal" else logging.WARNING)
        ]
        refusals = [text for text, event in texts.items() if event.get("reason") in status.REFUSED]
        if not refusals or self.pods or self.phase.name != "pending":
            self._refused_since = float("inf")
            return Decision(messages)
        self._refused_since = min(self._refused_since, now)
        stuck = now - self._refused_since > self._timing.stuck
        return Decision(messages, failure=f"it cannot start: {refusals[-1]}" if stuck else "")

    def _once(self, text: str, now: float, level: int = logging.WARNING) -> list[tuple[int, str]]:
        """The message, unless it was logged a short while ago."""
        if now - self._logged_at.get(text, float("-inf")) < self._timing.repeat:
            return []
        self._logged_at[text] = now
        return [(level, text)]

    def _overdue(self, now: float) -> str:
        if now <= self._deadline or self.phase.finished:
            return ""
        return f"it took longer than job.deadline_hours={self._hours:g}; it was {self.phase.name}"

    @property
    def settled(self) -> bool:
        """Whether the reported pods have caught up with the end of the job."""
        if self.phase.name == "failed":
            return any(end.kind != "succeeded" for end in self.ended.values())
        zero = status.rank_zero(self.pods.values())
        return zero is not None and status.termination(zero) is not None

    def failures(self) -> list[status.Termination]:
        """The pods' failures that explain that of the job, the newest four: real ones, else preemptions."""
        failed = [end for end in self.ended.values() if end.kind not in ("succeeded", "preempted")]
        failed = failed or [end for end in self.ended.values() if end.kind == "preempted"]
        return failed[-4:]

    def failure(
        self, reason: str, rank_zero_log: Sequence[str] = (), other_logs: Mapping[str, Sequence[str]] | None = None
    ) -> JobFailed:
        """The error with everything that helps to find the cause.

        Args:
            reason: why the job failed.
            rank_zero_log: last lines of rank 0.
            other_logs: pod → last lines, of further pods that failed.
        """
        lines = [f"job {self.name} failed: {reason}"]
        lines += [f"pod {end.pod}: {end.text}" for end in self.failures()]
        for title, tail in {"rank 0": rank_zero_log, **{f"pod {p}": t for p, t in (other_logs or {}).items()}}.items():
            if tail:
                lines += [f"last lines of {title}:", *(f"  {line}" for line in list(tail)[-TAIL_LINES:])]
        return JobFailed("\n".join(lines))
