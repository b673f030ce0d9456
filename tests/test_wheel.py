"""What a user of the wheel would lose: other packages' names taken, or files missing outside a clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install` of the wheel makes of it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("hanflow-*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_it_installs_one_package(installed: Path) -> None:
    packages = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert packages == {"hanflow"}


def test_it_brings_its_data_and_licences(installed: Path) -> None:
    resources = installed / "hanflow" / "resources"
    for folder in ("experiments", "compiled", "sample_data"):
        there = {path.name for path in (resources / folder).iterdir()}
        assert there >= {path.name for path in (ROOT / "pipelines" / folder).iterdir() if path.is_file()}
    assert (installed / "hanflow" / "py.typed").is_file()
    licences = {path.name for path in installed.glob("*.dist-info/licenses/*")}
    assert licences >= {"LICENSE", "NOTICE"}


def test_the_command_runs_outside_a_clone(installed: Path, tmp_path: Path) -> None:
    """With the dependencies of this environment, but without the clone's own folders."""
    code = (
        "import hanflow, sys; print(hanflow.__file__); from hanflow.cli.main import main; sys.exit(main(['settings']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(installed)) and "train.learning_rate" in run.stdout
