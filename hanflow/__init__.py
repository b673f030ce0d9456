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
    register_task   make a task of your own known by its name

Score texts
    rouge           ROUGE of Korean texts
    score           the scores of any task
    read_rows       rows of a file: csv, tsv, jsonl or lines of text

Wrong settings, missing files and the like raise UserError; its message says what happened, where, and what to do.
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

_PLACES = {
    "Experiment": "hanflow.experiment",
    "Model": "hanflow.api.runs",
    "Prediction": "hanflow.api.prediction",
    "Predictor": "hanflow.api.prediction",
    "Run": "hanflow.api.runs",
    "Scores": "hanflow.api.scores",
    "UserError": "hanflow.errors",
    "__version__": "hanflow.version",
    "figures": "hanflow.api.runs",
    "load": "hanflow.api.prediction",
    "read_rows": "hanflow.api.scores",
    "register_task": "hanflow.tasks",
    "rouge": "hanflow.api.scores",
    "run": "hanflow.api.runs",
    "run_step": "hanflow.api.runs",
    "score": "hanflow.api.scores",
    "train": "hanflow.api.runs",
}
"""Public name → the module that defines it."""

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
    if name not in _PLACES:
        raise AttributeError(f"module 'hanflow' has no attribute {name!r}; its public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
