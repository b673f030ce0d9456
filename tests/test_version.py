"""The version by content: what it notices, what it does not, and who refuses what."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import hanflow
from hanflow import version
from hanflow.errors import UserError
from hanflow.experiment import STEPS
from hanflow.storage.artifacts import Manifest, read_manifest

ROOT = Path(__file__).parents[1]

PROBE = """
import json, sys
from hanflow import version
print(json.dumps({"content": version.content(), "tag": version.image_tag(), "line": version.version_line(),
                  **{step: version.step_content(step) for step in sys.argv[1:]}}))
"""


def versions(folder: Path, *steps: str) -> dict[str, str]:
    """What a copy of the library says of itself, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *steps],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A clone's folder: the library and constraints.txt."""
    shutil.copytree(ROOT / "hanflow", tmp_path / "hanflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    return tmp_path


def test_a_change_is_noticed_by_the_steps_that_can_run_it(copy: Path) -> None:
    steps = ("preprocess", "train", "export")
    before = versions(copy, *steps)
    here = {step: version.step_content(step) for step in steps}
    assert before == {
        "content": version.content(),
        "tag": version.image_tag(),
        "line": version.version_line(),
        **here,
    }, "equal files are equal wherever they lie"

    def change(name: str) -> set[str]:
        path = copy / "hanflow" / name
        text = path.read_bytes()
        path.write_bytes(text + b"\n# changed\n" if path.suffix == ".py" else text + b"<!-- changed -->\n")
        after = versions(copy, *steps)
        path.write_bytes(text)
        return {name for name in before if before[name] != after[name]}

    everywhere = {"content", "tag", "line"}
    assert change("cli/main.py") == everywhere
    assert change("api/runs.py") == everywhere
    assert change("training/loop.py") == everywhere | {"train"}
    assert change("data/records/layouts.py") == everywhere | {"preprocess"}
    assert change("serving/verify.py") == everywhere | {"export"}
    assert change("reports/page.html") == everywhere | set(steps)
    assert change("errors.py") == everywhere | set(steps)
    (copy / "constraints.txt").write_text("torch==9\n", encoding="utf-8")
    assert versions(copy)["tag"] != before["tag"]
    assert versions(copy)["content"] == before["content"]


def test_a_wheel_and_a_clone_agree(copy: Path) -> None:
    resources = copy / "hanflow" / "resources"
    resources.mkdir()
    (copy / "constraints.txt").rename(resources / "constraints.txt")
    (resources / "compiled.py").write_text("what a wheel carries is no code of the library\n", encoding="utf-8")
    assert versions(copy)["tag"] == version.image_tag()
    (resources / "constraints.txt").unlink()
    assert versions(copy)["tag"] == version.__version__ == hanflow.__version__


def test_the_release_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "hanflow/version.py"
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["constraints.txt"]


@pytest.mark.parametrize("step", STEPS)
def test_no_step_reaches_another_nor_what_is_above_the_steps(step: str) -> None:
    reached = version.modules_reached(f"hanflow.steps.{step}")
    assert {f"hanflow.steps.{name}" for name in STEPS} & reached == {f"hanflow.steps.{step}"}
    rooms = {name.split(".")[1] for name in reached}
    assert not rooms & {"cli", "pipelines", "api"}
    if step != "train":
        assert not rooms & {"training", "cluster"}


def imported(module: str) -> set[str]:
    """The library's modules that a module's import statements name, found in another way than `version` does."""
    path = ROOT / (module.replace(".", "/") + ".py")
    path = path if path.is_file() else path.with_suffix("") / "__init__.py"
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)

    Visitor().visit(ast.parse(path.read_text(encoding="utf-8")))
    return found & set(version._modules())


@pytest.mark.parametrize("step", STEPS)
def test_what_a_step_reaches_follows_the_import_graph(step: str) -> None:
    reached = version.modules_reached(f"hanflow.steps.{step}")
    for module in reached:
        assert imported(module) - {"hanflow"} <= reached, module
    assert {name for name in version._modules() if name.startswith("hanflow.tasks.")} <= reached


LOADED = """
import atexit, json, runpy, sys
@atexit.register
def tell():
    names = sorted(n for n in sys.modules if n.startswith("hanflow."))
    open(place, "w").write(json.dumps(names))
place, step, sys.argv = sys.argv[1], sys.argv[2], [sys.argv[1], *sys.argv[3:]]
runpy.run_module("hanflow.steps." + step, run_name="__main__", alter_sys=False)
"""


