"""A Kubernetes of one machine for tests: `python -m tests.cluster.machine up|down|status|build|packages|environment|load IMAGE`.

As root on Linux. Everything runs in namespaces of its own (see `node.py`), built from the sources that `modules/` names.
HANFLOW_CLUSTER names one of several such clusters, HANFLOW_OPERATORS the versions of its operators (`newest`, `oldest`, …).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.machine import builds, images, node, operators, podman
from tests.cluster.machine.node import KUBECONFIG, STATE, kubectl

ROOT = Path(__file__).parents[3]
PID = STATE / "pid"
TEST_NAMESPACE = "hanflow-test"

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ipset": "ipset",
    "ip": "iproute2",
    "openssl": "openssl",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
"""Command → the Debian package that has it."""


def check_requirements() -> None:
    """Say in one line what this machine lacks.

    Raises:
        SystemExit: something is missing.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        sys.exit(
            "make cluster needs root on Linux; or set KUBECONFIG to a cluster of your own: make test-cluster uses it"
        )
    if not shutil.which("go"):
        sys.exit("make cluster needs Go 1.26 or newer: https://go.dev/dl (Debian's package is older)")
    if missing := missing_packages():
        sys.exit(f"make cluster lacks programs; install them: apt-get install -y {' '.join(missing)}")


def missing_packages() -> list[str]:
    """Debian packages of what this machine lacks."""
    missing = {package for command, package in PACKAGES.items() if not shutil.which(command)}
    if node.CNI is None:
        missing.add("containernetworking-plugins")
    if not images.BUSYBOX.exists():
        missing.add("busybox-static")
    return sorted(missing)


def running() -> int:
    """Process id of the cluster's first process as this machine sees it; 0: it does not run."""
    with contextlib.suppress(FileNotFoundError):
        pid, started = PID.read_text().split()
        if start_time(int(pid)) == started:
            return int(pid)
    return 0


def start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot: with its id it names a process for good."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def inside(*command: str) -> list[str]:
    """The command as run in the namespaces of the node."""
    child = Path(f"/proc/{running()}/task/{running()}/children").read_text().split()[0]
    return ["nsenter", f"--target={child}", "--mount", "--net", "--pid", *command]


def ctr(*arguments: str) -> list[str]:
    """A command of containerd's client on the node."""
    return inside("ctr", "--namespace=k8s.io", *arguments)


def load(image: str | images.Image) -> None:
    """Give an image to the node, unless it is there: one that is made here, or one of podman (seconds, whatever its size)."""
    with builds.alone(STATE / "loading"):
        if has_image(image if isinstance(image, str) else image.names[0]):
            return
        if isinstance(image, str):
            podman.give(image, ctr())
            return
        archive = STATE / "image.tar"
        images.write(image, archive)
        with archive.open("rb") as stream:
            command = ctr("images", "import", "--all-platforms", "-")
            subprocess.run(command, stdin=stream, stdout=subprocess.DEVNULL, check=True)
        archive.unlink()


def has_image(reference: str) -> bool:
    """Whether the node has this image."""
    listed = subprocess.run(ctr("images", "list", "-q"), check=True, capture_output=True, text=True)
    return reference in listed.stdout.split()


def load_images() -> None:
    """Make the images of the tests and the operators, and give them to the node."""
    for image in [*images.standard(), *operators.images()]:
        load(image)


