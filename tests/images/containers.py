"""Runs hanflow's images with podman, as restricted as the strictest cluster runs them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hanflow.cluster.job import USER
from hanflow.images import DEFAULT

ROOT = Path(__file__).parents[2]
SAMPLE_DATA = ROOT / "pipelines" / "sample_data"

REQUIRED_VARIABLE = "HANFLOW_IMAGES"
"""Environment variable: `required` turns a skipped container test into a failed one (CI, once it has built the images)."""


def image(kind: str) -> str:
    """The reference of an image that was built from the present sources; skips the test if there is none."""
    reference = str(getattr(DEFAULT, kind))
    reason = _missing(kind, reference)
    if reason is None:
        return reference
    if os.environ.get(REQUIRED_VARIABLE) == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@functools.cache
def _missing(kind: str, reference: str) -> str | None:
    for program in ("podman", "runc"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if podman("image", "exists", reference, check=False).returncode:
        return f"{reference} is not built: make images IMAGES={kind}"
    code = f"import hanflow, hashlib\nfrom pathlib import Path\n{inspect.getsource(sources_digest)}"
    code += "print(sources_digest(Path(hanflow.__path__[0]).parent))"
    if podman("run", "--rm", "--network", "none", reference, "python", "-c", code).stdout.strip() != sources_digest(
        ROOT
    ):
        return f"{reference} was built from other sources: make images IMAGES={kind}"
    return None


def sources_digest(root: Path) -> str:
    """Digest of every module of the package below `root`; runs in an image as well."""
    digest = hashlib.sha256()
    for path in sorted((root / "hanflow").rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A podman command; with `check` it must succeed, and a failure shows its output."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"podman {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done


def locked_up(work: Path, user: str = f"{USER}:{USER}") -> list[str]:
    """Options of `podman run`: read-only root, /tmp in memory, the working directory the only volume, no network, no privileges."""
    return [
        *("--rm", "--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:rw,size=1g"),
        *("--user", user, "--cap-drop", "all", "--security-opt", "no-new-privileges", "--network", "none"),
        *("--volume", f"{work}:/work", "--volume", f"{SAMPLE_DATA}:/data:ro"),
    ]


def run_in(
    reference: str, work: Path, *command: str, user: str = f"{USER}:{USER}", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in a locked-up container of an image."""
    return podman("run", *locked_up(work, user), reference, *command, check=check)


def writable_by(folder: Path, user: int = USER) -> Path:
    """The folder, made the user's own."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, user, user)
    return folder
