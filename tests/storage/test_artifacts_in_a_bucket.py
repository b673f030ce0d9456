"""Artifacts in a bucket: whole or not there, whatever the network, the process or a second writer does."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hanflow import storage
from hanflow.errors import UserError
from hanflow.storage import artifacts, cache, gcs
from hanflow.storage.artifacts import Manifest
from hanflow.storage.gcs import service
from tests.storage.emulator import Emulator
from tests.support.disks import small_disk

CONTENT = {
    "train.parquet": bytes(range(256)) * 5_000,  # in several parts, see `small_parts`
    "말뭉치/검증 1.txt": "검증 자료\n".encode() * 1_000,
    "말뭉치/비었음.txt": b"",
    "rejected.parquet": b"\x00\r\n\xff" * 500,
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PART", 700_000)


def fill(folder: Path, content: dict[str, bytes] = CONTENT) -> Manifest:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return artifacts.write_manifest(folder, Manifest("corpus", "summarization", {}))


def publish(uri: str, content: dict[str, bytes] = CONTENT) -> Manifest:
    with storage.staged(uri, "corpus") as folder:
        return fill(folder, content)


def assert_whole(uri: str, content: dict[str, bytes] = CONTENT) -> None:
    folder, manifest = storage.fetched(uri, "corpus")
    assert {name: (folder / name).read_bytes() for name in manifest.files} == content


def test_an_artifact_comes_back_as_it_was(bucket: str, emulator: Emulator) -> None:
    written = publish(f"{bucket}/실행/corpus")
    assert emulator.events[-1] == "upload 실행/corpus/corpus.json", "the manifest is the last object"
    assert any("/.parts-" in event for event in emulator.events), "the large file went up in parts"
    assert set(gcs.listing(f"{bucket}/실행/corpus")) == {*CONTENT, "corpus.json"}, "and they were removed"
    folder, manifest = storage.fetched(f"{bucket}/실행/corpus/", "corpus", task="summarization")
    assert manifest == written
    assert artifacts.read_manifest(folder, "corpus") == written
    assert_whole(f"{bucket}/실행/corpus")
    assert not any((storage.cache_folder() / "staging").iterdir()), "nothing is left on this machine"


def test_what_is_there_is_not_fetched_again(bucket: str, emulator: Emulator) -> None:
    publish(f"{bucket}/corpus")
    folder, _ = storage.fetched(f"{bucket}/corpus", "corpus", only=lambda _: ["rejected.parquet"])
    assert sorted(path.name for path in folder.iterdir()) == ["corpus.json", "rejected.parquet"]
    emulator.order()
    assert_whole(f"{bucket}/corpus")
    fetched = {event.partition(" ")[2] for event in emulator.events if event.startswith("download")}
    assert fetched == {f"corpus/{name}" for name, data in CONTENT.items() if data} - {"corpus/rejected.parquet"} | {
        "corpus/corpus.json"
    }
    (folder / "말뭉치/검증 1.txt").write_bytes(b"x" * len(CONTENT["말뭉치/검증 1.txt"]))
    emulator.order()
    assert_whole(f"{bucket}/corpus")
    assert [event for event in emulator.events if event.startswith("download")] == [
        "download corpus/corpus.json",
        "download corpus/말뭉치/검증 1.txt",
    ], "a damaged copy is fetched again, the rest is not"


WRITING = (
    "stat corpus/corpus.json",
    "list",
    "upload corpus/corpus.json",
    "start .*parts.*/01",
    "upload .*parts.*/01",
    "upload corpus/rejected.parquet",
    "compose corpus/train.parquet",
    "delete .*parts.*/01",
)


@pytest.mark.parametrize("kind", ["503", "drop", "lost", "truncate"])
def test_an_upload_survives_the_network(bucket: str, emulator: Emulator, kind: str) -> None:
    """Each of its requests goes wrong once."""
    emulator.order(*({"kind": kind, "match": f"^{event}"} for event in WRITING))
    publish(f"{bucket}/corpus")
    assert emulator.fired == [1] * len(WRITING)
    emulator.order()
    assert_whole(f"{bucket}/corpus")
    assert set(gcs.listing(f"{bucket}/corpus")) == {*CONTENT, "corpus.json"}


@pytest.mark.parametrize("kind", ["503", "drop", "lost", "truncate"])
def test_the_commit_survives_the_network(bucket: str, emulator: Emulator, kind: str) -> None:
    """Its answer lost, too: the second request finds that it is done already, and by whom."""
    emulator.order({"kind": kind, "match": "^upload corpus/corpus.json", "skip": 1})
    publish(f"{bucket}/corpus", {"x": b"1"})
    assert emulator.fired == [1]
    emulator.order()
    assert_whole(f"{bucket}/corpus", {"x": b"1"})


@pytest.mark.parametrize("kind", ["503", "drop", "truncate", "short", "flip"])
def test_a_download_survives_the_network(bucket: str, emulator: Emulator, kind: str) -> None:
    """Each of its requests goes wrong once."""
    publish(f"{bucket}/corpus")
    names = [*(["corpus.json"] if kind != "flip" else []), "train.parquet", "rejected.parquet", "말뭉치/검증"]
    emulator.order(*({"kind": kind, "match": f"^download corpus/{name}"} for name in names))
    assert_whole(f"{bucket}/corpus")
    assert emulator.fired == [1] * len(names)


def test_a_manifest_that_arrives_damaged_is_refused(bucket: str, emulator: Emulator) -> None:
    publish(f"{bucket}/corpus", {"x": b"1"})
    emulator.order({"kind": "flip", "match": "^download corpus/corpus.json"})
    with pytest.raises(UserError, match="corpus.json: arrived damaged"):
        storage.fetched(f"{bucket}/corpus", "corpus")
    assert emulator.fired == [1]


def test_many_faults_at_once(bucket: str, emulator: Emulator) -> None:
    kinds = ("503", "drop", "lost", "truncate")
    faults = [{"kind": kind, "match": "^(start|upload|list|stat)", "skip": 2 + 3 * i} for i, kind in enumerate(kinds)]
    emulator.order(*faults)
    publish(f"{bucket}/corpus")
    assert emulator.fired == [1] * 4
    faults = [
        {"kind": kind, "match": "^download", "skip": i} for i, kind in enumerate(("drop", "503", "short", "flip"), 1)
    ]
    emulator.order(*faults)
    assert_whole(f"{bucket}/corpus")
    assert emulator.fired == [1] * 4


def in_a_process(work: Callable[[], None]) -> int:
    """Exit status of some work in a process of its own, negative for the signal that killed it."""
    child = os.fork()
    if not child:
        status = 70
        try:
            work()
            status = 0
        except UserError:
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(emulator: Emulator, event: int, pid_file: Path, work: Callable[[], None], match: str = "") -> int:
    """The status of work whose process is killed when the server sees its `event`-th request."""

    def recorded() -> None:
        pid_file.write_text(str(os.getpid()))
        work()

    emulator.order({"kind": "kill", "pid_file": str(pid_file), "skip": event, "match": match})
    return in_a_process(recorded)


def test_killed_at_every_request_of_an_upload(
    bucket: str, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each kill nothing counts as whole, the next writer takes over, and what it leaves is whole."""
    publish(f"{bucket}/first")
    events = len(emulator.events)
    assert events > 12
    for event in range(events):
        uri = f"{bucket}/corpus-{event}"
        assert killed_at(emulator, event, tmp_path / "pid", lambda uri=uri: publish(uri)) == -signal.SIGKILL  # type: ignore[misc]
        assert emulator.fired == [1]
        with pytest.raises(UserError, match="never finished|expected a corpus artifact, but it holds no corpus.json"):
            storage.fetched(uri, "corpus")
        other = {**CONTENT, "rejected.parquet": b"another run"}
        publish(uri, other)
        assert_whole(uri, other)
        assert set(gcs.listing(uri)) == {*CONTENT, "corpus.json"}, "parts of the killed upload are gone"
    assert [path for path in (storage.cache_folder() / "staging").iterdir() if path.is_dir()] == []


