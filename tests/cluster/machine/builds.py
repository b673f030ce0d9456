"""The programs of the cluster: Go modules of the versions in `modules/`, built once and kept by the hash of those files."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

MODULES = Path(__file__).parent / "modules"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hanflow-cluster"

PACKAGES = {
    "kubernetes": [
        f"k8s.io/kubernetes/cmd/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "kubectl",
        )
    ],
    "etcd": ["go.etcd.io/etcd/server/v3"],
    "coredns": ["github.com/coredns/coredns"],
    "jobset": ["sigs.k8s.io/jobset"],
    "training-operator": ["github.com/kubeflow/training-operator/cmd/training-operator.v1"],
    "trainer": ["github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager"],
    "kueue": ["sigs.k8s.io/kueue/cmd/kueue"],
    "argo": ["github.com/argoproj/argo-workflows/v4/cmd/workflow-controller"],
    "fake-gcs-server": ["github.com/fsouza/fake-gcs-server"],
}
"""Main packages of each module, in the order in which they are built."""


def required(module: str) -> tuple[str, str]:
    """Path and version of what a module of ours is there for."""
    found = re.search(r"^require (\S+) (\S+)$", (MODULES / module / "go.mod").read_text(), re.MULTILINE)
    assert found, f"modules/{module}/go.mod has no line `require PATH VERSION`"
    return found[1], found[2]


def folder() -> Path:
    """Where the built programs lie: another folder for other versions."""
    digest = hashlib.sha256()
    for module in PACKAGES:
        digest.update((MODULES / module / "go.mod").read_bytes())
    return CACHE / digest.hexdigest()[:16]


def program(name: str) -> Path:
    return folder() / "bin" / name


def missing() -> list[str]:
    """Modules that are not built yet."""
    return [module for module in PACKAGES if not (folder() / module / "built").exists()]


def _go(module: str, *arguments: str, **options: str) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", **options}
    return subprocess.run(
        ["go", *arguments], cwd=folder() / module, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def source(module: str) -> Path:
    """The folder of the module's sources in Go's module cache, with its manifests."""
    path, version = required(module)
    found = _go(module, "list", "-mod=mod", "-m", "-f", "{{.Dir}}", path).strip()
    if not found:  # the cache was emptied since the build
        _go(module, "mod", "download", f"{path}@{version}")
        found = _go(module, "list", "-mod=mod", "-m", "-f", "{{.Dir}}", path).strip()
    return Path(found)


def build(module: str) -> None:
    """Build the programs of a module: static, so that an image needs nothing but the program."""
    started = time.monotonic()
    print(f"building {module} {required(module)[1]} …", flush=True)
    work = folder() / module
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(MODULES / module / "go.mod", work)  # `go build` adds what it resolves: not in the repository
    flags = "-s -w"
    if module == "kubernetes":  # the API server tells its clients this version
        version = required(module)[1]
        major, minor, _ = version.removeprefix("v").split(".")
        for name, value in {"gitVersion": version, "gitMajor": major, "gitMinor": minor}.items():
            flags += f" -X k8s.io/component-base/version.{name}={value}"
    (folder() / "bin").mkdir(exist_ok=True)
    _go(module, "build", "-mod=mod", "-trimpath", "-ldflags", flags, "-o", f"{folder()}/bin/", *PACKAGES[module])
    if module == "etcd":  # its main package has the name of the module's last part
        (folder() / "bin" / "server").rename(folder() / "bin" / "etcd")
    (work / "built").touch()
    print(f"built {module} in {time.monotonic() - started:.0f} s", flush=True)


def build_all() -> None:
    for module in missing():
        build(module)
