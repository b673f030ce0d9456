"""The machine of the cluster: network, mount and process namespaces of its own, in which everything of it runs.

`run` is process 1 of these namespaces. When it ends, the kernel ends every process, pods included, and takes back every
mount, network interface and iptables rule: nothing has to be undone one by one. Only control groups and files are left.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.machine import builds

CLUSTER = os.environ.get("HANFLOW_CLUSTER") or builds.VERSIONS.replace("newest", "")
"""Which cluster of this machine; several can stand side by side."""
if not re.fullmatch("[a-z0-9-]*", CLUSTER):
    sys.exit(f"HANFLOW_CLUSTER={CLUSTER}: small letters, digits and - only")
_SUFFIX = f"-{CLUSTER}" if CLUSTER else ""

STATE = builds.CACHE / f"state{_SUFFIX}"
KUBECONFIG = STATE / "kubeconfig"
NAME = "hanflow"
"""Name of the node."""
CONTROL_GROUP = f"{NAME}-cluster{_SUFFIX}"

NUMBER = STATE / "number"


def _number() -> int:
    """Which of the private networks of this machine is the cluster's: kept in NUMBER once it has started, else a free one."""
    if not CLUSTER:
        return 0
    if NUMBER.exists():
        return int(NUMBER.read_text())
    return next(number for number in itertools.count(1) if not Path(f"/sys/class/net/hanflow{number}").exists())


# A private network for each cluster: the link between this machine and the node, the pods, the services.
_NETWORK = f"10.{213 + _number()}"
LINK, HOST, NODE = f"hanflow{_number()}", f"{_NETWORK}.0.1", f"{_NETWORK}.0.2"
PODS, SERVICES = f"{_NETWORK}.64.0/20", f"{_NETWORK}.128.0/20"
SERVER = f"https://{NODE}:6443"

CGROUPS = Path("/sys/fs/cgroup")
CNI = next((path for path in (Path("/usr/lib/cni"), Path("/opt/cni/bin")) if (path / "ptp").exists()), None)
PAUSE = "hanflow.test/pause:1"

CONTAINERD = f"""
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.devmapper"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true  # a machine without CAP_SYS_RESOURCE refuses to lower it
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI}"
    conf_dir = "{STATE}/cni"
"""

# A veth pair for each pod and routes between them, no bridge: all traffic passes iptables, without br_netfilter.
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "ptp",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}

COREFILE = f"""
cluster.local in-addr.arpa {{
    bind {NODE}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {KUBECONFIG}
        pods insecure
    }}
}}
. {{
    bind {NODE}
    template IN ANY {{
        rcode NXDOMAIN
    }}
}}
"""

KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "cgroupRoot": f"/{CONTROL_GROUP}",
    "clusterDNS": [NODE],
    "clusterDomain": "cluster.local",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "enforceNodeAllocatable": [],
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "100Mi", "imagefs.available": "100Mi"},
    "failCgroupV1": False,
    "failSwapOn": False,
    "imageGCHighThresholdPercent": 100,
    "makeIPTablesUtilChains": False,
    "maxPods": 250,
    "resolvConf": "/etc/resolv.conf",
    "serializeImagePulls": False,
    "syncFrequency": "5s",  # also how soon a pod sees a Secret change: the operators write their certificates into one
}


def kubeconfig(token: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": NAME, "cluster": {"server": SERVER, "certificate-authority": f"{STATE}/pki/apiserver.crt"}}
        ],
        "users": [{"name": NAME, "user": {"token": token}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME}}],
        "current-context": NAME,
    }


def prepare() -> None:
    """Write keys and settings into STATE."""
    for name in ("pki", "cni", "logs", "lib/kubelet", "log"):
        (STATE / name).mkdir(parents=True, exist_ok=True)
    files = {"containerd.toml": CONTAINERD, "Corefile": COREFILE, "resolv.conf": f"nameserver {NODE}\n"}
    for name, text in files.items():
        (STATE / name).write_text(text)
    administrator, node = secrets.token_hex(16), secrets.token_hex(16)
    documents = {
        "cni/pods.conflist": NETWORK,
        "kubelet.json": KUBELET,
        "kubelet.kubeconfig": kubeconfig(node),
        "kubeconfig": kubeconfig(administrator),
    }
    for name, document in documents.items():
        (STATE / name).touch(0o600)
        (STATE / name).write_text(json.dumps(document, indent=1))
    tokens = STATE / "pki" / "tokens.csv"
    tokens.touch(0o600)
    tokens.write_text(f'{administrator},admin,admin,"system:masters"\n{node},system:node:{NAME},node,"system:nodes"\n')
    _openssl("genrsa", "-out", "service-accounts.key", "2048")
    _openssl("rsa", "-in", "service-accounts.key", "-pubout", "-out", "service-accounts.pub")
    # for API servers behind this one (Kueue's): its own client certificate, signed by itself
    names = ("-keyout", "aggregator.key", "-out", "aggregator.crt", "-subj", "/CN=aggregator", "-days", "365")
    _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", *names)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=STATE / "pki", check=True, capture_output=True)


