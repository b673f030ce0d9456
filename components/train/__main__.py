"""`python -m components.train --shards DIR --output DIR …`; under torchrun, one worker of several."""

import sys

from components.shared.steps import main
from components.train.worker import run

if __name__ == "__main__":
    sys.exit(main("train", run, inputs=("shards",)))
