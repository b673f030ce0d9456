"""The rules of import of DESIGN.md: who may know whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = ("preprocess", "tokenize", "train", "combine", "evaluate", "export", "predict")
MODULES = sorted(
    p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("components", "pipelines")
    for p in (ROOT / folder).rglob("*.py")
)

LAUNCHING = [
    f"hanflow.steps.train.{name}"
    for name in (
        *("jobs", "pod_spec", "work", "launch", "submission", "life", "waits", "own_pod"),
        *("kube", "watch", "pods", "follow", "outcome", "reap", "manifests"),
    )
]
"""What runs in a step that only waits for a job, and around torchrun: no torch."""


def imports(module: str, *, top_level: bool = False) -> Iterator[str]:
    """Modules that a module imports: anywhere in it, or when it is imported (TYPE_CHECKING blocks count nowhere)."""
    path = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        pending.extend(ast.iter_child_nodes(node))


def names(module: str, *prefixes: str, top_level: bool = False) -> list[str]:
    return [
        name
        for name in imports(module, top_level=top_level)
        if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
    ]


def is_stdlib(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize(
    "module",
    [
        *(m for m in MODULES if m.startswith("hanflow.config.")),
        "hanflow.storage.artifacts",
        "hanflow.images",
    ],
)
def test_rule_1_contracts_need_the_standard_library_only(module: str) -> None:
    foreign = [n for n in imports(module) if not is_stdlib(n) and not n.startswith(("yaml", "components.shared."))]
    assert foreign == []


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("components.shared.")])
def test_rule_2_shared_knows_no_step_and_no_cluster(module: str) -> None:
    assert names(module, "kfp", "kubernetes", *(f"hanflow.steps.{step}" for step in STEPS)) == []
    if module.startswith(("hanflow.tasks", "hanflow.models")):
        assert names(module, "hanflow.storage", "hanflow.steps.train") == []


@pytest.mark.parametrize("module", [m for m in MODULES if m.endswith(".component")])
def test_rule_3_components_import_nothing_heavy_at_the_top(module: str) -> None:
    foreign = [
        n
        for n in imports(module, top_level=True)
        if not is_stdlib(n) and not n.startswith(("kfp", "hanflow.images", "hanflow.config"))
    ]
    assert foreign == []


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[1] in STEPS])
def test_rule_4_a_step_never_imports_another(module: str) -> None:
    own = module.split(".")[1]
    assert names(module, *(f"hanflow.steps.{step}" for step in STEPS if step != own)) == []


@pytest.mark.parametrize("module", MODULES)
def test_rule_5_devices_stay_in_their_backend(module: str) -> None:
    if module != "hanflow.training.backends.xla":
        assert names(module, "torch_xla") == []
    if module in LAUNCHING:
        assert names(module, "torch", "transformers", "pyarrow") == []
        assert names(module, "hanflow.training.workers.worker", top_level=True) == []


@pytest.mark.parametrize("module", MODULES)
def test_rule_6_nothing_imports_pipelines_or_tests(module: str) -> None:
    assert names(module, "tests") == []
    if not module.startswith("pipelines"):
        assert names(module, "pipelines") == []


def test_rule_6_the_command_line_is_light() -> None:
    assert names("hanflow.cli.main", *(f"hanflow.steps.{step}" for step in STEPS), top_level=True) == []
    loaded = "import sys, hanflow.cli.main; print([m for m in ('torch', 'kfp', 'transformers', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_launching_loads_no_torch() -> None:
    code = "import sys, hanflow.cluster.launcher, hanflow.cluster.cleanup; print([m for m in ('torch', 'kfp') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_compiling_needs_no_torch() -> None:
    code = "import sys, hanflow.pipelines.packages, pipelines.dag; print([m for m in ('torch', 'transformers', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
