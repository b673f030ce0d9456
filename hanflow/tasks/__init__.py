"""The tasks: what is learnt, and nothing about steps, KFP, Kubernetes or devices."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import TypeVar

from hanflow.errors import UserError
from hanflow.tasks.base import Task

REGISTRY = {
    "summarization": "hanflow.tasks.summarization:Summarization",
    "classification": "hanflow.tasks.classification:Classification",
    "language_modeling": "hanflow.tasks.language_modeling:LanguageModeling",
}
"""Task name → `module:class`. A name of that form outside the registry works too, for tasks of one's own."""

_registered: dict[str, type] = {}
_TaskClass = TypeVar("_TaskClass", bound=type)


def register_task(cls: _TaskClass) -> _TaskClass:
    """Make a task known by its name in this process; usable as a decorator.

    Steps that run in processes of their own (a whole pipeline, workers of a job) do not know it: for those, install it
    in a package with an entry point of the group `hanflow.tasks`.

    Args:
        cls: a class that has all of `hanflow.tasks.base.Task`; made without arguments.

    Raises:
        UserError: it lacks something, or its name belongs to another task.
    """
    name = getattr(cls, "name", "")
    lacking = _lacking(cls())
    if lacking:
        raise UserError(f"task {name!r}: lacks {', '.join(lacking)}; hanflow/tasks/base.py says what they are")
    if name in REGISTRY or _registered.get(name, cls).__qualname__ != cls.__qualname__:
        raise UserError(f"task {name!r}: there is a task of that name already; give the class another `name`")
    _registered[name] = cls
    return cls


def task_names() -> list[str]:
    """Names of all known tasks."""
    return [*REGISTRY, *_registered]


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: no such task; the message lists those that exist. Or it lacks something of `Task`; says what.
    """
    if name in _registered:
        return _registered[name]()
    target = REGISTRY.get(name, name if ":" in name else "")
    if not target:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(REGISTRY)}, or module:class"
        raise UserError(f"task {name!r}: no such task; {hint}")
    module, _, attribute = target.partition(":")
    try:
        task = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise UserError(f"task {name!r}: cannot be loaded: {error}") from error
    lacking = _lacking(task)
    if lacking:
        raise UserError(f"task {name!r}: lacks {', '.join(lacking)}; hanflow/tasks/base.py says what they are")
    return task


def _lacking(task: object) -> list[str]:
    """The members of `Task` that an object does not have, or only as the protocol's own empty methods."""
    methods = {name: member for name, member in vars(Task).items() if inspect.isfunction(member) and name[0] != "_"}
    return [name for name in Task.__annotations__ if not hasattr(task, name)] + [
        name for name, empty in methods.items() if getattr(type(task), name, empty) is empty
    ]
