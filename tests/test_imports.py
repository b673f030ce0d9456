"""The rules of import of docs/architecture.md, held against the import graph of the whole project."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable

import pytest

from tools.imports import ROOT, arrows, circles, graph, layer, modules, reached

STEPS = sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py"))

# What still breaks a rule. Each list only shrinks: an entry that nothing needs any more fails its test.
UPWARD: set[tuple[str, str]] = set()
CIRCLES: list[list[str]] = []


def importers(*names: str) -> set[str]:
    """Modules that import one of these, or something in one of these, anywhere in their text."""
    return {module for module, imported in graph().items() if any(within(i.target, names) for i in imported)}


def within(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def outside_of(name: str) -> set[str]:
    """Top-level packages from elsewhere, other than the standard library's, that modules of a package import."""
    targets = {i.target.split(".")[0] for module in graph() if within(module, [name]) for i in graph()[module]}
    return targets - sys.stdlib_module_names - {"hanflow"}


def test_arrows_point_downwards() -> None:
    upward = {rooms: pairs for rooms, pairs in arrows().items() if layer(rooms[1]) >= layer(rooms[0])}
    new = {" ".join(pair) for rooms, pairs in upward.items() if rooms not in UPWARD for pair in pairs}
    assert new == set(), "a room imports lower layers only: see the layers in tools/imports.py"
    assert upward.keys() >= UPWARD, "these arrows are gone: remove them from UPWARD"


def test_no_modules_import_each_other() -> None:
    assert circles() == CIRCLES


def test_settings_need_the_standard_library_and_yaml() -> None:
    assert outside_of("hanflow.config") <= {"yaml"}


def test_whoever_follows_a_job_loads_no_torch() -> None:
    """A step that only waits for its job has a small pod, and starts at once."""
    heavy = {
        f"{module}: {name}"
        for module in modules()
        if within(module, ["hanflow.cluster"])
        for name in reached(module)
        if within(name, ["torch", "transformers", "pyarrow"])
    }
    assert heavy == set()
    assert not importers("torch") & {module for module in modules() if within(module, ["hanflow.cluster"])}


@pytest.mark.parametrize("room", ["models", "metrics", "text"])
def test_pure_rooms_know_no_storage_and_no_network(room: str) -> None:
    """Networks, figures and texts can be tested, and used by others, without a file."""
    users = importers("hanflow.storage", "requests", "urllib", "urllib3", "http", "socket", "google", "kubernetes")
    assert {module for module in users if within(module, [f"hanflow.{room}"])} == set()


def test_tasks_know_no_step_no_cluster_and_no_storage() -> None:
    upstairs = ("hanflow.steps", "hanflow.training", "hanflow.cluster", "hanflow.storage", "kfp", "kubernetes")
    assert {module for module in importers(*upstairs) if within(module, ["hanflow.tasks", "hanflow.models"])} == set()


def test_only_tasks_know_which_task_it_is() -> None:
    """No `if task == "summarization"` elsewhere: what differs between tasks is asked of the task."""
    tasks = {"summarization", "classification", "language_modeling"}
    found = [
        f"{module}:{node.lineno}"
        for module, path in modules().items()
        if module.startswith("hanflow.") and not within(module, ["hanflow.tasks"])
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Compare)
        and any(isinstance(side, ast.Constant) and side.value in tasks for side in (node.left, *node.comparators))
    ]
    assert found == []


@pytest.mark.parametrize("step", STEPS)
def test_a_step_never_imports_another(step: str) -> None:
    """Steps meet through artifacts."""
    others = [f"hanflow.steps.{other}" for other in STEPS if other != step]
    assert f"hanflow.steps.{step}" not in importers(*others)


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("torch_xla", ("hanflow.training.backends.xla",)),
        ("kubernetes", ("hanflow.cluster.client",)),
        ("kfp", ("components", "pipelines", "hanflow.pipelines")),
    ],
)
def test_a_foreign_system_is_known_in_one_place(library: str, homes: tuple[str, ...]) -> None:
    assert {module for module in importers(library) if not within(module, homes)} == set()


def test_nothing_imports_the_face_of_kubeflow() -> None:
    """The wheel has neither `components` nor `pipelines`."""
    assert importers("pipelines", "tests") <= {module for module in modules() if within(module, ["pipelines"])}
    assert not {module for module in importers("components") if within(module, ["hanflow"])}


@pytest.mark.parametrize("module", [m for m in modules() if m.startswith("components.") and m.endswith(".component")])
def test_a_component_loads_nothing_heavy(module: str) -> None:
    heavy = {"torch", "transformers", "pyarrow", "numpy", "kubernetes", "google"}
    assert {name for name in reached(module) if within(name, heavy)} == set()


@pytest.mark.parametrize(
    ("code", "unloaded"),
    [
        ("import hanflow", ("torch", "kfp", "transformers", "pyarrow", "numpy", "yaml")),
        ("import hanflow.cli.main as m; m.main(['--help'])", ("torch", "kfp", "transformers", "pyarrow", "numpy")),
        ("import hanflow.cluster.launcher, hanflow.cluster.cleanup", ("torch", "kfp", "transformers", "pyarrow")),
        ("import hanflow.pipelines.packages, pipelines.dag", ("torch", "transformers", "pyarrow")),
    ],
)
def test_what_starts_at_once_loads_nothing_heavy(code: str, unloaded: tuple[str, ...]) -> None:
    script = f"""
import sys
try:
    exec({code!r})
except SystemExit:
    pass
print("loaded:", [name for name in {unloaded!r} if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "loaded: []"
