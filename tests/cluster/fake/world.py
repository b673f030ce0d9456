"""The World of the cluster in this process, for as long as a test uses it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hanflow.cluster.client import Cluster
from tests.cluster.fake import fake_cluster
from tests.cluster.world import World


@contextlib.contextmanager
def in_process(folder: Path) -> Iterator[World]:
    """KUBECONFIG must be set to `folder/kubeconfig`."""
    with fake_cluster(folder) as fake:
        cluster: Any = Cluster(pauses=(0.05, 0.1, 0.2, 0.3))
        world = World(cluster, cluster, folder / "kubeconfig", folder)
        world.fake = fake
        yield world
