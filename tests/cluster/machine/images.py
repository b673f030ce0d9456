"""Container images without a registry: an archive in Docker's format, made of static programs."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BUSYBOX = Path("/bin/busybox")

# The training operator's init container loops over `nslookup MASTER` in `sh -c SCRIPT`. Two mends: as process 1 a shell
# ignores SIGTERM, so that the pod of a removed job would stay for its whole grace period; and nslookup of busybox fails when
# one of the search domains does not know the name. (A function, since this shell prefers its own commands to files.)
SHELL = rb"""#!/bin/busybox sh
/bin/busybox sh -c '
nslookup() {
    for domain in $(sed -n "s/^search //p" /etc/resolv.conf); do
        /bin/busybox nslookup "$1.$domain." && return
    done
    return 1
}
'"$2" &
trap "kill $!" TERM
wait $!
"""


@dataclass
class Image:
    """An image to be made.

    Attributes:
        names: `name:tag`, as pods ask for it.
        files: path in the image → its content, a file of this machine or, as text, the target of a link.
        entrypoint: the program; a pod's `args` follow it.
        command: what runs instead of it where a pod names none.
        user: numeric id, so that `runAsNonRoot` can be checked.
    """

    names: Sequence[str]
    files: Mapping[str, bytes | Path | str]
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    user: int = 0
    environment: Sequence[str] = field(default=("PATH=/bin",))


def busybox() -> dict[str, bytes | Path | str]:
    """Busybox under the names of all its commands."""
    names = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    links: dict[str, bytes | Path | str] = {f"bin/{name}": "busybox" for name in names if name != "busybox"}
    return {**links, "bin/busybox": BUSYBOX, "etc/passwd": b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"}


def standard() -> list[Image]:
    """The images that pods of the tests and of the cluster itself ask for."""
    commands = busybox()
    waits = {**commands, "bin/sh": SHELL}
    return [
        Image(["hanflow.test/pause:1"], commands, command=["sleep", "2147483647"]),
        Image(["busybox:1.36"], commands, command=["sh"]),
        Image(["hanflow.test/wait-for-rank-0:1"], waits, command=["sh"]),
    ]


def add(archive: tarfile.TarFile, name: str, content: bytes | Path | str) -> None:
    """Add a file to an archive; see `Image.files`."""
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755
    if isinstance(content, str):
        entry.type, entry.linkname = tarfile.SYMTYPE, content
        archive.addfile(entry)
        return
    data = content.read_bytes() if isinstance(content, Path) else content
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _layer(image: Image) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in [*((folder, 0o755) for folder in ("bin", "etc")), ("tmp", 0o1777)]:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        for name, content in image.files.items():
            add(archive, name, content)
    return buffer.getvalue()


def write(image: Image, path: Path) -> None:
    """Write the archive that `ctr images import` takes."""
    layer = _layer(image)
    digest = hashlib.sha256(layer).hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint),
            "Cmd": list(image.command),
            "User": str(image.user),
            "Env": list(image.environment),
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": list(image.names), "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        add(archive, f"{digest}/layer.tar", layer)
        add(archive, "config.json", json.dumps(config).encode())
        add(archive, "manifest.json", json.dumps(manifest).encode())
