"""Runs: whole pipelines, training alone, single steps, and what they report."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanflow.config.suggest import hint
from hanflow.errors import UserError
from hanflow.own_files import read_json

if TYPE_CHECKING:
    import os

    import pandas as pd

    from hanflow.api.prediction import Predictor
    from hanflow.experiment import Experiment
    from hanflow.reports.step_report import Report

    AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Run:
    """A pipeline's run that succeeded."""

    folder: Path
    """With `run.json`, `run.log`, `experiment.yaml`, and a link to each artifact: `corpus`, `shards`, `model` …"""
    pipeline: str
    steps: tuple[dict[str, Any], ...]
    """Of each step, in order: `name`, `seconds`, `status`, `figures` (name → number or short text), `artifact` (URI)."""

    @classmethod
    def open(cls, folder: AnyPath) -> Run:
        """A run that an earlier call, or `hanflow run`, left in a local folder.

        Raises:
            UserError: there is none.
        """
        from hanflow.storage import local_path

        path = local_path(folder) / "run.json"
        cure = "give the folder that `hanflow run` wrote to"
        try:
            record = read_json(path, cure, keys={"pipeline": str, "steps": list})
        except FileNotFoundError:
            raise UserError(f"{path}: no record of a run; {cure}") from None
        return cls(path.parent, record["pipeline"], tuple(record["steps"]))

    @property
    def artifacts(self) -> dict[str, str]:
        """Name of each step that made one → URI of its artifact."""
        return {step["name"]: step["artifact"] for step in self.steps if step["artifact"]}

    def load(self, **options: Any) -> Predictor:
        """The run's model, ready to predict; options as of `hanflow.load`."""
        from hanflow.api.prediction import load

        if any((self.folder / kind).exists() for kind in ("bundle", "model")):
            return load(self.folder, **options)
        made = self.artifacts  # in a bucket
        return load(made.get("export") or made.get("combine") or made["train"], **options)


@dataclass(frozen=True)
class Model:
    """A model that was just trained."""

    uri: str
    """Folder in Hugging Face format with `model.json` (manifest), `training.json` (losses) and `report.html`."""
    figures: dict[str, Any] = field(default_factory=dict)
    """`steps`, `parameters`, `train_loss` (nats a target token), `tokens_per_second`, `validation_…` …"""
    settings: dict[str, Any] = field(default_factory=dict)
    """The experiment's settings of the evaluate step that differ from their defaults, e.g. `beams`."""

    def load(self, **options: Any) -> Predictor:
        """The model, ready to predict with `settings`; options as of `hanflow.load`, they win."""
        from hanflow.api.prediction import load

        return load(self.uri, **{**self.settings, **options})


def run(experiment: Experiment, output: AnyPath) -> Run:
    """Run a whole pipeline on this machine, each step in a process of its own; prints progress as `hanflow run` does.

    Called again with the same experiment and output after a failure or an interruption, it continues where it stopped:
    finished steps are kept, training resumes from its newest checkpoint.

    Args:
        experiment: every setting; `Experiment.from_yaml` reads them.
        output: folder of the run. In a bucket (`gs://…`) its artifacts go there, and the record of the run stays in
            `runs/` of the current folder.

    Raises:
        UserError: the settings cannot work, the folder holds something else, or a step failed.
        KeyboardInterrupt: interrupted; nothing half-written is left.
    """
    from hanflow.pipelines.local import run_locally
    from hanflow.pipelines.run_folder import run_folder

    folder, status = run_folder(str(output)), run_locally(experiment, str(output))
    if status == 130:
        raise KeyboardInterrupt
    if status:
        record = read_json(folder / "run.json", "see run.log beside it")
        failed = ", ".join(step["name"] for step in record["steps"] if step["status"] == "failed") or "the run"
        raise UserError(f"{failed} failed: {record.get('error', 'no error was recorded')}; see {folder / 'run.log'}")
    return Run.open(folder)


def train(experiment: Experiment, *, shards: str | None = None, output: AnyPath) -> Model:
    """Train a model in this process: preprocess, tokenize and train of an experiment, without scores or export.

    Called again with the same arguments it keeps what is finished, and training resumes from its newest checkpoint.

    Args:
        experiment: the settings; a loaded model predicts by those of `evaluate`.
        shards: URI of shards that the tokenize step wrote; None: they are made of `preprocess.source`.
        output: folder that gets `model`, and `corpus` and `shards` if they are made; local or `gs://…`.

    Raises:
        UserError: a setting, the data or the output cannot be used, or training cannot continue.
    """
    from hanflow.config import changed
    from hanflow.steps.reuse import left_at
    from hanflow.storage import join

    if experiment.combine.members:
        raise UserError("train: the experiment has several models (combine.members); give it to hanflow.run")

    def made(step: str, kind: str, **inputs: str) -> str:
        place, values = join(str(output), kind), experiment.settings(step)
        importlib.import_module(f"hanflow.steps.{step}")  # which registers what it reads beside its inputs
        if left_at(place, step, values, task=experiment.task, **inputs) is None:
            run_step(step, values, task=experiment.task, output=place, **inputs)
        return place

    if shards is None:
        shards = made("tokenize", "shards", corpus=made("preprocess", "corpus"))
    model = made("train", "model", shards=shards)
    from hanflow.storage import manifest_at

    figures = dict(manifest_at(model, "model").details["figures"])
    return Model(model, figures, changed(experiment.evaluate))


