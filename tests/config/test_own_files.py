"""Files that we read back are damaged, hostile or huge, and the disk is full: one line says which, nothing is lost."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hanflow.errors import UserError
from hanflow.experiment import EXPERIMENTS, all_settings, find_experiment, load_experiment
from hanflow.experiment.loading import experiment_names
from hanflow.own_files import Damaged, json_text, parse_json, parse_yaml, read_json, replace_file
from hanflow.storage.artifacts import Manifest, read_manifest, read_training, write_manifest
from hanflow.tasks import known_tasks
from tests.support.disks import small_disk
from tests.support.fuzz import cases

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 495000000\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"[]", "a list in the place of a dict"),
        (b"3", "a int in the place of a dict"),
        (b"null", "a NoneType in the place of a dict"),
        (b'{"pipeline": "summariz', "Unterminated string"),
        (b'{"a": NaN}', "NaN is no number of strict JSON"),
        (b'{"a": 1e999}', "no number of strict JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"[" * 100_000, "nested too deep"),
        (b"\xff\xfe{", "can't decode"),
        (POINTER, "is a Git LFS pointer, not the file: git lfs pull"),
    ],
)
def test_damaged_json_is_refused_by_name(content: bytes, said: str) -> None:
    with pytest.raises(Damaged) as refused:
        parse_json(content, "run.json", "remove it")
    message = str(refused.value)
    assert message.startswith("run.json: is damaged (") and said in message and message.endswith("; remove it")
    assert len(message.splitlines()) == 1 and len(message) < 500


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(Damaged, match=r"is no regular file|is a folder"):
            read_json(tmp_path / name, "remove it")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epochs: !!int abc}", "train.epochs: invalid literal"),
        ("train: {architecture: &t {d_model: *t}}", "train.architecture.d_model: refers to itself"),
        ('name: "\\uD800"', "name: holds half a character"),
        ("a: &a [1,2]\nb: {? *a : 1}", "a key that is no text"),
        ("train: {epochs: 1}\ntrain: {seed: 1}", "train: is given twice (line 2)"),
        ("train: {seed: 1, seed: 2}", "train.seed: is given twice"),
        ("train: {architecture: " + "[" * 60 + "]" * 60 + "}", "train.architecture"),
        ("[" * 20_000, "nested too deep"),
        ("- " * 20_000 + "a", "nested too deep"),
        ("x: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("x: !!binary aGVsbG8=", "x: tag:yaml.org,2002:binary is no setting's type"),
        ("a: [1", "line 1"),
        ("a: 1\n---\na: 2", "expected a single document"),
        ("x: " + "y" * 300_000, "at most"),
        (
            "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]" for n in range(9)),
            "aliases counted",
        ),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_is_damaged_or_meant_to_harm(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load_experiment(path)
    message = str(refused.value)
    assert message.startswith(str(path)) and said in message and len(message) < 2000


def test_aliases_that_share_a_value_are_yaml_as_ever() -> None:
    assert parse_yaml("a: &n 64\nb: *n\nc: {<<: {d: 1}, e: 2001-99-99}", "here") == {
        "a": 64,
        "b": 64,
        "c": {"d": 1, "e": "2001-99-99"},
    }


def test_bytes_of_a_file_name_that_are_not_utf8_come_back() -> None:
    value = {"path": "raw-\udcff \\\udcfe.tsv", "한글": "글"}
    text = json_text(value)
    assert text.encode() and "한글" in text and json.loads(text) == value
    with pytest.raises(ValueError, match="Out of range float"):
        json_text({"loss": float("nan")})


# ---- Mutations


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Content with a few bytes, lines or pieces changed, lost, doubled or moved."""
    for _ in range(draw.randint(1, 4)):
        at, to = sorted(draw.randint(0, len(content)) for _ in range(2))
        piece = content[at:to][: draw.choice([1, 8, 200])]
        change = draw.choice(["byte", "loss", "double", "end", "piece"])
        middle = {
            "byte": bytes([draw.randrange(256)]),
            "double": piece * draw.choice([2, 50]),
            "piece": draw.choice(PIECES),
        }
        behind = {"byte": content[at + 1 :], "loss": content[at + len(piece) :], "end": b""}
        content = content[:at] + middle.get(change, b"") + behind.get(change, content[at:])
    return content


