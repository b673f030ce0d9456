"""Raw data streamed from a bucket: found, read in order or anywhere, never damaged, never copied whole."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hanflow import storage
from hanflow.data.readers import read_texts, text_source
from hanflow.errors import UserError
from hanflow.steps.preprocess import run as preprocess
from hanflow.storage import gcs
from hanflow.storage.gcs import reader, service
from hanflow.tasks.summarization import SummarizationPreprocess
from tests.storage.emulator import Emulator

DATA = "".join(f"{number:06d} 나랏말싸미 듕귁에 달아\n" for number in range(2_000)).encode()
SUFFIXES = (".csv", ".csv.gz", ".tsv")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BLOCK", 20_000)


def test_found_as_local_files_are(bucket: str, tmp_path: Path) -> None:
    names = [
        "raw/1.csv",
        "raw/2.tsv",
        "raw/deep/er/3.csv.gz",
        "raw/.hidden.csv",
        "raw/.git/4.csv",
        "raw/read me.txt",
        "[1].csv",
    ]
    for name in names:
        gcs.put(f"{bucket}/{name}", b"x")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    service.bucket(bucket).blob("raw/").upload_from_string(b"")  # what a console makes of a folder
    for pattern in (
        "raw", "raw/", "raw/1.csv", "raw/read me.txt", "raw/*.csv", "raw/**/*.csv*", "**/*.csv", "raw/[12].*", "raw/[!1].*",
        "raw/?.csv", "r*/deep/*/*", "raw/.*.csv", "[1].csv", "raw/deep/**",
    ):  # fmt: skip
        here = [path.removeprefix(f"{tmp_path}/") for path in storage.find_raw(str(tmp_path / pattern), SUFFIXES)]
        there = [uri.removeprefix(f"{bucket}/") for uri in storage.find_raw(f"{bucket}/{pattern}", SUFFIXES)]
        assert there == here, pattern
    for pattern, message in (
        ("none", "no such object or folder"),
        ("none/*.csv", "the pattern matches no object"),
        ("raw/read", "no such object or folder"),
    ):
        with pytest.raises(UserError, match=message):
            storage.find_raw(f"{bucket}/{pattern}", SUFFIXES)
    with pytest.raises(UserError, match="no readable file among 4"):
        storage.find_raw(f"{bucket}/raw", (".parquet",))
    for place in ("gs://", "gs:///x", "gs://hanflow*/x"):
        with pytest.raises(UserError, match="names no bucket; write gs://bucket/folder"):
            storage.find_raw(place, SUFFIXES)


@pytest.mark.parametrize("kind", ["503", "drop", "truncate", "short"])
def test_a_stream_survives_the_network(bucket: str, emulator: Emulator, kind: str) -> None:
    gcs.put(f"{bucket}/data.csv", DATA)
    emulator.order({"kind": kind, "match": "^download", "skip": 1}, {"kind": kind, "match": "^download", "skip": 3})
    with storage.open_raw(f"{bucket}/data.csv") as stream:
        assert stream.read() == DATA
    assert emulator.fired == [1, 1]


def test_a_stream_that_arrives_damaged_is_refused(bucket: str, emulator: Emulator) -> None:
    gcs.put(f"{bucket}/data.csv", DATA)
    emulator.order({"kind": "flip", "match": "^download", "skip": 1})
    with pytest.raises(UserError, match="data.csv: arrived damaged"), storage.open_raw(f"{bucket}/data.csv") as stream:
        stream.read()
    assert emulator.fired == [1]


def test_a_stream_is_one_version(bucket: str) -> None:
    gcs.put(f"{bucket}/data.csv", DATA)
    with storage.open_raw(f"{bucket}/data.csv") as stream:
        assert stream.read(10) == DATA[:10]
        gcs.put(f"{bucket}/data.csv", DATA[::-1])
        with pytest.raises(UserError, match="was replaced or removed while it was read"):
            stream.read()


def test_a_stream_can_be_sought_in(bucket: str) -> None:
    gcs.put(f"{bucket}/data.csv", DATA)
    reference = io.BytesIO(DATA)
    with storage.open_raw(f"{bucket}/data.csv") as stream:
        for whence, offset, size in (
            (0, 39_990, 20),
            (1, -45_000, 7),
            (2, -5, 10),
            (0, 0, 60_000),
            (0, len(DATA) + 5, 3),
        ):
            assert stream.seek(max(offset, -stream.tell()) if whence == 1 else offset, whence) == reference.seek(
                max(offset, -reference.tell()) if whence == 1 else offset, whence
            )
            assert stream.read(size) == reference.read(size)


def rows(count: int) -> list[dict[str, str]]:
    return [
        {"news": f"{n}번째 기사입니다. 오늘의 소식을 길게 전합니다.", "summary": f"{n}번째 요약"} for n in range(count)
    ]


def raw_files(folder: Path) -> None:
    """The same rows in every format."""
    some = rows(120)
    table = "news,summary\n" + "".join(f"{row['news']},{row['summary']}\n" for row in some)
    (folder / "a.csv").write_text(table, encoding="utf-8")
    (folder / "b.tsv.gz").write_bytes(gzip.compress(table.replace(",", "\t").replace("번째", "째").encode()))
    (folder / "c.jsonl").write_text("".join(json.dumps({k: f"c{v}" for k, v in r.items()}) + "\n" for r in some))
    pq.write_table(pa.Table.from_pylist([{k: f"d{v}" for k, v in r.items()} for r in some]), folder / "d.parquet")
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{k: f"e{v}" for k, v in r.items()} for r in some]), data)
    (folder / "e.parquet.gz").write_bytes(gzip.compress(data.getvalue()))
    documents = [
        {"id": f"f{n}", "text": [[{"sentence": r["news"] + "f"}]], "abstractive": [r["summary"]]}
        for n, r in enumerate(some)
    ]
    (folder / "f.json").write_text(json.dumps({"documents": documents}), encoding="utf-8")


def test_preprocess_streams_every_format(bucket: str, tmp_path: Path, emulator: Emulator) -> None:
    """The corpus is the same as from local files, and no raw file was copied to this machine."""
    raw = tmp_path / "raw"
    raw.mkdir()
    raw_files(raw)
    for path in raw.iterdir():
        gcs.put(f"{bucket}/raw/{path.name}", path)

    for name in sorted(path.name for path in raw.iterdir()):
        preprocess(
            SummarizationPreprocess(source=f"{raw}/{name}"), task="summarization", output=str(tmp_path / "local" / name)
        )
        preprocess(
            SummarizationPreprocess(source=f"{bucket}/raw/{name}"),
            task="summarization",
            output=str(tmp_path / "remote" / name),
        )
        for split in ("train", "validation", "test"):
            here, there = (pq.read_table(tmp_path / w / name / f"{split}.parquet") for w in ("local", "remote"))
            assert here.equals(there) and here.num_rows, name
        sources = json.loads((tmp_path / "remote" / name / "corpus.json").read_text())["details"]["sources"]
        (source,) = sources
        assert source.pop("generation")
        assert source == {"split": "train", "file": f"{bucket}/raw/{name}", "bytes": (raw / name).stat().st_size}
    assert not (tmp_path / "cache" / "artifacts").exists()


def test_texts_to_score_and_predict_from_are_streamed(bucket: str) -> None:
    gcs.put(f"{bucket}/a.csv", "prediction,id\n요약 하나,1\n'=요약 둘,2\n".encode())
    gcs.put(f"{bucket}/b.jsonl.gz", gzip.compress(b'"x"\n"y"\n'))
    assert [row.texts for row in read_texts(text_source(f"{bucket}/a.csv"))] == [["요약 하나"], ["=요약 둘"]]
    assert [row.texts for row in read_texts(text_source(f"{bucket}/b.jsonl.gz"))] == [["x"], ["y"]]


def test_objects_compressed_by_the_uploader_are_unpacked(bucket: str) -> None:
    blob = service.blob(f"{bucket}/data.csv")
    blob.content_encoding = "gzip"
    blob.upload_from_string(gzip.compress(DATA))
    with storage.open_raw(f"{bucket}/data.csv") as stream:
        assert stream.read() == DATA


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    missing = "gs://hanflow-missing/x"
    for work in (
        lambda: storage.find_raw(missing, SUFFIXES),
        lambda: storage.fetched(missing, "corpus"),
        lambda: storage.staged(missing, "corpus").__enter__(),
        lambda: storage.exists(missing),
        lambda: gcs.put(missing, b""),
    ):
        with pytest.raises(UserError, match="not found .*check that the bucket gs://hanflow-missing exists"):
            work()


def test_no_permission(bucket: str, emulator: Emulator) -> None:
    refused = {"kind": "deny", "times": 99}
    for match, work in (
        ("^list", lambda: storage.find_raw(f"{bucket}/raw/", SUFFIXES)),
        ("^stat", lambda: storage.fetched(f"{bucket}/corpus", "corpus")),
        ("^upload", lambda: storage.staged(f"{bucket}/corpus", "corpus").__enter__()),
        ("^upload", lambda: gcs.put(f"{bucket}/x", b"")),
    ):
        emulator.order({**refused, "match": match})
        with pytest.raises(UserError, match="no permission .*roles/storage.objectUser on gs://hanflow-"):
            work()
        assert emulator.fired[0] >= 1


def test_a_service_that_cannot_be_reached(bucket: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    gcs.put(f"{bucket}/data.csv", DATA)
    monkeypatch.setattr(service, "RETRY_SECONDS", 1.0)
    emulator.order({"kind": "drop", "times": 99})
    with pytest.raises(UserError, match="Google Cloud Storage cannot be used .*check network and bucket"):
        storage.open_raw(f"{bucket}/data.csv")
    assert emulator.fired[0] >= 2, "it was asked again"


def test_no_credentials_is_reported_in_a_sentence(tmp_path: Path) -> None:
    words = ["hanflow.steps.preprocess", "--source", "gs://some-bucket/raw.csv", "--output", str(tmp_path / "corpus")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE", "STORAGE", "GCLOUD"))}
    env = {**kept, "HOME": str(tmp_path), "NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-m", *words], env=env, capture_output=True, text=True)
    assert ended.returncode == 1
    reported = ended.stderr.strip().splitlines()[-1]
    assert reported.startswith(
        "error: gs://some-bucket/raw.csv: no Google Cloud credentials were found; run `gcloud auth"
    )
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "corpus").exists()


def test_who_stays_local_does_not_load_google() -> None:
    code = (
        "import sys, hanflow.storage, hanflow.steps.runner, hanflow.cli.main;"
        "print([m for m in sys.modules if m.startswith(('google.cloud', 'google.auth', 'requests'))])"
    )
    reported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert reported == "[]\n"
