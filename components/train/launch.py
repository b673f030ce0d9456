"""The train step as a job on a cluster: submitted or adopted, watched, told of, and removed whatever happens.

`python -m components.train.launch --job-runtime pytorchjob --shards gs://… --output gs://…` does from a shell or from
Argo what the train component does in Kubeflow. A step that is tried again finds its job by name: one that runs or has
succeeded is adopted, one that failed or was made from other settings is replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import os
import queue
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from components.shared.config import (
    ConfigError,
    JobConfig,
    TrainConfig,
    UserError,
    job_problems,
    load_experiment,
    parse_text,
    settings_of,
    step_config,
)
from components.shared.images import images_of_this_step
from components.shared.progress import log
from components.shared.steps import Report, Run, Terminated, main
from components.train import outcome, pods
from components.train.follow import LogFollower
from components.train.jobs import (
    DIGEST_ANNOTATION,
    JOB_LABEL,
    RUN_LABEL,
    Origin,
    PodExtras,
    Work,
    build,
    pod_count,
)
from components.train.kube import Change, Cluster, ClusterError, Conflict, NotFound, Watch

TICK_SECONDS = 1.0
REPEAT_SECONDS = 300.0
"""A reason for waiting that stays the same is told again after that time."""
STUCK_SECONDS = 600.0
"""How long a container may wait for what is usually a mistake (a missing image or Secret) before the job is given up."""
INCIDENT_SECONDS = 400.0
"""Workers that lose a peer notice within that time (the timeout of a collective, and some): one incident, not several."""
GONE_SECONDS = 180.0
"""How long a job that is being deleted may take to go (its pods get their grace period)."""
SETTLE_SECONDS = 5.0
"""How long pods may be behind their job in what the cluster tells."""
DRAIN_SECONDS = 15.0
"""How long the rest of rank 0's log may take."""
REMOVE_SECONDS = 60.0
TERMINATE_SECONDS = 0.9
"""What a step has between SIGTERM and its end, about."""
TAIL_LINES = 20

PATHS = {
    "PyTorchJob": "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs",
    "JobSet": "/apis/jobset.x-k8s.io/v1alpha2/namespaces/{namespace}/jobsets",
}
_OPERATORS = {"PyTorchJob": "Kubeflow's training operator", "JobSet": "the JobSet controller"}
_PODS = "/api/v1/namespaces/{namespace}/pods"
_EVENTS = "/api/v1/namespaces/{namespace}/events"


class JobFailed(UserError):
    """The job did not succeed; the message gives the pods' reasons and the last lines of their logs."""


def chosen_run(arguments: Mapping[str, Any]) -> Run:
    """The function of the train step that its component's arguments ask for: in this process, or as a job.

    Args:
        arguments: the component's: `job_…` (the settings of the job), `run_id`, `task_config`.

    Raises:
        ConfigError: the job's settings are wrong.
    """
    job = _checked(step_config("job", {s.name: arguments[s.parameter] for s in settings_of("job")}))
    return functools.partial(run, job=job, run_id=arguments["run_id"], extras=PodExtras.of(arguments["task_config"]))


def _checked(job: JobConfig) -> JobConfig:
    problems = job_problems(job)
    if problems:
        raise ConfigError(problems)
    return job


def run(
    config: TrainConfig,
    *,
    task: str,
    output: str,
    shards: str,
    job: JobConfig,
    run_id: str = "",
    extras: PodExtras | None = None,
) -> Report:
    """Train a model on token ids: in this process, or as a job on a cluster."""
    if job.runtime == "local":
        from components.train.worker import run as run_here

        return run_here(config, task=task, output=output, shards=shards)
    work = Work(task, config, shards, output)
    outcome.check_reach(work, extras or PodExtras())
    cluster = Cluster(job.namespace)
    pod = _own_pod(cluster)
    run_id = run_id or _run_of(pod) or output
    origin = Origin(run_id, owner=_workflow_of(pod, cluster))
    body = build(job, work, origin, extras, images_of_this_step())
    done = outcome.already_done(work)
    if done is not None and _find(cluster, body) is None:
        log.info("%s holds this very model already: nothing to train", output)
        return done
    launch(cluster, body, hours=job.deadline_hours, restarts=job.max_restarts)
    return outcome.report(work)


