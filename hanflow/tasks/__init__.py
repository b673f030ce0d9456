"""The tasks: what is learnt, and nothing about steps, KFP, Kubernetes or devices."""

from __future__ import annotations

import difflib
import importlib
import inspect

from hanflow.errors import UserError
from hanflow.tasks.base import Task

REGISTRY = {
    "summarization": "hanflow.tasks.summarization:Summarization",
    "classification": "hanflow.tasks.classification:Classification",
    "language_modeling": "hanflow.tasks.language_modeling:LanguageModeling",
}
"""Task name → `module:class`. A name of that form outside the registry works too, for tasks of one's own."""


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: no such task; the message lists those that exist. Or it lacks something of `Task`; says what.
    """
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
