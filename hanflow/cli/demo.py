"""`hanflow demo`: a page to try one bundle, or two side by side."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from hanflow import resources
from hanflow.errors import UserError

SAMPLE = resources.folder("sample_data") / "petitions.tsv.gz"


def add(commands: Any) -> None:
    """Register the command with the subparsers of `hanflow`."""
    demo = commands.add_parser(
        "demo", help="serve a page to try a bundle", description="Serve a page to try one bundle, or two side by side."
    )
    demo.add_argument("bundles", nargs="+", metavar="BUNDLE", help="folder that the export step wrote; at most two")
    demo.add_argument("--port", type=int, default=8501, metavar="N", help="port (default: %(default)s)")
    demo.add_argument(
        "--host", default="localhost", metavar="NAME", help="address to listen on (default: %(default)s; all: 0.0.0.0)"
    )
    demo.add_argument(
        "--examples",
        metavar="FILE",
        help="texts to offer, in any form that `hanflow predict` reads (default: petitions of the bundled sample)",
    )
    demo.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Check the bundles, then become the server; returns only with an error."""
    if len(options.bundles) > 2:
        raise UserError(f"{len(options.bundles)} bundles do not fit side by side; give one or two")
    if not 0 < options.port < 65_536:
        raise UserError(f"--port: {options.port} is no port; give one from 1 to 65535, e.g. 8501")
    if importlib.util.find_spec("streamlit") is None:
        raise UserError("the demo needs Streamlit, which is not installed; pip install 'hanflow[demo]'")
    from hanflow.data.readers import read_texts, text_source
    from hanflow.serving.bundle import open_bundle

    opened = [open_bundle(bundle) for bundle in options.bundles]
    if options.examples:
        next(read_texts(text_source(options.examples, usual=opened[0].input_names)))
    arguments = command(options.bundles, options.host, options.port, options.examples or str(SAMPLE))
    sys.stdout.flush()
    os.execv(arguments[0], arguments)


def command(bundles: list[str], host: str, port: int, examples: str = str(SAMPLE)) -> list[str]:
    """The server's command line."""
    spec = importlib.util.find_spec("hanflow.serving.demo")
    assert spec is not None and spec.origin
    settings = {
        "server.port": port,
        "server.address": host,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "runner.magicEnabled": "false",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    page = ["--", "--examples", _absolute(examples), *map(_absolute, bundles)]
    return [sys.executable, "-m", "streamlit", "run", spec.origin, *flags, *page]


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())
