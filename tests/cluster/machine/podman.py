"""Images of podman for the node, without a copy of their gigabytes: hard links to podman's unpacked layers.

`podman save` and `ctr images import` would write each byte three times. containerd needs a layer's archive only to unpack it,
so it gets the image's manifest and, under the names that unpacking would have given them, the snapshots.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster.machine import images
from tests.cluster.machine.node import STATE

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


def give(reference: str, ctr: Sequence[str]) -> None:
    """Give an image to containerd.

    Args:
        reference: of an image of podman.
        ctr: the command, in the namespaces of the node.

    Raises:
        SystemExit: podman does not have the image, or does not keep layers as overlayfs takes them.
    """
    inspected = subprocess.run(["podman", "image", "inspect", reference], capture_output=True, text=True, check=False)
    if inspected.returncode:
        raise SystemExit(f"podman image inspect {reference}: {inspected.stderr.strip()}")
    (image,) = json.loads(inspected.stdout)
    if image["GraphDriver"]["Name"] != "overlay":
        raise SystemExit(
            f"podman's storage driver is {image['GraphDriver']['Name']}: only overlay's layers can be linked"
        )
    folders, diff_ids = layers(image), image["RootFS"]["Layers"]
    parent = ""
    for folder, diff_id in zip(folders, diff_ids, strict=True):
        chain = f"sha256:{hashlib.sha256(f'{parent} {diff_id}'.encode()).hexdigest()}" if parent else diff_id
        if subprocess.run([*ctr, "snapshots", "info", chain], capture_output=True, check=False).returncode:
            _add_snapshot(ctr, chain, parent, folder)
        parent = chain
    archive = STATE / "manifest.tar"
    write_manifest(reference, image, archive)
    with archive.open("rb") as stream:
        command = [*ctr, "images", "import", "--no-unpack", "-"]
        subprocess.run(command, stdin=stream, stdout=subprocess.DEVNULL, check=True)
    archive.unlink()


def layers(image: dict[str, Any]) -> list[Path]:
    """Folders of an image's layers, the lowest first, from what `podman image inspect` says of it."""
    data = image["GraphDriver"]["Data"]
    lower = data["LowerDir"].split(":") if "LowerDir" in data else []
    return [Path(folder) for folder in reversed([data["UpperDir"], *lower])]


def _add_snapshot(ctr: Sequence[str], chain: str, parent: str, folder: Path) -> None:
    """A layer on top of its parents: whiteouts are the same in both stores, since both use overlayfs."""
    key = f"preparing-{chain}"
    subprocess.run(
        [*ctr, "snapshots", "remove", key], capture_output=True, check=False
    )  # of an attempt that was broken off
    command = [*ctr, "snapshots", "prepare", "--mounts", key, *([parent] if parent else [])]
    (mount,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    upper = next((o.partition("=")[2] for o in mount["Options"] if o.startswith("upperdir=")), mount["Source"])
    target = STATE / "lib" / Path(upper).relative_to("/var/lib")
    links = "--link" if folder.stat().st_dev == target.stat().st_dev else "--reflink=auto"
    # While it works, podman mounts its folder onto itself, and no link leads out of a mount: copy without that one.
    script = 'umount --lazy "$1" 2>/dev/null; exec cp --archive "$2" "$3/." "$4"'
    arguments = [str(folder.parents[1]), links, str(folder), str(target)]
    subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", *arguments], check=True)
    subprocess.run([*ctr, "snapshots", "commit", chain, key], check=True)


def write_manifest(reference: str, image: dict[str, Any], path: Path) -> None:
    """An archive in OCI's layout that holds everything of the image but its layers."""
    blobs: dict[str, bytes] = {}

    def blob(kind: str, content: Any) -> dict[str, Any]:
        data = json.dumps(content).encode()
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    diff_ids = image["RootFS"]["Layers"]
    config = {
        "architecture": image["Architecture"],
        "os": image["Os"],
        "config": image["Config"],
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": blob(_CONFIG, config),
        "layers": [{"mediaType": _LAYER, "digest": diff_id, "size": 0} for diff_id in diff_ids],
    }
    named = {**blob(_MANIFEST, manifest), "annotations": {"io.containerd.image.name": reference}}
    with tarfile.open(path, "w") as archive:
        for name, data in blobs.items():
            images.add(archive, name, data)
        images.add(archive, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        images.add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [named]}).encode())
