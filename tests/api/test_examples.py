"""docs/api-examples.md: every block of it runs, in order, as a reader would type it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hanflow import tasks

PAGE = Path(__file__).parents[2] / "docs" / "api-examples.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_page_of_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "_registered", {})  # the page registers one
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "examples"}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= 12
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        code = compile("\n" * line + block[1], str(PAGE), "exec")  # tracebacks then name the page's lines
        exec(code, names)
    assert {prediction.text for prediction in (names["good"], names["bad"])} <= {"0", "1"}
    assert set(names["frames"]) == {"steps", "training", "validation", "scores", "predictions"}
    assert names["run"].pipeline == "classification"
    assert (tmp_path / "runs" / "reviews" / "bundle" / "bundle.json").is_file()
