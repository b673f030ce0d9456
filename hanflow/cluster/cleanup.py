"""Remove jobs from a cluster: one at its end, or all of a run (`python -m hanflow.cluster.cleanup --run ID`, or the
pipeline's exit handler).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hanflow.cluster.client import Cluster, ClusterError, Conflict, NotFound
from hanflow.cluster.follow import may_remove, same_run, same_settings
from hanflow.cluster.job import RUN_LABEL, label_value
from hanflow.cluster.runtimes import BY_KIND, KINDS
from hanflow.errors import UserError
from hanflow.progress import log, setup_logging


def find(cluster: Cluster, body: Mapping[str, Any], patience: float | None = None) -> dict[str, Any] | None:
    """The object of that kind and name; None: there is none."""
    try:
        return cluster.request("GET", f"{KINDS[body['kind']].path}/{body['metadata']['name']}", patience=patience)
    except NotFound:
        return None


def delete(
    cluster: Cluster, found: Mapping[str, Any], patience: float | None = None, *, propagation: str = "Background"
) -> None:
    """Delete exactly that object, not one of the same name that was created since.

    Args:
        cluster: where.
        found: the object, with its kind.
        patience: seconds to keep trying while the API server is away; None: the cluster's.
        propagation: Foreground: the object is there until what belongs to it is gone, its pods too.
    """
    options = {"propagationPolicy": propagation, "preconditions": {"uid": found["metadata"]["uid"]}}
    with contextlib.suppress(NotFound, Conflict):
        path = f"{KINDS[found['kind']].path}/{found['metadata']['name']}"
        cluster.request("DELETE", path, body=options, patience=patience)


def remove(
    cluster: Cluster, objects: Sequence[Mapping[str, Any]], job: Mapping[str, Any] | None, patience: float
) -> None:
    """Remove a job if it is there; an error is logged and changes nothing about how the step ends.

    Args:
        cluster: where.
        objects: the job as it was to be created, from `hanflow.cluster.runtimes.build`.
        job: the job as the cluster has it; None: it is not known whether it was created.
        patience: seconds to keep trying while the API server is away.
    """
    *templates, wanted = objects
    name, uid = wanted["metadata"]["name"], job["metadata"]["uid"] if job is not None else ""
    try:
        found = find(cluster, wanted, patience)
        if not may_remove(wanted, uid, found):
            log.info("%s %s is now that of another attempt or run: it stays", wanted["kind"], name)
            return
        if found is not None:
            delete(cluster, {**found, "kind": wanted["kind"]}, patience)
            log.info("removed job %s", name)
        for template in templates:
            found = find(cluster, template, patience)
            # Once the job is gone, a later attempt may have made another.
            if found is not None and same_run(found, template) and (not uid or same_settings(found, template)):
                delete(cluster, {**found, "kind": template["kind"]}, patience)
    except ClusterError as error:
        kinds = ",".join(body["kind"].lower() for body in reversed(objects))
        log.error(
            "job %s could not be removed (%s); it goes with its Workflow, or: kubectl delete %s %s",
            name, error, kinds, name,
        )  # fmt: skip


def remove_jobs(run_id: str, namespace: str = "", *, cluster: Cluster | None = None) -> list[str]:
    """Delete all jobs of a run, of every kind; returns their names.

    Args:
        run_id: id of the run, as its jobs were labelled.
        namespace: of the jobs; empty: that of this pod, or of the kubeconfig's context.
        cluster: where, if it is connected already.

    Raises:
        UserError: the id is empty.
        ClusterError: the cluster refuses, or cannot be reached.
    """
    if not run_id:
        raise UserError("no run id was given: an empty one would match the jobs of other runs")
    cluster = cluster or Cluster(namespace)
    selector = {"labelSelector": f"{RUN_LABEL}={label_value(run_id)}"}
    removed, refusals = [], []
    for kind in KINDS.values():
        try:
            found = cluster.request("GET", kind.path, query=selector)["items"]
        except NotFound:
            continue  # a cluster without that kind of job
        except ClusterError as error:
            refusals.append(error)  # another kind may still be allowed
            continue
        for job in found:
            name = job["metadata"]["name"]
            with contextlib.suppress(NotFound):
                cluster.request("DELETE", f"{kind.path}/{name}", body={"propagationPolicy": "Background"})
            log.info("removed %s %s", kind.kind, name)
            if kind.kind in BY_KIND:
                removed.append(name)
    if refusals:
        raise ClusterError("\n".join(map(str, refusals)))
    return removed


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hanflow.cluster.cleanup", description=__doc__)
    parser.add_argument("--run", required=True, help="id of the run")
    parser.add_argument("--namespace", default="", help="namespace of the jobs (default: that of this pod)")
    options = parser.parse_args(argv)
    setup_logging()
    try:
        removed = remove_jobs(options.run, options.namespace)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(f"removed {len(removed)} jobs of run {options.run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
