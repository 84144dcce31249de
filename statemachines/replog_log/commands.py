"""``replog log``: append to the log and read it, from the command line.

What is read is the commands of the log, whatever the cluster's state machine; what is appended must
be one of its commands, or with the state machine ``log`` anything.

Nothing is loaded that the help does not need: the client comes with the first command that runs.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from replog.cli import (
    add_cluster_options,
    add_json_option,
    complain,
    examples,
    print_json,
    printable,
    run_with_client,
)
from replog.errors import BadCommand, ReplogError

if TYPE_CHECKING:
    from replog.client import Client
    from replog.types import LogEntry

_EXAMPLES: Final = """
replog log append hello --config cluster.toml
replog log append --lines --connect 127.0.0.1:8001 < events.txt
replog log read --from 100 --config cluster.toml
replog log read --follow --json --config cluster.toml
"""

READ_BYTES: Final = 64 * 1024
"""The lines in so much of standard input are in flight together."""


class Lines:
    """The lines of a stream, as they come."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        """``read(size)`` waits until there is something, and returns that; nothing at the end."""
        self._read = read
        self._rest = b""

    def take(self) -> Sequence[bytes]:
        """All whole lines that are there, without their ends, at least one; none at the end."""
        while data := self._read(READ_BYTES):
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                return lines
        last, self._rest = self._rest, b""
        return [last] if last else []


class LogCommand:
    """The word ``log`` of the command line."""

    name = "log"
    title = "append to the replicated log, and read or follow it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments behind the word."""
        parser.description = (
            "Use a cluster as a log: append to it, and read it from any index on.\n"
            "Exit code 1: the cluster did not answer, or what is asked for was cut off."
        )
        parser.epilog = examples(_EXAMPLES)
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        for name, (title, example, _) in _ACTIONS.items():
            action = actions.add_parser(
                name,
                help=title,
                description=f"{title[0].upper()}{title[1:]}.",
                epilog=examples(f"replog log {example} --config cluster.toml"),
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
            _add_options(name, action)
            add_json_option(action)
            add_cluster_options(action)

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it and return the process's exit code."""
        _, _, act = _ACTIONS[arguments.action]
        return act(arguments)


def _add_options(name: str, action: argparse.ArgumentParser) -> None:
    if name == "append":
        action.add_argument("data", metavar="DATA", nargs="?")
        given = action.add_mutually_exclusive_group()
        given.add_argument("--stdin", action="store_true", help="one entry: all of standard input")
        given.add_argument(
            "--lines", action="store_true", help="an entry for each line of standard input"
        )
        return
    action.add_argument(
        "--from",
        dest="from_index",
        metavar="INDEX",
        type=int,
        default=1,
        help="the first index (default: %(default)s)",
    )
    action.add_argument(
        "--follow", action="store_true", help="go on with what is appended later, without end"
    )
    action.add_argument("--node", metavar="ID", type=int, help="read it at this node")
    action.add_argument("--base64", action="store_true", help="show all data in base64")


def _append(arguments: argparse.Namespace) -> int:
    if (arguments.data is not None) + arguments.stdin + arguments.lines != 1:
        raise BadCommand("give the data on the command line, or by --stdin, or by --lines")
    if arguments.lines:
        return _append_lines(arguments)
    # From the command line, the very bytes that the shell handed over, UTF-8 or not.
    data = sys.stdin.buffer.read() if arguments.stdin else os.fsencode(arguments.data)
    applied = run_with_client(arguments, lambda client: client.propose(data))
    if arguments.json:
        print_json({"index": applied.index})
    else:
        print(applied.index)
    return 0


def _append_lines(arguments: argparse.Namespace) -> int:
    """Append line after line, and print the index of each; the first error ends it."""

    import trio

    async def append_all(client: Client) -> list[int]:
        indexes: list[int] = []
        standard_input = Lines(partial(os.read, sys.stdin.fileno()))
        # In a thread: who writes there may take its time, and Ctrl-C must be heard.
        while lines := await trio.to_thread.run_sync(standard_input.take, abandon_on_cancel=True):
            for outcome in await client.propose_many(lines):
                if isinstance(outcome, ReplogError):
                    complain(f"line {len(indexes) + 1} was not appended, or nobody knows")
                    raise outcome
                indexes.append(outcome.index)
                if not arguments.json:
                    print(outcome.index)
        return indexes

    indexes = run_with_client(arguments, append_all)
    if arguments.json:
        print_json({"indexes": indexes})
    return 0


def _read(arguments: argparse.Namespace) -> int:
    async def read_all(client: Client) -> None:
        entries = client.entries(arguments.from_index, follow=arguments.follow, node=arguments.node)
        async for entry in entries:
            print(_shown(arguments, entry), flush=arguments.follow)

    run_with_client(arguments, read_all)
    return 0


def _shown(arguments: argparse.Namespace, entry: LogEntry) -> str:
    """An entry as a line: in JSON, or its index and its data, in which a tab is escaped."""
    if not arguments.json:
        if arguments.base64:
            return f"{entry.index}\t{base64.b64encode(entry.data).decode()}"
        return f"{entry.index}\t{printable(entry.data.decode(errors='backslashreplace'))}"
    document: dict[str, object] = {"index": entry.index, "time_ms": entry.time_ms}
    if not arguments.base64:
        try:
            return json.dumps(document | {"data": entry.data.decode(), "encoding": "utf-8"})
        except UnicodeDecodeError:
            pass
    encoded = base64.b64encode(entry.data).decode()
    return json.dumps(document | {"data": encoded, "encoding": "base64"})


_ACTIONS: Final[Mapping[str, tuple[str, str, Callable[[argparse.Namespace], int]]]] = {
    "append": ("append an entry, and print its index", "append hello", _append),
    "read": (
        "print the commands in the log, one in a line: the index, and the data",
        "read --from 100 --follow",
        _read,
    ),
}
"""What can be done: its title, an example, and the function that does it."""

COMMAND: Final = LogCommand()