def start() -> None:
    """Start the node and wait until the API server answers."""
    if Path(f"/sys/class/net/{node.LINK}").exists():
        sys.exit(
            f"another cluster has taken the network link {node.LINK} of this one: make cluster-down, then start again"
        )
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(parents=True)
    node.NUMBER.write_text(node.LINK.removeprefix("hanflow"))
    node.prepare()
    namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    code = "from tests.cluster.machine import node; node.run()"
    with (STATE / "logs" / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [*namespaces, sys.executable, "-c", code],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    PID.write_text(f"{process.pid} {start_time(process.pid)}")
    ours = os.readlink("/proc/self/ns/net")
    wait("the node's namespaces", lambda: os.readlink(f"/proc/{process.pid}/ns/net") != ours)
    for command in (
        f"ip link add {node.LINK} type veth peer name eth0 netns {process.pid}",
        f"ip address add {node.HOST}/30 dev {node.LINK}",
        f"ip link set {node.LINK} up",
        f"ip route add {node.PODS} via {node.NODE}",  # servers on this machine can answer pods
    ):
        subprocess.run(command.split(), check=True)
    wait("containerd", lambda: subprocess.run(inside("ctr", "version"), capture_output=True).returncode == 0)
    load_images()
    wait("a ready node", lambda: "True" in kubectl("get", "nodes", "-o", READY, check=False))


READY = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"


def wait(what: str, reached: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not reached():
        if not running():
            sys.exit(f"the cluster ended: {(STATE / 'logs' / 'node.log').read_text().strip()}")
        if time.monotonic() > until:
            sys.exit(f"{what} did not come within {seconds:.0f} s: see {STATE}/logs")
        time.sleep(0.2)


def up() -> None:
    check_requirements()
    changed = builds.missing()
    builds.build_all()
    started = time.monotonic()
    if not running():
        start()
        print(f"the node is ready after {time.monotonic() - started:.0f} s", flush=True)
    elif changed:
        load_images()
    operators.install()
    kubectl("create", "namespace", TEST_NAMESPACE, check=False)
    for namespace in ("default", TEST_NAMESPACE):  # pods are refused before it exists
        kubectl("wait", "--for=create", "--timeout=60s", "-n", namespace, "serviceaccount/default")
    print(f"the operators are ready after {time.monotonic() - started:.0f} s")
    environment()


def environment() -> None:
    """Print shell commands that make kubectl and the tests use the cluster, unless KUBECONFIG names another."""
    print(f"export KUBECONFIG=${{KUBECONFIG:-{KUBECONFIG}}} PATH={builds.folder('kubernetes')}/bin:$PATH")


def down() -> None:
    """End the node's first process, and with it everything; then remove control groups and files."""
    pid = running()
    if pid:
        os.kill(pid, signal.SIGKILL)
        # the kernel would remove it, too, but takes its time
        subprocess.run(["ip", "link", "delete", node.LINK], check=False, capture_output=True)
    until = time.monotonic() + 30
    while any(group.exists() for group in node.control_groups()) and time.monotonic() < until:
        for group in node.control_groups():
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):  # its processes are still ending
                    os.rmdir(folder)
        time.sleep(0.1)
    left = [str(group) for group in node.control_groups() if group.exists()]
    shutil.rmtree(STATE, ignore_errors=True)
    if left or STATE.exists():
        sys.exit(f"could not be removed: {' '.join([*left, *([str(STATE)] if STATE.exists() else [])])}")


def status() -> int:
    if builds.missing():
        print(f"not built: {', '.join(builds.missing())}")
    if not running():
        print("the cluster does not run")
        return 1
    print(kubectl("get", "nodes,deployments", "--all-namespaces", check=False))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.machine", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "up": "build what is missing, start the cluster and its operators",
        "down": "remove the cluster; nothing is left but the built programs",
        "status": "the node and the operators",
        "build": "build the programs",
        "environment": "shell commands that set KUBECONFIG and PATH",
        "packages": "Debian packages that this machine lacks",
    }.items():
        commands.add_parser(name, help=text)
    commands.add_parser("load", help="give an image of podman to the node").add_argument("image")
    arguments = parser.parse_args()
    if arguments.command == "load":
        load(arguments.image)
    elif arguments.command == "status":
        return status()
    else:
        {
            "up": up,
            "down": down,
            "build": builds.build_all,
            "environment": environment,
            "packages": lambda: print(*missing_packages()),
        }[arguments.command]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
