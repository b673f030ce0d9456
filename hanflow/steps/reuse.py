"""Artifacts of earlier attempts: a step whose artifact exists already, from the same settings, inputs and code, is not run.

An earlier attempt is an interrupted `hanflow run`, or the pod of a step that was lost after it had committed its artifact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hanflow.config import to_mapping
from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.progress import EVENTS_VARIABLE, log, read_events
from hanflow.storage import exists, fetched, join, manifest_at, nothing
from hanflow.storage.artifacts import Manifest, kind_of, numbered
from hanflow.version import program_version

_fits: dict[str, Callable[[Manifest], bool]] = {}


def reads_sources(step: str, fit: Callable[[Manifest], bool]) -> None:
    """Register a step that reads more than its inputs.

    Args:
        fit: whether that is still what an artifact was made of, by its manifest; raises UserError where it is gone.
    """
    _fits[step] = fit


def finished_before(
    step: str,
    values: Mapping[str, Any],
    *,
    task: str,
    called: str = "",
    **inputs: str | Sequence[str],
) -> dict[str, Any] | None:
    """The `finished` event of the step by an earlier process of this run; None: there is none.

    Its artifact must be complete, made by this version with the same settings, from the same parents.

    Args:
        step: name of the step.
        values: its settings.
        task: name of the task.
        called: its name in the run, where the step runs several times; empty: that of the step.
        inputs: kind of each input artifact → its URI, or the URIs of several models.
    """
    event = _last_finish(called or step)
    if event is None:
        return None
    return event if _fitting(event["artifact"], step, values, task, inputs) else None


def left_at(
    output: str,
    step: str,
    values: Mapping[str, Any],
    *,
    task: str,
    **inputs: str | Sequence[str],
) -> Manifest | None:
    """The manifest of the artifact that an earlier attempt of the step left at `output`; None: there is none.

    Args:
        output: where the step is about to write.
        step, values, task, inputs: see `finished_before`.
    """
    if not exists(join(output, f"{kind_of(step)}.json")):
        return None
    return _fitting(output, step, values, task, inputs)


def _fitting(
    uri: str,
    step: str,
    values: Mapping[str, Any],
    task: str,
    inputs: Mapping[str, str | Sequence[str]],
) -> Manifest | None:
    """The manifest of a complete artifact that this version makes of these settings and parents; None: it is another."""
    try:
        _, manifest = fetched(uri, kind_of(step), task=task, only=nothing)
        parents: dict[str, str] = {}
        for name, uris in inputs.items():
            if isinstance(uris, str):
                parents[name] = manifest_at(uris, name).digest
            else:
                parents |= numbered([manifest_at(uri, "model") for uri in uris])
    except UserError as error:
        log.warning("%s runs again: %s", step, error)
        return None
    settings = json.loads(json.dumps(to_mapping(step_config(step, values, task))))
    wanted = {"the settings": settings, "the inputs": parents, "the code": program_version(step, manifest.task)}
    found = {"the settings": manifest.config, "the inputs": manifest.parents, "the code": manifest.program}
    changed = [name for name in wanted if wanted[name] != found[name]]
    if not changed and not _sources_fit(step, manifest, uri):
        changed.append("the sources")
    if changed:
        log.info("%s runs again: %s changed since %s was made", step, " and ".join(changed), uri)
    return None if changed else manifest


def _sources_fit(step: str, manifest: Manifest, uri: str) -> bool:
    try:
        return step not in _fits or _fits[step](manifest)
    except (UserError, OSError) as error:
        log.warning("%s is kept, although its sources are no longer there: %s", uri, error)
        return True


def _last_finish(step: str) -> dict[str, Any] | None:
    path = os.environ.get(EVENTS_VARIABLE)
    if not path:
        return None
    finished = [event for event in read_events(Path(path)) if (event["event"], event["step"]) == ("finished", step)]
    return finished[-1] if finished else None
