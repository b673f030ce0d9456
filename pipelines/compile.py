"""`make compile`: the packages in `pipelines/compiled` and each component's `component.yaml`, from the sources beside them."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

from kfp import compiler

from hanflow import resources
from hanflow.experiment import Experiment, load_experiment
from hanflow.pipelines.packages import ANY, PIPELINES, Package

ROOT = Path(__file__).parents[1]
COMPONENTS = ("configure", "preprocess", "tokenize", "train", "combine", "evaluate", "export", "predict")


def compiled(definition: object) -> Package:
    """What kfp makes of a pipeline or a component."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package.yaml"
        compiler.Compiler().compile(definition, str(path))
        package = Package(path.read_text(encoding="utf-8"))
    package.spec.pop("sdkVersion")
    return package


def main(output: Path = ROOT) -> None:
    """Write all packages below a folder."""
    for name in (*PIPELINES, ANY):
        package = compiled(importlib.import_module(f"pipelines.{name}").pipeline)
        if name == ANY:
            package.fill_in(Experiment(task=""))
        else:
            package.fill_in(load_experiment(resources.folder("experiments") / f"{name}.yaml", require=False))
        package.write(output / "pipelines" / "compiled" / f"{name}.yaml")
    for name in COMPONENTS:
        component = getattr(importlib.import_module(f"components.{name}.component"), name)
        compiled(component).write(output / "components" / name / "component.yaml")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