def test_killed_at_every_request_of_a_download(bucket: str, emulator: Emulator, tmp_path: Path) -> None:
    publish(f"{bucket}/corpus")
    emulator.order()
    assert_whole(f"{bucket}/corpus")
    for event in range(len(emulator.events)):
        os.environ["HANFLOW_CACHE"] = str(tmp_path / f"cache-{event}")  # `bucket` restores it
        assert killed_at(emulator, event, tmp_path / "pid", lambda: assert_whole(f"{bucket}/corpus")) == -signal.SIGKILL
        emulator.order()
        assert_whole(f"{bucket}/corpus")


def test_of_sixteen_writers_one_commits(bucket: str, emulator: Emulator, tmp_path: Path) -> None:
    """Processes with folders of their own, as on sixteen machines: none sees the others' locks."""
    start = multiprocessing.get_context("fork").Barrier(16)

    def content(number: int) -> dict[str, bytes]:
        return {**CONTENT, "rejected.parquet": f"writer {number}".encode()}

    def write(number: int) -> None:
        os.environ["HANFLOW_CACHE"] = str(tmp_path / f"cache-{number}")
        service._client_of.cache_clear()  # connections are not shared
        start.wait()
        try:
            publish(f"{bucket}/corpus", content(number))
            end = ""
        except UserError as error:
            end = str(error)
        (tmp_path / f"end-{number}").write_text(end)

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda number: in_a_process(lambda: write(number)), range(16)))
    assert statuses == [0] * 16
    ends = [(tmp_path / f"end-{number}").read_text() for number in range(16)]
    assert [end for end in ends if end and not re.search("has taken over|already exists", end)] == []
    (winner,) = [number for number, end in enumerate(ends) if not end]
    assert_whole(f"{bucket}/corpus", content(winner))


