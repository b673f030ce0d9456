"""The train step's job on a cluster: submitted or adopted, followed to its end, and removed however that is.

A step that is retried finds its job by name: one that runs or has succeeded is adopted, one that failed or was made from
other settings is replaced. Two attempts at once share a job; one whose job the other has replaced fails, and leaves the
other's alone. `follow.py` decides, this module acts.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hanflow.cluster import status
from hanflow.cluster.cleanup import delete, find, remove
from hanflow.cluster.client import Change, Cluster, ClusterError, Conflict, NotFound, Watch
from hanflow.cluster.follow import (
    TAIL_LINES,
    Decision,
    JobFailed,
    JobFollower,
    Timing,
    events_about,
    past_the_queue,
    plan,
)
from hanflow.cluster.job import JOB_LABEL, QUEUE_LABEL, Origin, PodExtras
from hanflow.cluster.log_stream import LogStream
from hanflow.cluster.runtimes import BY_KIND, KINDS, build, choose, operator_version, pod_count
from hanflow.cluster.trainjob import not_noticed
from hanflow.config import JobConfig
from hanflow.config.worker_spec import WorkerSpec
from hanflow.errors import UserError
from hanflow.images import images_of_this_step
from hanflow.progress import log
from hanflow.version import CONTENT_VARIABLE, content

PODS = "/api/v1/namespaces/{namespace}/pods"
EVENTS = "/api/v1/namespaces/{namespace}/events"
PENDING = "/apis/visibility.kueue.x-k8s.io/v1beta2/namespaces/{namespace}/localqueues"
"""Where Kueue, 0.15 or newer, tells the order of what waits in a queue."""


def prepare(
    job: JobConfig, spec: WorkerSpec, *, run_id: str, extras: PodExtras | None
) -> tuple[Cluster, list[dict[str, Any]]]:
    """The job of a train step, named after the run that this process belongs to: what `launch` takes.

    Args:
        job: where the workers run, and with what resources.
        spec: what the workers do.
        run_id: id of the run; empty: that of this pod, else the URI of the output.
        extras: what the pipeline passes on to the pods.

    Raises:
        ConfigError: settings of the job that cannot work.
        UserError: a path that the job's pods cannot see.
        ClusterError: the cluster cannot be reached, or cannot run a job (`job.runtime=auto`).
    """
    check_paths(spec, extras or PodExtras())
    cluster = Cluster(job.namespace)
    pod = own_pod(cluster)
    origin = Origin(run_id or run_of(pod) or spec.output, owner=workflow_of(pod, cluster))
    job = choose(cluster, job)
    return cluster, build(job, spec, origin, _with_content(extras), images_of_this_step())


def check_paths(spec: WorkerSpec, extras: PodExtras) -> None:
    """Refuse local paths: the pods of a job see buckets and the volumes that the pipeline mounts, nothing else.

    Raises:
        UserError: names the URI.
    """
    mounted = tuple(mount["mountPath"].rstrip("/") + "/" for mount in extras.volume_mounts)
    places = {
        "shards": spec.shards,
        "output": spec.output,
        "train.checkpoints": spec.config.checkpoints,
        "train.pretrained": spec.config.pretrained if spec.config.pretrained.startswith(("/", "~")) else "",
    }
    for name, uri in places.items():
        if uri and not uri.startswith("gs://") and not uri.removeprefix("file://").startswith(mounted):
            raise UserError(
                f"{name}={uri}: the job's pods cannot see that path; use gs://, or mount a volume there in the pipeline"
            )


def own_pod(cluster: Cluster) -> dict[str, Any] | None:
    """The pod that this process runs in; None: there is none, or its service account may not read pods."""
    if not cluster.inside:
        return None
    name = next((os.environ[key] for key in ("KFP_POD_NAME", "POD_NAME", "HOSTNAME") if os.environ.get(key)), "")
    try:
        # The pod's own namespace, which may differ from the job's.
        return cluster.request("GET", f"/api/v1/namespaces/{cluster.own_namespace}/pods/{name}", patience=30.0)
    except ClusterError as error:
        log.warning("the step's own pod cannot be read, so the job gets no owner: %s", error)
        return None


def run_of(pod: Mapping[str, Any] | None) -> str:
    """The run's id: that of Kubeflow Pipelines, else the name of Argo's Workflow; empty: the pod belongs to neither."""
    labels = (pod or {}).get("metadata", {}).get("labels") or {}
    return labels.get("pipeline/runid") or labels.get("workflows.argoproj.io/workflow") or ""


def workflow_of(pod: Mapping[str, Any] | None, cluster: Cluster) -> dict[str, Any] | None:
    """An owner reference to the Workflow of the step's pod (the pod itself outlives a terminated run)."""
    metadata = (pod or {}).get("metadata", {})
    if metadata.get("namespace") != cluster.namespace:
        return None  # an owner and what it owns share a namespace
    for owner in metadata.get("ownerReferences") or ():
        if owner["kind"] == "Workflow":
            return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
    return None


