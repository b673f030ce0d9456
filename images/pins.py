"""Which distributions an image installs, and checks afterwards. Runs inside a build; needs only the standard library.

python3 pins.py requirements pyproject.toml wandb > requirements.txt
python3 pins.py torch /opt/hanflow/lib/python3.11/site-packages cpu
python3 pins.py exact constraints.txt
"""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path


def normalized(name: str) -> str:
    """A distribution's name in the normal form of PyPA's specification of names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    """The normalized name at the head of a requirement such as `Jinja2>=3.1; python_version < "4"`."""
    return normalized(re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0])


def requirements(pyproject: Path, extras: Sequence[str], without: Sequence[str] = ()) -> list[str]:
    """The project's dependencies and those of some extras, except the distributions in `without`."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    return [requirement for requirement in found if name_of(requirement) not in {normalized(name) for name in without}]


def pinned(lines: Sequence[str]) -> dict[str, str]:
    """Normalized name → exact version of the lines of constraints files."""
    pins = (line.split("#")[0].strip().split("==") for line in lines)
    return {normalized(pin[0]): pin[1] for pin in pins if len(pin) == 2}


def floating(installed: dict[str, str], pins: dict[str, str]) -> list[str]:
    """Installed distributions whose version is not in the constraints; a wheel's local version (`+cpu`) does not count."""
    return [
        f"{name}=={version} ({'constraints say ' + pins[name] if name in pins else 'no constraint'})"
        for name, version in sorted(installed.items())
        if pins.get(name) != version.split("+")[0]
    ]


def torch_problem(site_packages: Path, wanted: str) -> str | None:
    """What is wrong with the wheel of torch in that folder, or None: `wanted` is cpu, cuda or any."""
    cuda = runpy.run_path(str(site_packages / "torch" / "version.py"))["cuda"]
    if wanted == "cpu" and cuda is not None:
        return (
            f"torch was built for CUDA {cuda}: this image would be 7 GB larger than it needs to be; "
            "set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels (named on its installation page), or take it as it is "
            "with BUILD_FLAGS='--build-arg TORCH=any'"
        )
    if wanted == "cuda" and cuda is None:
        return "torch was built without CUDA: build this image without PyTorch's index or a folder of CPU wheels"
    return None


def main(arguments: Sequence[str]) -> int | str:
    command, *rest = arguments
    if command == "requirements":
        without = [argument.removeprefix("--without=") for argument in rest if argument.startswith("--without=")]
        extras = [argument for argument in rest[1:] if not argument.startswith("--")]
        print("\n".join(requirements(Path(rest[0]), extras, without)))
        return 0
    if command == "torch":
        return torch_problem(Path(rest[0]), rest[1]) or 0
    if command == "exact":
        pins = pinned([line for path in rest for line in Path(path).read_text(encoding="utf-8").splitlines()])
        installed = {normalized(found.name): found.version for found in distributions()}
        return (
            "\n".join(["without an exact version in the constraints:", *problems])
            if (problems := floating(installed, pins))
            else 0
        )
    return f"{command}: unknown; known are requirements, torch and exact"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
