"""The operators, from their own manifests: read where Go keeps the modules that they were built from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.machine import builds
from tests.cluster.machine.images import Image
from tests.cluster.machine.node import STATE, kubectl


@dataclass(frozen=True)
class Operator:
    """A controller and its manifests.

    Attributes:
        module: of `modules/`.
        program: of the built ones.
        namespace: of its Deployment.
        deployment: its name.
        manifests: folders for kustomize, in the module.
        path: where the Deployment expects the program in the image.
        arguments: for the container, instead of its own.
        more: other keys of the kustomization.
    """

    module: str
    program: str
    namespace: str
    deployment: str
    manifests: Sequence[str]
    path: str = "/manager"
    arguments: Sequence[str] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_image(self) -> str:
        return f"hanflow.test/{self.module}:{builds.required(self.module)[1]}"


_TRAINER = builds.required("trainer")[1]

OPERATORS = [
    Operator(
        "jobset",
        "jobset",
        "jobset-system",
        "jobset-controller-manager",
        ["config/default"],
    ),
    Operator(
        "training-operator",
        "training-operator.v1",
        "kubeflow",
        "training-operator",
        ["manifests/overlays/standalone"],
        arguments=["--pytorch-init-container-image=hanflow.test/wait-for-rank-0:1"],
    ),
    Operator(
        "trainer",
        "trainer-controller-manager",
        "kubeflow-system",
        "kubeflow-trainer-controller-manager",
        # manifests/overlays/manager, less its download of JobSet
        ["manifests/base/crds", "manifests/base/manager", "manifests/base/rbac", "manifests/base/webhook"],
        more={
            "namespace": "kubeflow-system",
            "secretGenerator": [{"name": "kubeflow-trainer-webhook-cert"}],
            "configMapGenerator": [
                {"name": "kubeflow-trainer-public", "literals": [f"kubeflow_trainer_version={_TRAINER}"]}
            ]
            if builds.VERSIONS == "newest"  # 2.1 has none
            else [],
            "generatorOptions": {"disableNameSuffixHash": True},
        },
    ),
    Operator(
        "argo",
        "workflow-controller",
        "argo",
        "workflow-controller",
        ["manifests/cluster-install"],
        path="/bin/workflow-controller",
        more={"namespace": "argo", "replicas": [{"name": "argo-server", "count": 0}]},  # its page is not built
    ),
    # the last: its webhook, which refuses every Deployment until it is ready, would hold up the others
    Operator(
        "kueue",
        "kueue",
        "kueue-system",
        "kueue-controller-manager",
        ["config/default"],
    ),
]


def present() -> list[Operator]:
    """Those of this cluster."""
    return [operator for operator in OPERATORS if operator.module in builds.packages()]


def images() -> list[Image]:
    # the name that Argo's controller asks for when its build was told no version
    executor = Image(["quay.io/argoproj/argoexec:v0.0.0"], {"bin/argoexec": builds.program("argoexec")}, user=8737)
    return [executor] * ("argo" in builds.packages()) + [
        Image([operator.own_image], {operator.path[1:]: builds.program(operator.program)}, [operator.path], user=65532)
        for operator in present()
    ]


def render(operator: Operator) -> str:
    """The operator's manifests, with our image and without requests that are more than a small machine has."""
    container = "/spec/template/spec/containers/0"
    patch: list[dict[str, Any]] = [
        {"op": "replace", "path": f"{container}/image", "value": operator.own_image},
        {"op": "add", "path": f"{container}/imagePullPolicy", "value": "Never"},
        {"op": "add", "path": f"{container}/resources", "value": {}},
        {"op": "add", "path": f"{container}/livenessProbe/timeoutSeconds", "value": 60},  # a busy machine is slow
        {"op": "add", "path": f"{container}/readinessProbe/periodSeconds", "value": 1},
        {"op": "add", "path": f"{container}/readinessProbe/initialDelaySeconds", "value": 0},
    ]
    if operator.module == "argo":  # it has no readiness probe
        patch = patch[:4]
    if operator.arguments:
        patch.append({"op": "add", "path": f"{container}/args", "value": list(operator.arguments)})
    folder = STATE / "operators" / operator.module
    folder.mkdir(parents=True, exist_ok=True)
    source = builds.source(operator.module)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(source / path, folder) for path in operator.manifests],
        "patches": [{"target": {"kind": "Deployment", "name": operator.deployment}, "patch": json.dumps(patch)}],
        **operator.more,
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization, indent=1))
    # Each is alone; on a busy machine it would miss the renewal of its lease, and end.
    return kubectl("kustomize", str(folder)).replace("leaderElect: true", "leaderElect: false")


def install() -> None:
    """Apply every operator's manifests, and wait until all are available."""
    for operator in present():
        kubectl("create", "namespace", operator.namespace, check=False)
        manifests = render(operator)
        for attempt in range(30):  # objects of kinds that the API server does not serve yet
            try:
                kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=manifests)
                break
            except RuntimeError:
                if attempt == 29:
                    raise
                time.sleep(1)
    for operator in present():
        wait = ("wait", "--for=condition=Available", "--timeout=180s")
        kubectl(*wait, "-n", operator.namespace, f"deployment/{operator.deployment}")