def launch(
    cluster: Cluster,
    *objects: Mapping[str, Any],
    hours: float = 168.0,
    restarts: int = 3,
    unless: Callable[[], bool] = lambda: False,
    timing: Timing | None = None,
) -> None:
    """Run a job to its end; afterwards the job is gone from the cluster, whatever the end was.

    Args:
        cluster: where; its namespace is the job's.
        objects: the job, from `hanflow.cluster.runtimes.build`.
        hours: how long it may take, waiting included.
        restarts: how many retryable incidents it survives, where its controller does not count them itself.
        unless: asked where the cluster has no such job: whether an earlier attempt has done everything, so that none is created.
        timing: waiting times.

    Raises:
        JobFailed: it failed, was deleted, took too long or can never start; the message gives the reason.
        ClusterError: the cluster refuses the job, or cannot be reached any more.
    """
    timing = timing or Timing()
    job, seconds = None, timing.remove
    try:
        job = submit(cluster, objects, timing, unless)
        if job is not None:
            follow(cluster, job, hours=hours, restarts=restarts, timing=timing)
            log.info("job %s succeeded", job["metadata"]["name"])
    except KeyboardInterrupt:
        seconds = timing.terminate
        raise
    finally:
        try:
            remove(cluster, objects, job, seconds)
        except KeyboardInterrupt:
            remove(cluster, objects, job, timing.terminate)
            raise


class _NotYet(Exception):
    """Something has to happen before a job can be created."""


def submit(
    cluster: Cluster, objects: Sequence[Mapping[str, Any]], timing: Timing, unless: Callable[[], bool]
) -> dict[str, Any] | None:
    """Create the job, or adopt that of an earlier attempt; returns it as the cluster has it, None: `unless` forbids it.

    Raises:
        ClusterError: the cluster refuses; a job of that name belongs to another run, or does not go away.
    """
    runtime, name = BY_KIND[objects[-1]["kind"]], objects[-1]["metadata"]["name"]
    until, logged = time.monotonic() + timing.removal, ""
    while True:
        try:
            adopted = _adopted(cluster, objects[-1])
            if adopted is None and unless():  # asked last: a job that is being removed may have succeeded
                return None
            return adopted or _created(cluster, objects)
        except _NotYet as reason:
            if str(reason) != logged:
                logged = str(reason)
                log.info("waiting: %s", reason)
            if time.monotonic() > until:
                kinds = ",".join(kind.plural for kind in (runtime, runtime.made, runtime.template) if kind)
                raise ClusterError(
                    f"{reason}, for {timing.removal:.0f} s; look at its finalizers: kubectl get {kinds} {name} -o yaml"
                ) from None
        time.sleep(timing.removal_poll)


