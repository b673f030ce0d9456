"""Build the images with podman or docker: `make images`, or `.venv/bin/python images/build.py cpu gpu --builder docker`.

pip's configuration (indices, folders of wheels, certificates; `pip config list`) is passed to the build as a secret; folders
are served over HTTP on this machine. Nothing of it stays in an image.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from hanflow.errors import UserError
from hanflow.images import TAG, Images, add_options, from_options

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("cpu", "demo", "gpu", "tpu")
DOCKERFILES = {"demo": "cpu"}
"""Images that are a target of another image's Dockerfile."""

SOURCES = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "proxy",
    "cert",
    "timeout",
    "default-timeout",
)
"""pip's settings of where packages come from."""
FOLDER_KEYS = ("index-url", "extra-index-url", "find-links")


@dataclass(frozen=True)
class PipSettings:
    """The part of pip's configuration that a build needs."""

    values: Mapping[str, str]
    """Setting → value, for the section [global] of a pip.conf."""
    certificates: Path | None = None
    """A bundle of certificates; the values name it as `/run/secrets/ca.crt`."""

    @property
    def folders(self) -> list[Path]:
        """Existing folders of this machine that packages come from."""
        sources = [(key, source) for key in FOLDER_KEYS for source in self.values.get(key, "").split()]
        found = (_folder(key, source) for key, source in sources)
        return list(dict.fromkeys(folder for folder in found if folder is not None and folder.is_dir()))

    def served(self, addresses: Mapping[Path, str]) -> PipSettings:
        """The same with folders replaced by the addresses at which they are served, e.g. `http://127.0.0.1:4711`."""
        values = dict(self.values)
        for key in FOLDER_KEYS:
            if key in values:
                values[key] = " ".join(_address(key, source, addresses) for source in values[key].split())
        return PipSettings(values, self.certificates)

    def text(self) -> str:
        """As the text of a pip.conf."""
        return "\n".join(["[global]", *(f"{key} = {value}" for key, value in self.values.items())]) + "\n"


def parse_pip_settings(listed: str) -> PipSettings:
    """Settings from the output of `pip config list`; the environment overrides [install], which overrides [global]."""
    found: dict[str, str] = {}
    for section in ("global.", "install.", ":env:."):
        for line in listed.splitlines():
            key, equals, value = line.partition("=")
            if equals and key.startswith(section) and key.removeprefix(section) in SOURCES:
                found[key.removeprefix(section)] = " ".join(str(ast.literal_eval(value)).split())
    certificates = Path(found["cert"]) if "cert" in found else None
    if certificates:
        found["cert"] = "/run/secrets/ca.crt"
    return PipSettings(found, certificates)


def _path(source: str) -> Path | None:
    if source.startswith("file:"):
        return Path(unquote(urlsplit(source).path))
    return Path(source) if source.startswith("/") else None


def _folder(key: str, source: str) -> Path | None:
    """The folder to serve for a source; an index's pages may link to files beside it."""
    path = _path(source)
    return path if path is None or key == "find-links" else path.parent


def _address(key: str, source: str, addresses: Mapping[Path, str]) -> str:
    path, folder = _path(source), _folder(key, source)
    if path is None or folder is None or folder not in addresses:
        return source
    return f"{addresses[folder]}/{quote(path.relative_to(folder).as_posix())}".removesuffix("/.")


@contextlib.contextmanager
def serve(folders: Sequence[Path]) -> Iterator[dict[Path, str]]:
    """Serve folders to this machine only: folder → address. (A mount would leave an empty folder in every layer.)"""
    with contextlib.ExitStack() as stack:
        addresses = {}
        for folder in folders:
            handler = functools.partial(_Quiet, directory=str(folder))
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            addresses[folder] = f"http://127.0.0.1:{server.server_port}"
        yield addresses


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Build:
    """One call of the builder."""

    builder: str
    kind: str
    images: Images
    base: str
    revision: str
    host_network: bool = False
    also: str = ""
    """A second tag."""
    flags: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return str(getattr(self.images, self.kind))

    def command(self, pip: PipSettings, conf: Path) -> list[str]:
        """The builder's command line; `conf` is the file that `pip` was written to."""
        command = [self.builder, "build", "--file", f"images/{DOCKERFILES.get(self.kind, self.kind)}/Dockerfile"]
        command += ["--target", self.kind, "--tag", self.reference]
        if self.also:
            command += ["--tag", f"{self.reference.rpartition(':')[0]}:{self.also}"]
        if self.builder == "podman":
            command += ["--layers"]
        if self.base:
            command += ["--build-arg", f"BASE={self.base}"]
        command += ["--build-arg", f"VERSION={self.images.tag}", "--build-arg", f"REVISION={self.revision}"]
        # podman 4.3 takes a LABEL line from its cache although the arguments in it have changed.
        for name, value in (("version", self.images.tag), ("revision", self.revision)):
            command += ["--label", f"org.opencontainers.image.{name}={value}"]
        command += ["--secret", f"id=pip.conf,src={conf}"]
        if pip.certificates:
            command += ["--secret", f"id=ca.crt,src={pip.certificates}"]
        if self.host_network:
            command += ["--network", "host"]
        return [*command, *self.flags, "."]


def find_builder(wanted: str) -> str:
    """`podman` or `docker`: the wanted one, else the first that is installed.

    Raises:
        UserError: it is not installed.
    """
    for name in [wanted] if wanted else ["podman", "docker"]:
        if shutil.which(name):
            return name
    raise UserError(f"{wanted or 'podman and docker'}: not installed; install podman or docker, then `make images`")


def revision() -> str:
    """The commit that is built, marked as dirty if files differ from it; empty outside a clone."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="images/build.py", description="Build hanflow's container images.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (default: cpu demo)")
    parser.add_argument("--builder", default="", choices=["podman", "docker"], help="default: what is installed")
    parser.add_argument("--base", default="", metavar="IMAGE", help="Debian 12 image to build on")
    parser.add_argument("--flags", default="", metavar="TEXT", help="further flags of `podman build` or `docker build`")
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        kinds = options.kinds or ["cpu", "demo"]
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise UserError(f"{unknown[0]}: no such image; known: {', '.join(KINDS)}")
        builder, images = find_builder(options.builder), from_options(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    pip = parse_pip_settings(listed)
    with (
        serve(pip.folders) as addresses,
        tempfile.NamedTemporaryFile("w", prefix="pip-", suffix=".conf", encoding="utf-8") as conf,
    ):
        settings = pip.served(addresses)
        conf.write(settings.text())  # readable only by its owner: the address of an index may contain a password
        conf.flush()
        for kind in kinds:
            flags = tuple(shlex.split(options.flags))
            # Committed manifests and pipelines name the release's tag.
            also = "" if options.image_tag else TAG
            build = Build(
                builder,
                kind,
                images,
                options.base,
                revision(),
                host_network=bool(addresses),
                also=also,
                flags=flags,
            )
            done = subprocess.run(build.command(settings, Path(conf.name)), cwd=ROOT, check=False)
            if done.returncode:
                print(f"error: {build.reference} was not built; see the builder's last lines", file=sys.stderr)
                return 1
            print(f"{build.reference}: {_megabytes(builder, build.reference):,.0f} MB", flush=True)
    return 0


def _megabytes(builder: str, reference: str) -> float:
    inspected = subprocess.run(
        [builder, "image", "inspect", "--format", "{{.Size}}", reference], capture_output=True, text=True, check=True
    )
    return int(inspected.stdout) / 1e6


if __name__ == "__main__":
    sys.exit(main())
