"""`python -m components.export --model DIR --evaluation DIR --shards DIR --output DIR …`"""

import sys

from components.export.bundle import run
from components.shared.steps import main

if __name__ == "__main__":
    sys.exit(main("export", run, inputs=("model", "evaluation", "shards")))
