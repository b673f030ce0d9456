"""Built jobs: a cluster accepts them, and the checks refuse what it would refuse."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hanflow.cluster import manifests
from hanflow.cluster.job import Origin, PodExtras, job_name
from hanflow.cluster.runtimes import build, pod_count, pod_templates
from hanflow.config import JobConfig, TrainConfig
from hanflow.config.worker_spec import WorkerSpec, train_arguments
from hanflow.errors import ConfigError, UserError
from hanflow.experiment import load_experiment, step_config
from hanflow.pipelines.packages import Package
from hanflow.tasks.summarization import SummarizationTrain
from hanflow.training.workers.worker import parse_arguments
from tests.cluster.schemas import ROOT, problems

WORK = WorkerSpec(
    "summarization",
    SummarizationTrain(
        architecture={"type": "bart", "layer_norm_eps": 1e-05}, wandb=True, wandb_tags=["가", "b: c", "$(HOME)"]
    ),
    "gs://bucket/run/shards",
    "gs://bucket/run/model",
)
OWNER = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "6e1c"}
ORIGIN = Origin("0f2d7a3e-5b5e-4b60-9a51-6a8a54b4b0cc", owner=OWNER)
EXTRAS = PodExtras(
    environment=[{"name": "TZ", "value": "Asia/Seoul"}],
    volumes=[{"name": "kfp", "persistentVolumeClaim": {"claimName": "data"}}],
    volume_mounts=[{"name": "kfp", "mountPath": "/data"}],
    node_selector={"pool": "training"},
    tolerations=[{"key": "team", "operator": "Exists"}],
    affinity={"nodeAffinity": {}},
)
KINDS = {
    "one GPU": JobConfig(runtime="pytorchjob"),
    "CPUs": JobConfig(runtime="pytorchjob", gpus=0, workers=2),
    "32 GPUs on spot": JobConfig(
        runtime="pytorchjob",
        workers=4,
        gpus=8,
        accelerator="nvidia-h100-80gb",
        spot=True,
        queue="training",
        priority_class="high",
        secrets={"WANDB_API_KEY": "wandb/api-key"},
        environment={"NCCL_DEBUG": "INFO", "LEVEL": 3},
        node_selector={"zone": "a"},
        tolerations=[{"key": "reserved", "operator": "Exists"}],
    ),
    "elastic": JobConfig(runtime="pytorchjob", workers=4, min_workers=2),
    "TrainJob": JobConfig(
        runtime="trainjob", workers=4, gpus=8, queue="training", priority_class="high", spot=True, deadline_hours=2.0
    ),
    "TrainJob on CPUs": JobConfig(runtime="trainjob", gpus=0),
    "v4-32": JobConfig(runtime="tpu", accelerator="v4-32", secrets={"WANDB_API_KEY": "wandb/api-key"}),
    "two v5e slices on spot": JobConfig(
        runtime="tpu", accelerator="v5e", topology="4x8", slices=2, spot=True, queue="q"
    ),
}
OBJECTS = {name: build(job, WORK, ORIGIN, EXTRAS) for name, job in KINDS.items()}
BODIES = {name: objects[-1] for name, objects in OBJECTS.items()}
RUNTIME, TRAIN_JOB = OBJECTS["TrainJob"]


@pytest.mark.parametrize("name", KINDS)
def test_a_cluster_accepts_it(name: str) -> None:
    for body in OBJECTS[name]:
        assert problems(body) == []
        assert json.loads(json.dumps(body)) == body, "plain data"


def container(body: dict[str, Any]) -> dict[str, Any]:
    return pod_templates(body)[-1]["spec"]["containers"][0]


def pod(body: dict[str, Any]) -> dict[str, Any]:
    return pod_templates(body)[-1]["spec"]


def replicas(body: dict[str, Any]) -> dict[str, Any]:
    return body["spec"]["pytorchReplicaSpecs"]


def replicated(body: dict[str, Any]) -> dict[str, Any]:
    """The replicated job of a JobSet, or of the one that a TrainingRuntime describes."""
    return body["spec"].get("template", body)["spec"]["replicatedJobs"][0]


def job_spec(body: dict[str, Any]) -> dict[str, Any]:
    return replicated(body)["template"]["spec"]


def failure_rules(body: dict[str, Any]) -> list[dict[str, Any]]:
    return body["spec"].get("template", body)["spec"]["failurePolicy"]["rules"]


MUTATIONS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    # All kinds that hold pods.
    "an unknown field": ("both", lambda b: b["spec"].update(runPolcy={})),
    "an unknown field of a pod": ("both", lambda b: pod(b).update(nodeSelectors={})),
    "text for a number": ("both", lambda b: pod(b).update(terminationGracePeriodSeconds="long")),
    "another version": ("both", lambda b: b.update(apiVersion="kubeflow.org/v2")),
    "a name that begins with a digit": ("both", lambda b: b["metadata"].update(name="1abc")),
    "a name in capitals": ("both", lambda b: b["metadata"].update(name="Train")),
    "a long name": ("both", lambda b: b["metadata"].update(name="a" * 60)),
    "a label with a slash": ("both", lambda b: b["metadata"]["labels"].update({"hanflow/run": "a/b"})),
    "an owner without uid": ("both", lambda b: b["metadata"]["ownerReferences"][0].pop("uid")),
    "a bad quantity": ("both", lambda b: container(b)["resources"]["requests"].update(memory="16 GB")),
    "no image": ("both", lambda b: container(b).update(image="")),
    "a mount of nothing": ("both", lambda b: pod(b)["volumes"].pop(0)),
    "one variable twice": ("both", lambda b: container(b)["env"].append({"name": "HOME", "value": "/"})),
    "a number as a variable": ("both", lambda b: container(b)["env"].append({"name": "N", "value": 3})),
    "a writable root": ("both", lambda b: container(b)["securityContext"].pop("readOnlyRootFilesystem")),
    "privileges": ("both", lambda b: container(b)["securityContext"].update(allowPrivilegeEscalation=True)),
    "capabilities": ("both", lambda b: container(b)["securityContext"].update(capabilities={})),
    "root": ("both", lambda b: pod(b)["securityContext"].update(runAsNonRoot=False)),
    "the image's user": ("both", lambda b: pod(b)["securityContext"].pop("runAsUser")),
    "no seccomp": ("both", lambda b: pod(b)["securityContext"].pop("seccompProfile")),
    "a folder of the node": ("both", lambda b: pod(b)["volumes"].append({"name": "h", "hostPath": {"path": "/"}})),
    "the node's network": ("both", lambda b: pod(b).update(hostNetwork=True)),
    "endless scratch": ("both", lambda b: pod(b)["volumes"][0].update(emptyDir={})),
    # PyTorchJob.
    "another container name": ("PyTorchJob", lambda b: container(b).update(name="train")),
    "no container": ("PyTorchJob", lambda b: pod(b).update(containers=[])),
    "no Master": ("PyTorchJob", lambda b: replicas(b).pop("Master")),
    "two Masters": ("PyTorchJob", lambda b: replicas(b)["Master"].update(replicas=2)),
    "no Worker pods": ("PyTorchJob", lambda b: replicas(b)["Worker"].update(replicas=0)),
    "a chief": ("PyTorchJob", lambda b: replicas(b).update(Chief=replicas(b)["Worker"])),
    "no port": ("PyTorchJob", lambda b: container(b).pop("ports")),
    "an unknown restart policy": ("PyTorchJob", lambda b: replicas(b)["Worker"].update(restartPolicy="Sometimes")),
    "a pod's restart policy": ("PyTorchJob", lambda b: pod(b).update(restartPolicy="Never")),
    "an unknown clean-up": ("PyTorchJob", lambda b: b["spec"]["runPolicy"].update(cleanPodPolicy="Some")),
    "an unknown manager": ("PyTorchJob", lambda b: b["spec"]["runPolicy"].update(managedBy="me")),
    "elastic, two process counts": (
        "PyTorchJob",
        lambda b: b["spec"].update(elasticPolicy={"nProcPerNode": 2, "minReplicas": 1, "maxReplicas": 2}),
    ),
    "elastic upside down": (
        "PyTorchJob",
        lambda b: b["spec"].update(elasticPolicy={"minReplicas": 3, "maxReplicas": 2}),
    ),
    "GPUs asked for and not held": (
        "PyTorchJob",
        lambda b: container(b)["resources"]["requests"].pop("nvidia.com/gpu"),
    ),
    # JobSet.
    "an unknown action": ("JobSet", lambda b: b["spec"]["failurePolicy"]["rules"][0].update(action="Wait")),
    "an unknown reason": (
        "JobSet",
        lambda b: b["spec"]["failurePolicy"]["rules"][0].update(onJobFailureReasons=["Bad"]),
    ),
    "a rule's name with a dash": ("JobSet", lambda b: b["spec"]["failurePolicy"]["rules"][0].update(name="a-b")),
    "rules of one name": ("JobSet", lambda b: b["spec"]["failurePolicy"]["rules"][0].update(name="host_maintenance")),
    "a rule for another job": (
        "JobSet",
        lambda b: b["spec"]["failurePolicy"]["rules"][0].update(targetReplicatedJobs=["other"]),
    ),
    "jobs of one name": ("JobSet", lambda b: b["spec"]["replicatedJobs"].append(b["spec"]["replicatedJobs"][0])),
    "restarts in place": ("JobSet", lambda b: pod(b).update(restartPolicy="OnFailure")),
    "restarts for ever": ("JobSet", lambda b: pod(b).update(restartPolicy="Always")),
    "a pod too many": ("JobSet", lambda b: job_spec(b).update(parallelism=99)),
    "success as a failure": (
        "JobSet",
        lambda b: job_spec(b)["podFailurePolicy"]["rules"][0]["onExitCodes"].update(values=[0, 1]),
    ),
    "a failure of no container": (
        "JobSet",
        lambda b: job_spec(b)["podFailurePolicy"]["rules"][0]["onExitCodes"].update(containerName="x"),
    ),
    "a rule of two kinds": (
        "JobSet",
        lambda b: job_spec(b)["podFailurePolicy"]["rules"][0].update(onPodConditions=[{"type": "A", "status": "True"}]),
    ),
    # TrainingRuntime and TrainJob.
    "another name of the container": ("TrainingRuntime", lambda b: container(b).update(name="train")),
    "another name of the job": ("TrainingRuntime", lambda b: replicated(b).update(name="worker")),
    "two Jobs": ("TrainingRuntime", lambda b: replicated(b).update(replicas=2)),
    "a job that is not the trainer's": ("TrainingRuntime", lambda b: replicated(b)["template"].pop("metadata")),
    "a time to live": ("TrainingRuntime", lambda b: b["spec"]["template"]["spec"].update(ttlSecondsAfterFinished=1)),
    "no torchrun": ("TrainingRuntime", lambda b: b["spec"].pop("mlPolicy")),
    "torchrun's variables": (
        "TrainingRuntime",
        lambda b: container(b)["env"].append({"name": "PET_NNODES", "value": "1"}),
    ),
    "an index that is misspelt": ("TrainingRuntime", lambda b: job_spec(b).update(completionsMode="Indexed")),
    "a shared runtime": ("TrainJob", lambda b: b["spec"]["runtimeRef"].pop("kind")),
    "no runtime": ("TrainJob", lambda b: b["spec"].pop("runtimeRef")),
    "no trainer": ("TrainJob", lambda b: b["spec"].pop("trainer")),
    "as many processes as fit": ("TrainJob", lambda b: b["spec"]["trainer"].pop("numProcPerNode")),
    "processes as text": ("TrainJob", lambda b: b["spec"]["trainer"].update(numProcPerNode="8")),
    "overrides of Trainer 2.0": ("TrainJob", lambda b: b["spec"].update(podSpecOverrides=[])),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_checks_refuse(mutation: str) -> None:
    kinds, mutate = MUTATIONS[mutation]
    for body in map(copy.deepcopy, (BODIES["32 GPUs on spot"], BODIES["v4-32"], RUNTIME, TRAIN_JOB)):
        if kinds == body["kind"] or (kinds == "both" and pod_templates(body)):
            mutate(body)
            assert problems(body), f"{body['kind']} with {mutation} should be refused"


def test_a_pytorch_job_has_one_master_and_workers() -> None:
    spec = BODIES["32 GPUs on spot"]["spec"]
    assert {role: replica["replicas"] for role, replica in spec["pytorchReplicaSpecs"].items()} == {
        "Master": 1,
        "Worker": 3,
    }
    assert spec["nprocPerNode"] == "8"
    assert {replica["restartPolicy"] for replica in spec["pytorchReplicaSpecs"].values()} == {"ExitCode"}
    assert set(BODIES["one GPU"]["spec"]["pytorchReplicaSpecs"]) == {"Master"}
    assert pod_count(BODIES["32 GPUs on spot"]) == 4
    assert "elasticPolicy" not in spec


def test_an_elastic_job_has_only_workers_and_its_bounds() -> None:
    spec = BODIES["elastic"]["spec"]
    assert set(spec["pytorchReplicaSpecs"]) == {"Worker"}
    assert (spec["elasticPolicy"]["minReplicas"], spec["elasticPolicy"]["maxReplicas"]) == (2, 4)


def test_the_pods_have_what_the_settings_ask_for() -> None:
    spec = pod(BODIES["32 GPUs on spot"])
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        "cloud.google.com/gke-spot": "true",
        "pool": "training",
        "zone": "a",
    }
    assert {t["key"] for t in spec["tolerations"]} == {
        "nvidia.com/gpu",
        "cloud.google.com/gke-spot",
        "team",
        "reserved",
    }
    assert spec["priorityClassName"] == "high" and spec["serviceAccountName"] == "hanflow"
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in spec["volumes"]
    worker = container(BODIES["32 GPUs on spot"])
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 8
    environment = {v["name"]: v.get("value") for v in worker["env"]}
    assert (environment["NCCL_DEBUG"], environment["LEVEL"], environment["TZ"]) == ("INFO", "3", "Asia/Seoul")
    assert worker["volumeMounts"][-2:] == [
        {"name": "kfp", "mountPath": "/data"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    metadata = BODIES["32 GPUs on spot"]["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert metadata["labels"]["hanflow/run"] == ORIGIN.run and metadata["labels"]["hanflow/step"] == "train"
    assert metadata["ownerReferences"] == [OWNER]


def test_a_train_job_has_a_runtime_of_its_own() -> None:
    assert [body["kind"] for body in OBJECTS["TrainJob"]] == ["TrainingRuntime", "TrainJob"], "created in this order"
    assert RUNTIME["metadata"]["name"] == TRAIN_JOB["metadata"]["name"] == TRAIN_JOB["spec"]["runtimeRef"]["name"]
    assert TRAIN_JOB["spec"]["trainer"] == {"numNodes": 4, "numProcPerNode": 8}
    assert BODIES["TrainJob on CPUs"]["spec"]["trainer"] == {"numNodes": 1, "numProcPerNode": 1}
    assert pod_count(*OBJECTS["TrainJob"]) == 4
    for body in (RUNTIME, TRAIN_JOB):
        assert body["metadata"]["ownerReferences"] == [OWNER], "no controller: the Workflow's own would fight for it"
        assert body["metadata"]["labels"]["hanflow/run"] == ORIGIN.run
    assert RUNTIME["metadata"]["annotations"] == TRAIN_JOB["metadata"]["annotations"]
    assert "kueue.x-k8s.io/queue-name" not in RUNTIME["metadata"]["labels"], "Kueue admits the TrainJob"
    assert TRAIN_JOB["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert pod(RUNTIME)["restartPolicy"] == "Never" and pod(RUNTIME)["priorityClassName"] == "high"
    assert job_spec(RUNTIME)["activeDeadlineSeconds"] == 7200 and "ports" not in container(RUNTIME)
    assert container(RUNTIME)["command"] == container(BODIES["32 GPUs on spot"])["command"], "torchrun, for both kinds"


def test_a_v4_32_is_four_hosts_of_four_chips() -> None:
    body = BODIES["v4-32"]
    job = job_spec(body)
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    assert body["spec"]["replicatedJobs"][0]["replicas"] == 1 and pod_count(body) == 4
    assert pod(body)["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v4-podslice"
    assert pod(body)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2x4"
    assert container(body)["resources"]["limits"]["google.com/tpu"] == 4
    assert (
        body["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
        == "cloud.google.com/gke-nodepool"
    )
    assert {"name": "PJRT_DEVICE", "value": "TPU"} in container(body)["env"]


def restarts(body: dict[str, Any], *, exit_code: int | None = None, disrupted: bool = False) -> str:
    """The action of the Job controller and JobSet together when one pod fails in this way."""
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job_spec(body)["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes")
        if (codes and exit_code in codes["values"]) or (disrupted and "onPodConditions" in rule):
            assert rule["action"] == "FailJob"
            reason, message = "PodFailurePolicy", f"Pod n/p ... matching FailJob rule at index {index}"
            break
    for rule in failure_rules(body):
        patterns = rule.get("onJobFailureMessagePatterns")
        if reason in rule["onJobFailureReasons"] and (not patterns or any(re.search(p, message) for p in patterns)):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize("body", [BODIES["v4-32"], RUNTIME], ids=lambda body: body["kind"])
def test_maintenance_failures_and_mistakes_are_distinguished(body: dict[str, Any]) -> None:
    assert restarts(body, disrupted=True, exit_code=137) == "RestartJobSetAndIgnoreMaxRestarts"
    assert restarts(body, exit_code=143) == "RestartJobSetAndIgnoreMaxRestarts"
    assert restarts(body, exit_code=1) == "FailJobSet", "a mistake in the settings is not retried"
    assert restarts(body, exit_code=70) == "RestartJobSet", "counts"
    assert body["spec"].get("template", body)["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert job_spec(body)["backoffLimit"] == 0


def test_names_are_found_again_and_never_shared() -> None:
    name = job_name("run", "language_modeling", "gs://b/model")
    assert name == job_name("run", "language_modeling", "gs://b/model")
    others = {
        job_name("run2", "language_modeling", "gs://b/model"),
        job_name("run", "language_modeling", "gs://b/model2"),
        job_name("run", "classification", "gs://b/model"),
    }
    assert len(others | {name}) == 4
    assert name.startswith("hanflow-language-modeling-")


@given(
    run=st.text(max_size=80), task=st.sampled_from(["summarization", "language_modeling"]), output=st.text(max_size=80)
)
@settings(deadline=None, max_examples=50)
def test_any_run_gives_valid_names_and_labels(run: str, task: str, output: str) -> None:
    from tests.cluster.schemas import _metadata_rules, _name_rules

    (body,) = build(KINDS["two v5e slices on spot"], dataclasses.replace(WORK, task=task, output=output), Origin(run))
    assert list(_metadata_rules(body)) == []
    assert list(_name_rules(body["metadata"]["name"] + "-slice-99-63-abcde")) == []
    assert list(_name_rules(body["metadata"]["name"] + "-node-0-9999-abcde")) == []
    assert list(_name_rules(body["metadata"]["name"] + "-worker-999")) == []


def test_the_digest_depends_on_everything_that_the_job_is_made_from() -> None:
    def digest(work: WorkerSpec = WORK, **changes: Any) -> str:
        job = dataclasses.replace(KINDS["one GPU"], **changes)
        return build(job, work, ORIGIN)[-1]["metadata"]["annotations"]["hanflow/digest"]

    other = dataclasses.replace(WORK, config=dataclasses.replace(WORK.config, seed=1))
    for kind in ({}, {"runtime": "trainjob"}):
        assert digest(**kind) == digest(**kind)
        changed = [{"gpus": 2}, {"memory": "8Gi"}, {"image": "x:1"}, {"work": other}]
        assert len({digest(**kind), *(digest(**kind, **change) for change in changed)}) == 5


@pytest.mark.parametrize("name", ["32 GPUs on spot", "v4-32"])
def test_the_workers_get_the_very_settings_and_uris(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = container(BODIES[name])["command"]
    module = command[2]
    assert command[:2] == ["python", "-m"] and importlib.util.find_spec(module)
    assert (
        module
        == {"PyTorchJob": "hanflow.training.workers.torchrun", "JobSet": "hanflow.training.workers.worker"}[
            BODIES[name]["kind"]
        ]
    )
    # For a slice the job also sets which one it is: workers refuse another.
    slice_ = {"backend": "xla", "topology": "2x2x4"} if name == "v4-32" else {}
    config = dataclasses.replace(WORK.config, **slice_)
    assert parse_arguments([argument.replace("$$", "$") for argument in command[3:]]) == dataclasses.replace(
        WORK, config=config
    )


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12).filter(lambda text: text != "--")
"""No setting is `--` alone: it is refused, since argparse drops it."""
VALUES = st.one_of(TEXTS, st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), st.booleans())


@given(
    config=st.builds(
        SummarizationTrain,
        pretrained=TEXTS,
        architecture=st.dictionaries(TEXTS, st.one_of(VALUES, st.lists(VALUES, max_size=2)), max_size=3),
        learning_rate=st.floats(1e-12, 1.0),
        wandb_tags=st.lists(TEXTS, max_size=3),
        weight_decay=st.floats(0, 1e3),
        wandb_project=TEXTS,
    )
)
@settings(deadline=None, max_examples=60)
def test_any_settings_survive_the_command_line(config: TrainConfig) -> None:
    # The step reads 3.0 as 3 where Kubeflow gave it: so does it here.
    config = step_config("train", dataclasses.asdict(config), WORK.task)
    spec = dataclasses.replace(WORK, config=config)
    assert parse_arguments(train_arguments(spec)) == spec


def test_secrets_are_referred_to_and_never_quoted() -> None:
    reference = {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "api-key"}}}
    assert reference in container(BODIES["32 GPUs on spot"])["env"]
    secret = "local-2f9e0c7a51d34e"
    for wrong in ({"secrets": {"WANDB_API_KEY": secret}}, {"environment": {"WANDB_API_KEY": secret}}):
        with pytest.raises(ConfigError) as caught:
            build(dataclasses.replace(KINDS["one GPU"], **wrong), WORK, ORIGIN)
        assert "WANDB_API_KEY" in str(caught.value) and secret not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": "tpu"}, "expected a TPU such as v4-32"),
        ({"runtime": "tpu", "accelerator": "v4-32", "topology": "2x2x2"}, "do not fit"),
        ({"runtime": "tpu", "accelerator": "v4-32", "min_workers": 2}, "cannot train with some of its hosts"),
        ({"runtime": "trainjob", "workers": 3, "min_workers": 2}, "a TrainJob needs all its pods"),
        ({"workers": 2, "min_workers": 3}, "job.min_workers=3 is more than job.workers=2"),
        ({"memory": "16 GB"}, "expected a Kubernetes quantity"),
        ({"environment": {"A B": "x"}}, "not the name of an environment variable"),
        ({"environment": {"A": {"b": 1}}}, "expected text"),
        ({"tolerations": ["spot"]}, "expected mappings"),
        ({"secrets": {"A": "only-a-name"}}, "expected secret/key"),
    ],
)
def test_settings_that_cannot_work_are_reported_before_anything_is_submitted(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(dataclasses.replace(KINDS["one GPU"], **changes), WORK, ORIGIN)
    assert message in str(caught.value)


def test_a_local_run_has_no_job() -> None:
    with pytest.raises(UserError, match="without a job"):
        build(JobConfig(), WORK, ORIGIN)
    with pytest.raises(UserError, match="choose trainjob, pytorchjob, tpu"):
        build(JobConfig(runtime="auto"), WORK, ORIGIN)


FOLDER = ROOT / "manifests" / "jobs"
EXPERIMENT = ROOT / "pipelines" / "experiments" / "summarization.yaml"


def test_the_jobs_to_apply_by_hand_are_current(tmp_path: Path) -> None:
    fresh = {path.name: path.read_text(encoding="utf-8") for path in manifests.write(tmp_path, EXPERIMENT)}
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}
    assert fresh == committed, "run `python -m hanflow.cluster.manifests --output manifests/jobs`"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_the_jobs_to_apply_by_hand_are_valid(path: Path) -> None:
    objects = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert [problem for each in objects for problem in problems(each)] == []
    body = objects[0]  # the one that holds the pods
    command = container(body)["command"]
    filled = [argument.replace("$(HANFLOW_ROOT)", "gs://b/runs").replace("$$", "$") for argument in command[3:]]
    spec = parse_arguments(filled)
    slice_ = {"backend": "xla", "topology": "2x2x4"} if body["kind"] == "JobSet" else {}
    assert spec.config == dataclasses.replace(load_experiment(EXPERIMENT, require=False).train, **slice_)
    assert (spec.shards, spec.output) == (
        "gs://b/runs/kobart-summarization/shards",
        "gs://b/runs/kobart-summarization/model",
    )
    (root,) = (v for v in container(body)["env"] if v["name"] == "HANFLOW_ROOT")
    reference = root["valueFrom"]["configMapKeyRef"]
    config_map = yaml.safe_load((ROOT / "manifests" / "configmap.yaml").read_text(encoding="utf-8"))
    assert reference["name"] == config_map["metadata"]["name"] and reference["key"] in config_map["data"]
    assert all("namespace" not in each["metadata"] for each in (*objects, config_map)), "kubectl's -n gives it"


def test_the_command_writes_jobs_of_other_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--output", str(tmp_path), "--experiment", str(EXPERIMENT), "--image-repository", "example.com/mine"]
    assert manifests.main([*command, "--set", "job.spot=true", "--set", "train.epochs=9"]) == 0
    body = yaml.safe_load((tmp_path / "jobset.yaml").read_text(encoding="utf-8"))
    assert container(body)["image"].startswith("example.com/mine/hanflow-tpu:")
    assert "--epochs=9" in container(body)["command"]
    assert pod(body)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert manifests.main([*command, "--set", "job.memory=lots"]) == 1
    assert "job.memory: expected a Kubernetes quantity" in capsys.readouterr().err


def test_no_secret_of_this_machine_gets_into_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "local-93af0b57c2d84e16"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.setenv(name, secret)
    overrides = ["train.wandb=true", 'job.secrets={"WANDB_API_KEY": "wandb/api-key"}']
    experiment = load_experiment(EXPERIMENT, [*overrides, "job.runtime=pytorchjob"], require=False)
    package = Package.of(experiment).write(tmp_path / "package.yaml")
    paths = [*manifests.write(tmp_path, EXPERIMENT, overrides), package]
    for path in paths:
        assert secret not in path.read_text(encoding="utf-8"), path.name
    assert secret not in json.dumps(build(experiment.job, WORK, ORIGIN))


def test_no_variable_that_looks_like_a_secret_has_a_value() -> None:
    committed = [
        body for path in FOLDER.glob("*.yaml") for body in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]
    for body in [*(body for objects in OBJECTS.values() for body in objects), *committed]:
        for template in pod_templates(body):
            for variable in template["spec"]["containers"][0]["env"]:
                if re.search("KEY|TOKEN|SECRET|PASSWORD", variable["name"]):
                    assert set(variable) == {"name", "valueFrom"}, variable["name"]
