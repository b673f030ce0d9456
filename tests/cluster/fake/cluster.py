"""The cluster as a whole, and what a test may do to it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from hanflow.cluster.job import JOB_LABEL
from tests.cluster.fake import server
from tests.cluster.fake.job_set_controller import operate_job_set
from tests.cluster.fake.kubelet import Kubelet
from tests.cluster.fake.store import NAMESPACE, Store
from tests.cluster.fake.trainer import operate_train_job
from tests.cluster.fake.training_operator import operate_pytorch_job

TICK_SECONDS = 0.02
CONTROLLERS = {"trainjobs": operate_train_job, "pytorchjobs": operate_pytorch_job, "jobsets": operate_job_set}


class FakeCluster:
    """Use as a context manager; `kubeconfig` is the file to reach it by.

    Args:
        folder: for the kubeconfig and the token.
    """

    namespace = NAMESPACE

    def __init__(self, folder: Path):
        self.store = Store()
        self.kubelet = Kubelet(self.store)
        self.folder, self.kubeconfig = folder, folder / "kubeconfig"
        self.tokens = {"first"}
        self.requests: list[tuple[str, str, int]] = []
        """(method, path with query, status) of every answered request."""
        self.away_until = 0.0
        self.turned_away = 0
        self.swallowed_posts = 0
        """Next so many POSTs are carried out and their answers lost."""
        self.before_delete: list[Callable[[], object]] = []
        """Called while the next DELETEs wait for their answers, one for each."""
        self.cut_answers = self.cut_events = 0
        """Next so many answers to GET, and events of watches, break off in the middle."""
        self.cuts = 0
        self.pods_lag = 0.0
        """How many seconds the pods' watch is behind."""
        self.forbidden: set[tuple[str, str]] = set()
        """(method, plural) that the service account may not do."""
        self.missing: set[str] = set()
        """Plurals whose CRD is not installed."""
        self.unknown_fields: set[str] = set()
        """Names of fields that the installed operators do not have."""
        self.warnings: list[str] = []
        """Sent in the header of every answer."""
        self.watches_gone = "event"
        """How a watch that is too old is refused: by an ERROR event, or by an HTTP `status`."""
        self.admit = True
        """False: jobs stay suspended, as in a full Kueue queue."""
        self.kueue = True
        """Whether Kueue suspends jobs that have a queue name."""
        self.runtimes_unnoticed = 0
        """Next so many TrainJobs are refused: Trainer has not noticed their TrainingRuntime yet."""
        self._stop = threading.Event()

    def __enter__(self) -> FakeCluster:
        cluster = self

        class Handler(server.Handler):
            api = cluster

        self._server = server.Server(("127.0.0.1", 0), Handler)
        (self.folder / "token").write_text("first", encoding="utf-8")
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}}],
            "users": [{"name": "me", "user": {"tokenFile": str(self.folder / "token")}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": NAMESPACE}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True),
            threading.Thread(target=self._reconcile, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self.kubelet.stop()
        for thread in self._threads:
            thread.join(5)

    def _reconcile(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            with self.store.changed:
                uids = {job["metadata"]["uid"] for job in self.store.all("trainjobs")}
                for job in self.store.all("jobsets"):
                    if not {owner["uid"] for owner in job["metadata"].get("ownerReferences", ())} <= uids:
                        self.store.delete("jobsets", job["metadata"]["name"])  # garbage collection
                for plural, operate in CONTROLLERS.items():
                    for job in self.store.all(plural):
                        operate(self.store, job, self.admit)
                names = {job["metadata"]["name"] for plural in server.JOBS for job in self.store.all(plural)}
                for pod in self.store.all("pods"):
                    owner = pod["metadata"].get("labels", {}).get(JOB_LABEL)
                    if owner is not None and owner not in names:
                        self.kubelet.take_away(pod)  # garbage collection
                    else:
                        self.kubelet.look_after(pod)

    # Faults that tests inject; they cannot be asked of a real cluster.

    def be_away(self, seconds: float) -> None:
        """Answer nothing for so long, and break open connections."""
        self.away_until = time.monotonic() + seconds
        with self.store.changed:
            self.store.changed.notify_all()

    def is_away(self) -> bool:
        return time.monotonic() < self.away_until

    def rotate_token(self) -> None:
        """From now on only a new token is valid; it is in the file that the kubeconfig names."""
        self.tokens = {"second"}
        (self.folder / "token").write_text("second", encoding="utf-8")
        with self.store.changed:
            self.store.changed.notify_all()

    def count(self, method: str, part: str = "", status: int | None = None) -> int:
        """Answered requests of a method whose path contains `part`."""
        return sum(m == method and part in path and status in (None, code) for m, path, code in list(self.requests))


@contextlib.contextmanager
def fake_cluster(folder: Path) -> Iterator[FakeCluster]:
    folder.mkdir(parents=True, exist_ok=True)
    with FakeCluster(folder) as cluster:
        yield cluster
