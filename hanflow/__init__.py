"""hanflow trains, scores and ships Korean language models, from a laptop to a cluster.

The public Python API is what `__all__` lists; everything else may change from one release to the next.

Use a model
    load            a trained model, from a bundle, a run, a folder, the Hugging Face hub or a bucket
    Predictor       what `load` returns: texts in, predictions out
    Prediction      one text's prediction: a generated text, or a label with probabilities

Make a model
    Experiment      every setting of a run; `Experiment.from_yaml` reads a file
    run             a whole pipeline on this machine: preprocess, tokenize, train, evaluate, export
    train           from raw data, or from shards, to a trained model
    run_step        one step by itself
    figures         the figures of a run's reports as pandas data frames
    register_task   register a task of your own

Score texts
    rouge           ROUGE of Korean texts
    score           the scores of any task
    read_rows       rows of a file: csv, tsv, jsonl or lines of text

Wrong settings, missing files and the like raise UserError; its message gives the cause, the place and the remedy.
`docs/api-examples.md` of the repository has an example of each. Names are imported when they are first used: `import
hanflow` itself loads neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanflow.api.prediction import Prediction, Predictor, load
    from hanflow.api.runs import Model, Run, figures, run, run_step, train
    from hanflow.api.scores import Scores, read_rows, rouge, score
    from hanflow.errors import UserError
    from hanflow.experiment import Experiment
    from hanflow.tasks import register_task
    from hanflow.version import __version__

_MODULES = {
    "hanflow.api.prediction": ("Prediction", "Predictor", "load"),
    "hanflow.api.runs": ("Model", "Run", "figures", "run", "run_step", "train"),
    "hanflow.api.scores": ("Scores", "read_rows", "rouge", "score"),
    "hanflow.errors": ("UserError",),
    "hanflow.experiment": ("Experiment",),
    "hanflow.tasks": ("register_task",),
    "hanflow.version": ("__version__",),
}
"""Module → the public names that it defines."""

__all__ = [
    "Experiment",
    "Model",
    "Prediction",
    "Predictor",
    "Run",
    "Scores",
    "UserError",
    "__version__",
    "figures",
    "load",
    "read_rows",
    "register_task",
    "rouge",
    "run",
    "run_step",
    "score",
    "train",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return globals().setdefault(name, getattr(importlib.import_module(module), name))
    raise AttributeError(f"module 'hanflow' has no attribute {name!r}; its public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
