"""``replog sim``: run whole clusters under faults, seed by seed, and judge them after every event.

Each seed is one run of the simulator (:mod:`replog.testing.sim`).  What breaks is shrunk to the
fewest faults that still break it, and shown with the command that replays it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from replog.cli.shared import (
    ProgressLine,
    add_engines_option,
    add_json_option,
    chosen_engines,
    collect_less,
    count_argument,
    examples,
    number_argument,
    print_json,
    print_table,
)
from replog.errors import CallerError

if TYPE_CHECKING:
    from replog.testing.seeds import Tally
    from replog.testing.shrink import Shrunk
    from replog.testing.sim import SimOptions

SEEDS_DEFAULT: Final = 40
GOALS_FROM: Final = 300
"""From so many seeds on, a goal that none of them came to is a failure."""
SHRUNK_MAX: Final = 3
"""So many violations of each engine are shrunk and shown; the others are named."""

_DESCRIPTION: Final = """\
Run whole clusters in virtual time under drawn faults: messages lost, late and
doubled, links cut, nodes crashed and paused, disks slow, failing and torn,
clocks wrong.  Each seed is a run of its own that always goes the same way.
After every event the invariants of docs/invariants.md are judged; then the
faults end and the cluster must work again; at last the history of the clients
must be linearizable.  A run that breaks something is shrunk and shown."""

_ENGINE: Final = "raft"
_EXAMPLES: Final = f"""
replog sim
replog sim --engine {_ENGINE} --seeds 1000 --start 5000
replog sim --engine {_ENGINE} --seed 17 --trace run.trace
replog sim --engine {_ENGINE} --seed 17 --faults crash,drop:2,drop:9 --ticks 120
"""

_EPILOG: Final = f"""\
exit code 0: nothing broke; 1: something did, or {GOALS_FROM} or more seeds with all
faults never came to one of the goals; 2: bad input"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description, parser.epilog = _DESCRIPTION, f"{examples(_EXAMPLES)}\n\n{_EPILOG}"
    add_engines_option(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--seeds",
        metavar="N",
        type=count_argument,
        default=SEEDS_DEFAULT,
        help="run so many seeds of each engine (default: %(default)s)",
    )
    which.add_argument("--seed", metavar="S", type=number_argument, help="run this seed alone")
    parser.add_argument(
        "--start",
        metavar="S",
        type=number_argument,
        help="the first of the seeds (default: 0)",
    )
    parser.add_argument(
        "--nodes", metavar="N", type=count_argument, help="so many nodes (default: 3 to 5, drawn)"
    )
    parser.add_argument(
        "--faults",
        metavar="LIST",
        default="all",
        help="all, none, or kinds of faults with commas, crash:3 being the third crash alone "
        "(default: %(default)s; `--faults help` lists them)",
    )
    parser.add_argument(
        "--ticks",
        metavar="N",
        type=count_argument,
        help="how long the faults last (default: 360; fewer make a prefix of the same run)",
    )
    parser.add_argument(
        "--operations",
        metavar="N",
        type=number_argument,
        help="how many commands the clients ask for at most (default: as many as they like)",
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        type=Path,
        help="write all that happened to this file, or to standard output if it is `-`; "
        "with --seed and one engine",
    )
    add_json_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the seeds; 1 if anything broke or, in many seeds, a goal was missed."""
    if arguments.faults == "help":
        return _print_faults(arguments.json)
    collect_less()
    engines = chosen_engines(arguments)
    options = _options(arguments, engines[0])
    if arguments.trace is not None:
        if arguments.seed is None or len(engines) > 1:
            raise CallerError("--trace writes down one run: name it with --engine and --seed")
        if arguments.json and str(arguments.trace) == "-":
            raise CallerError("--trace - and --json both want standard output: name a trace file")
        return _trace_one(options, arguments)
    return _run_many(engines, options, arguments)


def _options(arguments: argparse.Namespace, engine: str) -> SimOptions:
    # Loaded only now: a command line that prints its help needs no simulator.
    from replog.testing.chance import Selection
    from replog.testing.sim import NODES_MAX, SimOptions

    if arguments.nodes is not None and arguments.nodes > NODES_MAX:
        raise CallerError(f"--nodes {arguments.nodes}: a simulated cluster has 1 to {NODES_MAX}")
    if arguments.seed is not None and arguments.start is not None:
        raise CallerError("--seed is one run and --start begins many: give one of them")
    options = SimOptions(
        engine,
        arguments.seed or 0,
        nodes=arguments.nodes or 0,
        faults=Selection.parse(arguments.faults),
    )
    if arguments.ticks is not None:
        options = replace(options, ticks=arguments.ticks)
    if arguments.operations is not None:
        options = replace(options, operations_max=arguments.operations)
    return options


def _print_faults(is_json: bool) -> int:
    from replog.testing.chance import KINDS

    if is_json:
        print_json(KINDS)
        return 0
    print_table(("fault", "what it does"), list(KINDS.items()))
    return 0


# -- many seeds --


def _run_many(engines: Sequence[str], options: SimOptions, arguments: argparse.Namespace) -> int:
    from replog.cli.sim_report import documents, print_report
    from replog.testing.seeds import run_seeds

    first = (arguments.start or 0) if arguments.seed is None else arguments.seed
    seeds = range(first, first + (arguments.seeds if arguments.seed is None else 1))
    line = ProgressLine()

    def handle_part(tallies: Mapping[str, Tally]) -> None:
        line.show(
            "; ".join(
                f"{engine}: {tally.seeds} of {len(seeds)} seeds, {len(tally.found)} violations"
                for engine, tally in tallies.items()
            )
        )

    try:
        tallies = list(run_seeds(engines, options, seeds, handle_part).values())
        shrunk = {tally.engine: _shrink(tally, line) for tally in tallies}
    finally:
        line.clear()
    are_goals_due = len(seeds) >= GOALS_FROM and _is_whole(options)
    if arguments.json:
        print_json(documents(tallies, shrunk, are_goals_due))
    else:
        print_report(tallies, shrunk, are_goals_due)
    is_bad = any(tally.found or (are_goals_due and tally.missed_goals) for tally in tallies)
    return 1 if is_bad else 0


def _is_whole(options: SimOptions) -> bool:
    """Whether nothing that a goal may need was left out."""
    from replog.testing.sim import SimOptions

    return options == SimOptions(options.engine, options.seed)


def _shrink(tally: Tally, line: ProgressLine) -> Sequence[Shrunk | None]:
    """The first violations of an engine, made small; ``None``: it did not show a second time."""
    from replog.testing.shrink import ATTEMPTS_MAX, shrink

    shrunk: list[Shrunk | None] = []
    for found in tally.found[:SHRUNK_MAX]:
        name = f"{tally.engine}: shrinking seed {found.options.seed}"
        line.show(name)
        shrunk.append(
            shrink(
                found.options,
                found.invariant,
                attempts_max=ATTEMPTS_MAX,
                handle_attempt=lambda runs, name=name: line.show(f"{name}, {runs} runs"),  # type: ignore[misc]
            )
        )
    return shrunk


# -- one seed, written down --


def _trace_one(options: SimOptions, arguments: argparse.Namespace) -> int:
    from replog.cli.sim_report import documents, print_trace_report
    from replog.testing.seeds import fresh_tally, run_simulation
    from replog.testing.sim import Simulation

    simulation = Simulation(options)
    tally = fresh_tally(options.engine)
    tally.add(run_simulation(simulation))
    lines = simulation.cluster.trace.lines()
    text = "".join(f"{line}\n" for line in lines)
    is_printed = str(arguments.trace) == "-"
    if is_printed:
        sys.stdout.write(text)
    else:
        try:
            arguments.trace.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise CallerError(
                f"{arguments.trace} cannot be written: {error.strerror}; name another file"
            ) from error
    if arguments.json:
        print_json(documents([tally], {}, are_goals_due=False))
    elif not is_printed:
        print_trace_report(tally, len(lines), str(arguments.trace))
    return 1 if tally.found else 0
