"""MB/s of a folder into a bucket and back, ours beside gcsfs and the client library's plain calls; prints one JSON line.

The bucket is an emulator's, a process on this machine: what is measured is the work of the clients and of the emulator,
no network. Ours is the only one that claims, commits by a last record, and compares every file with its sha256.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

SIZES = (256 << 20, *[16 << 20] * 8)
"""Bytes of the files: one large, as weights are, and some smaller ones."""

REPEATS = 3


def start_emulator() -> tuple[subprocess.Popen, str]:
    """A `gcp-storage-emulator` and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "gcp_storage_emulator", "start", "--port", str(port), "-H", "127.0.0.1", "-M", "-q"]
    process = subprocess.Popen([sys.executable, *command])
    host = f"http://127.0.0.1:{port}"
    for _ in range(200):
        try:
            urllib.request.urlopen(host, timeout=5).close()
            return process, host
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise RuntimeError("the emulator does not start")


def main() -> None:
    place = Path(sys.argv[1])
    process, host = start_emulator()
    os.environ |= {"STORAGE_EMULATOR_HOST": host, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    try:
        print(json.dumps(measure(place, host)))
    finally:
        process.kill()
        process.wait()


def measure(place: Path, host: str) -> dict[str, list[float]]:
    import gcsfs
    from google.cloud.storage import Client

    from hanflow import storage
    from hanflow.storage import artifacts
    from hanflow.storage.artifacts import Manifest

    source = place / "source"
    source.mkdir()
    for number, size in enumerate(SIZES):
        (source / f"{number}.bin").write_bytes(os.urandom(size))
    artifacts.write_manifest(source, Manifest("corpus", "summarization", {}))
    names = sorted(path.name for path in source.iterdir())
    data = json.dumps({"name": "bench"}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{host}/storage/v1/b", data, {"Content-Type": "application/json"}))
    os.environ["HANFLOW_CACHE"] = str(place / "cache")
    client = Client(project=None)
    bucket = client.bucket("bench")
    theirs = gcsfs.GCSFileSystem(token="anon", endpoint_url=host, use_listings_cache=False)

    def ours_up() -> None:
        from hanflow.storage import gcs

        gcs.publish(gcs.claim("gs://bench/data", "corpus.json"), source)

    def ours_down() -> Path:
        return storage.fetched("gs://bench/data", "corpus")[0]

    def gcsfs_up() -> None:
        theirs.put([str(source / name) for name in names], [f"bench/data/{name}" for name in names])

    def gcsfs_down() -> Path:
        theirs.get([f"bench/data/{name}" for name in names], [str(place / "gcsfs" / name) for name in names])
        return place / "gcsfs"

    def plain_up() -> None:
        for name in names:
            bucket.blob(f"data/{name}").upload_from_filename(str(source / name))

    def plain_down() -> Path:
        for name in names:
            bucket.blob(f"data/{name}").download_to_filename(str(place / "plain" / name))
        return place / "plain"

    def rate(work: Callable[[], Path | None]) -> tuple[float, Path | None]:
        started = time.perf_counter()
        left = work()
        return sum(SIZES) / 1e6 / (time.perf_counter() - started), left

    measured: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        for name, up, down in (
            ("ours", ours_up, ours_down),
            ("gcsfs", gcsfs_up, gcsfs_down),
            ("plain", plain_up, plain_down),
        ):
            (place / name).mkdir(exist_ok=True)
            measured.setdefault(f"{name}_up", []).append(rate(up)[0])
            speed, folder = rate(down)
            measured.setdefault(f"{name}_down", []).append(speed)
            assert folder and all((folder / one).stat().st_size == (source / one).stat().st_size for one in names)
            for blob in client.list_blobs("bench"):
                blob.delete()
            for left in (folder, place / "cache"):
                shutil.rmtree(left, ignore_errors=True)
    return measured


if __name__ == "__main__":
    main()
