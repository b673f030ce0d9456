"""`python -m components.train --shards DIR --output DIR …`; under torchrun, one worker of several."""

import sys
import traceback

from components.shared.steps import main
from components.train.node import UNEXPECTED, note_ending


def _work() -> int:
    try:
        from components.train.worker import run

        return main("train", run, inputs=("shards",))
    except SystemExit as error:  # wrong usage
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        traceback.print_exc()
        # No restart gives a GPU more memory.
        return 1 if type(error).__name__ == "OutOfMemoryError" else UNEXPECTED


if __name__ == "__main__":
    sys.exit(note_ending(_work()))
