"""Pipelines as the YAML packages that Kubeflow takes."""

from __future__ import annotations

import ast
import importlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from hanflow.config import Experiment
from hanflow.images import DEFAULT, Images


def load_pipeline(name: str, defaults: Experiment, images: Images = DEFAULT) -> Any:
    """The pipeline of that name, its parameters starting from `defaults`, its steps on `images`."""
    return importlib.import_module(f"pipelines.{name}").make(defaults, images)


def compile_pipeline(name: str, defaults: Experiment, folder: Path, images: Images = DEFAULT) -> Path:
    """Write `<folder>/<name>.yaml` and return its path; an older one is replaced when the new one is whole."""
    from kfp import compiler

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.yaml"
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        fresh = Path(beside) / target.name
        compiler.Compiler().compile(load_pipeline(name, defaults, images), str(fresh))
        fresh.write_text(_steady(fresh.read_text(encoding="utf-8")), encoding="utf-8")
        os.replace(fresh, target)
    return target


def without_retries(pipeline: Any) -> Any:
    """The pipeline with every task tried once: a person who watches a local run wants to hear of a failure at once."""
    spec = pipeline.pipeline_spec
    for dag in (spec.root.dag, *(component.dag for component in spec.components.values())):
        for task in dag.tasks.values():
            task.ClearField("retry_policy")
    return pipeline


def without_cache(package: Path) -> None:
    """Let every task of a compiled package run, whatever earlier runs did; kfp's own switch misses those in a group."""
    text = package.read_text(encoding="utf-8")
    package.write_text(re.sub(r"^(\s+enableCache:) true$", r"\1 false", text, flags=re.MULTILINE), encoding="utf-8")


def _steady(package: str) -> str:
    """The package with the mappings of its heading comment in one order: protobuf gives them in another every time."""

    def ordered(value: object) -> object:
        if isinstance(value, list):
            return [ordered(item) for item in value]
        return {key: ordered(item) for key, item in sorted(value.items())} if isinstance(value, dict) else value

    def default(found: re.Match[str]) -> str:
        return f"[Default: {ordered(ast.literal_eval(found[1]))}]"

    return "\n".join(
        re.sub(r"\[Default: ([\[{].*[\]}])\]", default, line) if line.startswith("#") else line
        for line in package.split("\n")
    )
