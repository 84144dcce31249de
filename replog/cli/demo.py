"""``replog demo``: replicate a text, kill the leader in the middle, and prove that nothing is lost.

Three nodes, each a process of its own with a durable directory, replicate the words of a text.  In
the middle of the load the leader is killed with SIGKILL; another takes over, and the killed node
comes back and catches up.  At the end every acknowledged write is looked up in every replica.

With ``--sync os`` the logs are not durable, and whatever is shown says so: nothing is lost by the
SIGKILL, and a power cut is not shown here.

Which state machine that takes is the one thing that is fixed here: a store with put,
compare-and-set and range, found by its name like any plugin.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from replog.cli.shared import (
    add_engines_option,
    add_json_option,
    chosen_engines,
    count_argument,
    examples,
    print_json,
    seconds_argument,
)
from replog.config import SYNC_LEVELS
from replog.errors import CallerError, DirectoryError, PluginError
from replog.plugins import find_state_machine

if TYPE_CHECKING:
    from replog.cli.demo_report import DemoResult
    from replog.cli.demo_run import DemoPlan
    from replog.statemachine import StateMachine

WRITES_DEFAULT: Final = 20_000
SECONDS_DEFAULT: Final = 5.0
IN_FLIGHT_DEFAULT: Final = 128
STATE_MACHINE: Final = "kv"

_DESCRIPTION: Final = """\
Run a cluster of three processes on this machine, each with a durable log, write
the words of a text into it, and kill the leader with SIGKILL in the middle.  At
the end, look every acknowledged write up in every replica.  Exit code 1 if
anything is lost or differs.  Runs every installed engine, one after another,
and shows them side by side; takes about ten seconds for each, and leaves
nothing behind."""

_EXAMPLES: Final = """
replog demo
replog demo --input book.txt --keep book-cluster
replog demo --writes 2000 --seconds 1 --json
replog demo --sync os
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description, parser.epilog = _DESCRIPTION, examples(_EXAMPLES)
    add_engines_option(parser)
    parser.add_argument(
        "--input",
        metavar="FILE",
        type=Path,
        help="the text, written once (default: the licence and the docstrings of replog, "
        "repeated as often as needed)",
    )
    parser.add_argument(
        "--writes",
        metavar="N",
        type=count_argument,
        help=f"write at least so many words, repeating the text (default: {WRITES_DEFAULT})",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=seconds_argument,
        help=f"write for at least so long, repeating the text (default: {SECONDS_DEFAULT:g})",
    )
    parser.add_argument(
        "--in-flight",
        metavar="N",
        type=count_argument,
        default=IN_FLIGHT_DEFAULT,
        help="writes that wait for their acknowledgement at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--sync",
        choices=SYNC_LEVELS,
        default=SYNC_LEVELS[0],
        help="when logs are synced: always, which is before a write is acknowledged, or when the "
        "operating system likes (os), which is NOT durable (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        metavar="DIR",
        type=Path,
        help="keep configurations, logs and data in this directory, which must be new or empty",
    )
    add_json_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration; 1 if anything was lost."""
    engines = chosen_engines(arguments)
    plan = _plan(arguments)
    results: list[DemoResult] = []
    with _folder(arguments.keep) as folder:
        # Loaded only now: what is wrong with the arguments was said without waiting for it.
        from replog.cli.demo_report import document_of, print_result, print_side_by_side
        from replog.cli.demo_run import run_engine

        for engine in engines:
            home = folder / engine
            home.mkdir()
            result = run_engine(engine, home, plan)
            results.append(result)
            if not arguments.json:
                print_result(result)
    if arguments.json:
        print_json([document_of(result) for result in results])
    elif len(results) > 1:
        print_side_by_side(results)
    if arguments.keep is not None and not arguments.json:
        print(f"kept in {arguments.keep}")
    return 0 if all(result.is_good for result in results) else 1


def _plan(arguments: argparse.Namespace) -> DemoPlan:
    from replog.cli.demo_run import DemoPlan
    from replog.cli.demo_words import lines_of_file, lines_of_replog, words_in

    lines: Sequence[str]
    asked = arguments.writes is not None or arguments.seconds is not None
    lines = lines_of_replog() if arguments.input is None else lines_of_file(arguments.input)
    once = arguments.input is not None and not asked
    writes_min, seconds_min = WRITES_DEFAULT, SECONDS_DEFAULT
    if arguments.writes is not None:
        writes_min = arguments.writes
    if arguments.seconds is not None:
        seconds_min = arguments.seconds
    if once:
        writes_min, seconds_min = words_in(lines), 0.0
    return DemoPlan(
        machine=_machine(),
        machine_name=STATE_MACHINE,
        lines=lines,
        repeat=not once,
        writes_min=writes_min,
        seconds_min=seconds_min,
        in_flight=arguments.in_flight,
        sync=arguments.sync,
    )


def _machine() -> type[StateMachine]:
    """The store's class, whose calls are sent."""
    from replog.statemachine import StateMachine

    machine = find_state_machine(STATE_MACHINE)
    wanted = {"put", "compare_and_set", "range"}
    if not issubclass(machine, StateMachine) or not wanted <= machine.calls.keys():
        raise PluginError(
            f"the state machine '{STATE_MACHINE}' that is installed is not the store that the "
            f"demonstration writes to: it needs {', '.join(sorted(wanted))}"
        )
    return machine


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where the clusters live: ``keep``, or a folder that is removed at the end."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="replog-demo-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise DirectoryError(f"{keep} is not empty; name a new directory to keep the demo in")
    except OSError as error:
        raise CallerError(
            f"{keep} cannot be used to keep the demo in: {error.strerror or error}"
        ) from error
    yield keep.resolve()
