"""Image references: one place, options of compile and submit, nothing of the environment at import."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hanflow import images
from hanflow.cli.main import main
from hanflow.cli.options import PIPELINES
from hanflow.errors import UserError
from hanflow.images import Images
from hanflow.version import image_tag

OTHER = Images("localhost:5000/team/nlp", "v2.1")


def test_the_references() -> None:
    assert Images("europe-docker.pkg.dev/p/hanflow", "1.2").cpu == "europe-docker.pkg.dev/p/hanflow/hanflow-cpu:1.2"
    assert OTHER.gpu == "localhost:5000/team/nlp/hanflow-gpu:v2.1"
    assert len({OTHER.cpu, OTHER.gpu, OTHER.tpu, OTHER.demo}) == 4
    assert Images().cpu == images.CPU


@pytest.mark.parametrize(
    "repository",
    ["", "Team/nlp", "registry.io/", "/team", "registry.io/team:1", "registry.io/team@sha256:0", "a b", "-x", "r/t\n"],
)
def test_a_repository_that_no_registry_accepts(repository: str) -> None:
    with pytest.raises(UserError, match="image repository"):
        Images(repository)


@pytest.mark.parametrize("tag", ["", "-a", ".a", "a:b", "a/b", "a b", "a\n", "x" * 129, "가"])
def test_a_tag_that_no_registry_accepts(tag: str) -> None:
    with pytest.raises(UserError, match="image tag"):
        Images(tag=tag)


def test_the_options() -> None:
    parser = argparse.ArgumentParser()
    images.add_options(parser)
    assert images.from_options(parser.parse_args([])) == Images(tag=image_tag())
    assert images.from_options(parser.parse_args([]), tag=images.TAG) == images.DEFAULT
    given = parser.parse_args(["--image-repository", OTHER.repository, "--image-tag", OTHER.tag])
    assert images.from_options(given) == OTHER


def test_a_step_gets_its_pipelines_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(images.REPOSITORY_VARIABLE, raising=False)
    monkeypatch.delenv(images.TAG_VARIABLE, raising=False)
    assert images.images_of_this_step() == images.DEFAULT
    monkeypatch.setenv(images.REPOSITORY_VARIABLE, OTHER.repository)
    monkeypatch.setenv(images.TAG_VARIABLE, OTHER.tag)
    assert images.images_of_this_step() == OTHER


def test_importing_reads_nothing_of_the_environment() -> None:
    environment = {**os.environ, images.REPOSITORY_VARIABLE: OTHER.repository, images.TAG_VARIABLE: OTHER.tag}
    code = "from hanflow import images; print(images.CPU)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == images.CPU == "ghcr.io/hanflow/hanflow-cpu:0.2.0"


@pytest.mark.parametrize("name", PIPELINES)
def test_compile_takes_another_registry(name: str, tmp_path: Path) -> None:
    arguments = ["--image-repository", OTHER.repository, "--image-tag", OTHER.tag]
    assert main(["compile", name, "--output", str(tmp_path), *arguments]) == 0
    text = (tmp_path / f"{name}.yaml").read_text(encoding="utf-8")
    assert images.REPOSITORY not in text, "every step comes from the registry that was named"
    executors = yaml.safe_load(text.split("\n---")[0])["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {OTHER.cpu}
    training = [body["container"] for executor, body in executors.items() if executor.startswith("exec-train")]
    assert training, "the step that starts jobs of its own"
    for container in training:
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment[images.REPOSITORY_VARIABLE] == OTHER.repository
        assert environment[images.TAG_VARIABLE] == OTHER.tag


def test_a_wrong_reference_compiles_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--output", str(tmp_path / "build"), "--image-tag", "a:b"]) == 1
    assert "image tag 'a:b'" in capsys.readouterr().err
    assert not (tmp_path / "build").exists()
