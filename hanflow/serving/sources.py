"""What can be opened to predict: a bundle, a run's folder, a model that hanflow wrote, or one in Hugging Face format."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanflow.errors import UserError
from hanflow.experiment import load_experiment, step_config
from hanflow.progress import log
from hanflow.serving.bundle import Bundle, cleaning_of, open_bundle
from hanflow.storage import copy_file, exists, fetched, fetched_model, is_remote, join, local_path, manifest_at
from hanflow.storage.artifacts import KINDS, Manifest
from hanflow.tasks import chosen_task, get_task, known_tasks

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HUB_NAME = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
"""A possible name on the hub, not a mistyped folder: a request to the hub takes long where there is no network."""


def open_source(uri: str, changes: Mapping[str, Any] | None = None, *, task: str | None = None) -> Bundle:
    """A bundle, run or model, with the settings that belong to it; opened without its weights.

    Args:
        uri: a bundle; a run's folder (its bundle is taken, else its model); a model that hanflow wrote; a folder or hub
            name with a model in Hugging Face format. Each local or, but for the last, in a bucket.
        changes: settings of the evaluate step that differ from those the model was scored with.
        task: name of the task; None: that of the manifest, or of the architecture of a Hugging Face model.

    Raises:
        UserError: nothing there can predict, it is of another task, or a setting is wrong; the message names what was found.
    """
    changes = changes or {}
    for place in (uri, join(uri, "bundle")):
        if exists(join(place, "bundle.json")):
            if task is not None:
                manifest_at(place, "bundle", task=task)
            return open_bundle(place, changes)
    for place in (uri, join(uri, "model")):
        if exists(join(place, "model.json")):
            return _trained(place, changes, task)
    other = next((kind for kind in KINDS if exists(join(uri, f"{kind}.json"))), None)
    if other:
        raise UserError(f"{uri}: is a {other} artifact, which cannot predict; give a bundle, a model or a run's folder")
    if exists(join(uri, "experiment.yaml")):
        raise UserError(f"{uri}: is a run that has no model yet; wait until its train step has finished")
    for place in (_above(uri), _above(_above(uri))):  # huggingface/, or ctranslate2/int8/
        if exists(join(uri, "config.json")) and exists(join(place, "bundle.json")):
            log.info("%s: is a part of the bundle %s, which is opened", uri, place)
            return open_source(place, changes, task=task)
    return _pretrained(uri, changes, task)


def _above(uri: str) -> str:
    """The folder that something is in."""
    return uri.rstrip("/").rpartition("/")[0] if is_remote(uri) else str(local_path(uri).absolute().parent)


def _trained(uri: str, changes: Mapping[str, Any], task: str | None) -> Bundle:
    """A model that the train or the combine step wrote; its manifest has how its texts were cleaned and encoded."""
    folder, manifest = fetched(uri, "model", task=task)
    return Bundle.of(folder, manifest, changes, _scored_with(uri, manifest))


def _scored_with(uri: str, model: Manifest) -> Mapping[str, Any]:
    """The settings of the evaluate step that go with a model: of the evaluation beside it, or of the run's experiment."""
    evaluation, experiment = join(_above(uri), "evaluation"), join(_above(uri), "experiment.yaml")
    if exists(join(evaluation, "evaluation.json")):
        scored = manifest_at(evaluation, "evaluation")
        if scored.parents.get("model") == model.digest:
            return scored.config
    if exists(experiment):
        with tempfile.TemporaryDirectory() as folder:
            copy_file(experiment, Path(folder) / "experiment.yaml")
            # The task is the model's, which is known: whatever the file names as one is not imported.
            task = get_task(model.task).name
            return vars(load_experiment(Path(folder) / "experiment.yaml", [f"task={task}"], require=False).evaluate)
    log.info("%s: there is no evaluation beside this model, so it predicts with the default settings", uri)
    return {}


def _pretrained(uri: str, changes: Mapping[str, Any], task: str | None) -> Bundle:
    """A model in Hugging Face format that hanflow did not write: cleaning, encoding and search are the defaults."""
    from hanflow.loading.pretrained import load_config

    if is_remote(uri):
        place = fetched_model(uri)
    elif local_path(uri).is_dir():
        place = str(local_path(uri))
        if not exists(join(uri, "config.json")):
            raise UserError(
                f"{uri}: holds no bundle, run or model; give the folder that the export or the train step wrote"
            )
    elif _HUB_NAME.fullmatch(uri) and not Path(uri.partition("/")[0]).is_dir():
        place = uri
    else:
        raise UserError(
            f"{uri}: no such folder; give a bundle, a run, a model's folder or a name on the Hugging Face hub"
        )
    try:
        config = load_config(place)
    except UserError as error:
        raise UserError(f"{uri}: is not a bundle or run, and as a model: {error}") from None
    chosen = chosen_task(task or _task_of(config, uri))
    name = task or chosen.name
    encoding, positions = step_config("tokenize", {}, name), getattr(config, "max_position_embeddings", None)
    if positions and getattr(encoding, "max_source_tokens", 0) > positions:
        encoding = dataclasses.replace(encoding, max_source_tokens=positions)
    labels = [name for _, name in sorted(config.id2label.items())] if chosen.labels else []
    manifest = Manifest("model", chosen.name, {}, details={"facts": {"labels": labels}}, files=_files(place, config))
    settings = step_config("evaluate", dict(changes), name)
    return Bundle(Path(place), manifest, chosen, cleaning_of({}, name), encoding, settings)


def _task_of(config: PretrainedConfig, uri: str) -> str:
    """Name of the task whose kind of model the architecture in a config is.

    Raises:
        UserError: it is none of them.
    """
    from hanflow.loading.pretrained import fits

    architecture = (config.architectures or [""])[0]
    tasks = [get_task(name) for name in known_tasks()]
    for task in tasks:
        if architecture and fits(config, task.card()["auto_class"], architecture):
            return task.name
    generating = next((task.name for task in tasks if task.generates), "")
    if config.is_encoder_decoder and generating:  # saved without its head, as the base models of BART are
        return generating
    raise UserError(
        f"{uri}: its architecture is {architecture or 'not named'}, which is of no task; give one of {', '.join(known_tasks())} "
        "as the task if it can be loaded as such a model"
    )


def _files(place: str, config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """What distinguishes this model from another one, without reading its weights."""
    folder = Path(place)
    if not folder.is_dir():
        return {place: {"revision": getattr(config, "_commit_hash", None) or ""}}
    found = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    return {name: {"bytes": stat.st_size, "changed": stat.st_mtime_ns} for name, stat in found.items()}