@pytest.mark.parametrize(
    "held", ["list", "upload corpus/rejected", "start .*parts.*/00", "compose", "upload corpus/corpus.json"]
)
def test_a_writer_believed_dead_spoils_nothing(bucket: str, emulator: Emulator, held: str) -> None:
    """The first hangs in a request, the second takes over and commits; when the first wakes up, it has lost."""
    emulator.order({"kind": "hold", "match": f"^{held}", "skip": int(held in ("list", "upload corpus/corpus.json"))})
    errors: list[UserError] = []

    def first() -> None:
        with pytest.raises(UserError) as caught:
            publish(f"{bucket}/corpus", {**CONTENT, "rejected.parquet": b"the first", "extra": b"more"})
        errors.append(caught.value)

    thread = threading.Thread(target=first)
    thread.start()
    while emulator.fired != [1]:
        threading.Event().wait(0.02)
    publish(f"{bucket}/corpus")
    emulator.release()
    thread.join()
    assert "has taken over" in str(errors[0])
    assert_whole(f"{bucket}/corpus")


def test_an_error_leaves_nothing(bucket: str) -> None:
    for error in (UserError("wrong"), KeyboardInterrupt(), OSError(5, "broken")):
        with pytest.raises(type(error)), storage.staged(f"{bucket}/corpus", "corpus") as folder:
            fill(folder)
            raise error
        assert gcs.listing(bucket) == {}
        assert not any((storage.cache_folder() / "staging").iterdir())


