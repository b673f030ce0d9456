"""`hanflow submit`, `watch`, `retry`, `cancel` and `kfp run create` against a server that plays Kubeflow Pipelines over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hanflow.cli import submit as remote
from hanflow.cli.main import main
from hanflow.experiment.form import form_of
from hanflow.pipelines import kubeflow
from tests.pipelines.kfp_server import FAILURE, SUCCESS, KfpServer, Look, serve, task

ROOT = Path(__file__).parents[2]
TOKEN = "eyJ-this-is-a-secret-token"
SOURCE = "--set=preprocess.source=gs://bucket/raw.tsv"


@pytest.fixture
def server() -> Iterator[KfpServer]:
    with serve(KfpServer()) as server:
        yield server


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable and no ~/.config/kfp of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("KF_PIPELINES", "KFP_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr("kfp.client.client.Client._LOCAL_KFP_CONTEXT", "/nowhere/context.json")


def spec_of(body: dict[str, Any]) -> dict[str, Any]:
    """The pipeline of a run; kfp puts one that is bound to Kubernetes into a wrapping of its own."""
    package: dict[str, Any] = body["pipeline_spec"]
    return package.get("pipeline_spec", package)


def submit(server: KfpServer, *arguments: str) -> int:
    return main(["submit", "summarization", "--endpoint", server.url, SOURCE, "--every=0.02", *arguments])


def test_submit_starts_the_run_and_prints_its_link(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(server, "--set=train.epochs=7", "--root=gs://bucket/runs", "--service-account=hanflow") == 0
    [run] = server.runs
    shown = capsys.readouterr()
    assert f"{server.url}/#/runs/details/{run}" in shown.out.splitlines()
    assert "Experiment details" not in shown.out, "kfp's own chatter is dropped"
    body = server.runs[run]
    assert body["runtime_config"]["pipeline_root"] == "gs://bucket/runs"
    assert body["service_account"] == "hanflow"
    assert list(server.experiments) == ["hanflow"]
    parameters = body["runtime_config"]["parameters"]
    assert set(parameters) == {field.name for field in form_of("summarization")} | {"settings"}
    assert parameters["epochs"] == 7 and parameters["data"] == "gs://bucket/raw.tsv"
    assert not [request for request in server.requests if request.startswith(f"GET /apis/v2beta1/runs/{run}")]


def test_submit_takes_the_images_of_another_registry(server: KfpServer) -> None:
    assert submit(server, "--image-repository=europe-docker.pkg.dev/mine/hanflow", "--image-tag=abc123") == 0
    [body] = server.runs.values()
    executors = spec_of(body)["deploymentSpec"]["executors"]
    assert {e["container"]["image"] for e in executors.values()} == {
        "europe-docker.pkg.dev/mine/hanflow/hanflow-cpu:abc123"
    }


def test_no_cache_reaches_every_step(server: KfpServer) -> None:
    assert submit(server) == submit(server, "--no-cache") == 0
    cached, uncached = (json.dumps(spec_of(body)) for body in server.runs.values())
    assert '"enableCache": true' in cached and '"cachingOptions"' in uncached
    assert '"enableCache": true' not in uncached


def test_secrets_of_the_environment_are_in_no_package(server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(variable, TOKEN)
    assert submit(server, "--set=train.wandb=true") == 0
    [body] = server.runs.values()
    assert "WANDB_API_KEY" in json.dumps(body) and TOKEN not in json.dumps(body)


def test_the_same_group_is_used_again(server: KfpServer) -> None:
    assert submit(server, "--group=신문") == submit(server, "--group=신문") == 0
    assert list(server.experiments) == ["신문"] and len(server.runs) == 2


def test_watch_shows_steps_and_the_end(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(server, "--watch") == 0
    shown = capsys.readouterr().out
    [run] = server.runs
    assert f"{server.url}/#/runs/details/{run}" in shown
    assert "preprocess …" in shown and "✔ preprocess" in shown and "1 min 03 s" in shown
    assert "tokenize skipped" in shown and "✔ train" in shown and "succeeded" in shown
    assert "root" not in shown and "driver" not in shown and "executor" not in shown and "exit-handler" not in shown
    assert shown.count("preprocess …") == 1, "each state is shown once"


def test_a_failed_run_fails_the_command(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = FAILURE
    assert submit(server, "--watch") == 1
    shown = capsys.readouterr()
    assert "✘ preprocess" in shown.out
    assert "the run is failed" in shown.err
    assert shown.err.splitlines()[-1] == "preprocess: raw.csv: no such file", "the reason stands last"


def test_watch_takes_an_id_or_a_link(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    for state, status in (("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)):
        run = server.add_run(Look("RUNNING"), Look(state))
        assert main(["watch", run, "--endpoint", server.url, "--every=0.02"]) == status
        link = f"{server.url}/#/runs/details/{run}"
        assert main(["watch", link, "--endpoint", server.url, "--every=0.02"]) == status
    assert "cancelled" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["watch", "retry", "cancel"])
def test_an_unknown_run_is_refused(server: KfpServer, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "0000-nothing", "--endpoint", server.url]) == 1
    assert "0000-nothing: no such run" in capsys.readouterr().err


def test_retry_continues_a_failed_run(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    run = server.add_run(*FAILURE[-1:])
    assert main(["retry", run, "--endpoint", server.url, "--watch", "--every=0.02"]) == 0
    assert f"POST /apis/v2beta1/runs/{run}:retry" in server.requests
    done = server.add_run(Look("SUCCEEDED"))
    assert main(["retry", done, "--endpoint", server.url]) == 1
    assert "is succeeded; only" in capsys.readouterr().err
    assert f"POST /apis/v2beta1/runs/{done}:retry" not in server.requests


def test_a_watch_continues_a_failed_run_as_often_as_asked(server: KfpServer) -> None:
    """A lost node fails a run: Kubeflow's own retries do not cover it."""
    server.script = FAILURE
    assert submit(server, "--watch", "--retries=2") == 0
    [run] = server.runs
    assert server.requests.count(f"POST /apis/v2beta1/runs/{run}:retry") == 1
    server.retried = FAILURE
    run = server.add_run(*FAILURE)
    assert main(["watch", run, "--endpoint", server.url, "--every=0.02", "--retries=2"]) == 1
    assert server.requests.count(f"POST /apis/v2beta1/runs/{run}:retry") == 2


