"""The programs of the cluster: Go modules of the versions in `modules/`, built once and kept by the hash of those files."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MODULES = Path(__file__).parent / "modules"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hanflow-cluster"

VERSIONS = os.environ.get("HANFLOW_OPERATORS") or "newest"
"""Which versions of the operators: `newest`, those of `modules/*/go.mod`; else those of `modules/*/VERSIONS/go.mod` alone."""

PROGRAMS = {
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
    "kube-router": ["github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"],
    "fake-gcs-server": ["github.com/fsouza/fake-gcs-server"],  # for the tests: a server of gs://
}
"""Main packages of the modules that every cluster has, in the order in which they are built."""

OPERATORS = {
    "kueue": ["sigs.k8s.io/kueue/cmd/kueue"],
    "argo": [f"github.com/argoproj/argo-workflows/v4/cmd/{name}" for name in ("workflow-controller", "argoexec")],
    "trainer": ["github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager"],
    "jobset": ["sigs.k8s.io/jobset"],
    "training-operator": ["github.com/kubeflow/training-operator/cmd/training-operator.v1"],
}
"""Main packages of the operators' modules."""


def definition(module: str) -> Path:
    """The go.mod that names the version of a module."""
    other = MODULES / module / VERSIONS / "go.mod"
    return other if other.exists() else MODULES / module / "go.mod"


@functools.cache
def packages() -> dict[str, list[str]]:
    """Main packages of the modules that this cluster needs.

    Raises:
        SystemExit: HANFLOW_OPERATORS names versions that no module has.
    """
    operators = {
        module: programs
        for module, programs in OPERATORS.items()
        if VERSIONS == "newest" or definition(module).parent.name == VERSIONS
    }
    if not operators:
        known = sorted({path.parent.name for path in MODULES.glob("*/*/go.mod")})
        raise SystemExit(f"HANFLOW_OPERATORS={VERSIONS}: choose newest, {', '.join(known)}")
    return {**PROGRAMS, **operators}


def required(module: str) -> tuple[str, str]:
    """Path and version of what a module of ours is there for."""
    found = re.search(r"^require (\S+) (\S+)$", definition(module).read_text(), re.MULTILINE)
    assert found, f"{definition(module)} has no line `require PATH VERSION`"
    return found[1], found[2]


def folder(module: str) -> Path:
    """Where a module is built: another folder for another go.mod, or for other files that we add."""
    digest = hashlib.sha256(definition(module).read_bytes())
    for path in sorted((MODULES / module / "added").rglob("*.*")):
        digest.update(path.read_bytes())
    return CACHE / "programs" / f"{module}-{required(module)[1]}-{digest.hexdigest()[:8]}"


def program(name: str) -> Path:
    """A built program.

    Raises:
        FileNotFoundError: it is not built, or this cluster does not have it.
    """
    for module in packages():
        path = folder(module) / "bin" / name
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is not built: make cluster")


def missing() -> list[str]:
    """Modules that are not built yet."""
    return [module for module in packages() if not (folder(module) / "built").exists()]


def _go(module: str, *arguments: str) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    command = ["go", *arguments]
    done = subprocess.run(command, cwd=folder(module), env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed in {folder(module)}:\n{done.stderr}")
    return done.stdout


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
    work = folder(module)
    (work / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(definition(module), work / "go.mod")  # `go build` adds what it resolves: not in the repository
    if (MODULES / module / "added").is_dir():
        _complete(module, work)
    flags = "-s -w"
    if module == "kubernetes":  # the API server tells its clients this version
        version = required(module)[1]
        major, minor, _ = version.removeprefix("v").split(".")
        for name, value in {"gitVersion": version, "gitMajor": major, "gitMinor": minor}.items():
            flags += f" -X k8s.io/component-base/version.{name}={value}"
    _go(module, "build", "-mod=mod", "-trimpath", "-ldflags", flags, "-o", f"{work}/bin/", *packages()[module])
    if module == "etcd":  # its main package has the name of the module's last part
        (work / "bin" / "server").rename(work / "bin" / "etcd")
    (work / "built").touch()
    print(f"built {module} in {time.monotonic() - started:.0f} s", flush=True)


def _complete(module: str, work: Path) -> None:
    """Put a copy of the module, with the files that `added` holds, in the place of the published one, which lacks them."""
    published, copy = source(module), work / "source"
    shutil.copytree(published, copy, ignore=lambda *_: ("docs", "examples", "ui"), dirs_exist_ok=True)
    shutil.copytree(MODULES / module / "added", copy, dirs_exist_ok=True)
    _go(module, "mod", "edit", f"-replace={required(module)[0]}=./source")


def build_all() -> None:
    """Build what is missing, two modules at once: one downloads or links while the other compiles."""
    if not missing():
        return
    with alone(CACHE / "lock"), ThreadPoolExecutor(2) as pool:
        list(pool.map(build, missing()))


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait until no other process holds the file's lock."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
