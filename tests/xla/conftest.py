"""The XLA tests run where torch_xla is: `make test-xla`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    missing = importlib.util.find_spec("torch_xla") is None
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xla)
            if missing:
                item.add_marker(pytest.mark.skip(reason="torch_xla is not installed here: make test-xla"))
