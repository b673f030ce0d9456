"""Remove the jobs of a run from a cluster: `python -m hanflow.cluster.cleanup --run ID`, or the pipeline's exit handler."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

from hanflow.cluster.client import Cluster, ClusterError, NotFound
from hanflow.cluster.job import RUN_LABEL, label_value
from hanflow.cluster.runtimes import RUNTIMES
from hanflow.errors import UserError
from hanflow.progress import log, setup_logging


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
    for runtime in RUNTIMES.values():
        try:
            found = cluster.request("GET", runtime.path, query=selector)["items"]
        except NotFound:
            continue  # a cluster without that kind of job
        except ClusterError as error:
            refusals.append(error)  # another kind may still be allowed
            continue
        for job in found:
            name = job["metadata"]["name"]
            with contextlib.suppress(NotFound):
                cluster.request("DELETE", f"{runtime.path}/{name}", body={"propagationPolicy": "Background"})
            removed.append(name)
            log.info("removed %s %s", runtime.kind, name)
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