PIECES = [
    b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b"true", b'"', b"\\ud800", b"\0", b"\xff", b": ", b"&a", b"*a", b"- ",
    b"!!int x", b"2001-99-99", b"\xef\xbb\xbf", b"[" * 500, b"9" * 5000, b"<<: ", b"---\n", b"%", b"\r", b"\t", b"?",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound file of every kind that is read back."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "train.arrow").write_bytes(b"ids")
    write_manifest(folder, Manifest("shards", "summarization", {"workers": 1}, {"rows": {"train": 1}}))
    history = {"train": [{"step": 1, "loss": 2.5}], "validation": []}
    (folder / "training.json").write_text(json_text({"settings": {}, "steps": 1, "history": history}))
    (folder / "experiment.yaml").write_bytes((EXPERIMENTS / "sample-summarization.yaml").read_bytes())
    record = {"pipeline": "summarization", "status": "failed", "steps": [{"name": "train", "figures": {}}]}
    (folder / "run.json").write_text(json_text(record))
    return folder


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["shards.json", "training.json", "experiment.yaml", "run.json"])
def test_a_mutated_file_is_read_or_refused_by_name(name: str, files: Path, tmp_path: Path) -> None:
    read = {
        "shards.json": lambda: read_manifest(tmp_path, "shards", verify=False),
        "training.json": lambda: read_training(tmp_path),
        "experiment.yaml": lambda: load_experiment(tmp_path / name),
        "run.json": lambda: read_json(tmp_path / name, "remove it", keys={"status": str, "steps": list}),
    }[name]
    sound = (files / name).read_bytes()
    for seed in range(cases(30, 1000)):
        (tmp_path / name).write_bytes(mutated(sound, random.Random(seed)))
        try:
            read()
        except UserError as error:
            message = str(error)
            assert str(tmp_path) in message, (seed, message)
            assert len(message) < 5000, (seed, message)


VALUES = [
    "", "null", "[]", "{}", "-1", "0", "1e400", "9" * 400, "nan", ".inf", "true", "yes", "a", "가", "2001-99-99", "1:2:3", "--", "- a",
    "[a, [b]]", "{a: {b: c}}", "{1: 2}", "[null]", "[[]]", "{a: null}", "!!int x", "&a [*a]", "[", "%", "'", "\0", "\udcff", "~nobody/x",
    "a/b", "s3://x", "file://host/x", "gs://", "../..", "x" * 5000, "0x1F", "1_000", "3.0", "3.5", "[1, 2.5, x]", "*", "{name: a}",
    "[{name: a}, {name: a}]", "[{name: a, job: 3}]", "[{name: a, epochs: x}]", "[3]", ":", "module:Class", "..:x", ":x", "os:path",
]  # fmt: skip


@pytest.mark.fuzz
def test_any_value_of_any_setting_is_taken_or_refused_by_name(tmp_path: Path) -> None:
    draw = random.Random(0)
    settings = sorted({setting.dotted for task in known_tasks() for setting in all_settings(task)} | {"name", "task"})
    pairs = [(setting, value) for setting in settings for value in VALUES]
    for setting, value in draw.sample(pairs, cases(150, 3000)):
        task = draw.choice([task for task in known_tasks() if f"sample-{task}" in experiment_names()])
        override = f"{setting}={value}"
        try:
            experiment = load_experiment(find_experiment(f"sample-{task}"), [override])
            yaml.safe_dump(vars(experiment), allow_unicode=True)
        except UserError as error:
            assert setting.partition(".")[0] in str(error), (override, str(error))
        except yaml.representer.RepresenterError:
            continue  # the sections are dataclasses


# ---- A full disk, a lost permission


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 1 << 18):
        yield tmp_path / "disk"


def test_a_full_disk_leaves_the_old_file_whole(disk: Path) -> None:
    path = disk / "experiment.yaml"
    replace_file(path, "name: old\n")
    (disk / "other").write_bytes(b"x" * (free(disk) - 4096))
    with pytest.raises(UserError, match=f"{path}: no space left on the disk; free some"):
        replace_file(path, "name: new\n" + "#" * 100_000)
    assert path.read_text() == "name: old\n"
    assert sorted(p.name for p in disk.iterdir()) == ["experiment.yaml", "other"]
    (disk / "other").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(UserError, match=f"{path}: its disk can only be read"):
        replace_file(path, "name: new\n")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    replace_file(path, "name: new\n")
    assert path.read_text() == "name: new\n"


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_lost_permission_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    replace_file(path, "old")
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(UserError, match=f"{path}: permission denied"):
            replace_file(path, "new")
        assert path.read_text() == "old"
    finally:
        tmp_path.chmod(stat.S_IRWXU)
