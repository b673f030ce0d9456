"""The manifests: valid together and apart, consistent with the steps' command lines, and free of secrets."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hanflow.images import DEFAULT
from tests.cluster.argo import ROOT, step, tasks, workflow
from tests.cluster.kubectl import kubectl
from tests.cluster.manifests import (
    MANIFESTS,
    Document,
    documents,
    identity,
    pick,
    problems,
    read,
    resource_name,
    workflow_pods,
)

OVERLAYS = ("gke-gpu", "gke-tpu")


def test_what_kubectl_applies_is_valid() -> None:
    objects = read(".")
    assert problems(objects) == []
    assert {identity(each) for each in objects} == {
        ("ServiceAccount", "hanflow"),
        ("Role", "hanflow"),
        ("RoleBinding", "hanflow"),
        ("ConfigMap", "hanflow"),
        ("NetworkPolicy", "hanflow-jobs"),
        ("NetworkPolicy", "hanflow-demo"),
        ("Deployment", "hanflow-demo"),
        ("Service", "hanflow-demo"),
    }


SETS = {
    ".": {"", "apps", "networking.k8s.io", "rbac.authorization.k8s.io"},
    "argo": {"argoproj.io"},
    "kueue/gpu": {"kueue.x-k8s.io"},
    "kueue/tpu": {"kueue.x-k8s.io"},
}
"""Folder → API groups of its objects: Kubernetes' own, or one operator's alone."""


@pytest.mark.parametrize("folder", SETS)
def test_where_an_operator_is_missing_nothing_is_half_applied(folder: str) -> None:
    assert {each["apiVersion"].rpartition("/")[0] for each in read(folder)} == SETS[folder]


@pytest.mark.parametrize("folder", [*SETS, "base"])
def test_kubectl_reads_the_folder(folder: str) -> None:
    """A file that is no object, such as a kustomization.yaml, would end `kubectl apply -f`."""
    named = kubectl("label", "--local", "-f", str(MANIFESTS / folder), "checked=yes", "-o", "name").split()
    assert len(named) == len(read(folder)) > 0


def test_the_order_does_not_matter() -> None:
    """No object needs another one to exist already, and all of them are declarative."""
    kinds = {each["kind"] for each in read(".")}
    assert kinds.isdisjoint({"Namespace", "CustomResourceDefinition", "Job", "Pod"})
    assert problems(list(reversed(read(".")))) == []


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_argo_and_kueue_are_valid(kind: str) -> None:
    assert problems(read(".", "argo", f"kueue/{kind}")) == []


MUTATIONS: dict[str, Callable[[list[Document]], Any]] = {
    "an unknown field": lambda o: pick(o, "Deployment", "hanflow-demo")["spec"].update(replica=2),
    "a wrong type": lambda o: pick(o, "Service", "hanflow-demo")["spec"]["ports"][0].update(port="http"),
    "no image": lambda o: demo(o).pop("image"),
    "the newest image": lambda o: demo(o).update(image="ghcr.io/hanflow/hanflow-demo:latest"),
    "a writable root": lambda o: demo(o)["securityContext"].pop("readOnlyRootFilesystem"),
    "privileges": lambda o: demo(o)["securityContext"].update(allowPrivilegeEscalation=True),
    "capabilities": lambda o: demo(o)["securityContext"]["capabilities"].update(drop=[]),
    "root": lambda o: demo_pod(o)["securityContext"].update(runAsUser=0),
    "no seccomp": lambda o: demo_pod(o)["securityContext"].pop("seccompProfile"),
    "a folder of the host": lambda o: demo_pod(o)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
    "no limits": lambda o: demo(o)["resources"].pop("limits"),
    "a probe of no port": lambda o: demo(o)["livenessProbe"]["httpGet"].update(port="metrics"),
    "no probe": lambda o: demo(o).pop("readinessProbe"),
    "a needless API token": lambda o: demo_pod(o).pop("automountServiceAccountToken"),
    "no such account": lambda o: demo_pod(o).update(serviceAccountName="hanfow"),
    "no such key": lambda o: demo(o)["env"][0]["valueFrom"]["configMapKeyRef"].update(key="bundel"),
    "a secret in the open": lambda o: demo(o)["env"].append({"name": "HF_TOKEN", "value": "hf_abc"}),
    "a selector of nothing": lambda o: pick(o, "Deployment", "hanflow-demo")["spec"]["selector"].update(
        matchLabels={"app": "x"}
    ),
    "a service of nothing": lambda o: pick(o, "Service", "hanflow-demo")["spec"].update(selector={"app": "x"}),
    "a role for everything": lambda o: pick(o, "Role")["rules"].append(
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    ),
    "a role for secrets": lambda o: pick(o, "Role")["rules"].append(
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    ),
    "no such role": lambda o: pick(o, "RoleBinding")["roleRef"].update(name="hanfow"),
    "an account of another namespace": lambda o: pick(o, "RoleBinding")["subjects"][0].update(namespace="default"),
    "a policy for everybody": lambda o: pick(o, "NetworkPolicy", "hanflow-jobs")["spec"].update(podSelector={}),
    "a policy that lets all through": lambda o: pick(o, "NetworkPolicy", "hanflow-jobs")["spec"]["egress"].append({}),
    "no names": lambda o: pick(o, "NetworkPolicy", "hanflow-demo")["spec"]["egress"].pop(0),
    "one direction": lambda o: pick(o, "NetworkPolicy", "hanflow-jobs")["spec"].update(policyTypes=["Ingress"]),
    "a namespace of its own choice": lambda o: pick(o, "ConfigMap")["metadata"].update(namespace="kubeflow"),
    "a queue for nobody": lambda o: pick(o, "ClusterQueue")["spec"].pop("namespaceSelector"),
    "the same twice": lambda o: o.append(copy.deepcopy(pick(o, "ConfigMap"))),
    "a number in a ConfigMap": lambda o: pick(o, "ConfigMap")["data"].update(workers=1),
    "a ConfigMap that Argo ignores": lambda o: pick(o, "ConfigMap")["metadata"]["labels"].pop(
        "workflows.argoproj.io/configmap-type"
    ),
    "an unknown field of Argo": lambda o: workflow(o).update(on_exit="remove-jobs"),
    "no exit handler": lambda o: workflow(o).update(onExit="remove-job"),
    "no such template": lambda o: tasks(o)[2].update(template="trian"),
    "no such dependency": lambda o: tasks(o)[2].update(dependencies=["tokenise"]),
    "no such parameter": lambda o: step(o, "train")["container"]["args"].append("{{workflow.parameters.rute}}"),
    "no such output": lambda o: tasks(o)[5].update(when="{{tasks.gates.outputs.result}} == true"),
    "no retry of lost nodes": lambda o: step(o, "train")["retryStrategy"].update(retryPolicy="OnFailure"),
    "retries for ever": lambda o: step(o, "train")["retryStrategy"].pop("limit"),
    "a step as root": lambda o: workflow(o)["securityContext"].update(runAsUser=0),
    "a step that writes": lambda o: step(o, "train")["container"]["securityContext"].pop("readOnlyRootFilesystem"),
    "a step without limits": lambda o: step(o, "train")["container"].pop("resources"),
    "a step with a secret": lambda o: step(o, "train")["container"]["env"].append(
        {"name": "WANDB_API_KEY2", "value": "abc"}
    ),
    "an endless disk": lambda o: workflow(o)["volumes"][0].update(emptyDir={}),
    "no such queue": lambda o: pick(o, "LocalQueue")["spec"].update(clusterQueue="hanfow"),
    "an unknown field of Kueue": lambda o: pick(o, "LocalQueue")["spec"].update(cohort="x"),
    "no such flavor": lambda o: pick(o, "ClusterQueue")["spec"]["resourceGroups"][0]["flavors"][0].update(name="l5"),
    "an uncovered resource": lambda o: pick(o, "ClusterQueue")["spec"]["resourceGroups"][0].update(
        coveredResources=["cpu", "memory"]
    ),
    "an old version": lambda o: pick(o, "WorkflowTemplate").update(apiVersion="argoproj.io/v1alpha2"),
}


def demo_pod(objects: list[Document]) -> Document:
    found: Document = pick(objects, "Deployment", "hanflow-demo")["spec"]["template"]["spec"]
    return found


def demo(objects: list[Document]) -> Document:
    found: Document = demo_pod(objects)["containers"][0]
    return found


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mistake_is_found(what: str) -> None:
    objects = copy.deepcopy(read(".", "argo", "kueue/gpu"))  # anchors of the file are one object each
    MUTATIONS[what](objects)
    assert problems(objects) != []


def test_a_key_given_twice_is_found() -> None:
    with pytest.raises(yaml.YAMLError, match="given twice"):
        documents("kind: A\nmetadata: {name: a, name: b}\n")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_are_valid_and_apply_their_settings(overlay: str) -> None:
    objects = documents(kubectl("kustomize", str(MANIFESTS / "overlays" / overlay)))
    assert problems(objects) == []
    assert sorted(map(identity, objects)) == sorted(map(identity, read("."))), "the overlay needs no operator either"
    lines = (MANIFESTS / "overlays" / overlay / "settings.env").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    held = pick(objects, "ConfigMap")
    assert held["data"] == settings, "the overlay sets every key of the base"
    account = pick(objects, "ServiceAccount")["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]
    assert account == settings["service-account"]
    assert demo(objects)["image"] == settings["demo-image"]
    registry = f"{settings['image-repository']}/hanflow-cpu:{settings['image-tag']}"
    assert settings["image"] == registry
    assert settings["runtime"] == {"gke-gpu": "auto", "gke-tpu": "tpu"}[overlay]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_of_another_project_has_its_name_everywhere(overlay: str, tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    settings = tmp_path / "manifests" / "overlays" / overlay / "settings.env"
    settings.write_text(settings.read_text(encoding="utf-8").replace("my-project", "another-one"), encoding="utf-8")
    text = kubectl("kustomize", str(settings.parent))
    assert "my-project" not in text and "another-one" in text


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_jobs_of_an_overlay_can_be_built(overlay: str) -> None:
    """The ConfigMap's settings of jobs pass the settings' own checks, and give a job that fits the queue beside it."""
    from hanflow.cluster.job import Origin
    from hanflow.cluster.runtimes import AUTOMATIC, build, pod_templates
    from hanflow.config import TrainConfig
    from hanflow.config.worker_spec import WorkerSpec
    from hanflow.experiment import step_config
    from hanflow.experiment.loading import parse_text

    objects = documents(kubectl("kustomize", str(MANIFESTS / "overlays" / overlay)))
    objects += read(f"kueue/{overlay.removeprefix('gke-')}")
    held = {**pick(objects, "ConfigMap")["data"], "queue": pick(objects, "LocalQueue")["metadata"]["name"]}
    names = ("runtime", "workers", "gpus", "accelerator", "spot", "queue")
    job = step_config("job", {name: parse_text("job", name, held[name]) for name in names})
    work = WorkerSpec("summarization", TrainConfig(), "gs://b/shards", "gs://b/model")
    kinds = AUTOMATIC if job.runtime == "auto" else (job.runtime,)
    built = [build(dataclasses.replace(job, runtime=kind), work, Origin("run")) for kind in kinds]
    for *_, body in built:
        assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == held["queue"]
    templates = [template for made in built for template in pod_templates(*made)]
    [group] = pick(objects, "ClusterQueue")["spec"]["resourceGroups"]
    asked = {key for t in templates for key in t["spec"]["containers"][0]["resources"]["requests"]}
    assert asked <= set(group["coveredResources"]), "Kueue never admits a job that requests other resources"
    flavor = pick(objects, "ResourceFlavor", group["flavors"][0]["name"])["spec"]["nodeLabels"]
    for template in templates:
        assert flavor.items() <= template["spec"]["nodeSelector"].items()
    policy = pick(objects, "NetworkPolicy", "hanflow-jobs")["spec"]["podSelector"]["matchLabels"]
    for template in templates:
        assert policy.items() <= template["metadata"]["labels"].items(), "the policy selects the jobs' pods"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_jobs_to_apply_by_hand_fit_the_installation(overlay: str) -> None:
    """Account, network policy and ConfigMap are those of the overlay."""
    from hanflow.cluster.runtimes import pod_templates

    objects = documents(kubectl("kustomize", str(MANIFESTS / "overlays" / overlay)))
    held, policy = pick(objects, "ConfigMap")["data"], pick(objects, "NetworkPolicy", "hanflow-jobs")["spec"]
    jobs = read("jobs")
    assert {job["kind"] for job in jobs} == {"TrainingRuntime", "TrainJob", "PyTorchJob", "JobSet"}
    for job in jobs:
        for template in pod_templates(job):
            assert pick(objects, "ServiceAccount", template["spec"]["serviceAccountName"])
            assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
            for variable in template["spec"]["containers"][0]["env"]:
                reference = variable.get("valueFrom", {}).get("configMapKeyRef")
                assert reference is None or (reference["name"] == "hanflow" and reference["key"] in held)


def test_the_demo_can_show_a_claim(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    overlay = tmp_path / "manifests" / "overlays" / "mine"
    overlay.mkdir()
    kustomization = {"resources": ["../../base"], "components": ["../../components/demo-claim"]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    objects = documents(kubectl("kustomize", str(overlay)))
    assert problems(objects) == []
    assert demo(objects)["env"] == [{"name": "BUNDLE", "value": "/bundle"}]
    assert {"name": "bundle", "mountPath": "/bundle", "readOnly": True} in demo(objects)["volumeMounts"]


# --- what the role allows, and what the code asks for


def test_the_role_allows_what_the_launcher_asks_for_and_no_more() -> None:
    """Every request in the launcher's source, by method and path."""
    from hanflow.cluster.runtimes import BY_KIND, KINDS

    verbs = {"GET": {"get", "list", "watch"}, "POST": {"create"}, "DELETE": {"delete"}}
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "hanflow" / "cluster").glob("*.py"))
    methods = set(re.findall(r'request\(\s*"([A-Z]+)"', source))
    assert methods == set(verbs)
    allowed: dict[str, set[str]] = {}
    for rule in pick(read("."), "Role")["rules"]:
        for resource in rule["resources"]:
            allowed[resource] = set(rule["verbs"])
    jobs = {runtime.plural for runtime in BY_KIND.values()}
    for resource in jobs:
        assert allowed[resource] == set().union(*verbs.values())
    templates = {kind.plural for kind in KINDS.values()} - jobs
    assert templates == {"trainingruntimes"} and allowed["trainingruntimes"] == {"create", "get", "list", "delete"}
    assert allowed["pods"] == {"get", "list", "watch"}
    assert allowed["pods/log"] == {"get"} and allowed["events"] == {"list"}
    others = {"localqueues/pendingworkloads", "workflowtaskresults", "configmaps"}
    assert set(allowed) == jobs | templates | {"pods", "pods/log", "events"} | others
    core = set(re.findall(r"/api/v1/namespaces/\{+[a-z._]*namespace\}+/(\w+)", source))
    assert core == {"pods", "events"}, "a further request needs a further rule of the role"


