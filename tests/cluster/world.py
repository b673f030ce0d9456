"""A real cluster to play scenarios on: that of KUBECONFIG.

It needs the operators (see tests/cluster/machine), kubectl, and a namespace (HANFLOW_TEST_NAMESPACE, else the context's) in
which pods, jobs, Secrets and roles may be created. The launcher acts there with the rights that manifests/ gives to its
service account, and no others; a test looks and acts with those of KUBECONFIG.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hanflow.cluster.cleanup import find
from hanflow.cluster.client import Cluster, ClusterError, NotFound
from hanflow.cluster.follow import Timing
from hanflow.cluster.job import DIGEST_ANNOTATION, JOB_LABEL, Origin
from hanflow.cluster.launcher import launch
from hanflow.cluster.runtimes import BY_KIND, KINDS, build, pod_templates
from hanflow.cluster.trainjob import not_noticed
from hanflow.config import JobConfig, TrainConfig
from hanflow.config.worker_spec import WorkerSpec
from tests.cluster.proxy import Proxy

ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("HANFLOW_TEST_IMAGE", "busybox:1.36")
QUICK = Timing(tick=0.2, log_retry=0.3, watch_retry=0.2, events=1.0, removal_poll=0.2)
PODS = "/api/v1/namespaces/{namespace}/pods"
SECRETS = "/api/v1/namespaces/{namespace}/secrets"

ORDERS = """\
trap 'echo stopping; exit 143' TERM
until [ -e /tmp/order ]; do sleep 0.2; done
. /tmp/order
"""
"""A script that waits until the test says what the pod does (`World.order`), and that SIGTERM stops as it stops a worker."""


class World:
    """A cluster, and what a test does with it through its API.

    Args:
        cluster: as the launcher sees it, with its rights.
        admin: with the rights of whoever runs the tests.
        kubeconfig: of `admin`.
        folder: for files of the test.
        proxy: between the launcher and the API server.
    """

    def __init__(
        self, cluster: Cluster, admin: Cluster, kubeconfig: Path, folder: Path, proxy: Proxy | None = None
    ) -> None:
        self.cluster, self.admin, self._kubeconfig, self.folder = cluster, admin, kubeconfig, folder
        self._proxy = proxy
        self.run = f"test-{uuid.uuid4()}"
        self._templates: dict[str, list[dict[str, Any]]] = {}
        """Digest of a job → what is created before it."""

    @property
    def proxy(self) -> Proxy:
        """Of the fixture `faults`."""
        assert self._proxy is not None
        return self._proxy

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
            spec["terminationGracePeriodSeconds"] = 3  # a shell that is process 1 ignores SIGTERM
            (container,) = spec["containers"]
            container["command"] = ["sh", "-c", "NODE=${JOB_COMPLETION_INDEX:-$RANK}\n" + script]
            for resources in container["resources"].values():
                resources.pop("google.com/tpu", None)
            spec["nodeSelector"] = {key: value for key, value in spec["nodeSelector"].items() if "tpu" not in key}
            spec["tolerations"] = []
        return body

    def launch(self, body: Mapping[str, Any], **options: Any) -> None:
        """Run the job to its end, as the train step does; a test that waits in vain ends at the job's deadline."""
        launch(self.cluster, *self.objects(body), **{"timing": QUICK, "hours": 0.25, **options})

    def objects(self, body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """All objects of a job, in the order in which they are created."""
        return [*self._templates[body["metadata"]["annotations"][DIGEST_ANNOTATION]], body]

    def jobs(self) -> list[str]:
        """Names of this test's jobs, and of what they refer to, that exist."""
        selector = {"labelSelector": f"hanflow/run={self.run}"}
        found = [self.admin.request("GET", kind.path, query=selector)["items"] for kind in KINDS.values()]
        return [job["metadata"]["name"] for items in found for job in items]

    def job(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.admin.request("GET", f"{BY_KIND[body['kind']].path}/{body['metadata']['name']}")

    def pods(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        query = {"labelSelector": f"{JOB_LABEL}={body['metadata']['name']}"}
        return self.admin.request("GET", PODS, query=query)["items"]

    def create(self, body: Mapping[str, Any]) -> None:
        for each in self.objects(body):
            self.wait(f"an accepted {each['kind']}", functools.partial(self._accepted, each))

    def _accepted(self, body: Mapping[str, Any]) -> bool:
        try:
            self.cluster.request("POST", KINDS[body["kind"]].path, body=body)
        except ClusterError as error:
            if not not_noticed(str(error)):  # Trainer has not noticed the TrainingRuntime yet
                raise
            return False
        return True

    def delete(self, body: Mapping[str, Any]) -> None:
        path = f"{BY_KIND[body['kind']].path}/{body['metadata']['name']}"
        self.admin.request("DELETE", path, body={"propagationPolicy": "Background"})

    def evict(self, body: Mapping[str, Any]) -> None:
        for pod in self.pods(body):
            name = pod["metadata"]["name"]
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            self.admin.request("POST", f"{PODS}/{name}/eviction", body=eviction)

    def create_secret(self, name: str, key: str, value: str) -> None:
        metadata = {"name": name, "labels": {"hanflow/run": self.run}}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {key: value}}
        self.admin.request("POST", SECRETS, body=secret)

    def order(self, body: Mapping[str, Any], what: str, *, pods: int = 1) -> None:
        """Wait until so many pods whose script is `ORDERS` run and have no order yet; they do it.

        Args:
            what: shell commands.
        """
        ordered: set[str] = set()

        def all_ordered() -> bool:
            for pod in self.pods(body):
                name, runs = pod["metadata"]["name"], pod["status"]["phase"] == "Running"
                dying = "deletionTimestamp" in pod["metadata"]
                if runs and not dying and name not in ordered and self._order(name, what):
                    ordered.add(name)
            return len(ordered) >= pods

        self.wait("pods that wait for orders", all_ordered)

    def _order(self, pod: str, what: str) -> bool:
        script = "[ ! -e /tmp/order ] && cat > /tmp/draft && mv /tmp/draft /tmp/order"
        return self.kubectl("exec", "-i", pod, "--", "sh", "-c", script, text=what, check=False).returncode == 0

    def kubectl(self, *arguments: str, text: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """kubectl with the rights of whoever runs the tests."""
        command = ["kubectl", f"--kubeconfig={self._kubeconfig}", f"--namespace={self.admin.namespace}", *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=check)

    def wait(self, what: str, reached: Callable[[], Any], seconds: float = 300) -> None:
        """Wait until `reached()` is true; fails after a while."""
        until = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < until, f"this did not happen: {what}"
            time.sleep(0.2)

    def wait_running(self, body: Mapping[str, Any]) -> None:
        self.wait("a running pod", lambda: any(p["status"]["phase"] == "Running" for p in self.pods(body)))

    def assert_nothing_left(self, body: Mapping[str, Any]) -> None:
        """The job is gone, or going; and so is, a little later, everything that was made for it and of it."""
        left = self._left(body, body["kind"])
        assert left is None or "deletionTimestamp" in left["metadata"]
        self.wait("nothing left", lambda: self.pods(body) == [] and not any(self._left(body, k) for k in KINDS))

    def _left(self, body: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
        return find(self.admin, {**body, "kind": kind})

    def start_launcher(self, body: Mapping[str, Any]) -> Launcher:
        """A launcher in a process of its own, to send signals to."""
        output = self.folder / f"launcher-{uuid.uuid4()}.log"
        environment = {**os.environ, "HANFLOW_TEST_NAMESPACE": self.cluster.namespace}
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.driver"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                text=True,
            )
        assert process.stdin
        process.stdin.write(json.dumps(self.objects(body)))
        process.stdin.close()
        return Launcher(process, output)

    def kubeconfig_of(self, account: str, path: Path) -> Path:
        """A file with the credentials of a service account of the namespace."""
        path.write_text(_kubeconfig_of(self.admin, self._kubeconfig, account), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Launcher:
    """A launcher in a process of its own."""

    process: subprocess.Popen[str]
    _output: Path

    def ended(self) -> int:
        """Wait until it has ended; its exit status."""
        return self.process.wait(300)

    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text(encoding="utf-8")


@contextlib.contextmanager
def real(folder: Path, *, with_proxy: bool = False, namespace: str = "") -> Iterator[World]:
    """The cluster of KUBECONFIG; what a test leaves behind is removed.

    While it is in use, KUBECONFIG names a file in `folder` with the credentials of the launcher's service account.

    Args:
        with_proxy: the launcher reaches the API server through `World.proxy`.
        namespace: empty: that of all tests.
    """
    given = Path(os.environ["KUBECONFIG"])
    admin = Cluster(namespace or os.environ.get("HANFLOW_TEST_NAMESPACE", ""))
    launchers = folder / "launcher.kubeconfig"
    launchers.write_text(_kubeconfig_of_the_launcher(given, admin.namespace), encoding="utf-8")
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(Proxy(launchers, folder)) if with_proxy else None
        try:
            os.environ["KUBECONFIG"] = str(proxy.kubeconfig if proxy else launchers)
            world = World(Cluster(admin.namespace), admin, given, folder, proxy)
            stack.callback(_clear, admin, world.run)
            yield world
        finally:
            os.environ["KUBECONFIG"] = str(given)


def _clear(admin: Cluster, run: str) -> None:
    for path in (*(kind.path for kind in KINDS.values()), SECRETS):
        with contextlib.suppress(NotFound):  # a cluster without that kind
            found = admin.request("GET", path, query={"labelSelector": f"hanflow/run={run}"})["items"]
            for each in found:
                with contextlib.suppress(NotFound):
                    admin.request("DELETE", f"{path}/{each['metadata']['name']}")


@functools.cache
def _kubeconfig_of_the_launcher(given: Path, namespace: str) -> str:
    """Give the account its rights in the namespace, as manifests/ does; a kubeconfig with a token of it."""
    objects = []
    for name in ("serviceaccount.yaml", "rbac.yaml"):
        for document in yaml.safe_load_all((ROOT / "manifests" / "base" / name).read_text(encoding="utf-8")):
            document["metadata"]["namespace"] = namespace
            for subject in document.get("subjects", ()):
                subject["namespace"] = namespace
            objects.append(document)
    apply = ["kubectl", f"--kubeconfig={given}", "apply", "--server-side", "--force-conflicts", "-f", "-"]
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    subprocess.run(apply, input=everything, text=True, check=True, stdout=subprocess.DEVNULL)
    return _kubeconfig_of(Cluster(namespace), given, "hanflow")


def _kubeconfig_of(admin: Cluster, given: Path, account: str) -> str:
    path = f"/api/v1/namespaces/{{namespace}}/serviceaccounts/{account}/token"
    token = admin.request("POST", path, body={"spec": {"expirationSeconds": 7200}})["status"]["token"]
    settings = yaml.safe_load(given.read_text(encoding="utf-8"))
    settings["users"] = [{"name": user["name"], "user": {"token": token}} for user in settings["users"]]
    return json.dumps(settings)
