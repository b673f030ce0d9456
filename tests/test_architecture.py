"""docs/architecture.md is true, and the code keeps the size that lets a stranger find the place for a change."""

from __future__ import annotations

import ast
import re
from collections import Counter

from tools.imports import LAYERS, PAGE, ROOT, diagram, modules, page_with, room

MOST_LINES, MOST_MODULES = 400, 12

# What is still too big. Only shrinks: an entry that nothing needs any more fails the test.
CROWDED: set[str] = set()


def test_the_diagram_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page_with(page, diagram()) == page, "imports have changed: run `make docs` or `python tools/imports.py`"


def test_every_room_is_described() -> None:
    table = re.findall(r"^\| `?(\w+)`? \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    rooms = {room(module) for module in modules() if module.startswith("hanflow.")} - {"api"}
    assert rooms <= set(table) and rooms <= {name for layer in LAYERS for name in layer}


def test_the_five_questions_are_answered() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for what in ("task", "metric", "runtime", "storage scheme", "part of a report"):
        answer = page.partition(f"### … a {what}?")[2].partition("###")[0]
        assert re.search(r"`hanflow/\w+/", answer), f"{what}: the answer names no place"


def test_no_module_is_long_without_a_reason() -> None:
    """More than 400 lines: the module's docstring says why in a sentence with the word "lines"."""
    long = {
        name
        for name, path in modules().items()
        if len((text := path.read_text(encoding="utf-8")).splitlines()) > MOST_LINES
        and "lines" not in (ast.get_docstring(ast.parse(text)) or "")
    }
    assert long == set()


def test_no_room_is_crowded() -> None:
    folders = Counter(
        path.parent.relative_to(ROOT).as_posix() for path in modules().values() if path.name != "__init__.py"
    )
    assert {folder for folder, count in folders.items() if count > MOST_MODULES} == CROWDED
