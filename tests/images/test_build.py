"""`make images`: the builder's command line, pip's configuration on its way in, and exact versions."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from hanflow.errors import UserError
from hanflow.images import Images
from images import build, pins
from images.build import Build, PipSettings, parse_pip_settings, serve

ROOT = Path(__file__).parents[2]
IMAGES = Images("localhost:5000/team", "v2")


def test_the_builders_command_line() -> None:
    made = Build("docker", "demo", IMAGES, "debian@sha256:0", "abc", flags=("--push",))
    command = made.command(PipSettings({}, Path("/etc/ca.crt")), Path("/tmp/pip.conf"))
    line = " ".join(command)
    assert line.startswith(
        "docker build --file images/cpu/Dockerfile --target demo --tag localhost:5000/team/hanflow-demo:v2"
    )
    assert "--build-arg BASE=debian@sha256:0 --build-arg VERSION=v2 --build-arg REVISION=abc" in line
    assert "--secret id=pip.conf,src=/tmp/pip.conf --secret id=ca.crt,src=/etc/ca.crt" in line
    assert command[-2:] == ["--push", "."] and "--network" not in command and "--layers" not in command


def test_pips_configuration_is_passed_on(tmp_path: Path) -> None:
    listed = (
        ":env:.find-links='/wheels'\n"
        ":env:.disable-pip-version-check='1'\n"
        "global.cert='/etc/ssl/ca.crt'\n"
        "global.extra-index-url='file:///mirror/simple\\nhttps://user:pass@index.example/simple'\n"
        "global.find-links='/never'\n"
        "install.user='true'\n"
        "install.timeout='60'\n"
    )
    settings = parse_pip_settings(listed)
    assert settings.values == {
        "find-links": "/wheels",
        "cert": "/run/secrets/ca.crt",
        "extra-index-url": "file:///mirror/simple https://user:pass@index.example/simple",
        "timeout": "60",
    }
    assert settings.certificates == Path("/etc/ssl/ca.crt")
    assert parse_pip_settings("").text() == "[global]\n"


def test_folders_are_served_to_this_machine(tmp_path: Path) -> None:
    wheels, mirror = tmp_path / "wheels", tmp_path / "mirror"
    for path in (wheels / "a-1+cpu.whl", mirror / "simple" / "b" / "index.html", mirror / "files" / "b.whl"):
        path.parent.mkdir(parents=True)
        path.write_text(path.name, encoding="utf-8")
    found = f"global.find-links='{wheels} /no/such/folder'\nglobal.index-url='file://{mirror}/simple'\n"
    settings = parse_pip_settings(found)
    assert set(settings.folders) == {wheels, mirror}, "pages of an index link to files beside it"
    with serve(settings.folders) as addresses:
        served = settings.served(addresses)
        links, missing = served.values["find-links"].split()
        assert missing == "/no/such/folder"
        assert all(address.startswith("http://127.0.0.1:") for address in addresses.values())
        assert "a-1%2Bcpu.whl" in read(f"{links}/")
        assert read(f"{links}/a-1%2Bcpu.whl") == "a-1+cpu.whl"
        assert read(f"{served.values['index-url']}/b/") == "index.html"
        assert read(f"{served.values['index-url']}/../files/b.whl") == "b.whl"
    with pytest.raises(urllib.error.URLError):
        read(f"{links}/")


def read(address: str) -> str:
    with urllib.request.urlopen(address) as answer:
        return str(answer.read().decode())


def test_mistakes_are_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["gpus"]) == 1
    assert "gpus: no such image; known: cpu, demo, gpu, tpu" in capsys.readouterr().err
    assert build.main(["cpu", "--image-tag", "a b"]) == 1
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="install podman or docker"):
        build.find_builder("")


def test_a_builder_that_fails_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = tmp_path / "docker"
    builder.write_text('#!/bin/sh\necho "$@" >>"$0.log"\nexit 3\n', encoding="utf-8")
    builder.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert build.main(["cpu", "gpu", "--builder", "docker", "--flags=--isolation chroot"]) == 1
    calls = (tmp_path / "docker.log").read_text(encoding="utf-8").splitlines()
    assert len(calls) == 1 and "--target cpu" in calls[0], "nothing is built after a failure"
    assert f"/hanflow-cpu:{build.TAG} " in calls[0] and calls[0].endswith("--isolation chroot ."), "second tag, flags"


def test_requirements_are_the_projects() -> None:
    found = pins.requirements(ROOT / "pyproject.toml", ["wandb"], without=["Torch"])
    names = {pins.name_of(requirement) for requirement in found}
    assert {"kfp", "google-cloud-storage", "transformers", "wandb"} <= names
    assert not {"torch", "pytest", "streamlit"} & names


def test_every_version_is_exact(tmp_path: Path) -> None:
    lines = ["# a comment", "Jinja2==3.1.6", "torch==2.13.0  # why", "numpy>=2"]
    assert pins.pinned(lines) == {"jinja2": "3.1.6", "torch": "2.13.0"}
    installed = {"jinja2": "3.1.6", "torch": "2.13.0+cpu"}
    assert pins.floating(installed, pins.pinned(lines)) == []
    assert pins.floating({**installed, "jinja2": "3.2"}, pins.pinned(lines)) == ["jinja2==3.2 (constraints say 3.1.6)"]
    assert pins.floating({"numpy": "2.1"}, pins.pinned(lines)) == ["numpy==2.1 (no constraint)"]
    empty = tmp_path / "constraints.txt"
    empty.write_text("", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "images" / "pins.py"), "exact", str(empty)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == 1
        and "without an exact version in the constraints:" in done.stderr
        and "torch==" in done.stderr
    )


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_the_other_images_pins_are_exact(kind: str) -> None:
    lines = (ROOT / "images" / kind / "constraints.txt").read_text(encoding="utf-8").splitlines()
    own = pins.pinned(lines)
    assert len(own) == len([line for line in lines if line and not line.startswith("#")])
    common = pins.pinned((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert set(own) & set(common) == ({"torch"} if kind == "tpu" else set()), "a version is named once"
    if kind == "tpu":
        assert own["torch"] == own["torch-xla"] == "2.9.0"


@pytest.mark.parametrize(
    ("built", "wanted", "message"),
    [
        ("None", "cpu", None),
        ("'13.0'", "cuda", None),
        ("'13.0'", "cpu", "built for CUDA 13.0"),
        ("None", "cuda", "without CUDA"),
    ],
)
def test_the_wrong_torch_is_refused(tmp_path: Path, built: str, wanted: str, message: str | None) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text(f"cuda = {built}\n", encoding="utf-8")
    problem = pins.torch_problem(tmp_path, wanted)
    assert problem is None if message is None else message in str(problem)
