"""`hanflow settings`: every setting with its type, choices, default and meaning."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Sequence

from hanflow.cli.options import Commands, completes, settings_of_all_tasks
from hanflow.config import suggest
from hanflow.errors import UserError
from hanflow.experiment import SECTIONS, Setting, settings_of
from hanflow.tasks import known_tasks

TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list", dict: "mapping"}

Entry = tuple[Setting, tuple[str, ...]]
"""A setting, and the tasks that alone have it; empty: all have it."""


def add(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add(
        "settings",
        help="list settings with their types, choices and defaults",
        description="List the settings of an experiment by section: name, type or choices, default, meaning. Set them in a "
        "YAML file, or with --set SECTION.KEY=VALUE.",
        examples=[
            "hanflow settings                       # all of them",
            "hanflow settings train evaluate        # two sections",
            "hanflow settings train.learning_rate   # one setting",
            "hanflow settings --task classification # those of one task",
            "hanflow settings job --json            # for programs",
        ],
    )
    names = parser.add_argument(
        "names", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}, or SECTION.KEY (default: all)"
    )
    completes(names, lambda: [*SECTIONS, *(s.dotted for s in settings_of_all_tasks())])
    task = parser.add_argument(
        "--task", metavar="NAME", help="only the settings that this task has (default: all tasks)"
    )
    completes(task, known_tasks)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(command=_settings)


def _settings(options: argparse.Namespace) -> int:
    tasks = [options.task] if options.task else known_tasks()
    chosen = [entry for name in options.names or SECTIONS for entry in _named(name, tasks)]
    if options.json:
        print(json.dumps([_record(setting, only) for setting, only in chosen], ensure_ascii=False, indent=2))
    else:
        print(_listing(chosen))
    return 0


def _named(name: str, tasks: Sequence[str]) -> list[Entry]:
    """The settings of a section, or those of that dotted name."""
    if name in SECTIONS:
        return _section(name, tasks)
    section = name.partition(".")[0]
    found = [entry for entry in _section(section, tasks) if entry[0].dotted == name] if section in SECTIONS else []
    if not found:
        near = suggest.setting(name, [*(setting.dotted for setting in settings_of_all_tasks()), *SECTIONS])
        hint = suggest.did_you_mean(near) or f"; sections: {', '.join(SECTIONS)}"
        raise UserError(f"{name}: no such section or setting{hint}")
    return found


def _section(section: str, tasks: Sequence[str]) -> list[Entry]:
    """The settings of a section, first those that all of these tasks have."""
    found: list[tuple[Setting, list[str]]] = []
    for task in tasks:
        for setting in settings_of(section, task):
            owners = next((owners for other, owners in found if other == setting), None)
            if owners is None:
                found.append((setting, [task]))
            else:
                owners.append(task)
    entries = [(setting, () if len(owners) == len(tasks) else tuple(owners)) for setting, owners in found]
    return sorted(entries, key=lambda entry: bool(entry[1]))


def _record(setting: Setting, only: Sequence[str]) -> dict[str, object]:
    return {
        "name": setting.dotted,
        "type": TYPES[setting.type],
        "choices": list(setting.choices),
        "default": None if setting.required else setting.default,
        "required": setting.required,
        "tasks": list(only),
        "help": setting.help,
    }


def _listing(entries: Sequence[Entry]) -> str:
    """Sections with their headings; a line for each setting, its meaning below."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines: list[str] = []
    section = ""
    for setting, only in entries:
        if setting.step != section:
            section = setting.step
            title = (SECTIONS[section].__doc__ or "").split("\n")[0]
            lines += ["", f"{section}: {title}"] if lines else [f"{section}: {title}"]
        kind = " | ".join(setting.choices) if setting.choices else TYPES[setting.type]
        if setting.choices and setting.type is list:
            kind = f"list of {kind}"
        default = "required" if setting.required else f"default {_shown(setting.default)}"
        owners = f"; only {', '.join(only)}" if only else ""
        lines.append(f"  {setting.dotted}  ({kind}; {default}{owners})")
        lines += textwrap.wrap(setting.help, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _shown(default: object) -> str:
    """A default as one would write it in YAML."""
    if default == "":
        return '""'
    return default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)
