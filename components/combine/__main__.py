"""`python -m components.combine --shards DIR --models DIR DIR --output DIR …`"""

import sys

from components.combine.average import run
from components.shared.steps import main

if __name__ == "__main__":
    sys.exit(main("combine", run, inputs=("shards",), lists=("models",)))
