"""``replog serve``: run one node until it is told to stop.

The log goes to standard error; only here is it configured, because a library that sets up its
caller's logging is a nuisance.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TextIO

from replog.cli.shared import add_config_option, collect_less, examples, node_argument

if TYPE_CHECKING:
    from types import FrameType

    import trio

    from replog.config import Config
    from replog.types import NodeId

_DESCRIPTION: Final = """\
Run one node of a cluster.  Its directory must exist: `replog init` makes it.
Ends cleanly, with exit code 0, on SIGTERM and on Ctrl-C."""

_EXAMPLES: Final = """
replog serve --config cluster.toml --node 1
replog serve --config cluster.toml --node 1 --log-format json 2>> node-1.log
"""

LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS: Final = ("console", "json")

_STOPS: Final = (signal.SIGTERM, signal.SIGINT)
"""The signals that ask a node to end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description, parser.epilog = _DESCRIPTION, examples(_EXAMPLES)
    add_config_option(parser)
    parser.add_argument(
        "--node",
        metavar="ID",
        type=node_argument,
        required=True,
        help="which node of the file to run",
    )
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="the least to log (default: info)"
    )
    parser.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default="console",
        help="for people (the default), or one JSON object per line",
    )
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="end also when standard input ends: for a program that starts nodes and must not "
        "leave any behind, however it ends itself",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the node; a stop on request is exit code 0."""
    # Before the heavy imports, so that a signal during the start ends it cleanly as well.
    with _noted_stops() as stops:
        from replog.config import load_config

        config = load_config(arguments.config)
        config.node(arguments.node)
        import trio

        configure_logs(arguments.log_level, arguments.log_format)
        collect_less()
        trio.run(_serve, config, arguments.node, arguments.until_stdin_closes, stops)
    return 0


@contextmanager
def _noted_stops() -> Iterator[Sequence[int]]:
    """Note the signals that ask for the end while nobody else receives them.

    They raise nothing: an exception in the middle of an import can get lost in there.
    """
    stops: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        stops.append(number)

    earlier = {number: signal.signal(number, note) for number in _STOPS}
    try:
        yield stops
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


class LogOutput:
    """Where the lines of the log go; a line that nobody takes is dropped.

    The program that collects the log may end before the node, and its disk may be full.  That must
    not take down a node that is well: it would take all nodes that the same collector listens to.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def msg(self, line: str) -> None:
        """Write one line at once."""
        with suppress(OSError):
            self._file.write(f"{line}\n")
            self._file.flush()

    debug = info = warning = error = critical = exception = msg


def configure_logs(level: str, form: str) -> None:
    """Send the log of this process to standard error."""
    import structlog

    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if form == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: LogOutput(sys.stderr),
    )


async def _serve(
    config: Config, node_id: NodeId, until_stdin_closes: bool, stops: Sequence[int]
) -> None:
    import trio

    from replog.running import open_node

    with trio.open_signal_receiver(*_STOPS) as signals:
        if stops:
            return  # somebody asked before there was anything to end
        async with open_node(config, node_id), trio.open_nursery() as nursery:
            if until_stdin_closes:
                nursery.start_soon(_end_with_stdin, nursery.cancel_scope)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _end_with_stdin(running: trio.CancelScope) -> None:
    import trio

    # A thread, because standard input may be of a kind that cannot be waited for; and a plain
    # read, because a buffered one would hold a lock that the interpreter wants when it ends.
    while await trio.to_thread.run_sync(os.read, 0, 4096, abandon_on_cancel=True):
        pass
    running.cancel()