def test_the_guide_names_every_right() -> None:
    rights = (MANIFESTS / "README.md").read_text(encoding="utf-8").partition("\n## Rights\n")[2].partition("\n## ")[0]
    named = dict(re.findall(r"^\| `([^`]+)`[^|]*\| ([^|]+) \|", rights, re.MULTILINE))
    allowed = {
        resource_name(resource, group): ", ".join(rule["verbs"])
        for rule in pick(read("."), "Role")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert named == allowed


# --- images


def test_the_images_are_this_versions() -> None:
    held = pick(read("."), "ConfigMap")["data"]
    assert held["image"] == DEFAULT.cpu and held["demo-image"] == DEFAULT.demo == demo(read("."))["image"]
    assert (held["image-repository"], held["image-tag"]) == (DEFAULT.repository, DEFAULT.tag)


# --- the guide


def test_the_guide_names_what_exists() -> None:
    from hanflow.cli.main import make_parser
    from hanflow.experiment import all_settings
    from hanflow.experiment.form import form_of
    from hanflow.pipelines.packages import PIPELINES

    text = (MANIFESTS / "README.md").read_text(encoding="utf-8")
    known = {s.dotted for task in PIPELINES[:3] for s in all_settings(task)}
    named = set(re.findall(r"--set ([a-z_]+\.[a-z_]+)=", text))
    named |= {
        name
        for name in re.findall(r"`([a-z]+\.[a-z_]+)`", text)
        if name.split(".")[0] in {s.step for s in all_settings()}
    }
    assert len(named) > 25 and named <= known, named - known
    given = set(re.findall(r" ([a-z_]+)=", text.partition("kfp --endpoint")[2].partition("```")[0]))
    assert given and given <= {"settings", *(field.name for field in form_of("summarization"))}
    for path in re.findall(r"(?:-[fk]|apply|sed[^\n]*) (manifests[\w/.-]*)", text):
        assert (ROOT / path.rstrip("/.…")).exists(), path
    for command in re.findall(
        r"^hanflow submit .*?[^\\]$", text.replace("   hanflow", "hanflow"), re.MULTILINE | re.DOTALL
    ):
        words = command.replace("\\\n", " ").replace("…", "--endpoint http://x").split()
        assert make_parser()[0].parse_args(words[1:]).pipeline == "summarization"
    labels = set(re.findall(r"-l ([a-z/]+)=", text))
    from hanflow.cluster.job import RUN_LABEL

    assert labels == {RUN_LABEL}


# --- linters and secrets


EXCUSED = {
    "CKV_K8S_15": "a tag that never changes need not be pulled at every start",
    "CKV_K8S_43": "digests depend on the registry that the images are pushed to",
    "CKV_K8S_40": "the images' user is 1000",
    "CKV_K8S_35": "the hub's and the tracker's libraries read their keys from the environment",
}
EXCUSED_STEPS = {
    "CKV_K8S_38": "Argo's executor reports to the cluster",
    "CKV_K8S_8": "a step ends, and Argo watches for its end",
    "CKV_K8S_9": "a step serves no requests",
}
"""Checks that do not apply to the steps of a workflow."""


def test_checkov_finds_nothing(tmp_path: Path) -> None:
    """checkov knows pods, not workflows: it gets the steps as pods, and one more that is insecure."""
    checkov = os.environ.get("CHECKOV") or shutil.which("checkov") or str(ROOT / ".checkov" / "bin" / "checkov")
    if not Path(checkov).is_file():
        pytest.skip("checkov is not installed: `make .checkov`, or set CHECKOV to the program")
    objects = read(".")
    for each in objects:  # they name no namespace: whoever applies them does
        each["metadata"]["namespace"] = "kubeflow"
    steps = workflow_pods(pick(read("argo"), "WorkflowTemplate"))
    steps["insecure"] = copy.deepcopy(steps["train"])
    steps["insecure"]["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    for name, pod in steps.items():
        pod["spec"]["containers"][0]["image"] = DEFAULT.cpu
        metadata = {"name": name, "namespace": "kubeflow"}
        objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]})
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(copy.deepcopy(objects)), encoding="utf-8")
    done = subprocess.run(
        [
            checkov,
            "--framework",
            "kubernetes",
            "--skip-download",
            "--compact",
            "-o",
            "json",
            "-f",
            str(tmp_path / "all.yaml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    results = json.loads(done.stdout)["results"]
    passed = {check["resource"].rpartition(".")[2] for check in results["passed_checks"]}
    assert passed >= {"hanflow-demo", "hanflow", *steps} - {"insecure"}, "all were checked"
    failed: dict[str, set[str]] = {}
    for check in results["failed_checks"]:
        name = check["resource"].rpartition(".")[2]
        excused = {**EXCUSED, **(EXCUSED_STEPS if name in steps else {})}
        if check["check_id"] not in excused:
            failed.setdefault(name, set()).add(f"{check['check_id']} {check['check_name']}")
    assert any("privileged" in text for text in failed.pop("insecure")), "the insecure one is found"
    assert failed == {}


SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20,}|AIza[0-9A-Za-z_-]{30,}|ya29\.|-----BEGIN|\"private_key\"|gh[pousr]_[A-Za-z0-9]{30,}|eyJ[A-Za-z0-9_-]{20,}|\b[0-9a-f]{40}\b"
)
"""Tokens of Hugging Face, Google, GitHub, JSON Web Tokens, private keys, and Weights & Biases' 40 hexadecimal digits."""


def test_no_secret_is_in_a_package_or_a_manifest() -> None:
    committed = [*MANIFESTS.rglob("*"), *(ROOT / "pipelines").rglob("*.yaml")]
    looked_at = [path for path in committed if path.is_file()]
    assert len(looked_at) > 20
    for path in looked_at:
        found = SECRET.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path}: {found and found[0][:8]}…"
        assert not any(document.get("kind") == "Secret" for document in _mappings(path)), f"{path}: holds a Secret"


def test_a_secret_would_be_found() -> None:
    for text in (
        "hf_" + "a" * 34,
        "eyJ" + "h" * 30,
        "-----BEGIN PRIVATE KEY-----",
        "0123456789abcdef" * 2 + "01234567",
    ):
        assert SECRET.search(f"key: {text}")


def _mappings(path: Path) -> list[Document]:
    if path.suffix != ".yaml":
        return []
    return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if isinstance(d, dict)]


def test_a_packages_secrets_are_references() -> None:
    """Variables that hold secrets refer to Secrets; no parameter is meant for one (their values are logged)."""
    from hanflow.experiment import all_settings
    from hanflow.pipelines.packages import PIPELINES

    names = [s.name for task in PIPELINES[:3] for s in all_settings(task)]
    assert [n for n in names if re.search(r"api_key|password|_token$|credential", n)] == []
    for path in (ROOT / "pipelines" / "compiled").glob("*.yaml"):
        _, platform = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        variables = {e["envVar"] for x in executors.values() for s in x.get("secretAsEnv", ()) for e in s["keyToEnv"]}
        assert variables == {"WANDB_API_KEY", "HF_TOKEN"}
