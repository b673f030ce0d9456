"""The train step as one of several that run side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from components.shared.config import settings_of
from components.shared.steps import Report, Run
from components.train import launch

SIDE_BY_SIDE_VARIABLE = "HANFLOW_SIDE_BY_SIDE"
"""Environment variable: how many train steps share this machine; absent: it is this one's alone."""


def chosen_run(arguments: Mapping[str, Any]) -> tuple[Run, dict[str, Any]]:
    """The function that trains a member, in this process or as a job, and its settings of the train step.

    Args:
        arguments: the component's: `member`, `job_…`, `run_id`, `task_config`.

    Raises:
        ConfigError: the job's settings are wrong.
    """
    values = {key: value for key, value in arguments["member"].items() if key not in ("name", "job")}
    own = arguments["member"].get("job") or {}
    job = {s.parameter: own[s.name] for s in settings_of("job") if s.name in own}
    chosen = launch.chosen_run({**arguments, **job})

    def run(*positional: Any, **named: Any) -> Report:
        _share_processors()
        return chosen(*positional, **named)

    return run, values


def _share_processors() -> None:
    """Use this machine's processors as far as they are not those of the other members."""
    sharers = int(os.environ.get(SIDE_BY_SIDE_VARIABLE, 1))
    if sharers > 1:
        import torch

        # More threads than processors would wait for each other.
        threads = max(1, torch.get_num_threads() // sharers)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of worker processes, if it starts any
        torch.set_num_threads(threads)
