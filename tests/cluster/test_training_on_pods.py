"""Real trainings: pods with our image, torch.distributed between them, everything in a bucket, and losses on the way."""

from __future__ import annotations

import datetime
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kfp import dsl
from safetensors.torch import load_file

from hanflow import storage
from hanflow.cluster import launcher
from hanflow.cluster.client import ClusterError
from hanflow.cluster.follow import JobFailed
from hanflow.cluster.job import JOB_LABEL, RUN_LABEL, Origin
from hanflow.cluster.runtimes import KINDS, build, pod_templates
from hanflow.cluster.status import phase
from hanflow.cluster.trainjob import not_noticed
from hanflow.config import JobConfig, TrainConfig, to_mapping
from hanflow.config.worker_spec import WorkerSpec
from hanflow.steps import train as train_step
from hanflow.steps.preprocess import run as preprocess
from hanflow.steps.tokenize import run as tokenize
from hanflow.storage import gcs
from hanflow.tasks.classification import ClassificationPreprocess
from tests.cluster.machine import node
from tests.cluster.pods import bucket_server, make_bucket, require_this_machine, training_image
from tests.cluster.world import PODS, World
from tests.storage.emulator import Emulator
from tests.support import tasks

TASK = "classification"
STEPS = 60

pytestmark = pytest.mark.cluster


@pytest.fixture
def image(world: World) -> str:
    require_this_machine()
    return training_image()


