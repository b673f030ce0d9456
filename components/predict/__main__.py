"""`python -m components.predict BUNDLE --input X --output Y …`, the same as `hanflow predict`."""

import argparse
import sys

from components.predict.command import DESCRIPTION, add_arguments, run
from components.shared.config import UserError


def main() -> int:
    """Predict; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m components.predict", description=DESCRIPTION)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
