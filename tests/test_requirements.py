"""What is installed is what was chosen: versions from one file, and a digest of each."""

from __future__ import annotations

import re
from pathlib import Path

from images.pins import pinned

ROOT = Path(__file__).parents[1]


def test_each_requirement_has_a_digest_and_the_version_of_the_constraints() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", line) for line in blocks)
    versions = pinned([line.split()[0] for line in blocks])
    files = (ROOT / "constraints.txt", ROOT / "images" / "gpu" / "constraints.txt")
    constraints = pinned([line for path in files for line in path.read_text(encoding="utf-8").splitlines()])
    assert len(versions) == len(blocks) > 100
    assert {name: constraints.get(name) for name in versions} == versions
