"""Hooks of mkdocs: the list of settings, the API reference (one page a room), and the pages that lie outside docs/."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from hanflow.experiment import all_settings  # noqa: E402
from hanflow.tasks import known_tasks  # noqa: E402
from tools.imports import LAYERS, modules, room  # noqa: E402

OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "manifests/README.md", "manifests/TPU.md")
"""Pages that keep their place in the repository."""


def _pages() -> dict[str, list[str]]:
    """Room → its modules, the public API first, then as the layers lie."""
    found: dict[str, list[str]] = {name: [] for rooms in reversed(LAYERS) for name in rooms}
    for module, path in modules().items():
        if module.split(".")[0] == "hanflow" and not module.endswith("__main__") and path.stat().st_size:
            found[room(module)].append(module)
    return {name: inside for name, inside in found.items() if inside}


def _settings() -> str:
    """A page with every setting: those of all tasks, then what each task adds."""
    common = all_settings()
    groups = {"Of every task": common}
    for task in known_tasks():
        groups[f"Of {task} alone"] = [s for s in all_settings(task) if s not in common]
    parts = ["# Settings\n\nIn a YAML experiment `train: {epochs: 3}`, on the command line `--set train.epochs=3`.\n"]
    for title, settings in groups.items():
        parts.append(f"## {title}\n\n| setting | default | meaning |\n|---|---|---|")
        for s in settings:
            default = "required" if s.required else f"`{s.default!r}`"
            choices = f" One of: {', '.join(s.choices)}." if s.choices else ""
            parts.append(f"| `{s.dotted}` | {default} | {html.escape(s.help, quote=False)}{choices} |")
        parts.append("")
    return "\n".join(parts)


def on_config(config: Any) -> Any:
    """Add the made pages to the navigation."""
    config.nav.append({"Settings": "settings.md"})
    config.nav.append({"API reference": [{name: f"reference/{name}.md"} for name in _pages()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the made pages and those outside docs/."""
    files.append(File.generated(config, "settings.md", content=_settings()))
    for name, inside in _pages().items():
        text = f"# {name}\n\n" + "".join(f"::: {module}\n\n" for module in inside)
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that are right in the repository, where the site's pages lie in docs/, into links within the site."""
    inside = page.file.src_uri not in OUTSIDE
    return re.sub(r"(\]\()\.\./(?=[A-Zm])" if inside else r"(\]\((?:\.\./)*)docs/", r"\1", markdown)
