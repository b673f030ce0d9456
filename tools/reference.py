"""Hooks of mkdocs: the API reference, one page a room of hanflow, and the pages that lie outside docs/."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from tools.imports import LAYERS, modules, room  # noqa: E402

OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "manifests/README.md", "manifests/TPU.md")
"""Pages that keep their place in the repository."""


def _pages() -> dict[str, list[str]]:
    """Room → its modules, the public API first, then as the layers lie."""
    found: dict[str, list[str]] = {name: [] for rooms in reversed(LAYERS) for name in rooms}
    for module in modules():
        if module.split(".")[0] == "hanflow" and not module.endswith("__main__"):
            found[room(module)].append(module)
    return {name: inside for name, inside in found.items() if inside}


def on_config(config: Any) -> Any:
    """Add the reference to the navigation."""
    config.nav.append({"API reference": [{name: f"reference/{name}.md"} for name in _pages()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the reference and those outside docs/."""
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
