"""A launcher in a process of its own: reads a job from standard input, and ends as the step's command line does."""

from __future__ import annotations

import json
import os
import sys

from hanflow.cluster.client import Cluster
from hanflow.cluster.follow import Timing
from hanflow.cluster.launcher import launch
from hanflow.errors import UserError
from hanflow.progress import setup_logging
from hanflow.signals import Terminated, raise_on_sigterm
from tests.cluster.world import QUICK


def main(timing: Timing = QUICK) -> int:
    objects = json.load(sys.stdin)
    setup_logging()
    raise_on_sigterm()
    try:
        launch(Cluster(os.environ.get("HANFLOW_TEST_NAMESPACE", "")), *objects, timing=timing)
    except (UserError, Terminated) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
