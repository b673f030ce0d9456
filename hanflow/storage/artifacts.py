"""The contract between steps: an artifact is a directory with data files and a JSON manifest beside them.

The manifest names the artifact's kind, the schema version, counts, the size and sha256 of every data file, the
settings that made it, the digests of its parents, and the release and content of the code that made it. It is written
last, into a staging directory that is renamed (in a bucket: uploaded, the manifest last) when complete
(`hanflow.storage.staged`), so a directory with a manifest is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanflow.config import without_places
from hanflow.errors import UserError
from hanflow.own_files import Damaged, json_text, parse_json, read_file, read_json
from hanflow.version import __version__, program_version

SCHEMA = 1
"""Version of the layout of every artifact; raised when a reader of the old one would misread the new one."""

KINDS = {
    "corpus": "preprocess",
    "shards": "tokenize",
    "model": "train",
    "evaluation": "evaluate",
    "bundle": "export",
}
"""Artifact kind → the step that makes it."""

COMBINED = "combine"
"""The step that makes a model of several."""

SPLITS = ("train", "validation", "test")

UNCOMMITTED = "uncommitted"
"""The only key of the placeholder that stands for a manifest in a bucket until the artifact is complete."""


@dataclass(frozen=True)
class Manifest:
    """The description of an artifact, stored in it as `<kind>.json`."""

    artifact: str
    """Kind: corpus, shards, model, evaluation or bundle."""
    task: str
    """Name of the task that made and reads it."""
    config: dict[str, Any]
    """The settings of the step that made it."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Facts that are needed without opening the data, e.g. rows of each split."""
    details: dict[str, Any] = field(default_factory=dict)
    """Larger facts, e.g. length histograms."""
    parents: dict[str, str] = field(default_factory=dict)
    """Kind of each parent → its digest."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Relative path → `{"bytes": size, "sha256": hex}`."""
    schema: int = SCHEMA
    program: str = ""
    """Release and digest of the code that made it, see `hanflow.version.program_version`; empty: this code, as the step
    in `KINDS`."""

    def __post_init__(self) -> None:
        if not self.program:
            object.__setattr__(self, "program", program_version(KINDS[self.artifact], self.task))

    @property
    def digest(self) -> str:
        """sha256 (hex) of the manifest's own content: equal digests mean equal data, settings and lineage."""
        return hashlib.sha256(json.dumps(self._mapping(), sort_keys=True).encode()).hexdigest()

    def _mapping(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def to_json(self) -> str:
        return json_text({**self._mapping(), "digest": self.digest}, indent=2) + "\n"


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_whole(path: Path, expected: Mapping[str, Any]) -> bool:
    """Whether a file is there with the size and digest that the manifest gives it."""
    return path.is_file() and path.stat().st_size == expected["bytes"] and file_sha256(path) == expected["sha256"]


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Digest every file below `folder`, then write `<kind>.json` there; returns the manifest with its files."""
    name = f"{manifest.artifact}.json"
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / name
    }
    whole = Manifest(**{**manifest._mapping(), "files": files})
    (folder / name).write_text(whole.to_json(), encoding="utf-8")
    return whole


def read_manifest(folder: Path, kind: str, *, task: str | None = None, verify: bool = True) -> Manifest:
    """The manifest of the artifact in a local folder, verified.

    Args:
        folder: local directory of the artifact.
        kind: the kind that the caller needs.
        task: the task it must belong to; None: any.
        verify: also verify size and sha256 of every data file.

    Raises:
        UserError: no such artifact is there, its kind, schema or task is another one, or a file is missing or altered.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a {kind} artifact: {_made_by(kind)}")
    path = folder / f"{kind}.json"
    if not path.is_file():
        raise missing_manifest(str(folder), kind, [p.name for p in folder.iterdir()])
    manifest = parse_manifest(read_file(path), str(folder), kind, task=task)
    if verify:
        verify_files(folder, manifest)
    return manifest


def _made_by(kind: str) -> str:
    return f"give the folder that the {KINDS[kind]} step wrote"


def missing_manifest(place: str, kind: str, names: Iterable[str]) -> UserError:
    """The error about a place that lacks the expected manifest; `names` are the files that it has."""
    other = next((k for k in KINDS if f"{k}.json" in set(names)), None)
    found = f"this is a {other} artifact" if other else f"it holds no {kind}.json"
    return UserError(f"{place}: expected a {kind} artifact, but {found}; {_made_by(kind)}")


def parse_manifest(content: bytes, place: str, kind: str, *, task: str | None = None) -> Manifest:
    """The manifest in the content of a file, verified.

    Args:
        content: of `<kind>.json`.
        place: path or URI of the artifact, for messages.
        kind: the kind that the caller needs.
        task: the task it must belong to; None: any.

    Raises:
        UserError: it is damaged, or its kind, schema or task is another one.
    """
    path = f"{place.rstrip('/')}/{kind}.json"
    again = f"run the {KINDS[kind]} step again"
    values = parse_json(content, path, again)
    try:
        if UNCOMMITTED in values:
            raise UserError(
                f"{place}: the {kind} artifact was never finished (begun on {values[UNCOMMITTED]['host']} at "
                f"{values[UNCOMMITTED]['since']}); wait if that run is still going on, else {again}"
            )
        digest = values.pop("digest")
        if values["schema"] != SCHEMA:
            raise UserError(
                f"{path}: made with schema {values['schema']} by {values['program']}, this is hanflow {__version__} with "
                f"schema {SCHEMA}; {again}"
            )
        manifest = Manifest(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path}: is damaged, no manifest ({str(error)[:200]}); {again}") from None
    if manifest.artifact != kind or manifest.digest != digest:
        raise UserError(f"{path}: was changed after it was written; {again}")
    if task is not None and manifest.task != task:
        raise UserError(f"{place}: was made for the task {manifest.task}, not for {task}")
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare size and sha256 of every data file with the manifest.

    Raises:
        UserError: one is missing, changed or damaged; the message names it.
    """
    again = f"run the {KINDS[manifest.artifact]} step again"
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: is missing from the {manifest.artifact} artifact; {again}")
        if not is_whole(path, expected):
            raise UserError(f"{path}: was changed or damaged after it was written (sha256 differs); {again}")


def check_parent(child: Manifest, parent: Manifest, child_at: str, parent_at: str) -> None:
    """Refuse a parent that is not the one that the child was made from.

    Raises:
        UserError: the digests differ; the message names both artifacts.
    """
    expected = child.parents.get(parent.artifact)
    if expected is not None and expected != parent.digest:
        raise UserError(
            f"{parent_at}: is not the {parent.artifact} that {child_at} was made from "
            f"(digest {parent.digest[:12]}, expected {expected[:12]}); give the one of the same run"
        )


def lineage(*parents: Manifest) -> dict[str, str]:
    """The `parents` entry of a manifest."""
    return {parent.artifact: parent.digest for parent in parents}


def text_settings(shards: Manifest) -> dict[str, Any]:
    """What a model's manifest, and a bundle's, keeps of its shards, so that texts are cleaned and encoded like theirs."""
    cleaning = shards.details["cleaning"]
    return {
        # Where the corpus came from is of no use to readers, and may be a path of somebody's machine.
        "cleaning": without_places({name: value for name, value in cleaning.items() if not name.endswith("source")}),
        "encoding": without_places(shards.config),
        "facts": shards.details["facts"],
    }


def kind_of(step: str) -> str:
    """The kind of artifact that a step makes."""
    return "model" if step == COMBINED else next(kind for kind, maker in KINDS.items() if maker == step)


def numbered(manifests: Sequence[Manifest]) -> dict[str, str]:
    """The `parents` entry for several artifacts of one kind, in their order: `model 1`, `model 2`, …"""
    return {f"{manifest.artifact} {number}": manifest.digest for number, manifest in enumerate(manifests, 1)}


def trainings(training: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """How a model was trained, from its training.json: name of each member of an ensemble (else "") → its record."""
    return dict(training["members"]) if "members" in training else {"": training}


def read_training(folder: Path) -> dict[str, Any]:
    """training.json of a model's folder.

    Raises:
        UserError: it is missing, or not a record of a training.
    """
    path = folder / "training.json"
    cure = "give the folder that the train step wrote"
    try:
        training = read_json(path, cure)
        for facts in (training, *trainings(training).values()):
            facts["settings"], facts["steps"], facts["history"]["train"], facts["history"]["validation"]
    except (FileNotFoundError, AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"{path}: is no record of a training ({str(error)[:200]}); {cure}") from None
    return training
