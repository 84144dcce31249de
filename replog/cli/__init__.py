"""The command ``replog``: finds the subcommand, runs it, and turns errors into sentences.

The rules:

* Exit codes: 0 is fine; 1 means that the thing asked about is wrong or could not be done; 2 is bad
  input; 130 is Ctrl-C; 141 is a reader of standard output who has gone.  An error that replog
  raises on purpose becomes its own sentence on standard error, never a traceback.
* Results go to standard output and everything else to standard error, so that ``--json`` can be
  piped.
* A start costs little: a subcommand is a module that is imported when it is asked for, and what it
  needs to run (trio, structlog, cbor2) only when it runs.  ``--help`` and ``--version`` load none.
* The commands of plugins come behind the same word, found by name (:mod:`replog.plugins`); nothing
  in here knows a state machine or an engine.

A plugin's command takes what it shares with the others from this package:
:func:`add_cluster_options`, :func:`run_with_client`, :func:`print_json`, :func:`complain`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, Protocol, cast

from replog import __version__
from replog.cli.shared import (
    add_cluster_options,
    add_json_option,
    cluster_addresses,
    complain,
    examples,
    print_json,
    printable,
    run_with_client,
)
from replog.errors import (
    CallerError,
    Compacted,
    DumpUnavailable,
    EntryReplaced,
    FellBehind,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Refused,
    ReplogError,
    SnapshotFailed,
    SnapshotGone,
    SnapshotUnavailable,
    Unavailable,
)
from replog.plugins import closest, command_names, find_command

__all__ = [
    "add_cluster_options",
    "add_json_option",
    "cluster_addresses",
    "complain",
    "examples",
    "main",
    "print_json",
    "printable",
    "run_with_client",
]

EXIT_FAILED: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141

_COMMANDS: Final[Mapping[str, str]] = {
    "init": "make the directories of a new cluster's nodes",
    "serve": "run one node",
    "status": "ask every node of a cluster how it is",
    "demo": "run a cluster here, kill its leader, and check that nothing is lost",
    "sim": "simulate clusters under faults, seed by seed, and judge all that they do",
    "check": "explore every state of an engine's model within bounds, and judge each",
    "snapshot": "have nodes take a snapshot, or list those of one",
    "backup": "copy a node's newest snapshot to a file",
    "restore": "make a new cluster from a backup",
    "rejoin": "bring a node back that lost its directory, as a learner",
    "inspect": "show what a node's directory holds, and whether it is damaged",
    "config": "print an example configuration, or check one",
    "plugins": "list what is installed: engines, state machines, storages, commands",
}
"""The words of the command line, each a module of this package, and what they do."""

_FAILURES: Final = (
    Unavailable,
    OutcomeUnknown,
    NotLeader,
    Overloaded,
    EntryReplaced,
    Compacted,
    FellBehind,
    DumpUnavailable,
    SnapshotFailed,
    SnapshotGone,
    SnapshotUnavailable,
)
"""The caller's errors that are nobody's bad input: it could not be done this time."""

_EXAMPLES: Final = """
replog demo
replog config example > cluster.toml
replog init --config cluster.toml
replog serve --config cluster.toml --node 1
replog status --config cluster.toml
"""


class _Command(Protocol):
    """What a subcommand's module and a :class:`~replog.plugins.CommandPlugin` have in common."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error of the command line."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see `{self.prog} --help`")
        self.exit(EXIT_BAD_INPUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character gets an escape instead of our traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who reads our output has enough, as in `replog config example | head -1`; there must be
        # something left that Python can flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code


def _run(words: Sequence[str]) -> int:
    """Parse the words and do what they say; what fails on purpose becomes a sentence."""
    try:
        command, arguments = _parse(words)
        return command.run(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (ReplogError, OSError, BaseExceptionGroup) as error:
        return _explain(error)


def _explain(error: BaseException) -> int:
    """Print the sentences of an error and return the exit code that it stands for."""
    while isinstance(error, BaseExceptionGroup):
        # The tasks of one command fail together: the first error is as good as any.
        interrupt = error.subgroup(KeyboardInterrupt)
        if interrupt is not None:
            return EXIT_INTERRUPTED
        error = error.exceptions[0]
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
        return EXIT_FAILED
    if not isinstance(error, ReplogError):
        raise error
    complain(str(error))
    if isinstance(error, _FAILURES) and not isinstance(error, Refused):
        return EXIT_FAILED
    return EXIT_BAD_INPUT if isinstance(error, CallerError) else EXIT_FAILED


def _parse(words: Sequence[str]) -> tuple[_Command, argparse.Namespace]:
    """Find the subcommand, and parse the words with the arguments that it declares."""
    parser = _Parser(
        prog="replog",
        description="A replicated log: run a cluster, look at it, try it.",
        epilog=examples(_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"replog {__version__}")
    # No option in front of the subcommand takes a value, so the first plain word is its name.
    name = next((word for word in words if not word.startswith("-")), None)
    titles = dict(_COMMANDS)
    if name not in _COMMANDS and "--version" not in words:
        # Asking which plugins there are costs some milliseconds; their modules stay unloaded.
        for word in command_names():
            titles.setdefault(word, f"added by a plugin; see `replog {printable(word)} --help`")
        if name is not None and name not in titles:
            parser.error(f"there is no command '{printable(name)}'{closest(name, titles)}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    command: _Command | None = None
    for word, title in titles.items():
        subparser = subparsers.add_parser(
            word,
            help=title.replace("%", "%%"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if word == name:
            command = _find_command(word)
            command.add_arguments(subparser)
    arguments = parser.parse_args(words)
    if command is None:
        parser.print_help(sys.stderr)
        parser.exit(EXIT_BAD_INPUT)
    return command, arguments


def _find_command(name: str) -> _Command:
    if name in _COMMANDS:
        return cast("_Command", importlib.import_module(f"replog.cli.{name}"))
    return find_command(name)
