"""What every command shares: how a cluster is named, how its client is run, how results look.

Commands of plugins use the same functions, by way of :mod:`replog.cli`, so that the options mean
the same behind every word.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple, Unpack

from replog.errors import AddressError, PluginError
from replog.plugins import engine_names, find_engine

if TYPE_CHECKING:
    from replog.client import Client
    from replog.config import Config

ALL_ENGINES: Final = "both"
CONNECT_VARIABLE: Final = "REPLOG_CONNECT"
TIMEOUT_SECONDS_DEFAULT: Final = 10.0
_COLUMNS_DEFAULT: Final = 80
"""The width of a terminal that does not tell it."""

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


def collect_less() -> None:
    """Have Python look for cycles of garbage more seldom: a node makes a great many records, which
    are in no cycles, and would spend a tenth of its time on looking at them; who keeps all that it
    makes, as the search of a space does, a quarter.

    That is the affair of a program, not of a library: one that embeds a node decides for itself.
    """
    gc.set_threshold(50_000, 50, 50)


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a cluster: ``--connect``, ``--config`` and ``--timeout``."""
    group = parser.add_argument_group("the cluster")
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--connect",
        metavar="HOST:PORT,...",
        help="client addresses of some of its nodes; one that answers is enough",
    )
    where.add_argument(
        "--config",
        metavar="FILE",
        help=f"its configuration file; without either option, the addresses in {CONNECT_VARIABLE}",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds_argument,
        default=TIMEOUT_SECONDS_DEFAULT,
        help="how long to wait for an answer (default: %(default)g)",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document, and nothing else, on standard output",
    )


def add_engines_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` to a command that runs every installed engine unless it is told one."""
    parser.add_argument(
        "--engine",
        metavar="NAME",
        default=ALL_ENGINES,
        help=f"one engine, or `{ALL_ENGINES}`: all that are installed (default: %(default)s); "
        "`replog plugins` lists them",
    )


def chosen_engines(arguments: argparse.Namespace) -> Sequence[str]:
    """The names that ``--engine`` stands for, one at least.

    Raises :class:`~replog.errors.PluginError` when that engine, or any, is not installed.
    """
    if arguments.engine != ALL_ENGINES:
        find_engine(arguments.engine)
        return [arguments.engine]
    names = engine_names()
    if not names:
        raise PluginError("no engine is installed, so there is nothing to run")
    for name in names:
        find_engine(name)
    return names


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` to a command that works on a configuration file."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        required=True,
        help="the cluster's configuration; `replog config example` prints one",
    )


def seconds_argument(text: str) -> float:
    """A positive number of seconds, for argparse."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is no positive number of seconds")
    return seconds


def count_argument(text: str) -> int:
    """A positive number of things, for argparse."""
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is no positive whole number")
    return int(text)


def number_argument(text: str) -> int:
    """A whole number from 0 on, for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is no whole number from 0 on")
    return int(text)


def node_argument(text: str) -> int:
    """The id of a node, for argparse; whether there is such a node is the configuration's word."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{printable(text)}' is no node id, which is a number"
        ) from None


def cluster_of(arguments: argparse.Namespace) -> Config | list[str]:
    """The configuration, or else the client addresses, that the options name.

    Raises :class:`~replog.errors.AddressError` when they name none, and what reading the
    configuration raises.
    """
    if arguments.config is not None:
        from replog.config import load_config

        return load_config(Path(arguments.config))
    source, text = "--connect", arguments.connect
    if text is None:
        source, text = CONNECT_VARIABLE, os.environ.get(CONNECT_VARIABLE)
    if text is None:
        raise AddressError(
            "no cluster is named; give --connect HOST:PORT or --config FILE, or set "
            f"{CONNECT_VARIABLE} to the addresses"
        )
    # What stands between commas is parsed here, so that a slip is found before anybody is called.
    from replog.address import Address

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise AddressError(f"{source} names no address; write it as HOST:PORT,HOST:PORT")
    return [str(Address.parse(word)) for word in words]


def cluster_addresses(arguments: argparse.Namespace) -> list[str]:
    """The client addresses of the cluster that the options name; raises like :func:`cluster_of`."""
    cluster = cluster_of(arguments)
    if isinstance(cluster, list):
        return cluster
    return [str(node.client) for node in cluster.nodes]


def run_with_client(arguments: argparse.Namespace, use: Callable[[Client], Awaitable[R]]) -> R:
    """Run ``use`` with a client of the cluster that the options name, and return what it returns.

    Raises what the client raises.
    """
    cluster = cluster_of(arguments)
    # Loaded only now: a command line that prints its help needs no network library.
    from replog.client import Client

    async def run() -> R:
        async with Client(cluster, deadline_seconds=arguments.timeout) as client:
            return await use(client)

    return run_async(run)


def run_async(function: Callable[[Unpack[Ts]], Awaitable[R]], *arguments: *Ts) -> R:
    """Run an asynchronous function to its end.

    Ctrl-C ends it where it waits, and never amid a call: an extension that encodes or compares
    may swallow the interrupt, and the command would go on.
    """
    import trio

    return trio.run(function, *arguments, restrict_keyboard_interrupt_to_checkpoints=True)


def print_json(document: object) -> None:
    """Print one JSON document on standard output; plain ASCII, whatever it holds."""
    print(json.dumps(document, indent=2))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; one that holds nothing but numbers is set to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [
        all(text.lstrip("-").isdigit() or text == "-" for text in column[1:]) for column in columns
    ]
    for row in (head, *rows):
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(cells).rstrip())


class ProgressLine:
    """One line on standard error that is rewritten in place; silent unless it is a terminal."""

    def __init__(self) -> None:
        self.is_shown = sys.stderr.isatty()

    def show(self, line: str) -> None:
        """Rewrite the line."""
        if self.is_shown:
            # Cut to one line, for a wrapped one could not be rewritten; the rest of the line before
            # is erased.
            sys.stderr.write(f"\r{line[: _terminal_columns() - 1]}\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        """Leave no trace of the line."""
        if self.is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _terminal_columns() -> int:
    """How wide the terminal is at the moment; its user may change it."""
    try:
        # Not `shutil.get_terminal_size`: that one asks standard output, which may be a file.
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    return columns or _COLUMNS_DEFAULT


def complain(text: str) -> None:
    """Print an error's sentences on standard error, each line with our name in front.

    Where nobody reads them any more they are dropped: the exit code says it as well.
    """
    with suppress(OSError):
        for line in text.splitlines() or [""]:
            print(f"replog: {printable(line)}", file=sys.stderr)


def printable(text: str) -> str:
    """The text with everything escaped that could disturb a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def examples(lines: str) -> str:
    """The end of a help text: one command per line."""
    shown = "\n".join(f"  {line}" for line in lines.strip().splitlines())
    return f"examples:\n{shown}"
