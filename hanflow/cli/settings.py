"""`hanflow settings`: every setting with its type, choices, default and meaning."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Sequence

from hanflow.cli.options import Commands, completes
from hanflow.config import SECTIONS, Setting, all_settings, settings_of, suggest
from hanflow.errors import UserError

TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list", dict: "mapping"}


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
            "hanflow settings job --json            # for programs",
        ],
    )
    names = parser.add_argument(
        "names", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}, or SECTION.KEY (default: all)"
    )
    completes(names, lambda: [*SECTIONS, *(s.dotted for s in all_settings())])
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(command=_settings)


def _settings(options: argparse.Namespace) -> int:
    chosen = [setting for name in options.names or SECTIONS for setting in _named(name)]
    if options.json:
        print(json.dumps([_record(setting) for setting in chosen], ensure_ascii=False, indent=2))
        return 0
    print(_listing(chosen))
    return 0


def _named(name: str) -> Sequence[Setting]:
    """The settings of a section, or the one of that name."""
    if name in SECTIONS:
        return settings_of(name)
    found = [setting for setting in all_settings() if setting.dotted == name]
    if not found:
        near = suggest.setting(name, [*(setting.dotted for setting in all_settings()), *SECTIONS])
        hint = suggest.did_you_mean(near) or f"; sections: {', '.join(SECTIONS)}"
        raise UserError(f"{name}: no such section or setting{hint}")
    return found


def _record(setting: Setting) -> dict[str, object]:
    return {
        "name": setting.dotted,
        "type": TYPES[setting.type],
        "choices": list(setting.choices),
        "default": None if setting.required else setting.default,
        "required": setting.required,
        "help": setting.help,
    }


def _listing(settings: Sequence[Setting]) -> str:
    """Sections with their headings; a line for each setting, its meaning below."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines: list[str] = []
    section = ""
    for setting in settings:
        if setting.step != section:
            section = setting.step
            title = (SECTIONS[section].__doc__ or "").split("\n")[0]
            lines += ["", f"{section}: {title}"] if lines else [f"{section}: {title}"]
        kind = " | ".join(setting.choices) if setting.choices else TYPES[setting.type]
        if setting.choices and setting.type is list:
            kind = f"list of {kind}"
        default = "required" if setting.required else f"default {_shown(setting.default)}"
        lines.append(f"  {setting.dotted}  ({kind}; {default})")
        lines += textwrap.wrap(setting.help, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _shown(default: object) -> str:
    """A default as one would write it in YAML."""
    if default == "":
        return '""'
    return default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)
