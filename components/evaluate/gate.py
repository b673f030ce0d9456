"""`python -m components.evaluate.gate --evaluation DIR`: prints true or false; the condition of the export step in Argo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from components.evaluate.score import passed
from components.shared.config import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Print whether an evaluation's scores keep their limits; returns the exit status, which does not depend on that."""
    parser = argparse.ArgumentParser(prog="python -m components.evaluate.gate", description=__doc__)
    parser.add_argument("--evaluation", required=True, help="folder of the evaluation artifact")
    options = parser.parse_args(argv)
    try:
        print(str(passed(options.evaluation)).lower())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
