"""`python -m hanflow`: the same as the `hanflow` command."""

import sys

from hanflow.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