def run_step(name: str, settings: Any = None, *, task: str = "summarization", output: AnyPath, **inputs: Any) -> Report:
    """Run one step in this process.

    Args:
        name: preprocess, tokenize, train, combine, evaluate or export.
        settings: name of each setting → its value, those left out have their default (`hanflow settings` lists them); or an
            Experiment, whose section for the step, and whose task, are taken.
        task: name of the task.
        output: URI of the artifact to write; must not hold anything yet.
        inputs: URI of every input artifact by its kind:
            tokenize takes `corpus`; train `shards`; combine `shards` and `models` (a list); evaluate `model`, `shards` and
            `corpus`; export `model`, `evaluation` and `shards`.

    Returns:
        `figures`: name → number or short text; `html`: name of the report in the artifact, if it has one.

    Raises:
        UserError: no such step, a wrong setting or input, or the step cannot do its work.
    """
    from hanflow.experiment import STEPS, Experiment, step_config

    if name not in STEPS:
        raise UserError(f"step {name!r}: no such step; {hint(name, STEPS)}")
    if isinstance(settings, Experiment):
        settings, task = settings.settings(name), settings.task
    function = importlib.import_module(f"hanflow.steps.{name}").run
    parameters = list(inspect.signature(function).parameters.values())[1:]
    wanted = [p.name for p in parameters if p.default is p.empty and p.name not in ("task", "output")]
    absent, unknown = set(wanted) - set(inputs), set(inputs) - {p.name for p in parameters}
    if absent or unknown:
        raise UserError(
            f"step {name}: takes {' and '.join(wanted) or 'no input'}, not {', '.join(inputs) or 'nothing'}"
        )
    return function(step_config(name, settings or {}, task), task=task, output=str(output), **inputs)


def figures(run: Run | Model | AnyPath) -> dict[str, pd.DataFrame]:
    """The figures of a run's reports as pandas data frames.

    Args:
        run: a run, a model, or the folder of a run, of a model or of an evaluation, local or in a bucket.

    Returns:
        Those that there are of:
        - `steps`: a row a step: name, seconds, status, and its figures.
        - `training`: a row a logged step: step, loss (nats a target token), learning_rate, tokens_per_second …
        - `validation`: a row a validation: step, and its metrics. Both have a column `model` for an ensemble.
        - `scores`: a row a score of a system: system, score, value, and low and high of its 95 % bootstrap interval.
        - `predictions`: predictions.csv of the evaluation: row, prompt, reference, prediction, scores of the row.

    Raises:
        UserError: pandas is not installed, or there is nothing of these.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UserError("figures: needs pandas, which is not installed; pip install pandas") from None
    from hanflow.storage import exists, join

    place = run.uri if isinstance(run, Model) else str(run.folder if isinstance(run, Run) else run)
    frames: dict[str, pd.DataFrame] = {}
    if exists(join(place, "run.json")):
        steps = json.loads(_text(join(place, "run.json")))["steps"]
        plain = [{**{k: step[k] for k in ("name", "seconds", "status")}, **step["figures"]} for step in steps]
        frames["steps"] = pd.DataFrame(plain)
    made = run.artifacts if isinstance(run, Run) else {}  # in a bucket they are not in the run's folder
    for model in (place, join(place, "model"), made.get("combine", made.get("train", place))):
        if exists(join(model, "training.json")):
            frames |= _training(json.loads(_text(join(model, "training.json"))))
    for evaluation in (place, join(place, "evaluation"), made.get("evaluate", place)):
        if exists(join(evaluation, "metrics.json")):
            frames["scores"] = _scores(json.loads(_text(join(evaluation, "metrics.json"))))
            frames["predictions"] = _predictions(join(evaluation, "predictions.csv"))
    if not frames:
        raise UserError(f"{place}: holds no figures; give the folder of a run, of a model or of an evaluation")
    return frames


def _training(training: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    import pandas as pd

    from hanflow.storage.artifacts import trainings

    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for name, facts in trainings(training).items():
        for kind, points in rows.items():
            points += [{**({"model": name} if name else {}), **point} for point in facts["history"][kind]]
    return {"training": pd.DataFrame(rows["train"]), "validation": pd.DataFrame(rows["validation"])}


def _scores(metrics: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for system, scores in metrics["systems"].items():
        for score, value in scores.items():
            low, high = metrics["intervals"][system].get(score, (None, None))
            rows.append({"system": system, "score": score, "value": value, "low": low, "high": high})
    return pd.DataFrame(rows)


def _predictions(uri: str) -> pd.DataFrame:
    import pandas as pd

    from hanflow.data.delimited import unguarded

    texts = ("id", "prompt", "reference", "prediction")
    # A label may be spelled like a number, and the text "NA" is not a missing value.
    frame = pd.read_csv(io.StringIO(_text(uri)), keep_default_na=False, dtype=dict.fromkeys(texts, str))
    for name in (name for name in texts if name in frame):
        frame[name] = frame[name].map(unguarded)
    return frame


def _text(uri: str) -> str:
    from hanflow.storage import copy_file

    with tempfile.TemporaryDirectory() as folder:
        copy_file(uri, Path(folder) / "file")
        return (Path(folder) / "file").read_text(encoding="utf-8-sig")