def _adopted(cluster: Cluster, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The object of an earlier attempt, if it can be adopted; None: the way is free to create it."""
    kind, name = wanted["kind"], wanted["metadata"]["name"]
    found, made = find(cluster, wanted), None
    if found is None and kind in BY_KIND and (child := BY_KIND[kind].made):
        made = find(cluster, {**wanted, "kind": child.kind})
    planned = plan(wanted, found, made)
    if planned.action == "create":
        return None
    if planned.action == "refuse":
        raise ClusterError(planned.why)
    if found is None or planned.action == "wait":
        raise _NotYet(planned.why)
    if planned.action == "replace":
        log.info("replacing %s %s of an earlier attempt: %s", kind, name, planned.why)
        delete(cluster, {**found, "kind": kind}, propagation="Foreground")
        raise _NotYet(f"{kind} {name} of an earlier attempt is being removed")
    if kind in BY_KIND:
        log.info("adopted %s %s of an earlier attempt: it is %s", kind, name, status.phase(found).name)
    return found


def _created(cluster: Cluster, objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The job, newly created with what it needs."""
    *templates, body = objects
    runtime, name = BY_KIND[body["kind"]], body["metadata"]["name"]
    try:
        for template in templates:
            if _adopted(cluster, template) is None:
                cluster.request("POST", KINDS[template["kind"]].path, body=template)
        if QUEUE_LABEL in body["metadata"]["labels"]:
            obstacle = past_the_queue(
                runtime, cluster.request("POST", runtime.path, query={"dryRun": "All"}, body=body)
            )
            if obstacle:
                raise ClusterError(obstacle)
        created = cluster.request("POST", runtime.path, body=body)
    except Conflict:  # created in between: look again
        raise _NotYet(f"{runtime.kind} {name} exists already") from None
    except NotFound:
        raise ClusterError(f"the cluster does not know {body['kind']}: install {runtime.operator}") from None
    except ClusterError as error:
        if not not_noticed(str(error)):
            raise
        raise _NotYet(f"Trainer or Kueue has not noticed TrainingRuntime {name} yet") from None
    version = operator_version(cluster, runtime)
    log.info(
        "submitted %s %s to namespace %s%s: %d pods; kubectl describe %s %s",
        runtime.kind, name, cluster.namespace, version and f" for {version}", pod_count(*objects),
        runtime.kind.lower(), name,
    )  # fmt: skip
    return created


def follow(
    cluster: Cluster, job: Mapping[str, Any], *, hours: float, restarts: int, timing: Timing | None = None
) -> None:
    """Stream rank 0's log and report what happens to the job; returns when it has succeeded.

    Raises:
        JobFailed: it did not, and never will.
        ClusterError: the API server refuses, or cannot be reached any more.
    """
    timing, runtime = timing or Timing(), BY_KIND[job["kind"]]
    follower = JobFollower(
        job,
        hours=hours,
        restarts=None if runtime.counts_restarts else restarts,
        started=time.monotonic() - _age(job),
        timing=timing,
    )
    logs = LogStream(cluster, timing.log_retry)

    def carry_out(decision: Decision) -> str:
        for level, text in decision.messages:
            log.log(level, "%s", text)
        for pod in decision.streams:
            logs.follow(pod)
        if decision.read_events:
            return decision.failure or carry_out(follower.on_events(_warnings(cluster, job), time.monotonic()))
        return decision.failure

    with _watches(cluster, job, timing) as changes:
        while not follower.phase.finished:
            failure = carry_out(_decide(follower, _next(changes, timing.tick)))
            if failure:
                raise _failure(cluster, follower, logs, failure, timing)
        # The job's end may be reported before that of its pods.
        until = time.monotonic() + timing.settle
        while time.monotonic() < until and not follower.settled:
            change = _next(changes, timing.tick / 4)
            if change is not None and change.source == "pods" and change.kind != "BROKEN":
                carry_out(_decide(follower, change))
        if not follower.settled:  # the watch is far behind: ask, or the log of a short job is lost
            with contextlib.suppress(ClusterError):
                listed = cluster.request("GET", PODS, query=_pods_of(job), patience=timing.settle)["items"]
                carry_out(follower.on_pods("LIST", listed, time.monotonic()))
        logs.finish(timing.log_rest)
    if follower.phase.name == "failed":
        reason = follower.phase.message or "its status gives no reason"
        raise _failure(cluster, follower, logs, reason, timing)


@contextlib.contextmanager
def _watches(cluster: Cluster, job: Mapping[str, Any], timing: Timing) -> Iterator[queue.Queue[Change]]:
    changes: queue.Queue[Change] = queue.Queue()
    name, path = job["metadata"]["name"], BY_KIND[job["kind"]].path
    selectors = {
        "job": (path, {"fieldSelector": f"metadata.name={name}"}),
        "pods": (PODS, _pods_of(job)),
    }
    watches = [
        Watch(cluster, path, selector, changes, name=source, retry_seconds=timing.watch_retry)
        for source, (path, selector) in selectors.items()
    ]
    for watch in watches:
        watch.start()
    try:
        yield changes
    finally:
        for watch in watches:
            watch.stop()


def _pods_of(job: Mapping[str, Any]) -> dict[str, str]:
    return {"labelSelector": f"{JOB_LABEL}={job['metadata']['name']}"}


def _next(changes: queue.Queue[Change], seconds: float) -> Change | None:
    try:
        return changes.get(timeout=seconds)
    except queue.Empty:
        return None


def _decide(follower: JobFollower, change: Change | None) -> Decision:
    now = time.monotonic()
    if change is None:
        return follower.on_quiet(now)
    if change.kind == "BROKEN":
        raise change.error or ClusterError(f"the watch of the {change.source} ended")
    report = follower.on_job if change.source == "job" else follower.on_pods
    return report(change.kind, change.objects, now)


def _warnings(cluster: Cluster, job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Warnings about a job, the objects that its controller makes of it, and its place in a queue of Kueue."""
    name, kind = job["metadata"]["name"], job["kind"]
    queue_name = (job["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    selectors = [f"involvedObject.name={name}{end},type=Warning" for end in ("", *BY_KIND[kind].children)]
    if queue_name:
        selectors.append("involvedObject.kind=Workload,reason=Pending")
    found: list[Mapping[str, Any]] = []
    place: list[dict[str, Any]] = []
    # They help, but nothing depends on them.
    with contextlib.suppress(ClusterError):
        for selector in selectors:
            found += cluster.request("GET", EVENTS, query={"fieldSelector": selector}, patience=5.0)["items"]
        if queue_name:
            waiting = cluster.request("GET", f"{PENDING}/{queue_name}/pendingworkloads", patience=1.0)["items"]
            place = status.place_in_queue(waiting, job, queue_name)
    return [*events_about(job, found), *place]


def _failure(cluster: Cluster, follower: JobFollower, logs: LogStream, reason: str, timing: Timing) -> JobFailed:
    """The failure with the last lines of rank 0 and of two other pods that failed."""
    zero = status.rank_zero(follower.pods.values())
    if zero is not None and status.has_started(zero):
        logs.finish(timing.log_rest)
    others = {end.pod for end in follower.failures()} - {zero["metadata"]["name"] if zero else ""}
    return follower.failure(reason, list(logs.last), {pod: _tail(cluster, pod) for pod in sorted(others)[:2]})


def _tail(cluster: Cluster, pod: str) -> list[str]:
    """The last lines of a pod's log; none if the pod is gone."""
    try:
        with cluster.stream(f"{PODS}/{pod}/log", query={"tailLines": TAIL_LINES}, patience=5.0) as lines:
            return [line.decode("utf-8", "replace") for line in lines]
    except ClusterError:
        return []


def _age(job: Mapping[str, Any]) -> float:
    """Seconds since the job was created; 0 if the clocks disagree."""
    created = datetime.datetime.fromisoformat(job["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
    return max((datetime.datetime.now(datetime.UTC) - created).total_seconds(), 0.0)


def _with_content(extras: PodExtras | None) -> PodExtras:
    """What the pods get besides: the digest of this library, so that workers from another image refuse to start."""
    given = extras or PodExtras()
    return replace(given, environment=[*given.environment, {"name": CONTENT_VARIABLE, "value": content()}])
