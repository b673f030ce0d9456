"""A cluster in the test process: an API server over real HTTP, the operators' control loops, and a kubelet.

Only what the launcher uses, and that as the real ones do: resource versions, watches that end, 404, 409, 410, 401 and
422, preconditions, cascading deletion. Containers really run, as processes of this machine: the script that is a job's
command decides what happens, as on a real cluster. The operators follow kubeflow/training-operator v1.9
(pkg/controller.v1/common/pod.go) and kubernetes-sigs/jobset v0.12 in a job's status and restarts.
"""

from __future__ import annotations

from tests.cluster.fake.cluster import FakeCluster, fake_cluster

__all__ = ["FakeCluster", "fake_cluster"]