@pytest.fixture
def bucket(world: World, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with shards in it, on a server of its own in the cluster."""
    with bucket_server(world) as host:
        make_bucket(world, host, "cluster")
        fill(monkeypatch, host, tmp_path)
        yield "gs://cluster"


def fill(monkeypatch: pytest.MonkeyPatch, host: str, folder: Path) -> None:
    """Make shards of 1,000 reviews of the bundled sample in the bucket of that server."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    monkeypatch.setenv("HANFLOW_CACHE", str(folder / "cache"))
    source = tasks.write_reviews(folder / "reviews.tsv", tasks.reviews(1000))
    config = ClassificationPreprocess(source=str(source), validation_ratio=0.1, test_ratio=0.1)
    preprocess(config, task=TASK, output="gs://cluster/corpus")
    tokenize(tasks.ENCODING[TASK], task=TASK, output="gs://cluster/shards", corpus="gs://cluster/corpus")


def job_of(image: str, runtime: str, **settings: Any) -> JobConfig:
    return JobConfig(
        runtime=runtime,
        namespace=os.environ.get("HANFLOW_TEST_NAMESPACE", ""),
        image=image,
        service_account="default",
        gpus=0,
        cpu="250m",
        memory="2Gi",
        scratch="1Gi",
        environment={"STORAGE_EMULATOR_HOST": os.environ["STORAGE_EMULATOR_HOST"], "OMP_NUM_THREADS": "1"},
        **settings,
    )


def settings(dropout: float = 0.3, **changes: Any) -> TrainConfig:
    architecture = {**tasks.ARCHITECTURES[TASK], "dropout": dropout}
    return tasks.settings(
        TASK, architecture=architecture, epochs=1000, max_steps=STEPS, save_every=5, validate_every=STEPS, **changes
    )


def pods(world: World) -> list[dict[str, Any]]:
    return world.admin.request("GET", PODS, query={"labelSelector": f"{RUN_LABEL}={world.run}"})["items"]


def lose(world: World, model: str, name: str, *, evict: bool) -> None:
    """Once there is a checkpoint to go on from, take the pod with `name` in its name away."""
    world.wait("a checkpoint", lambda: any(n.endswith("commit.json") for n in gcs.listing(f"{model}.checkpoints")), 180)
    (lost,) = [pod["metadata"]["name"] for pod in pods(world) if name in pod["metadata"]["name"]]
    if evict:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": lost}}
        world.admin.request("POST", f"{PODS}/{lost}/eviction", body=eviction)
    else:
        world.admin.request("DELETE", f"{PODS}/{lost}")


def meanwhile(action: Callable[..., None], *arguments: Any, **options: Any) -> threading.Thread:
    thread = threading.Thread(target=action, args=arguments, kwargs=options, daemon=True)
    thread.start()
    return thread


def result(model: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    folder, _ = storage.fetched(model, "model")
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    for point in training["history"]["train"]:
        del point["tokens_per_second"], point["memory_gb"]
    return load_file(folder / "model.safetensors"), training["history"]


def trained_here(folder: Path, dropout: float, processes: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The same training, undisturbed, by processes of this machine."""
    output = folder / f"{processes}-processes"
    config = settings(dropout, processes=processes)
    train_step.run(config, task=TASK, output=str(output), shards="gs://cluster/shards")
    return result(str(output))


@pytest.mark.parametrize(
    ("runtime", "lost", "evict", "dropout"),
    [("auto", "-node-0-0-", False, 0.0), ("pytorchjob", "-worker-0", True, 0.3)],
    ids=["TrainJob, rank 0 deleted", "PyTorchJob, rank 1 evicted"],
)
def test_two_pods_lose_one_and_train_the_model_of_local_processes(
    runtime: str,
    lost: str,
    evict: bool,
    dropout: float,
    world: World,
    image: str,
    bucket: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    messages: pytest.LogCaptureFixture,
) -> None:
    model, config, job = f"{bucket}/model", settings(dropout), job_of(image, runtime, workers=2)

    def train() -> Any:
        return train_step.run(config, task=TASK, output=model, shards=f"{bucket}/shards", job=job, run_id=world.run)

    loss = meanwhile(lose, world, model, lost, evict=evict)
    report = train()
    loss.join(1)
    assert report.figures["steps"] == STEPS and report.html == "report.html"
    assert "failed (preempted)" in messages.text
    output = capfd.readouterr().err
    assert "[rank 0]" in output and "resuming from" in output
    assert world.jobs() == []
    world.wait("no pods", lambda: pods(world) == [], 60)
    again = train()
    assert again.figures == report.figures
    assert messages.text.count("submitted ") == 1, "a step retried after its success trains nothing"

    # Two processes here add the same numbers in the same order: torch.distributed sums two gradients.
    weights, history = result(model)
    expected, expected_history = trained_here(tmp_path, dropout, processes=2)
    assert history == expected_history
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    if dropout == 0:  # its random numbers belong to a rank's share of the rows
        alone, _ = trained_here(tmp_path, dropout, processes=1)
        distance = max(float((weights[name] - alone[name]).abs().max()) for name in alone)
        print(f"largest difference from one local process: {distance:.1e}")
        # A gradient is the sum of two halves: float32 additions in another order (1e-7 of gradients near 1), which AdamW's
        # division by their own size carries into weights below 0.4 over 60 steps; measured: 2e-6.
        for name in alone:
            torch.testing.assert_close(weights[name], alone[name], rtol=0, atol=1e-5)


def test_a_pod_evicted_while_an_upload_hangs_saves_and_its_successor_goes_on_from_the_bucket(
    world: World, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Emulator(node.HOST) as emulator:
        emulator.make_bucket("cluster")
        fill(monkeypatch, emulator.host, tmp_path)
        emulator.order({"kind": "hold", "match": "^upload model.checkpoints/step-00000010/commit.json"})

        def evict() -> None:
            world.wait("an upload that hangs", lambda: emulator.fired == [1], 180)
            (pod,) = [pod["metadata"]["name"] for pod in pods(world)]
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
            world.admin.request("POST", f"{PODS}/{pod}/eviction", body=eviction)
            emulator.release()

        loss = meanwhile(evict)
        model, job = "gs://cluster/model", job_of(image, "trainjob")
        report = train_step.run(
            settings(), task=TASK, output=model, shards="gs://cluster/shards", job=job, run_id=world.run
        )
        loss.join(1)
        assert report.figures["steps"] == STEPS and world.jobs() == []
        output = capfd.readouterr().err
        assert f"fetching {model}.checkpoints/step-" in output
        assert output.count("resuming from") == 1, "no line twice"
        _, history = result(model)
        assert [point["step"] for point in history["train"]] == list(range(1, STEPS + 1))
        assert f"step-{STEPS:08d}/commit.json" in gcs.listing(f"{model}.checkpoints")


def test_a_mistake_in_the_settings_fails_the_component_with_the_workers_message(
    world: World, image: str, bucket: str, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    class TaskConfig:
        """As kfp hands it over."""

        env = volumes = volume_mounts = node_selector = tolerations = affinity = resources = None

    arguments = {
        "task": TASK,
        "settings": to_mapping(tasks.settings(TASK, architecture={"type": "cnn", "n_filtres": 3})),
        "shards": f"{bucket}/shards",
        "model": dsl.Model(uri=f"{bucket}/model"),
        "metrics": dsl.Metrics(uri=str(tmp_path / "metrics")),
        "report": dsl.HTML(uri=str(tmp_path / "report")),
        "job": to_mapping(job_of(image, "trainjob")),
        "member": "",
        "run_id": world.run,
        "task_config": TaskConfig(),
    }
    with pytest.raises(JobFailed) as caught:
        train_step.in_pipeline(arguments)
    assert "exit status 1: error: " in str(caught.value) and "did you mean n_filters" in str(caught.value)
    assert "ChildFailedError" not in str(caught.value), "torchrun's own report helps nobody"
    assert world.jobs() == []


FIRST_STEP = """
import time
{imports}
import torch
torch.distributed.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
model(torch.ones(4, 8)).sum().backward()
print("first step", time.time(), flush=True)
torch.distributed.destroy_process_group()
"""
"""What torchrun starts in place of hanflow's worker."""


def test_how_long_a_training_takes_to_its_first_step(world: World, image: str, bucket: str) -> None:
    """Seconds from the creation of a TrainJob: by hanflow's worker, and by a script that only makes one step with torch.

    What hanflow adds to the pods' own start is the difference; that with hanflow's imports shows how much of it is those of
    transformers, pyarrow and the like.
    """
    imports = "import hanflow.training.workers.worker, torch.utils.tensorboard"
    codes = {
        "torch alone": FIRST_STEP.format(imports=""),
        "torch and hanflow's imports": FIRST_STEP.format(imports=imports),
    }
    for name, code in {**codes, "hanflow": ""}.items():
        model = f"{bucket}/{name.split()[-1]}"
        spec = WorkerSpec(TASK, replace(settings(), max_steps=1), f"{bucket}/shards", model)
        objects = build(job_of(image, "trainjob"), spec, Origin(world.run), extras=launcher._with_content(None))
        (template,) = pod_templates(*objects)
        (container,) = template["spec"]["containers"]
        if code:
            run = ["python", "-m", "torch.distributed.run", "--no-python", "python", "-c", code]
            container["command"] = run
        began = time.time()
        for body in objects:
            path = KINDS[body["kind"]].path
            world.wait("the object", lambda body=body, path=path: created(world, path, body), 30)
        name_of = objects[-1]["metadata"]["name"]
        world.wait(
            "its end", lambda path=path, n=name_of: phase(world.admin.request("GET", f"{path}/{n}")).finished, 300
        )
        (pod,) = [pod for pod in pods(world) if pod["metadata"]["labels"][JOB_LABEL] == name_of]
        with world.admin.stream(f"{PODS}/{pod['metadata']['name']}/log", query={}) as lines:
            log = b"\n".join(lines).decode()
        started = pod["status"]["containerStatuses"][0]["state"]["terminated"]["startedAt"]
        container_began = datetime.datetime.fromisoformat(started.replace("Z", "+00:00")).timestamp()
        stepped = float(re.findall(r"first step ([\d.]+)", log)[0]) if code else first_step(model)
        print(
            f"{name}: first step {stepped - began:.1f} s after the creation; "
            f"container started after {container_began - began:.0f} s"
        )
        assert stepped > began


def created(world: World, path: str, body: dict[str, Any]) -> bool:
    """Create it; False: Trainer has not noticed the TrainingRuntime yet."""
    try:
        world.admin.request("POST", path, body=body)
    except ClusterError as error:
        assert not_noticed(str(error))
        return False
    return True


def first_step(model: str) -> float:
    """When a training logged its first step (seconds since the epoch)."""
    line = next(
        line
        for line in gcs.read(f"{model}.checkpoints/train.log")[0].decode().splitlines()
        if " train at step 1:" in line
    )
    moment = datetime.datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")
    return moment.replace(tzinfo=datetime.UTC).timestamp()
