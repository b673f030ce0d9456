"""`hanflow predict`: a bundle's predictions for texts in files or from a pipe."""

from __future__ import annotations

from typing import Any

from components.predict.command import DESCRIPTION, add_arguments, run


def add(commands: Any) -> None:
    """Register the command with the subparsers of `hanflow`."""
    predict = commands.add_parser("predict", help="predict with an exported bundle", description=DESCRIPTION)
    add_arguments(predict)
    predict.set_defaults(command=run)
