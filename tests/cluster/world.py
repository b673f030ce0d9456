"""A cluster to play scenarios on: the one in this process or, with KUBECONFIG, a real one; the scenarios are the same.

A real one needs the training operator, the JobSet controller, kubectl, and a namespace (HANFLOW_TEST_NAMESPACE, else the
context's) in which pods, jobs, Secrets and roles may be created. The launcher acts there with the rights that manifests/
gives to its service account, and no others.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hanflow.cluster.client import Cluster, NotFound
from hanflow.cluster.follow import Timing
from hanflow.cluster.job import DIGEST_ANNOTATION, JOB_LABEL, Origin
from hanflow.cluster.launcher import launch
from hanflow.cluster.runtimes import BY_KIND, KINDS, build, pod_templates
from hanflow.config import JobConfig, TrainConfig
from hanflow.config.worker_spec import WorkerSpec
from tests.cluster.fake import FakeCluster, fake_cluster

ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("HANFLOW_TEST_IMAGE", "busybox:1.36")
QUICK = Timing(tick=0.05, log_rest=3.0, log_retry=0.1, watch_retry=0.2, events=0.5, removal_poll=0.05)
"""Waiting times for the cluster in this process, which reacts at once."""
PAUSES = (0.05, 0.1, 0.2, 0.3)
PODS = "/api/v1/namespaces/{namespace}/pods"


class World:
    """A cluster, and what a test does with it through its API.

    Args:
        cluster: as the launcher sees it, with its rights.
        fake: the cluster in this process; None: a real one.
        admin: with the rights of whoever runs the tests; None: those of the launcher.
        pace: seconds that stand for "soon": real clusters take longer to start a pod.
        timing: waiting times of the launcher.
    """

    def __init__(
        self, cluster: Cluster, fake: FakeCluster | None, pace: float, timing: Timing, admin: Cluster | None = None
    ):
        self.cluster, self.fake, self.pace, self.timing = cluster, fake, pace, timing
        self.admin = admin or cluster
        self.run = f"test-{uuid.uuid4()}"
        self._templates: dict[str, list[dict[str, Any]]] = {}
        """Digest of a job → what is created before it."""

    def body(
        self, script: str, *, runtime: str = "pytorchjob", seed: int = 42, run: str = "", **job: Any
    ) -> dict[str, Any]:
        """A job as hanflow builds it, small, with a shell script for its command; `launch` and `create` know its template.

        Args:
            script: for `sh -c`; `$NODE` is the number of the pod.
            runtime: trainjob, pytorchjob, or tpu (without the slice's topology and devices: few test clusters have TPUs).
            seed: a setting of the training; another one gives another job of the same name.
            run: another run's id.
            job: settings of the job.
        """
        values: dict[str, Any] = {
            "gpus": 0,
            "cpu": "50m",
            "memory": "64Mi",
            "scratch": "64Mi",
            "image": IMAGE,
            "service_account": "default",
            "accelerator": "v4-16" if runtime == "tpu" else "",
        }
        work = WorkerSpec("summarization", TrainConfig(seed=seed), "gs://b/shards", "gs://b/model")
        *templates, body = objects = build(
            JobConfig(runtime=runtime, **{**values, **job}), work, Origin(run or self.run)
        )
        self._templates[body["metadata"]["annotations"][DIGEST_ANNOTATION]] = templates
        body["metadata"]["annotations"].pop("alpha.jobset.sigs.k8s.io/exclusive-topology", None)
        for template in pod_templates(*objects):
            spec = template["spec"]
            if self.fake is None:
                spec["terminationGracePeriodSeconds"] = 5  # a shell that is process 1 ignores SIGTERM
            (container,) = spec["containers"]
            container["command"] = ["sh", "-c", "NODE=${JOB_COMPLETION_INDEX:-$RANK}\n" + script]
            for resources in container["resources"].values():
                resources.pop("google.com/tpu", None)
            spec["nodeSelector"] = {key: value for key, value in spec["nodeSelector"].items() if "tpu" not in key}
            spec["tolerations"] = []
        return body

    def launch(self, body: Mapping[str, Any], **options: Any) -> None:
        """Run the job to its end, as the train step does."""
        launch(self.cluster, *self.objects(body), **{"timing": self.timing, **options})

    def objects(self, body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """All objects of a job, in the order in which they are created."""
        return [*self._templates[body["metadata"]["annotations"][DIGEST_ANNOTATION]], body]

    def soon(self, paces: float = 1.0) -> int:
        """A time (seconds since the epoch) for scripts to wait for."""
        return int(time.time() + paces * self.pace) + 1

    def jobs(self) -> list[str]:
        """Names of this test's jobs, and of their templates, that exist."""
        selector = {"labelSelector": f"hanflow/run={self.run}"}
        found = [self.cluster.request("GET", kind.path, query=selector)["items"] for kind in KINDS.values()]
        return [job["metadata"]["name"] for items in found for job in items]

    def job(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.cluster.request("GET", f"{BY_KIND[body['kind']].path}/{body['metadata']['name']}")

    def pods(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        query = {"labelSelector": f"{JOB_LABEL}={body['metadata']['name']}"}
        return self.cluster.request("GET", PODS, query=query)["items"]

    def create(self, body: Mapping[str, Any]) -> None:
        for each in self.objects(body):
            self.cluster.request("POST", KINDS[each["kind"]].path, body=each)

    def delete(self, body: Mapping[str, Any]) -> None:
        path = f"{BY_KIND[body['kind']].path}/{body['metadata']['name']}"
        self.cluster.request("DELETE", path, body={"propagationPolicy": "Background"})

    def evict(self, body: Mapping[str, Any]) -> None:
        for pod in self.pods(body):
            name = pod["metadata"]["name"]
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            self.admin.request("POST", f"{PODS}/{name}/eviction", body=eviction)

    def create_secret(self, name: str, key: str, value: str) -> None:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: value}}
        self.admin.request("POST", "/api/v1/namespaces/{namespace}/secrets", body=secret)

    def wait(self, what: str, reached: Callable[[], Any], seconds: float = 0) -> None:
        """Wait until `reached()` is true; fails after a while."""
        until = time.monotonic() + (seconds or 20 * self.pace)
        while not reached():
            assert time.monotonic() < until, f"this did not happen: {what}"
            time.sleep(self.pace / 50)

    def wait_running(self, body: Mapping[str, Any]) -> None:
        self.wait("a running pod", lambda: any(p["status"]["phase"] == "Running" for p in self.pods(body)))

    def assert_nothing_left(self, body: Mapping[str, Any]) -> None:
        """The job is gone, and its pods disappear."""
        assert self.jobs() == []
        self.wait("no pods", lambda: self.pods(body) == [], 120 if self.fake is None else 10)

    def start_launcher(self, body: Mapping[str, Any]) -> subprocess.Popen[str]:
        """A launcher in a process of its own, to send signals to; its output is one text."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.driver"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin
        process.stdin.write(json.dumps(self.objects(body)))
        process.stdin.close()
        process.stdin = None
        return process


@contextlib.contextmanager
def in_process(folder: Path) -> Iterator[World]:
    """The cluster in this process; KUBECONFIG must be set to `folder/kubeconfig`."""
    with fake_cluster(folder) as fake:
        yield World(Cluster(pauses=PAUSES), fake, pace=0.5, timing=QUICK)


@contextlib.contextmanager
def real(folder: Path) -> Iterator[World]:
    """The cluster of KUBECONFIG; what a test leaves behind is removed.

    While it is in use, KUBECONFIG names a file in `folder` with the credentials of the launcher's service account.
    """
    admin = Cluster(os.environ.get("HANFLOW_TEST_NAMESPACE", ""))
    given = os.environ["KUBECONFIG"]
    os.environ["KUBECONFIG"] = str(_kubeconfig_of_the_launcher(admin, Path(given), folder))
    try:
        world = World(Cluster(admin.namespace), None, pace=15.0, timing=Timing(), admin=admin)
        yield world
    finally:
        os.environ["KUBECONFIG"] = given
        selector = {"labelSelector": f"hanflow/run={world.run}"}
        for kind in KINDS.values():
            for job in admin.request("GET", kind.path, query=selector)["items"]:
                with contextlib.suppress(NotFound):
                    admin.request("DELETE", f"{kind.path}/{job['metadata']['name']}")


def _kubeconfig_of_the_launcher(admin: Cluster, given: Path, folder: Path) -> Path:
    """Give the account its rights in the namespace, as manifests/ does, and write a kubeconfig with a token of it."""
    objects = []
    for name in ("serviceaccount.yaml", "rbac.yaml"):
        for document in yaml.safe_load_all((ROOT / "manifests" / "base" / name).read_text(encoding="utf-8")):
            document["metadata"]["namespace"] = admin.namespace
            for subject in document.get("subjects", ()):
                subject["namespace"] = admin.namespace
            objects.append(document)
    apply = ["kubectl", f"--kubeconfig={given}", "apply", "--server-side", "--force-conflicts", "-f", "-"]
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    subprocess.run(apply, input=everything, text=True, check=True, stdout=subprocess.DEVNULL)
    path = "/api/v1/namespaces/{namespace}/serviceaccounts/hanflow/token"
    token = admin.request("POST", path, body={"spec": {"expirationSeconds": 7200}})["status"]["token"]
    settings = yaml.safe_load(given.read_text(encoding="utf-8"))
    settings["users"] = [{"name": user["name"], "user": {"token": token}} for user in settings["users"]]
    file = folder / "launcher.kubeconfig"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return file
