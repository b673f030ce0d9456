"""A training job whose artifacts are in a bucket: its pods read and write there, its step reads what they wrote."""

from __future__ import annotations

import io
import json
import shutil
import socket
import sys
import threading
from pathlib import Path

import pytest

from hanflow import storage
from hanflow.config import JobConfig
from hanflow.steps import train as train_step
from hanflow.steps.preprocess import run as preprocess
from hanflow.steps.tokenize import run as tokenize
from hanflow.storage import gcs
from hanflow.tasks.classification import ClassificationPreprocess
from tests.cluster.conftest import fake as fake
from tests.cluster.world import World
from tests.storage.emulator import Emulator
from tests.support import tasks

TASK = "classification"
STEPS = 60


def lose_the_node(cluster: World, emulator: Emulator, disk: Path) -> None:
    """Once an upload of the only pod hangs: evict the pod, let the upload go on, and take the disk away before another
    pod can start."""
    assert cluster.fake
    cluster.wait("an upload that hangs", lambda: emulator.fired == [1], 60)
    with cluster.fake.store.changed:  # nothing else changes in the cluster meanwhile
        (pod,) = cluster.fake.store.all("pods")
        cluster.fake.kubelet.evict(pod)
        emulator.release()
        cluster.fake.kubelet.runs[pod["metadata"]["uid"]].process.wait(60)
        shutil.rmtree(disk)


def test_a_job_resumes_from_the_bucket_when_its_node_is_lost(
    fake: World, emulator: Emulator, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its step reports what only the pods wrote; retried, it trains nothing."""
    assert fake.fake
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        fake.fake.kubelet.port = probe.getsockname()[1]
    fake.fake.kubelet.grace = 60.0
    source = tasks.write_reviews(tmp_path / "reviews.tsv", tasks.reviews(80))
    corpus, shards, model = (storage.join(bucket, name) for name in ("corpus", "shards", "model"))
    preprocess(ClassificationPreprocess(source=str(source)), task=TASK, output=corpus)
    tokenize(tasks.ENCODING[TASK], task=TASK, output=shards, corpus=corpus)
    streamed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", streamed)
    disk = tmp_path / "node"
    environment = {"STORAGE_EMULATOR_HOST": emulator.host, "HANFLOW_CACHE": str(disk)}
    job = JobConfig(runtime="pytorchjob", gpus=0, environment=environment)
    config = tasks.settings(TASK, epochs=1000, max_steps=STEPS, save_every=5, validate_every=STEPS)
    emulator.order({"kind": "hold", "match": "^upload model.checkpoints/step-00000010/commit.json"})
    loss = threading.Thread(target=lose_the_node, args=(fake, emulator, disk), daemon=True)
    loss.start()
    report = train_step.run(config, task=TASK, output=model, shards=shards, job=job, run_id=fake.run)
    loss.join(1)
    assert report.figures["steps"] == STEPS and fake.jobs() == []
    output = streamed.getvalue()
    assert f"fetching {model}.checkpoints/step-" in output and output.count("resuming from") == 1, "no line twice"
    training = json.loads((storage.fetched(model, "model")[0] / "training.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in training["history"]["train"]] == list(range(1, STEPS + 1))
    assert f"step-{STEPS:08d}/commit.json" in gcs.listing(f"{model}.checkpoints")
    submitted = fake.fake.count("POST", "pytorchjobs")
    again = train_step.run(config, task=TASK, output=model, shards=shards, job=job, run_id=fake.run)
    assert again.figures == report.figures and fake.fake.count("POST", "pytorchjobs") == submitted
