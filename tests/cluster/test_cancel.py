"""`hanflow cancel`: the run at a server that plays Kubeflow Pipelines, its jobs on the real cluster."""

from __future__ import annotations

import pytest

from hanflow.cli.main import main
from hanflow.cluster.client import NotFound
from tests.cluster.world import World
from tests.pipelines.kfp_server import KfpServer, Look, serve

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
def test_cancel_removes_the_jobs_of_the_run_alone(world: World, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(KfpServer()) as server:
        run = server.add_run(Look(state))
        mine = [world.body("sleep 300", runtime=runtime, run=run) for runtime in ("pytorchjob", "tpu")]
        other = world.body("sleep 300")
        for body in (*mine, other):
            world.create(body)
        namespace = world.cluster.namespace
        assert main(["cancel", run, "--endpoint", server.url, "--job-namespace", namespace]) == 0
        terminated = f"POST /apis/v2beta1/runs/{run}:terminate" in server.requests
    assert terminated == (state == "RUNNING"), "a run that has ended is not asked to end"
    removed = capsys.readouterr().out
    for body in mine:
        assert body["metadata"]["name"] in removed

        def gone(body: dict[str, object] = body) -> bool:
            try:
                return bool(world.job(body)["metadata"].get("deletionTimestamp"))
            except NotFound:
                return True

        world.wait("its end", gone)
    assert not world.job(other)["metadata"].get("deletionTimestamp")
    world.delete(other)
