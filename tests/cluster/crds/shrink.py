"""Shrinks CustomResourceDefinitions for the tests: `python shrink.py CRD.yaml …` writes each into this folder.

Descriptions go, and parts of a schema that are equal are written once (YAML anchors): whoever loads the file gets the whole
schema.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def without_descriptions(value: Any, *, names: bool = False) -> Any:
    """A copy without `description`; with `names` the keys of `value` are names of fields, and `description` may be one."""
    if isinstance(value, list):
        return [without_descriptions(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if names or key != "description"}
    return {key: without_descriptions(item, names=key == "properties" and not names) for key, item in kept.items()}


def with_equal_parts_shared(value: Any, known: dict[str, Any]) -> Any:
    """The same data in which equal mappings and lists are one object; `known` collects them by their JSON."""
    if isinstance(value, list):
        value = [with_equal_parts_shared(item, known) for item in value]
    elif isinstance(value, dict):
        value = {key: with_equal_parts_shared(item, known) for key, item in value.items()}
    else:
        return value
    return known.setdefault(json.dumps(value), value)


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        crd = without_descriptions(yaml.safe_load(path.read_text(encoding="utf-8")))
        text = yaml.safe_dump(with_equal_parts_shared(crd, {}), sort_keys=False, width=120)
        assert yaml.safe_load(text) == crd
        (Path(__file__).parent / path.name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
