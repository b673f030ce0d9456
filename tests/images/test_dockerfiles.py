"""The Dockerfiles keep their rules, and the rules find violations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hanflow.cluster.job import USER
from images.build import DOCKERFILES, KINDS
from tests.images.dockerfiles import parse, problems

ROOT = Path(__file__).parents[2]


def dockerfile(kind: str) -> str:
    return (ROOT / "images" / DOCKERFILES.get(kind, kind) / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_the_rules_are_kept(kind: str) -> None:
    assert problems(dockerfile(kind), kind) == []


MUTATIONS = {
    "no argument for the base": (r"ARG BASE=\S+\n", "", "the base image is no argument"),
    "a base of its own": (r"FROM \$\{BASE\} AS base", "FROM debian:12 AS base", "not built on BASE"),
    "root": (r"\nUSER .*", "", "runs as root"),
    "root by name": (r"\nUSER .*", r"\nUSER root", "runs as root"),
    "root by number": (r"\nUSER .*", r"\nUSER 0:0", "runs as 0:0"),
    "a name where a number is checked": (r"\nUSER .*", r"\nUSER hanflow", "runs as hanflow"),
    "root again at the end": (r'(LABEL org.opencontainers.image.title="hanflow-KIND")', r"USER 0:0\n\1", "runs as 0:0"),
    "pip at the start": (
        r"\nCMD .*\nARG VERSION",
        '\nCMD ["sh", "-c", "pip install kfp && hanflow"]\nARG VERSION',
        "when it starts",
    ),
    "a shell at the start": (r"\nCMD .*\nARG VERSION", "\nCMD hanflow\nARG VERSION", "shell form"),
    "nothing to start": (r"\nCMD .*", "", "nothing is started"),
    "a compiler left": (r"ca-certificates python3 ", "ca-certificates python3 gcc ", "keeps gcc"),
    "pip left": (r"ca-certificates python3 ", "ca-certificates python3 python3-pip ", "keeps python3-pip"),
    "pip in a kept layer": (r"(COPY --from=torch)", r"RUN pip install --no-deps torch==2\n\1", "pip runs in a layer"),
    "package lists left": (r"rm -rf /var/lib/apt/lists/\*", "true", "package lists"),
    "recommended packages": (r" --no-install-recommends", "", "--no-install-recommends"),
    "no title": (r"org\.opencontainers\.image\.title", "title", "image.title"),
    "no version": (r"org\.opencontainers\.image\.version", "version", "image.version"),
    "no base's name": (r"org\.opencontainers\.image\.base\.name", "base", "image.base.name"),
    "a home that cannot be written": (r"HOME=/tmp ", "HOME=/home/hanflow ", "HOME is not in /tmp"),
    "Hugging Face's cache elsewhere": (r"HF_HOME=\S+", "HF_HOME=/root/.cache", "HF_HOME is not in /tmp"),
    "floating versions": (r"-c constraints\.txt |-c others\.txt -c tpu\.txt |-c gpu\.txt ", "", "nothing pins"),
    "a floating pip": (r"pip==\S+", "pip", "nothing pins"),
    "sources before dependencies": (
        r"(FROM builder AS torch\n)",
        r"\1COPY hanflow hanflow\n",
        "rebuilds that stage",
    ),
    "the whole context": (r"(FROM builder AS requirements\n)", r"\1COPY . .\n", "rebuilds that stage"),
    "sources below dependencies": (
        r"(COPY --from=torch)",
        r"COPY --from=package /package /opt/hanflow\n\1",
        "not the last layer",
    ),
    "sources from the context": (r"COPY --from=package \S+ \S+", "COPY images /opt/hanflow", "from the context"),
    "an address": (
        r"--no-deps -r torch.txt",
        "--no-deps --index-url https://index.example/simple -r torch.txt",
        "names an address",
    ),
    "a token": (r"(WORKDIR /build)", r"ARG INDEX_TOKEN=\n\1", "a secret in ARG"),
    "ADD": (r"COPY hanflow hanflow", "ADD hanflow hanflow", "ADD in package"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_rules_find_violations(kind: str, mutation: str) -> None:
    pattern, replacement, expected = MUTATIONS[mutation]
    text = dockerfile(kind)
    broken = re.sub(pattern.replace("KIND", kind), replacement, text)
    assert broken != text, "the mutation changes nothing: it tests nothing"
    assert any(expected in problem for problem in problems(broken, kind)), problems(broken, kind)


def test_stages_are_named() -> None:
    with pytest.raises(ValueError, match="every stage has a name"):
        parse("ARG BASE=a:b\nFROM ${BASE}\nUSER 1:1\n")


def test_the_images_share_their_beginning() -> None:
    """Equal first layers are pulled and kept once on a node that runs several of the images."""
    beginnings = {dockerfile(kind).split("FROM builder AS requirements")[0].split("ARG BASE", 1)[1] for kind in KINDS}
    assert len(beginnings) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_jobs_run_as_the_images_user(kind: str) -> None:
    users = [user for stage in parse(dockerfile(kind))[1].values() for user in stage.all("USER")]
    assert users == [f"{USER}:{USER}"]


def test_the_context_holds_only_what_is_needed() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "what is not listed stays out: .git, .venv, runs, secrets"
    wanted = {rule[1:].rstrip("/") for rule in rules if rule.startswith("!")}
    copied = {
        word.split("/")[0]
        for kind in KINDS
        for stage in parse(dockerfile(kind))[1].values()
        for copy in stage.all("COPY")
        if "--from=" not in copy
        for word in copy.split()[:-1]
    }
    assert wanted == copied
