"""A task is one file: the DAG runs one that it has never heard of, and no step asks which task it is."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hanflow.errors import UserError
from hanflow.serving.bundle import answer, open_bundle
from hanflow.tasks import chosen_task, get_task, known_tasks, register_task
from hanflow.tasks.base import Task
from tests.support import tasks
from tests.toy.stars import Guesser, Stars

ROOT = Path(__file__).parents[2]
TASK = "tests.toy.stars:Stars"
EXPERIMENT = """\
task: {task}
preprocess: {{source: ./reviews.tsv, validation_ratio: 0.1, test_ratio: 0.1, most_stars: 4}}
tokenize: {{vocabulary_size: 500, max_source_tokens: 40}}
train: {{architecture: {{width: 8}}, epochs: 4, batch_size: 16, learning_rate: 0.1, precision: fp32}}
evaluate: {{minimum: {{within_one: 0.0}}, maximum: {{mean_error: 100}}}}
"""


def run(folder: Path, task: str, environment: dict[str, str]) -> Path:
    """The whole DAG by the command line, in a process that learns of the task as users' do; returns the run's folder."""
    rows = [
        (str(1 + 4 * int(label)) if number % 8 else "4", text)
        for number, (label, text) in enumerate(tasks.reviews(200))
    ]
    tasks.write_reviews(folder / "reviews.tsv", rows)
    (folder / "stars.yaml").write_text(EXPERIMENT.format(task=task), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "hanflow", "run", task, "--experiment", "stars.yaml", "--output", "out"],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


def check(output: Path, task: str) -> None:
    """What a run of the task leaves."""
    corpus = json.loads((output / "corpus" / "corpus.json").read_text(encoding="utf-8"))
    assert corpus["counts"]["rejected"] > 50, "the task's own setting: reviews of five stars are rejected"
    metrics = json.loads((output / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["systems"]) == {"trained model", "mean"} and metrics["best_metric"] == "within_one"
    report = (output / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "rows, best first" in report, "the task's own part"
    training = json.loads((output / "model" / "training.json").read_text(encoding="utf-8"))
    losses = [point["loss"] for point in training["history"]["train"]]
    assert losses[-1] < losses[0]
    assert json.loads((output / "bundle" / "bundle.json").read_text(encoding="utf-8"))["task"] == task


@pytest.mark.slow
def test_a_fourth_task_runs_through_the_whole_dag(tmp_path: Path) -> None:
    output = run(tmp_path, TASK, {"PYTHONPATH": str(ROOT)})
    check(output, TASK)
    register_task(Stars)
    bundle = open_bundle(str(output / "bundle"))
    found = answer(bundle, bundle.predictor(), ["정말 재미있어요", "최악"]).predictions.texts
    guesser = Guesser(
        Stars().load_model(str(output / "model")), AutoTokenizer.from_pretrained(output / "model"), bundle.settings
    )
    rows = Stars().inputs(["정말 재미있어요", "최악"], guesser.tokenizer, bundle.encoding)
    assert found == guesser(rows).texts


@pytest.mark.slow
def test_a_task_of_an_installed_package_runs_through_the_whole_dag(tmp_path: Path) -> None:
    """Known by its entry point alone, and by its plain name."""
    site = tmp_path / "site"
    package, installed = site / "review_stars", site / "review_stars-1.0.dist-info"
    package.mkdir(parents=True)
    installed.mkdir()
    source = (ROOT / "tests" / "toy" / "stars.py").read_text(encoding="utf-8")
    (package / "__init__.py").write_text(source.replace(f'"{TASK}"', '"stars"'), encoding="utf-8")
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: review-stars\nVersion: 1.0\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text("[hanflow.tasks]\nstars = review_stars:Stars\n", encoding="utf-8")
    environment = {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    output = run(tmp_path, "stars", environment)
    check(output, "stars")
    (tmp_path / "in.txt").write_text("정말 재미있어요\n", encoding="utf-8")
    command = [sys.executable, "-m", "hanflow", "predict", str(output / "bundle"), "--input", "in.txt"]
    done = subprocess.run(command, env={**os.environ, **environment}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and float(done.stdout) > 0, done.stderr


def test_a_name_in_a_file_loads_no_code() -> None:
    """What a manifest or a bundle names is looked up among the known tasks, never imported."""
    for name in ("code:interact", "os:system", "tests.toy.other:Stars", "builtins:object"):
        with pytest.raises(UserError, match="no such task"):
            get_task(name)


class WithoutScores(Task):
    name = "unfinished"
    columns, sequences, verb = Stars.columns, Stars.sequences, Stars.verb
    clean, longest, predictor = Stars.clean, Stars.longest, Stars.predictor
    references, reference_of, card = Stars.references, Stars.reference_of, Stars.card


def test_an_unfinished_task_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"WithoutScores: lacks metrics, .*score, overall; .*base.py documents"):
        chosen_task(f"{__name__}:WithoutScores")
    with pytest.raises(UserError, match="lacks name, "):
        chosen_task("builtins:object")


def code_outside_the_tasks() -> Iterator[Path]:
    own = [ROOT / "hanflow" / name for name in ("tasks", "models")]
    for folder in ("hanflow", "components", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            if not any(path.is_relative_to(one) for one in own):
                yield path


def names_of_tasks(node: ast.AST) -> list[str]:
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in known_tasks()]


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
    modules = {f"hanflow.tasks.{name}" for name in known_tasks()}
    found = []
    for path in code_outside_the_tasks():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [f"{path.relative_to(ROOT)}: {module}" for module in imported if module in modules]
    assert found == []