def test_a_step_loads_nothing_that_its_content_leaves_out(tmp_path: Path) -> None:
    from tests.support.tasks import reviews, write_reviews

    source = write_reviews(tmp_path / "reviews.tsv", reviews(60))
    corpus, shards = str(tmp_path / "corpus"), str(tmp_path / "shards")
    small = '{"type": "cnn", "embedding_size": 8, "n_filters": 4}'
    calls = {
        "preprocess": ["--output", corpus, "--source", str(source)],
        "tokenize": ["--output", shards, "--corpus", corpus, "--vocabulary-size", "400"],
        "train": ["--output", str(tmp_path / "model"), "--shards", shards, "--architecture", small, "--epochs", "1"],
    }
    for step, arguments in calls.items():
        names = tmp_path / f"{step}.json"
        command = [sys.executable, "-c", LOADED, str(names), step, "--task", "classification", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        loaded = set(json.loads(names.read_text(encoding="utf-8"))) - {"hanflow.version"}
        assert loaded <= version.modules_reached(f"hanflow.steps.{step}") | {"hanflow.api"}
    made = read_manifest(tmp_path / "model", "model")
    assert made.program == version.program_version("train")


def test_a_manifest_names_the_code_of_its_step() -> None:
    assert Manifest("corpus", "summarization", {}).program == version.program_version("preprocess")
    assert Manifest("bundle", "summarization", {}).program == version.program_version("export")
    assert Manifest("corpus", "summarization", {}, program="hanflow 0.1.0").program == "hanflow 0.1.0"
    assert version.program_version("train").startswith(f"hanflow {version.__version__} (")


def test_a_worker_refuses_to_run_other_code_than_its_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(version.CONTENT_VARIABLE, raising=False)
    version.check_launcher()
    monkeypatch.setenv(version.CONTENT_VARIABLE, version.content())
    version.check_launcher()
    monkeypatch.setenv(version.CONTENT_VARIABLE, "0" * 64)
    with pytest.raises(UserError, match="their images differ. Build and push all images"):
        version.check_launcher()
    from hanflow.training.workers.worker import main

    assert main(["--task", "summarization", "--output", "/nowhere", "--shards", "/nowhere"]) == 1
    message = capsys.readouterr().err
    assert "000000000000" in message and version.content()[:12] in message


def test_a_task_of_another_package_counts(tmp_path: Path) -> None:
    package = tmp_path / "stars"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "task.py").write_text("raise RuntimeError('is read, not imported')\n", encoding="utf-8")
    info = tmp_path / "stars-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stars\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[hanflow.tasks]\nstars = stars.task:Stars\n", encoding="utf-8")

    def digest() -> Any:
        code = "from hanflow import version; print(version.step_content('train'), version.content())"
        paths = f"{ROOT}{os.pathsep}{tmp_path}"
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    with_task = digest()
    assert with_task[0] != version.step_content("train") and with_task[1] == version.content()
    (package / "task.py").write_text("# changed\n", encoding="utf-8")
    assert digest()[0] != with_task[0]


def test_a_task_that_settings_name_by_module_counts_for_its_own_artifacts(tmp_path: Path) -> None:
    code = """
import sys
from hanflow.tasks import chosen_task
from hanflow.tasks.summarization import Summarization
from hanflow.version import program_version
chosen_task("stars:Stars")
print(program_version("train", "stars:Stars"), program_version("train", "summarization"), sep="\\n")
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}

    def versions() -> list[str]:
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    source = (
        "from hanflow.tasks.summarization import Summarization\nclass Stars(Summarization):\n    name = 'stars:Stars'\n"
    )
    (tmp_path / "stars.py").write_text(source, encoding="utf-8")
    stars, summarization = versions()
    assert stars != summarization == version.program_version("train")
    (tmp_path / "stars.py").write_text(f"{source}    # changed\n", encoding="utf-8")
    assert versions()[0] != stars and versions()[1] == summarization


def test_a_task_of_a_namespace_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "company" / "tasks").mkdir(parents=True)
    (tmp_path / "company" / "tasks" / "stars.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    ((folder, files),) = version._sources("company")
    assert (folder, [path.name for path in files]) == (tmp_path / "company", ["stars.py"])


def test_the_pods_of_a_job_are_given_the_launchers_content() -> None:
    from hanflow.cluster.job import PodExtras
    from hanflow.cluster.launcher import _with_content

    given = {"name": "TZ", "value": "Asia/Seoul"}
    expected = {"name": version.CONTENT_VARIABLE, "value": version.content()}
    assert list(_with_content(PodExtras(environment=[given])).environment) == [given, expected]
    assert list(_with_content(None).environment) == [expected]