def launch(cluster: Cluster, body: Mapping[str, Any], *, hours: float = 168.0, restarts: int = 3) -> None:
    """See a job through to its end; whatever that is, the job is not there any more afterwards.

    Args:
        cluster: where; its namespace is the job's.
        body: the job, from `jobs.build`.
        hours: how long it may take, waiting included.
        restarts: how many incidents that may pass a PyTorchJob survives (a JobSet counts for itself).

    Raises:
        JobFailed: it failed, vanished, took too long or can never start; says why.
        ClusterError: the cluster refuses the job, or went away for good.
    """
    job, hurry = None, False
    try:
        job = _submit(cluster, body)
        _Life(cluster, job, hours, restarts).follow()
        log.info("job %s succeeded", job["metadata"]["name"])
    except (Terminated, KeyboardInterrupt):
        hurry = True
        raise
    finally:
        try:
            _remove(cluster, body, job, TERMINATE_SECONDS if hurry else REMOVE_SECONDS)
        except (Terminated, KeyboardInterrupt):
            _remove(cluster, body, job, TERMINATE_SECONDS)
            raise


def _submit(cluster: Cluster, body: Mapping[str, Any]) -> dict[str, Any]:
    """Create the job, or adopt the one that an earlier attempt left."""
    kind, name = body["kind"], body["metadata"]["name"]
    until = time.monotonic() + GONE_SECONDS
    while True:
        found = _find(cluster, body)
        if found is None:
            with contextlib.suppress(Conflict):  # somebody was faster: look again
                try:
                    created = cluster.request("POST", PATHS[kind], body=body)
                except NotFound:
                    raise ClusterError(f"the cluster knows no {kind}: install {_OPERATORS[kind]}") from None
                log.info(
                    "submitted %s %s to namespace %s: %d pods; kubectl describe %s %s",
                    kind, name, cluster.namespace, pod_count(body), kind.lower(), name,
                )  # fmt: skip
                return created
        elif found["metadata"].get("deletionTimestamp"):
            log.info("job %s of an earlier attempt is being removed; waiting", name)
        else:
            why = _why_not(found, body)
            if why is None:
                log.info("adopted job %s of an earlier attempt: it is %s", name, pods.phase(found).name)
                return found
            log.info("replacing job %s of an earlier attempt: %s", name, why)
            _delete(cluster, {**found, "kind": kind})
        if time.monotonic() > until:
            raise ClusterError(
                f"job {name} of an earlier attempt does not go away; look at its finalizers: "
                f"kubectl get {kind.lower()} {name} -o yaml"
            )
        time.sleep(TICK_SECONDS)


def _why_not(found: Mapping[str, Any], body: Mapping[str, Any]) -> str | None:
    """Why an existing job cannot be adopted; None: it can."""
    metadata = found["metadata"]
    if not _same_run(found, body):
        raise ClusterError(f"a job {metadata['name']} that is not of this run exists already; rename or remove it")
    if pods.phase(found).name == "failed":
        return "it failed"
    if (metadata.get("annotations") or {}).get(DIGEST_ANNOTATION) != body["metadata"]["annotations"][DIGEST_ANNOTATION]:
        return "it was made from other settings"
    return None