def test_a_machine_without_room_for_copies_leaves_no_claim(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HANFLOW_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot be created .*set HANFLOW_CACHE"):
        publish(f"{bucket}/corpus")
    assert gcs.listing(bucket) == {}


def test_an_upload_that_fails_leaves_nothing(bucket: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.5)
    emulator.order({"kind": "503", "match": "^compose", "times": 99})
    with pytest.raises(UserError, match="Google Cloud Storage cannot be used .*start the same command again"):
        publish(f"{bucket}/corpus")
    assert emulator.fired[0] >= 1
    emulator.order()
    assert [name for name in gcs.listing(bucket) if ".parts-" not in name] == []


def test_a_place_that_is_taken_is_refused(bucket: str) -> None:
    publish(f"{bucket}/corpus")
    with pytest.raises(UserError, match="already exists and is not empty"):
        publish(f"{bucket}/corpus")
    assert_whole(f"{bucket}/corpus")
    gcs.put(f"{bucket}/mine/notes.txt", b"keep me")
    with pytest.raises(UserError, match="already exists and is not empty"):
        publish(f"{bucket}/mine")
    assert set(gcs.listing(f"{bucket}/mine")) == {"notes.txt"}


def test_what_does_not_fit_is_refused(bucket: str) -> None:
    publish(f"{bucket}/corpus")
    with pytest.raises(UserError, match="this is a corpus artifact; give the folder that the tokenize step wrote"):
        storage.fetched(f"{bucket}/corpus", "shards")
    with pytest.raises(UserError, match="made for the task summarization, not for classification"):
        storage.fetched(f"{bucket}/corpus", "corpus", task="classification")
    with pytest.raises(UserError, match="holds no corpus.json"):
        storage.fetched(f"{bucket}/nothing", "corpus")
    gcs.put(f"{bucket}/corpus/rejected.parquet", b"changed" * 286)
    with pytest.raises(UserError, match="rejected.parquet: was changed or damaged"):
        storage.fetched(f"{bucket}/corpus", "corpus")
    gcs.remove(f"{bucket}/corpus", "corpus.json")
    text = Manifest("corpus", "summarization", {}, files={"../../x": {"bytes": 1, "sha256": ""}}).to_json()
    gcs.put(f"{bucket}/corpus/corpus.json", text.encode())
    with pytest.raises(UserError, match="names files outside of it"):
        storage.fetched(f"{bucket}/corpus", "corpus")


def test_a_missing_object_is_named(bucket: str) -> None:
    publish(f"{bucket}/corpus")
    gone = gcs.stat(f"{bucket}/corpus/rejected.parquet")
    assert gone
    gone.blob.delete()
    with pytest.raises(
        UserError, match="rejected.parquet: is missing from the corpus artifact; run the preprocess step"
    ):
        storage.fetched(f"{bucket}/corpus", "corpus")


def test_the_cache_gives_way_when_the_disk_fills(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no process uses goes, longest unused first; what is in use stays; and too large is an error before a byte."""
    part = 1 << 20
    for name in ("one", "two", "three"):
        publish(f"{bucket}/{name}", {"x": name.encode() * (part // len(name))})
    monkeypatch.setenv("HANFLOW_CACHE", str(tmp_path / "disk"))
    with small_disk(tmp_path / "disk", cache.SPARE_BYTES + 5 * part // 2) as resize:

        def fetch(name: str) -> None:
            storage.fetched(f"{bucket}/{name}", "corpus")

        assert in_a_process(lambda: fetch("one")) == 0
        in_use, _ = storage.fetched(f"{bucket}/two", "corpus")
        place = in_use.parent
        fetch("three")
        kept = {(path / "x").read_bytes()[:3] for path in place.iterdir() if path.is_dir()}
        assert kept == {b"two", b"thr"}
        resize(5 * part // 2)
        with pytest.raises(UserError, match="set HANFLOW_CACHE to a folder on a larger disk"):
            fetch("one")


def test_a_cache_that_was_emptied_is_filled_again(bucket: str) -> None:
    publish(f"{bucket}/corpus")
    assert_whole(f"{bucket}/corpus")
    shutil.rmtree(storage.cache_folder())
    assert_whole(f"{bucket}/corpus")


def test_processes_share_the_cache(bucket: str, emulator: Emulator) -> None:
    """Several workers of one machine begin at once: every file is fetched once."""
    publish(f"{bucket}/corpus")
    emulator.order()
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            status = 1
            try:
                assert_whole(f"{bucket}/corpus")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert emulator.events.count("download corpus/rejected.parquet") == 1


def test_a_model_folder_of_others(bucket: str, tmp_path: Path) -> None:
    assert storage.fetched_model("gogamza/kobart-base-v2") == "gogamza/kobart-base-v2"
    for name in ("config.json", "tokenizer.json"):
        gcs.put(f"{bucket}/kobart/{name}", name.encode())
    folder = Path(storage.fetched_model(f"{bucket}/kobart"))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "config.json": "config.json",
        "tokenizer.json": "tokenizer.json",
    }
    with pytest.raises(UserError, match="no such folder in the bucket"):
        storage.fetched_model(f"{bucket}/none")
