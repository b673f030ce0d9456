"""`python -m components.train --shards DIR --output DIR …`; under torchrun, one worker of several."""

import functools
import sys
import traceback
from typing import Any

from components.shared.config import UserError
from components.shared.steps import Report, main
from components.train.node import UNEXPECTED, note_ending


def work() -> tuple[int, str]:
    """Run the command line; returns the exit status and the error, if there was one."""
    words = ""
    try:
        from components.train.worker import run

        @functools.wraps(run)
        def remembering(*arguments: Any, **inputs: Any) -> Report:
            nonlocal words
            try:
                return run(*arguments, **inputs)
            except UserError as error:
                words = str(error)
                raise

        return main("train", remembering, inputs=("shards",)), words
    except SystemExit as error:  # wrong usage
        return error.code if isinstance(error.code, int) else 1, "wrong usage"
    except Exception as error:
        traceback.print_exc()
        # No restart gives a GPU more memory.
        status = 1 if type(error).__name__ == "OutOfMemoryError" else UNEXPECTED
        return status, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(note_ending(*work()))
