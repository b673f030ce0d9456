"""`python -m components.tokenize --corpus DIR --output DIR …`"""

import sys

from components.shared.steps import main
from components.tokenize.encode import run

if __name__ == "__main__":
    sys.exit(main("tokenize", run, inputs=("corpus",)))
