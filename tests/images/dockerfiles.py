"""Rules that hanflow's Dockerfiles keep, as a function from text to problems."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

LABELS = ("title", "description", "licenses", "version", "revision", "base.name")
RUNTIME_PACKAGES = {"ca-certificates", "python3", "$COMPILER"}
"""Debian packages that an image may keep; a compiler only where its builder asks for one."""
SOURCE_FOLDERS = ("hanflow", "pipelines")


@dataclass
class Stage:
    """One FROM and what follows: (instruction, argument) in order, continued lines joined."""

    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [argument for name, argument in self.steps if name == instruction]


def parse(text: str) -> tuple[list[str], dict[str, Stage]]:
    """The ARGs before the first FROM, and the stages by name in order."""
    arguments: list[str] = []
    stages: dict[str, Stage] = {}
    for instruction, argument in _instructions(text):
        if instruction == "FROM":
            found = re.fullmatch(r"(\S+)\s+AS\s+(\S+)", argument)
            if not found:
                raise ValueError(f"FROM {argument}: every stage has a name")
            stages[found[2]] = Stage(found[2], found[1])
        elif stages:
            list(stages.values())[-1].steps.append((instruction, argument))
        else:
            arguments.append(argument)
    return arguments, stages


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, argument = line.strip().partition(" ")
        yield instruction, " ".join(argument.split())


def problems(text: str, target: str) -> list[str]:
    """What is wrong with the image that `--target` gives; empty: nothing."""
    arguments, stages = parse(text)
    found = list(_base(arguments, stages)) + list(_everywhere(stages))
    chain = [stages[target]]
    while chain[0].parent in stages:
        chain.insert(0, stages[chain[0].parent])
    image = Stage(target, "", [step for stage in chain for step in stage.steps])
    return found + list(_who(image)) + list(_start(image)) + list(_contents(image)) + list(_layers(image, stages))


def _base(arguments: list[str], stages: dict[str, Stage]) -> Iterator[str]:
    if not any(re.fullmatch(r"BASE=\S+:\S+", argument) for argument in arguments):
        yield "the base image is no argument with a tagged default (ARG BASE=…:… before the first FROM)"
    known: set[str] = set()
    for stage in stages.values():
        if stage.parent != "${BASE}" and stage.parent not in known:
            yield f"stage {stage.name} is not built on BASE, but on {stage.parent}"
        known.add(stage.name)


def _everywhere(stages: dict[str, Stage]) -> Iterator[str]:
    for stage in stages.values():
        for instruction, argument in stage.steps:
            if instruction == "ADD":
                yield f"ADD in {stage.name}: use COPY, which is explicit"
            if "://" in argument:
                yield f"{stage.name} names an address: {argument}"
            if instruction in ("ARG", "ENV") and re.search(r"(?i)token|password|secret_|api_?key", argument):
                yield f"{stage.name}: a secret in {instruction} stays in the image's history"
            for command in re.split(r"&&|;", argument) if instruction == "RUN" else ():
                yield from _command(stage.name, command.strip())


def _command(stage: str, command: str) -> Iterator[str]:
    if "apt-get install" in command and "--no-install-recommends" not in command:
        yield f"{stage}: apt-get install without --no-install-recommends"
    if re.search(r"\bpip\b.*\binstall\b", command):
        wanted = re.sub(r".*\binstall\b", "", command).split()
        exact = all("==" in word for word in wanted if not word.startswith("-"))
        if not ("-c" in wanted or "--no-deps" in wanted or exact):
            yield f"{stage}: pip installs versions that nothing pins: {command}"


def _who(image: Stage) -> Iterator[str]:
    users = image.all("USER")
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        yield f"runs as {users[-1] if users else 'root'}: Kubernetes checks runAsNonRoot by numbers, USER uid:gid"


def _start(image: Stage) -> Iterator[str]:
    starts = image.all("CMD") + image.all("ENTRYPOINT")
    if not starts:
        yield "nothing is started by default"
    for start in starts:
        try:
            words = json.loads(start)
        except ValueError:
            yield f"{start}: the shell form hides signals from the process"
            continue
        if re.search(r"\b(pip|ensurepip|apt-get)\b", " ".join(words)):
            yield f"installs when it starts: {start}"


def _contents(image: Stage) -> Iterator[str]:
    for command in image.all("RUN"):
        for packages in re.findall(r"apt-get install((?: [^&;]+)?)", command):
            extra = {word for word in packages.split() if not word.startswith("-")} - RUNTIME_PACKAGES
            if extra:
                yield f"keeps {', '.join(sorted(extra))}"
            if "rm -rf /var/lib/apt/lists/*" not in command:
                yield "keeps the package lists"
        if "pip" in command:
            yield "pip runs in a layer that the image keeps"
    labels = " ".join(image.all("LABEL"))
    for label in LABELS:
        if f"org.opencontainers.image.{label}=" not in labels:
            yield f"lacks the label org.opencontainers.image.{label}"
    environment = " ".join(image.all("ENV"))
    for variable in ("HOME", "HF_HOME", "MPLCONFIGDIR"):
        if not re.search(rf"(^| ){variable}=/tmp(/|\s|$)", environment):
            yield f"{variable} is not in /tmp, the one writable folder"


def _layers(image: Stage, stages: dict[str, Stage]) -> Iterator[str]:
    sources = [name for name, stage in stages.items() if any(_copies_source(c) for c in stage.all("COPY"))]
    if sources != ["package"]:
        yield f"sources are copied in {', '.join(sources) or 'no stage'}: a change of them rebuilds that stage"
    copies = [re.search(r"--from=(\S+)", copy) for copy in image.all("COPY")]
    order = [copy[1] if copy else "the context" for copy in copies]
    if order[-1:] != ["package"] or "package" in order[:-1]:
        yield f"the sources are not the last layer: {', '.join(order)}"
    if "the context" in order:
        yield "copies from the context what no stage has built"


def _copies_source(copy: str) -> bool:
    words = [word.rstrip("/") for word in copy.split() if not word.startswith("--")]
    return "--from=" not in copy and any(word in (*SOURCE_FOLDERS, ".") for word in words[:-1])
