"""`python -m components.evaluate --model DIR --shards DIR --corpus DIR --output DIR …`"""

import sys

from components.evaluate.score import run
from components.shared.steps import main

if __name__ == "__main__":
    sys.exit(main("evaluate", run, inputs=("model", "shards", "corpus")))
