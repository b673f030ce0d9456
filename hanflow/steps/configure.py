"""The form of a pipeline → the settings of every step, checked before anything else starts.

Each step gets its own settings alone, so that Kubeflow's cache runs again just the steps whose settings have changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hanflow.config import to_mapping
from hanflow.errors import UserError
from hanflow.experiment import STEPS, Experiment, member_settings
from hanflow.experiment.form import MEMBERS, from_form
from hanflow.own_files import parse_yaml
from hanflow.progress import emit, set_step, setup_logging

PLACED = ("preprocess", "tokenize", "train", "evaluate", "export")
"""Steps whose pods have CPUs and memory of their own."""
OUTPUTS = (
    *STEPS,
    "job",
    "members",
    "node_selector",
    "tolerations",
    *(f"{step}_{resource}" for step in PLACED for resource in ("cpu", "memory")),
)
"""Names of what `run` returns, in order."""


def run(
    task: str,
    *,
    base: Mapping[str, Any],
    form: Mapping[str, Any],
    own: Mapping[str, Any],
    members: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The settings of every step of a pipeline.

    Args:
        task: name of the task.
        base: settings that the pipeline starts from: section → name → value.
        form: parameters that every pipeline has.
        own: those that the forms of some tasks have, as text; empty: it is not on this one.
        members: of an ensemble; empty: one model is trained.
        settings: further settings, section → name → value; they win.

    Returns:
        Name of `OUTPUTS` → value.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    setup_logging()
    set_step("configure")
    try:
        values = {**form, **{name: parse_yaml(str(text), name) for name, text in own.items() if text != ""}}
        if members:
            values.pop("model", None)
            values[MEMBERS] = list(members)
        experiment = from_form(task, base, values, settings)
    except UserError as error:
        emit("failed", message=str(error), expected=True)
        raise
    return outputs_of(experiment)


def outputs_of(experiment: Experiment) -> dict[str, Any]:
    """The settings of every step of a pipeline, from an experiment: name of `OUTPUTS` → value."""
    cluster = to_mapping(experiment.cluster)
    return {
        **{step: experiment.settings(step) for step in STEPS},
        "job": to_mapping(experiment.job),
        "members": member_settings(experiment),
        "node_selector": cluster["node_selector"],
        "tolerations": cluster["tolerations"],
        **{f"{step}_{kind}": cluster[f"{step}_{kind}"] for step in PLACED for kind in ("cpu", "memory")},
    }


def job_namespaces(
    runtime: str,
    base: Mapping[str, Any],
    members: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None,
) -> list[str]:
    """The namespaces where a form lets jobs train, "" for the step's own; for what cleans up even after `run` has failed.

    Args:
        runtime: where training runs by the form.
        base, members, settings: see `run`; unchecked.
    """
    further = (settings or {}).get("job") or {}
    shared = {**base.get("job", {}), "runtime": runtime, **(further if isinstance(further, Mapping) else {})}
    own = [member.get("job") or {} for member in members if isinstance(member, Mapping)]
    jobs = [shared, *({**shared, **job} for job in own if isinstance(job, Mapping))]
    return list(dict.fromkeys(str(job.get("namespace") or "") for job in jobs if job["runtime"] != "local"))
