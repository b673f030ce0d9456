"""The tasks: what is learnt; independent of steps, KFP, Kubernetes and devices.

Known are the tasks of this folder (one a module, of the module's name), those of installed packages with an entry point
of the group `hanflow.tasks`, and those given to `register_task`. Importing this package loads no task.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

from hanflow.config.suggest import hint
from hanflow.errors import UserError
from hanflow.tasks.base import Task
from hanflow.version import set_task_module

_NO_TASKS = {"__init__", "base", "data", "predictor"}
_registered: dict[str, Task] = {}

_Class = TypeVar("_Class", bound=type)


def known_tasks() -> list[str]:
    """Names of all tasks: hanflow's own first."""
    own = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _NO_TASKS)
    return list(dict.fromkeys([*own, *_foreign(), *_registered]))


def register_task(cls: _Class) -> _Class:
    """Make a task known to this process under its `name`; a class decorator.

    Pipelines and workers of jobs run in other processes: for those, set task=module:Class, or install it in a package
    with an entry point of the group `hanflow.tasks`.

    Args:
        cls: a class with all of `hanflow.tasks.base.Task`; made without arguments.

    Raises:
        UserError: it lacks attributes or methods of `Task`; the message lists them.
    """
    lacking = [name for name in (*Task.__annotations__, *vars(Task)) if name[0] != "_" and _is_missing(cls, name)]
    if lacking:
        needed = ", ".join(dict.fromkeys(lacking))
        raise UserError(f"task {cls.__name__}: lacks {needed}; hanflow/tasks/base.py documents them")
    task = cls()
    _registered[task.name] = task
    set_task_module(task.name, cls.__module__)
    return cls


def get_task(name: str) -> Task:
    """The known task of that name. The name is looked up, never imported, so it may come from an untrusted file.

    Raises:
        UserError: no such task, or it lacks something of `Task`.
    """
    if name in _registered:
        return _registered[name]
    if name in _foreign():
        register_task(_foreign()[name].load())
    elif name in known_tasks():
        module = importlib.import_module(f"hanflow.tasks.{name}")
        register_task(next(v for v in vars(module).values() if inspect.isclass(v) and vars(v).get("name") == name))
    if name not in _registered:
        raise UserError(
            f"task {name!r}: no such task; {hint(name, known_tasks())}. A task of your own is given as task=module:Class, or comes with an "
            "installed package"
        )
    return _registered[name]


def chosen_task(name: str) -> Task:
    """The task of a name in the settings or on the command line: a known one, or `module:Class`.

    Raises:
        UserError: it cannot be loaded, or lacks something of `Task`.
    """
    module, colon, attribute = name.partition(":")
    if colon and name not in _registered:
        try:
            register_task(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"task {name!r}: cannot be loaded: {error}") from error
        if name not in _registered:
            raise UserError(f"task {name!r}: the class is named otherwise; write `name = {name!r}` in it")
    return get_task(name)


@cache
def _foreign() -> dict[str, EntryPoint]:
    """Entry points of installed packages by name."""
    return {point.name: point for point in entry_points(group="hanflow.tasks")}


def _is_missing(cls: type, name: str) -> bool:
    """Whether a class lacks an attribute or method, or has it only as an abstract one."""
    return getattr(getattr(cls, name, None), "__isabstractmethod__", not hasattr(cls, name))