def test_the_token_opens_the_door_and_is_never_shown(
    server: KfpServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server.token = TOKEN
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n", encoding="utf-8")
    assert submit(server, "--watch", f"--token-file={token_file}") == 0
    assert not [request for request in server.requests if request.startswith("refused")]
    token_file.write_text(f"{TOKEN}-old", encoding="utf-8")
    assert submit(server, f"--token-file={token_file}") == 1
    shown = capfd.readouterr()
    assert "401" in shown.err and "--token-file" in shown.err
    assert TOKEN not in shown.out + shown.err + caplog.text


def test_without_a_token_the_refusal_is_reported(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.token = TOKEN
    assert submit(server) == 1
    shown = capsys.readouterr().err
    assert "401" in shown and "no valid user" in shown and "--token-file" in shown
    assert not server.runs


def test_a_renewed_token_is_taken_while_watching(server: KfpServer, tmp_path: Path) -> None:
    """A token of an hour's life, written anew beside a training of a day."""
    token_file = tmp_path / "token"
    token_file.write_text("first", encoding="utf-8")
    server.token = "first"
    run = server.add_run(Look("RUNNING"), Look("RUNNING"), Look("SUCCEEDED"))
    client = kubeflow.Server(server.url, token_file=str(token_file))
    looks = client.follow(run, 0.01, report=lambda line: token_file.write_text("second", encoding="utf-8"))
    assert next(looks).state == "RUNNING"
    server.token = "second"  # reporting the first refusal renews the token
    assert [seen.state for seen in looks] == ["RUNNING", "SUCCEEDED"]
    assert sum(request.startswith("refused") for request in server.requests) == 1


def test_a_login_page_is_no_server(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.login_page = True
    assert submit(server) == 1
    assert "login page" in capsys.readouterr().err


def test_a_multi_user_server_wants_a_namespace(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.multi_user = True
    assert submit(server) == 1
    assert "namespace" in capsys.readouterr().err
    assert submit(server, "--namespace=team") == 0
    assert server.experiments["hanflow"]["namespace"] == "team"


def test_an_unreachable_server_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert main(["watch", "some-run", "--endpoint", url]) == 1
    shown = capsys.readouterr().err
    assert url in shown and "does not answer" in shown and "refused" in shown and "port-forward" in shown
    assert "Traceback" not in shown and "urllib3" not in shown


def test_a_watch_survives_a_server_that_is_away(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    away = Look(status=503)
    run = server.add_run(Look("RUNNING"), away, away, away, *SUCCESS[-1:])
    assert main(["watch", run, "--endpoint", server.url, "--every=0.02"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("503") == 1 and shown.count("answers again") == 1


def test_a_watch_gives_up_in_the_end(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kubeflow, "PATIENCE_SECONDS", 0.1)
    run = server.add_run(Look("RUNNING"), Look(status=503))
    assert main(["watch", run, "--endpoint", server.url, "--every=0.02"]) == 1
    assert "503" in capsys.readouterr().err


def test_what_the_server_refuses_is_reported(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server._create = lambda body: (400, {"code": 3, "message": "parameter x is not a pipeline input"})  # type: ignore[method-assign]
    assert submit(server) == 1
    assert "parameter x is not a pipeline input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--endpoint=localhost:8080", SOURCE], "is not a URL"),
        (["--endpoint=", SOURCE], "--endpoint: is missing"),
        (["--endpoint=http://127.0.0.1:9"], "preprocess.source: is required"),
        (["--endpoint=http://127.0.0.1:9", SOURCE, "--set=train.epoch=3"], "did you mean train.epochs?"),
        (["--endpoint=http://127.0.0.1:9", SOURCE, "--token-file=/nowhere"], "/nowhere: no such file"),
        (["--endpoint=http://127.0.0.1:9", SOURCE, "--every=0"], "must be above 0"),
        (["--endpoint=http://127.0.0.1:9", SOURCE, "--image-tag=a b"], "image tag"),
    ],
)
def test_mistakes_are_reported_before_anything_is_sent(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "summarization", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_local_source_is_pointed_at(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(server, "--set=preprocess.source=/data/raw.tsv") == 0
    assert "/data/raw.tsv is not a gs:// URI" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["create", "submit"])
def test_kfps_own_command_line_takes_the_committed_package(server: KfpServer, verb: str, tmp_path: Path) -> None:
    package = ROOT / "pipelines" / "compiled" / "summarization.yaml"
    columns = {"preprocess": {"columns": {"source": "body"}}}
    settings = ["data=gs://bucket/raw.tsv", "epochs=5", f"settings={json.dumps(columns)}"]
    kfp = [sys.executable, "-c", "from kfp.cli.__main__ import main; main()", "--endpoint", server.url]
    done = subprocess.run(
        [*kfp, "run", verb, "-e", "hanflow", "-r", "a run", "-f", str(package), *settings],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [body] = server.runs.values()
    assert body["display_name"] == "a run"
    assert body["runtime_config"]["parameters"] == {
        "data": "gs://bucket/raw.tsv",
        "epochs": 5,
        "settings": columns,
    }


def test_a_cancelled_step_is_recognised() -> None:
    steps = (task("train", "CANCELED", 9), task("executor(0)", "FAILED"), task("condition-1", "SKIPPED"))
    with serve(KfpServer()) as server:
        run = kubeflow.Server(server.url).get(server.add_run(Look("CANCELED", steps)))
    assert [(step.name, step.state, step.seconds) for step in run.steps] == [("train", "CANCELED", 9.0)]


def test_a_run_that_does_not_end_keeps_its_jobs_and_says_so(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its step would start a removed job anew: the cluster is not asked."""
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    monkeypatch.setattr(remote, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(remote, "SETTLE_POLL_SECONDS", 0.01)
    run = server.add_run(Look("RUNNING"))
    server.cancelled = (Look("CANCELING"),)
    assert main(["cancel", run, "--endpoint", server.url]) == 1
    assert "still canceling" in capsys.readouterr().err


def test_cancel_without_a_cluster_says_so(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    assert main(["cancel", server.add_run(Look("CANCELED")), "--endpoint", server.url]) == 1
    assert "set KUBECONFIG" in capsys.readouterr().err
