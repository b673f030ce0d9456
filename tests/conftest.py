"""For all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from hanflow.progress import log


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """A command that a test ran in this process has set up its log: on a stream that is gone by the next test."""
    yield
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.NOTSET)