def control_groups() -> list[Path]:
    """The cluster's control group in each hierarchy of cgroup v1, or the one of v2."""
    v2 = (CGROUPS / "cgroup.controllers").exists()
    hierarchies = [CGROUPS] if v2 else [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]
    return [path / CONTROL_GROUP for path in hierarchies]


def enter() -> None:
    """Mounts and network of the node; this process is in namespaces of its own already."""
    _call("mount", "--make-rshared", "/")  # within this namespace: pods' volumes must reach containerd
    for source, target in {"lib": "/var/lib", "log": "/var/log", "resolv.conf": "/etc/resolv.conf"}.items():
        _call("mount", "--bind", f"{STATE}/{source}", target)
    _call("mount", "-t", "tmpfs", "tmpfs", "/run")
    for group in control_groups():
        group.mkdir(exist_ok=True)
    _wait("the network link to this machine", lambda: Path("/proc/net/dev").read_text().count("eth0:") > 0, 10)
    _call("ip", "link", "set", "lo", "up")
    _call("ip", "address", "add", f"{NODE}/30", "dev", "eth0")
    _call("ip", "link", "set", "eth0", "up")
    _call("ip", "route", "add", "default", "via", HOST)  # services' addresses need a route before iptables sees them
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def commands() -> dict[str, list[str]]:
    """The processes of the node, in the order in which they start."""
    pki, settings = STATE / "pki", STATE
    client = f"--kubeconfig={KUBECONFIG}"
    return {
        "containerd": ["containerd", f"--config={settings}/containerd.toml"],
        "etcd": [f"{builds.program('etcd')}", f"--data-dir={STATE}/etcd", "--unsafe-no-fsync", "--log-level=warn"],
        "kube-apiserver": [
            f"{builds.program('kube-apiserver')}",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={NODE}",
            f"--cert-dir={pki}",
            f"--service-cluster-ip-range={SERVICES}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/service-accounts.pub",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            f"--token-auth-file={pki}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={pki}/aggregator.crt",
            "--requestheader-allowed-names=aggregator",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={pki}/aggregator.crt",
            f"--proxy-client-key-file={pki}/aggregator.key",
            "--enable-aggregator-routing=true",
        ],
        "kube-controller-manager": [
            f"{builds.program('kube-controller-manager')}",
            client,
            f"--root-ca-file={pki}/apiserver.crt",
            f"--service-account-private-key-file={pki}/service-accounts.key",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
        ],
        "kube-scheduler": [f"{builds.program('kube-scheduler')}", client, "--leader-elect=false"],
        "coredns": [f"{builds.program('coredns')}", f"-conf={settings}/Corefile"],
        "kube-proxy": [
            f"{builds.program('kube-proxy')}",
            client,
            "--proxy-mode=iptables",
            f"--hostname-override={NAME}",
            f"--cluster-cidr={PODS}",
            "--conntrack-max-per-core=0",  # these are settings of the whole machine
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ],
        "kubelet": [
            f"{builds.program('kubelet')}",
            f"--kubeconfig={STATE}/kubelet.kubeconfig",
            f"--config={settings}/kubelet.json",
            f"--hostname-override={NAME}",
            f"--node-ip={NODE}",
        ],
        # enforces network policies, and does nothing else here
        "kube-router": [
            f"{builds.program('kube-router')}",
            client,
            "--run-firewall=true",
            "--run-router=false",
            "--run-service-proxy=false",
            f"--hostname-override={NAME}",
            f"--service-cluster-ip-range={SERVICES}",
            "--health-port=0",
            "--metrics-port=0",
        ],
    }


def run() -> None:
    """Start everything; ends, and the cluster with it, when one process ends."""
    enter()
    started: dict[int, str] = {}
    for name, command in commands().items():
        with (STATE / "logs" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=STATE)
        started[process.pid] = name
        if name == "kube-apiserver":
            _wait("the API server", lambda: kubectl("get", "--raw=/readyz", check=False) == "ok", 60)
        if name == "kubelet":  # kube-router looks for the node at once
            _wait("the node", lambda: kubectl("get", "nodes", "-o", "name", check=False) != "", 60)
    while True:
        pid, status = os.wait()  # also what containers leave behind: process 1 inherits it
        if pid in started:
            name = started[pid]
            sys.exit(f"{name} ended with status {os.waitstatus_to_exitcode(status)}: see {STATE}/logs/{name}.log")


def kubectl(*arguments: str, check: bool = True, text: str | None = None) -> str:
    """Output of kubectl on this cluster."""
    command = [f"{builds.program('kubectl')}", f"--kubeconfig={KUBECONFIG}", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _call(*command: str) -> None:
    subprocess.run(command, check=True)


def _wait(what: str, reached: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > until:
            sys.exit(f"{what} did not come within {seconds:.0f} s: see {STATE}/logs")
        time.sleep(0.1)
