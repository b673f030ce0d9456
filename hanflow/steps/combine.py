"""The combine step: several trained models as one model artifact that averages their predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hanflow.config import CombineConfig, to_mapping
from hanflow.errors import UserError
from hanflow.reports.step_report import Report
from hanflow.steps.runner import main
from hanflow.storage import artifacts, fetched, local_path, nothing, staged
from hanflow.storage.artifacts import Manifest
from hanflow.tasks import get_task
from hanflow.version import program_version


def run(config: CombineConfig, *, task: str, output: str, shards: str, models: Sequence[str]) -> Report:
    """Combine models that were trained on the same shards into one that evaluate and export take like any other.

    Args:
        shards: URI of the shards that all of them were trained on.
        models: URI of every member, in the order of `config.members` and `config.weights`.

    Returns:
        Figures: names of the `members`, and their `parameters` in total.

    Raises:
        UserError: the models do not fit together, or the task cannot combine any.
    """
    from hanflow.loading import pretrained

    chosen_task = get_task(task)
    names = _names(config, models)
    if config.weights and len(config.weights) != len(models):
        raise UserError(f"combine.weights: {len(config.weights)} weights for {len(models)} models; give one each")
    _, of_shards = fetched(shards, "shards", task=task, only=nothing)
    folders, manifests = {}, {}
    for name, uri in zip(names, models, strict=True):
        folder, manifests[name] = fetched(uri, "model", task=task)
        folders[name] = str(folder)
        artifacts.check_parent(manifests[name], of_shards, uri, shards)
    trainings = {name: _training(folder) for name, folder in folders.items()}
    combined = chosen_task.combine(folders, config.weights)
    training = {
        "settings": to_mapping(config),
        "history": {"train": [], "validation": []},
        "best": None,
        "steps": sum(facts["steps"] for facts in trainings.values()),
        "parameters": combined.num_parameters(),
        "members": trainings,
    }
    with staged(output, "model") as target:
        combined.save_pretrained(target)
        pretrained.load_tokenizer(folders[names[0]]).save_pretrained(target)
        (target / "training.json").write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
        parents = artifacts.lineage(of_shards) | artifacts.numbered(list(manifests.values()))
        counts = {"members": len(models), "steps": training["steps"], "parameters": training["parameters"]}
        details, program = artifacts.text_settings(of_shards), program_version("combine", task)
        artifacts.write_manifest(
            target, Manifest("model", task, to_mapping(config), counts, details, parents, program=program)
        )
    return Report({"members": ", ".join(names), "parameters": training["parameters"]})


def _names(config: CombineConfig, models: Sequence[str]) -> list[str]:
    """Names of the members: from the settings, or else numbered."""
    if not models:
        raise UserError("combine: there are no models; give the ensemble its members (combine.members)")
    if not config.members:
        return [f"member-{number}" for number in range(1, len(models) + 1)]
    try:
        names = [str(member["name"]) for member in config.members]
    except (KeyError, TypeError) as error:
        raise UserError(f"combine.members: every member needs a name ({error}); e.g. [{{name: rnn}}, …]") from None
    if len(set(names)) < len(names):
        raise UserError(f"combine.members: {', '.join(names)}: names have to differ")
    if len(names) != len(models):
        raise UserError(
            f"combine.members names {len(names)} ({', '.join(names)}), but there are {len(models)} models; give one name "
            "each, in the order of the models"
        )
    return names


def _training(folder: str) -> Mapping[str, Any]:
    training = artifacts.read_training(local_path(folder))
    if "members" in training:
        raise UserError(f"{folder}: is itself an ensemble; combine its members with the other models instead")
    return training


if __name__ == "__main__":
    sys.exit(main("combine", run, inputs=("shards",), lists=("models",)))
