"""The import graph of the project, read from its source text, and the diagram of hanflow's rooms drawn from it.

`python tools/imports.py` writes the diagram into docs/architecture.md. tests/test_imports.py holds the rules of import
against this graph; tests/test_architecture.py fails when the diagram is no longer the current one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("hanflow", "components", "pipelines")

LAYERS = (
    ("ground",),
    ("config",),
    ("storage", "text"),
    ("data", "metrics", "models"),
    ("loading",),
    ("generation",),
    ("tasks",),
    ("experiment",),
    ("reports",),
    ("training", "serving", "cluster"),
    ("steps",),
    ("pipelines",),
    ("cli",),
    ("api",),
)
"""Rooms of hanflow, the lowest first. A module imports its own room and lower layers only."""

TOP = {"hanflow": "api", "hanflow.api": "api", "hanflow.__main__": "api", "hanflow.experiment": "experiment"}
"""Modules directly in hanflow/ that are no part of the ground."""


@dataclass(frozen=True)
class Import:
    """One imported name."""

    target: str
    """Module of the project where there is one of that name, else the dotted name as it is written."""
    at_import: bool
    """Whether importing the module runs it: it is in no function and not under TYPE_CHECKING."""


@cache
def modules() -> dict[str, Path]:
    """Dotted name of each module of the project → its file."""
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


@cache
def graph() -> Mapping[str, frozenset[Import]]:
    """Each module of the project → what it imports, anywhere in its text.

    Raises:
        ValueError: an import is relative.
    """
    return {
        module: frozenset(
            Import(_module_of(name), at_import) for name, at_import in _imports(ast.parse(path.read_bytes()), module)
        )
        for module, path in modules().items()
    }


def _module_of(name: str) -> str:
    found = name
    while found and found not in modules():
        found = found.rpartition(".")[0]
    return found or name


def _imports(tree: ast.Module, module: str) -> Iterator[tuple[str, bool]]:
    pending: list[tuple[ast.AST, bool]] = [(node, True) for node in tree.body]
    while pending:
        node, at_import = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{module}, line {node.lineno}: imports are absolute in this project")
            yield from ((f"{node.module}.{alias.name}", at_import) for alias in node.names)
        deferred = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        pending.extend((child, at_import and not deferred) for child in ast.iter_child_nodes(node))


def reached(module: str) -> set[str]:
    """Everything that importing a module loads, itself included: modules of the project and names from elsewhere."""
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        if name in modules():
            pending.extend(i.target for i in graph()[name] if i.at_import)
            if "." in name:
                pending.append(_module_of(name.rpartition(".")[0]))
    return found


def circles() -> list[list[str]]:
    """Groups of modules that import each other, at whatever distance and wherever in their text (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in {i.target for i in graph()[module]} & graph().keys() - {module}:
            if target not in index:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph():
        if module not in index:
            visit(module)
    return sorted(found)


def room(module: str) -> str:
    """The room of a module of hanflow."""
    parts = module.split(".")
    return TOP.get(module) or (parts[1] if (ROOT / "hanflow" / parts[1]).is_dir() else "ground")


def layer(name: str) -> int:
    """Height of a room, 0 for the ground.

    Raises:
        ValueError: LAYERS does not name it.
    """
    for height, rooms in enumerate(LAYERS):
        if name in rooms:
            return height
    raise ValueError(f"hanflow/{name} stands in no layer: give it a place in LAYERS of tools/imports.py")


def arrows() -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(importing room, imported room) → the (importing, imported) modules of hanflow, both sorted."""
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for module, imported in graph().items():
        for target in {i.target for i in imported}:
            if module.split(".")[0] == target.split(".")[0] == "hanflow" and room(module) != room(target):
                found.setdefault((room(module), room(target)), set()).add((module, target))
    return {rooms: sorted(pairs) for rooms, pairs in sorted(found.items())}


def diagram() -> str:
    """Mermaid flowchart of the rooms: an arrow from each room to those it imports, less those that longer ways imply."""
    below: dict[str, set[str]] = {}
    for importer, imported in arrows():
        if layer(imported) < layer(importer):
            below.setdefault(importer, set()).add(imported)

    @cache
    def under(name: str) -> frozenset[str]:
        return frozenset(low for direct in below.get(name, ()) for low in {direct, *under(direct)})

    lines = ["```mermaid", "flowchart TD"]
    for rooms in reversed(LAYERS):
        for name in rooms:
            implied = {low for direct in below.get(name, ()) for low in under(direct)}
            lines += [f"    {name} --> {low}" for low in sorted(below.get(name, set()) - implied)]
    return "\n".join([*lines, "```"])


def page_with(text: str, drawn: str) -> str:
    """A page with this diagram between its two markers.

    Raises:
        ValueError: it lacks the markers.
    """
    replaced, count = re.subn(
        r"(<!-- rooms -->\n).*?(<!-- /rooms -->)", lambda found: f"{found[1]}{drawn}\n{found[2]}", text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{PAGE}: has {count} places for the diagram, between <!-- rooms --> and <!-- /rooms -->")
    return replaced


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), diagram()), encoding="utf-8")
