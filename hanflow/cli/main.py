"""The `hanflow` command. A command imports what it needs only when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from hanflow.cli import import_, run, settings, submit, use
from hanflow.cli.options import Commands
from hanflow.config.suggest import spelling_hint
from hanflow.errors import UserError, file_error
from hanflow.signals import exit_status
from hanflow.system import use_utf8

EXAMPLES = """\
examples:
  hanflow run summarization                      the whole pipeline on bundled data, in about a minute
  hanflow run summarization --experiment kobart-news --set preprocess.source=news.csv
  hanflow predict runs/NAME --input texts.txt    with the model of that run
  hanflow settings train                         every setting of a step, with its choices and default

`hanflow COMMAND --help` shows the options of a command, with examples.
Shell completion: eval "$(hanflow completion bash)" in ~/.bashrc, or the same with zsh in ~/.zshrc."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 after an error, 2 for wrong usage, 130 after Ctrl-C."""
    if argv is None:
        use_utf8()
    parser, commands = make_parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without UTF-8 gets escapes instead of an error
            stream.reconfigure(errors="backslashreplace")
    options = _parsed(list(sys.argv[1:] if argv is None else argv), parser, commands)
    try:
        return options.command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        return exit_status(error)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of standard output has closed it, as in `hanflow … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        if error.filename is None:
            raise
        print(f"error: {file_error(error)}", file=sys.stderr)
        return 1


def make_parser() -> tuple[argparse.ArgumentParser, Commands]:
    """The parser of the whole command line, and its commands."""
    parser = argparse.ArgumentParser(
        prog="hanflow",
        usage="hanflow [-h] [--version] COMMAND ...",
        description="Train, score and ship Korean language models.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = Commands(parser)
    commands.group("Run a pipeline on this machine")
    run.add(commands)
    commands.group("Run it on a Kubeflow Pipelines server")
    submit.add(commands)
    commands.group("Use a model")
    use.add(commands)
    import_.add(commands)
    commands.group("Help")
    settings.add(commands)
    _add_completion(commands)
    commands.finish()
    return parser, commands


def _parsed(arguments: list[str], parser: argparse.ArgumentParser, commands: Commands) -> argparse.Namespace:
    """The parsed arguments; a misspelt command or option ends the program with the nearest one."""
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    if name and name not in commands.parsers:
        hint = spelling_hint(name, commands.parsers, 0.6) or f"; commands: {', '.join(commands.parsers)}"
        parser.error(f"no such command: {name}{hint}")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = commands.parsers[options.command_name]
        if not unknown[0].startswith("-"):
            command.error(f"unexpected argument: {unknown[0]}")
        known = re.findall(r"--[a-z][a-z-]+", command.format_help())
        command.error(f"unexpected option: {unknown[0]}{spelling_hint(unknown[0].split('=')[0], known)}")
    return options


class _Version(argparse.Action):
    """`--version`: the digest is computed only where the option is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from hanflow.version import version_line

        print(version_line())
        parser.exit()


def _add_completion(commands: Commands) -> None:
    parser = commands.add(
        "completion",
        help="completion of commands, options and settings in the shell",
        description="Print a script that lets the shell complete commands, options, pipelines, experiments and settings.",
        examples=[
            'eval "$(hanflow completion bash)"    # in ~/.bashrc',
            'eval "$(hanflow completion zsh)"     # in ~/.zshrc',
        ],
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that reads the script")
    parser.set_defaults(command=_completion)


def _completion(options: argparse.Namespace) -> int:
    import argcomplete

    print(argcomplete.shellcode(["hanflow"], shell=options.shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
