"""The model card: what someone needs to know before using a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import yaml

from hanflow.config import ExportConfig, without_places
from hanflow.storage.artifacts import Manifest, trainings
from hanflow.tasks.base import Task

SHOWN_SETTINGS = (
    "pretrained",
    "architecture",
    "epochs",
    "max_steps",
    "batch_tokens",
    "batch_size",
    "accumulation",
    "learning_rate",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "clip_norm",
    "label_smoothing",
    "seed",
)
"""Training settings in the card; the others are in training.json and bundle.json."""


def model_card(
    config: ExportConfig,
    task: Task,
    training: Mapping[str, Any],
    model: Manifest,
    shards: Manifest,
    evaluation: Manifest,
    formats: Mapping[str, Mapping[str, Any]],
    skipped: Mapping[str, str],
) -> str:
    """Markdown with the front matter that the Hugging Face hub reads.

    Args:
        config: title, licence, intended use.
        task: the task of the model.
        training: training.json of the model.
        model, shards, evaluation: manifests of the bundle's parents.
        formats: folder of every format of the bundle → result of its comparison with the trained model.
        skipped: formats left out, with the reason.
    """
    card, systems = task.card(), evaluation.details["systems"]
    title = config.title or "model"
    front = {
        "language": "ko",
        "library_name": "transformers",
        "pipeline_tag": card["pipeline_tag"],
        **({"license": config.license.lower()} if config.license else {}),
        "metrics": list(next(iter(systems.values()))),
        "tags": ["hanflow", task.name],
    }
    rows = shards.counts["rows"]
    parts = [
        f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---",
        f"# {title}",
        f"A Korean {task.name.replace('_', ' ')} model of {training['parameters']:,} parameters, trained with "
        f"{model.program}.",
        "## Use",
        *_use(card, formats),
        "## Formats",
        *_formats(formats, skipped),
        "Written, opened again and compared with "
        + ", ".join(f"{name} {version}" for name, version in libraries(formats).items())
        + ". Later versions of the same main number open it too.",
        "## Intended use",
        config.intended_use or "Not stated.",
        "## Scores",
        f"Means over {evaluation.counts['rows']:,} rows of the {evaluation.counts['split']} split; the name of a score "
        "ends with its tokenization: scores are comparable only under the same one.",
        _table(
            ["system", *next(iter(systems.values()))],
            [[n, *(f"{v:.4f}" for v in s.values())] for n, s in systems.items()],
        ),
        "## Data",
        _table(["split", "rows", "tokens"], [[s, f"{rows[s]:,}", f"{shards.counts['tokens'][s]:,}"] for s in rows]),
        f"{shards.counts['tokens_per_character']:.3f} tokens a character; vocabulary of "
        f"{shards.counts['vocabulary']:,}; rows truncated: "
        + ", ".join(f"{n:,} ({name})" for name, n in shards.counts["truncated"].items())
        + ".",
        "## Training",
        *(part for name, facts in trainings(training).items() for part in _training(name, facts)),
        "## Licence",
        config.license
        or "No licence was stated for these weights. Ask whoever published them, and respect the licence of the training data.",
        "## Limits",
        "The model produces what its training data makes likely, which is not always true. It was scored only on held-out "
        "rows of the same source: evaluate it on your own texts before relying on it.",
        "## Lineage",
        _table(
            ["artifact", "digest"],
            [[k, f"`{v}`"] for k, v in {**evaluation.parents, "evaluation": evaluation.digest}.items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def libraries(formats: Iterable[str]) -> dict[str, str]:
    """Name → version of each library that a bundle of these formats was written and opened again with."""
    ready = any(name.startswith("ctranslate2") for name in formats)
    names = ["transformers", "tokenizers", "torch", *(["ctranslate2"] if ready else [])]
    return {name: metadata.version(name).partition("+")[0] for name in names}


def _training(name: str, facts: Mapping[str, Any]) -> list[str]:
    """How the model, or one member of an ensemble, was trained."""
    settings = without_places(facts["settings"])
    return [
        (f"The member {name}: " if name else "") + f"{facts['steps']:,} optimizer steps in {facts['precision']} on "
        f"{facts['world_size']} × {facts['device']} (torch {facts['torch']}); the saved model is that of step "
        f"{(facts['best'] or {'step': facts['steps']})['step']:,}.",
        _table(["setting", "value"], [[k, f"`{settings[k]}`"] for k in SHOWN_SETTINGS if settings[k]]),
    ]


def _use(card: Mapping[str, Any], formats: Mapping[str, Any]) -> list[str]:
    """An example for each kind of format."""
    parts = []
    if "huggingface" in formats:
        parts += ["With transformers:", f"```python\n{card['example']}\n```"]
    ready = next((name for name in formats if name.startswith("ctranslate2/")), None)
    if ready:
        example = card["ctranslate2_example"].replace("ctranslate2/float32", ready)
        parts += ["With CTranslate2, several times faster on a CPU:", f"```python\n{example}\n```"]
    return parts


def _formats(formats: Mapping[str, Mapping[str, Any]], skipped: Mapping[str, str]) -> list[str]:
    """A table of the folders, and why one is missing."""
    rows = []
    for name, entry in formats.items():
        found = [f"{entry['equal_texts']:.1%} of the compared texts are equal"]
        found += [f"{metric} {value:+.4f}" for metric, value in entry.get("score_difference", {}).items()]
        rows.append([f"`{name}`", f"{entry['bytes'] / 1e6:,.1f}", "; ".join(found)])
    reasons = [f"No {name}: {reason}." for name, reason in skipped.items()]
    return [_table(["folder", "MB", "reloaded, compared with the trained model"], rows), *reasons]


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