def _same_run(found: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    return (found["metadata"].get("labels") or {}).get(RUN_LABEL) == body["metadata"]["labels"][RUN_LABEL]


def _find(cluster: Cluster, body: Mapping[str, Any], patience: float | None = None) -> dict[str, Any] | None:
    path = f"{PATHS[body['kind']]}/{body['metadata']['name']}"
    try:
        return cluster.request("GET", path, patience=patience)
    except NotFound:
        return None


def _delete(cluster: Cluster, found: Mapping[str, Any], patience: float | None = None) -> None:
    """Delete that very job (not one of the same name that was made since)."""
    options = {"propagationPolicy": "Background", "preconditions": {"uid": found["metadata"]["uid"]}}
    with contextlib.suppress(NotFound, Conflict):
        path = f"{PATHS[found['kind']]}/{found['metadata']['name']}"
        cluster.request("DELETE", path, body=options, patience=patience)


def _remove(cluster: Cluster, body: Mapping[str, Any], job: Mapping[str, Any] | None, patience: float) -> None:
    """Remove the job, if it is there; an error is told, the way the step ends stays what it was."""
    name = body["metadata"]["name"]
    try:
        if job is None:  # submitting ended in between: it may be there, and it may be somebody else's
            job = _find(cluster, body, patience)
            if job is None or not _same_run(job, body):
                return
        _delete(cluster, {**job, "kind": body["kind"]}, patience)
        log.info("removed job %s", name)
    except ClusterError as error:
        log.error(
            "job %s could not be removed (%s); it goes with its Workflow, or: kubectl delete %s %s",
            name, error, body["kind"].lower(), name,
        )  # fmt: skip


class _Life:
    """A job from its submission to its end, as its objects tell it."""

    def __init__(self, cluster: Cluster, job: Mapping[str, Any], hours: float, restarts: int):
        self.cluster, self.job, self.restarts = cluster, job, restarts
        self.kind, self.name, self.uid = job["kind"], job["metadata"]["name"], job["metadata"]["uid"]
        self.hours, self.until = hours, time.monotonic() + hours * 3600 - _age(job)
        self.pods: dict[str, dict[str, Any]] = {}
        self.endings: dict[str, pods.Ending] = {}
        self.incidents: list[dict[str, Any]] = []
        self.log = LogFollower(cluster)
        self.waiting_since: dict[tuple[str, str], float] = {}
        self.told: dict[str, float] = {}
        self.phase = pods.Phase("")
        self.events_at = 0.0

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
                    self._tell_waiting()
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

    def _tell_waiting(self) -> None:
        """Say why pods wait; give up where waiting is in vain."""
        now = time.monotonic()
        reasons = [reason for reason in map(pods.waiting, self.pods.values()) if reason is not None]
        current = {(reason.pod, reason.reason) for reason in reasons}
        self.waiting_since = {key: self.waiting_since.get(key, now) for key in current}
        for reason in reasons:
            self._tell(f"pod {reason.pod} waits: {reason.text}")
            long = now - self.waiting_since[reason.pod, reason.reason]
            if reason.reason in pods.HOPELESS or (reason.reason in pods.STUCK and long > STUCK_SECONDS):
                raise self._failure(f"pod {reason.pod} cannot start: {reason.text}")
        if self.phase.name in ("pending", "suspended", "restarting") and now - self.events_at > 10 * TICK_SECONDS:
            self.events_at = now
            self._tell_events()

    def _tell_events(self) -> None:
        """Warnings about the job itself: a quota, a missing service account, a refusing webhook."""
        for involved in (self.name, f"{self.name}-slice-0"):
            query = {"fieldSelector": f"involvedObject.name={involved},type=Warning"}
            try:
                listed = self.cluster.request("GET", _EVENTS, query=query, patience=5.0)
            except ClusterError:
                return  # a help, not a need
            for event in listed["items"][-5:]:
                self._tell(f"{event.get('reason')}: {event.get('message')}")

    def _tell(self, text: str) -> None:
        now = time.monotonic()
        if now - self.told.get(text, -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self.told[text] = now
            log.warning("%s", text)

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


def _own_pod(cluster: Cluster) -> dict[str, Any] | None:
    """The pod that this process runs in; None: none, or its service account may not read pods."""
    if not cluster.inside:
        return None
    name = next((os.environ[key] for key in ("KFP_POD_NAME", "POD_NAME", "HOSTNAME") if os.environ.get(key)), "")
    try:
        # Its own namespace, which may be another than the job's.
        return cluster.request("GET", f"/api/v1/namespaces/{cluster.own_namespace}/pods/{name}", patience=30.0)
    except ClusterError as error:
        log.warning("the step's own pod cannot be read, the job gets no owner: %s", error)
        return None


def _run_of(pod: Mapping[str, Any] | None) -> str:
    """The run's id: of Kubeflow Pipelines, else the name of Argo's Workflow."""
    labels = (pod or {}).get("metadata", {}).get("labels") or {}
    return labels.get("pipeline/runid") or labels.get("workflows.argoproj.io/workflow") or ""


def _workflow_of(pod: Mapping[str, Any] | None, cluster: Cluster) -> dict[str, Any] | None:
    """An owner reference to the Workflow of the step's pod: a pod outlives a terminated run, a Workflow is removed."""
    metadata = (pod or {}).get("metadata", {})
    if metadata.get("namespace") != cluster.namespace:
        return None  # owners and what they own share a namespace
    for owner in metadata.get("ownerReferences") or ():
        if owner["kind"] == "Workflow":
            return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
    return None


def command(argv: Sequence[str] | None = None) -> int:
    """The command line: `--job-…` settings and `--run` here, everything else as `python -m components.train` has it."""
    parser = argparse.ArgumentParser(prog="python -m components.train.launch", add_help=False, allow_abbrev=False)
    parser.add_argument("--run", default="", help="id of the run (default: the pod's, else the output's URI)")
    parser.add_argument("--experiment", help="YAML file that the settings start from")
    for s in settings_of("job"):
        parser.add_argument(f"--job-{s.name.replace('_', '-')}", dest=f"job_{s.name}", metavar=s.type.__name__.upper(), help=s.help.replace("%", "%%"))  # fmt: skip
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(argv)
    options = vars(known)
    if options["help"]:
        parser.print_help()
        rest = ["--help"]
    given = {s.name: options[s.parameter] for s in settings_of("job") if options[s.parameter] is not None}
    try:
        if options["experiment"]:
            rest += ["--experiment", options["experiment"]]
            overrides = [f"job.{name}={text}" for name, text in given.items()]
            job = load_experiment(options["experiment"], overrides, require=False).job
        else:
            job = _checked(step_config("job", {name: parse_text("job", name, text) for name, text in given.items()}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return main("train", functools.partial(run, job=job, run_id=options["run"]), inputs=("shards",), argv=rest)


if __name__ == "__main__":
    sys.exit(command())
