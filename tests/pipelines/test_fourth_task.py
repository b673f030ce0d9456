"""A task is one file: the DAG runs one that it has never heard of, and no step asks which task it is."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hanflow.errors import UserError
from hanflow.experiment import load_experiment
from hanflow.serving.bundle import answer, open_bundle
from hanflow.tasks import REGISTRY, get_task
from hanflow.tasks.common import CommonTask
from pipelines.dag import arguments_of, make_pipeline
from tests.support import tasks
from tests.toy.stars import Guesser, Stars

ROOT = Path(__file__).parents[2]
TASK = "tests.toy.stars:Stars"
EXPERIMENT = """\
task: tests.toy.stars:Stars
preprocess: {source: ./reviews.tsv, validation_ratio: 0.1, test_ratio: 0.1}
tokenize: {vocabulary_size: 500, max_source_tokens: 40}
train: {architecture: {width: 8}, epochs: 4, batch_size: 16, learning_rate: 0.1, precision: fp32}
evaluate: {minimum: {within_one: 0.0}}
"""


@pytest.mark.slow
def test_a_fourth_task_runs_through_the_whole_dag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kfp import local

    rows = [(str(1 + 4 * int(label)), text) for label, text in tasks.reviews(200)]
    tasks.write_reviews(tmp_path / "reviews.tsv", rows)
    (tmp_path / "stars.yaml").write_text(EXPERIMENT, encoding="utf-8")
    experiment = load_experiment(tmp_path / "stars.yaml")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # kfp runs every step as a process of its own
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "kfp"))
    make_pipeline("stars", TASK, "How many stars a review gives.", experiment)(**arguments_of(experiment))
    (metrics,) = (tmp_path / "kfp").rglob("metrics.json")
    systems = json.loads(metrics.read_text(encoding="utf-8"))["systems"]
    assert set(systems) == {"trained model", "mean"}
    (training,) = (tmp_path / "kfp").rglob("training.json")
    losses = [point["loss"] for point in json.loads(training.read_text(encoding="utf-8"))["history"]["train"]]
    assert losses[-1] < losses[0]
    (manifest,) = (tmp_path / "kfp").rglob("bundle.json")
    bundle = open_bundle(str(manifest.parent))
    assert bundle.task.name == TASK
    found = answer(bundle, bundle.predictor(), ["정말 재미있어요", "최악"]).predictions.texts
    (model,) = (tmp_path / "kfp").rglob("model.json")
    trained = Stars().load_model(str(model.parent))
    guesser = Guesser(trained, AutoTokenizer.from_pretrained(model.parent), bundle.settings)
    rows = Stars().inputs(["정말 재미있어요", "최악"], guesser.tokenizer, bundle.encoding)
    assert found == guesser(rows).texts


class WithoutScores(CommonTask):
    name = "unfinished"
    columns, text_roles, sequences = Stars.columns, Stars.text_roles, Stars.sequences
    input_role = split_role = "text"
    generates = labels = packs = False
    verb, rank_by, shown_measures = Stars.verb, Stars.rank_by, Stars.shown_measures
    clean, longest, predictor = Stars.clean, Stars.longest, Stars.predictor
    references, reference_of, card = Stars.references, Stars.reference_of, Stars.card


def test_an_unfinished_task_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"WithoutScores': lacks best_metric, score, overall; .*base.py says"):
        get_task(f"{__name__}:WithoutScores")
    with pytest.raises(UserError, match="lacks name, columns, .* clean, "):
        get_task("builtins:object")


def code_outside_the_tasks() -> Iterator[Path]:
    own = [ROOT / "hanflow" / name for name in ("tasks", "models")]
    for folder in ("hanflow", "components", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            if not any(path.is_relative_to(one) for one in own):
                yield path


def names_of_tasks(node: ast.AST) -> list[str]:
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in REGISTRY]


def special_cases(tree: ast.AST) -> Iterator[ast.AST]:
    """Where code decides by the name of a task: comparisons, cases, tables by task."""
    for node in ast.walk(tree):
        decides = (
            names_of_tasks(node)
            if isinstance(node, (ast.Compare, ast.match_case))
            else [name for key in node.keys if key is not None for name in names_of_tasks(key)]
            if isinstance(node, ast.Dict)
            else []
        )
        if decides:
            yield node


@pytest.mark.parametrize(
    "code",
    [
        "if task == 'classification': pass",
        "x = 1 if task.name in ('summarization', 'y') else 2",
        "VERBS = {'summarization': 'Summarize'}",
        "match task:\n    case 'language_modeling': pass",
    ],
)
def test_special_cases_would_be_found(code: str) -> None:
    assert list(special_cases(ast.parse(code)))


def test_no_step_asks_which_task_it_is() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno if hasattr(node, 'lineno') else '?'}"
        for path in code_outside_the_tasks()
        for node in special_cases(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == [], "ask the task itself, through hanflow/tasks/base.py"


def test_only_the_registry_knows_the_tasks_modules() -> None:
    modules = {target.partition(":")[0] for target in REGISTRY.values()}
    found = []
    for path in code_outside_the_tasks():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [f"{path.relative_to(ROOT)}: {module}" for module in imported if module in modules]
    assert found == []
