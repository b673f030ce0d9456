"""`python -m components.preprocess`: raw files to a clean, split corpus."""

from __future__ import annotations

import sys

from components.preprocess.corpus import run
from components.shared.steps import main

if __name__ == "__main__":
    sys.exit(main("preprocess", run, inputs=()))
