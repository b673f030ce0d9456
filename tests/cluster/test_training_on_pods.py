"""A real training: two pods with our image, torch.distributed between them, and everything in a bucket."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hanflow import storage
from hanflow.config import JobConfig
from hanflow.steps import train as train_step
from hanflow.steps.preprocess import run as preprocess
from hanflow.steps.tokenize import run as tokenize
from hanflow.storage import gcs
from hanflow.tasks.classification import ClassificationPreprocess
from tests.cluster import world as worlds
from tests.cluster.machine import __main__ as machine
from tests.cluster.machine import node
from tests.cluster.world import PODS, World
from tests.images.containers import image
from tests.storage.emulator import Emulator
from tests.support import tasks

TASK = "classification"
STEPS = 60

pytestmark = pytest.mark.cluster


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    if os.environ.get("KUBECONFIG") != str(node.KUBECONFIG):
        pytest.skip("needs the cluster of `make cluster`: its pods reach a bucket on this machine")
    with worlds.real(tmp_path) as world:
        yield world


@pytest.fixture
def training_image(world: World, tmp_path: Path) -> str:
    """Our image for CPUs, given to the node (6 GB with torch's CUDA build: minutes, once)."""
    reference = image("cpu")
    if machine.has_image(reference):
        return reference
    archive = tmp_path / "image.tar"
    subprocess.run(["podman", "save", "--quiet", "--output", archive, reference], check=True)
    machine.load(archive)
    archive.unlink()
    return reference


@pytest.fixture
def emulator(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with Emulator(node.HOST) as emulator:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.host)
        monkeypatch.setenv("HANFLOW_CACHE", str(tmp_path / "cache"))
        emulator.make_bucket("cluster")
        yield emulator


def evict_a_worker(world: World, checkpoints: str) -> None:
    """Once there is a checkpoint to go on from."""
    world.wait("a checkpoint", lambda: any(n.endswith("commit.json") for n in gcs.listing(checkpoints)), 180)
    pods = world.admin.request("GET", PODS, query={"labelSelector": f"hanflow/run={world.run}"})["items"]
    (name,) = [pod["metadata"]["name"] for pod in pods if pod["metadata"]["name"].endswith("-worker-0")]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    world.admin.request("POST", f"{PODS}/{name}/eviction", body=eviction)


def result(model: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    folder, _ = storage.fetched(model, "model")
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    for point in training["history"]["train"]:
        del point["tokens_per_second"], point["memory_gb"]
    return load_file(folder / "model.safetensors"), training["history"]


def test_two_pods_lose_one_and_train_the_same_model(
    world: World,
    training_image: str,
    emulator: Emulator,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    messages: pytest.LogCaptureFixture,
) -> None:
    source = tasks.write_reviews(tmp_path / "reviews.tsv", tasks.reviews(80))
    corpus, shards = "gs://cluster/corpus", "gs://cluster/shards"
    preprocess(ClassificationPreprocess(source=str(source)), task=TASK, output=corpus)
    tokenize(tasks.ENCODING[TASK], task=TASK, output=shards, corpus=corpus)
    job = JobConfig(
        runtime="pytorchjob",
        namespace=os.environ.get("HANFLOW_TEST_NAMESPACE", ""),
        image=training_image,
        service_account="default",
        gpus=0,
        workers=2,
        cpu="250m",
        memory="2Gi",
        scratch="1Gi",
        environment={"STORAGE_EMULATOR_HOST": emulator.host},
    )
    config = tasks.settings(TASK, epochs=1000, max_steps=STEPS, save_every=5, validate_every=STEPS)

    def train(model: str) -> None:
        report = train_step.run(config, task=TASK, output=model, shards=shards, job=job, run_id=world.run)
        assert report.figures["steps"] == STEPS and world.jobs() == []

    train("gs://cluster/undisturbed")
    assert "resuming from" not in capfd.readouterr().err
    eviction = threading.Thread(target=evict_a_worker, args=(world, "gs://cluster/model.checkpoints"), daemon=True)
    eviction.start()
    train("gs://cluster/model")
    eviction.join(1)
    assert "failed (preempted): EvictionByEvictionAPI" in messages.text
    assert "resuming from" in capfd.readouterr().err
    weights, history = result("gs://cluster/model")
    expected, expected_history = result("gs://cluster/undisturbed")
    assert history == expected_history
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
