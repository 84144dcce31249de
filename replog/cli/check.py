"""``replog check``: explore every state that some nodes of an engine can get into, within bounds.

The engine's own objects are driven (:mod:`replog.testing.model`).  A rule that breaks is shown with
the trace of a shortest way to it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from replog.cli.shared import (
    ProgressLine,
    add_engines_option,
    add_json_option,
    chosen_engines,
    collect_less,
    complain,
    count_argument,
    examples,
    number_argument,
    print_json,
    print_table,
)
from replog.errors import CallerError
from replog.plugins import find_engine

if TYPE_CHECKING:
    from replog.testing.model import Bounds, Exploration

STATES_MAX: Final = 20_000_000
"""Without a budget an exploration is given up here, before the memory is full: a state takes some
200 bytes."""

BOUNDS: Final[Mapping[str, tuple[int, str]]] = {
    "nodes": (3, "so many nodes"),
    "commands": (1, "how many commands clients give to leaders"),
    "terms": (2, "how many times a node campaigns, each time in a term of its own"),
    "in_flight": (2, "how many messages are on their way; what would be more is lost"),
    "crashes": (1, "how many times a node crashes and starts again"),
    "duplicates": (0, "how many times a message that arrives will arrive once more"),
    "pending": (1, "how many writes are on their way to one disk"),
    "candidates": (0, "how many nodes ever campaign"),
}
"""The fields of :class:`replog.testing.model.Bounds`, with their defaults; told here once more so
that a command line which prints its help loads no model."""

NO_DEFAULT: Final[Mapping[str, str]] = {"duplicates": "0", "candidates": "as many as --terms"}
"""What is said of a default of 0."""

_DESCRIPTION: Final = """\
Check an engine's model: drive its own objects through every order of messages,
losses, syncs, crashes, campaigns and commands that the bounds allow, and judge
the invariants in every state.  No time passes.  What breaks is shown with the
trace of a shortest way to it.  The same bounds give the same counts always."""

_ENGINE: Final = "raft"
_EXAMPLES: Final = f"""
replog check
replog check --engine {_ENGINE} --commands 2 --crashes 0
replog check --engine {_ENGINE} --terms 3 --budget 1000000 --json
"""

_EPILOG: Final = f"""\
exit code 0: nothing broke; 1: something did, or nothing was ever committed, or the
space was not completed ({STATES_MAX:,} states without --budget); 2: bad input"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description, parser.epilog = _DESCRIPTION, f"{examples(_EXAMPLES)}\n\n{_EPILOG}"
    add_engines_option(parser)
    group = parser.add_argument_group("bounds")
    for name, (default, text) in BOUNDS.items():
        shown = "%(default)s" if default else NO_DEFAULT[name]
        group.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="N",
            type=number_argument,
            default=default,
            help=f"{text} (default: {shown})",
        )
    parser.add_argument(
        "--budget",
        metavar="N",
        type=count_argument,
        help="stop after so many states of each engine, and be content with that",
    )
    parser.add_argument(
        "--no-reduction",
        action="store_true",
        help="walk every interleaving, also those that cannot matter; some twenty times as many",
    )
    add_json_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Explore; 1 if a rule broke, nothing was committed, or the space is larger than we go."""
    collect_less()
    bounds = _bounds(arguments)
    checked: list[Checked] = []
    line = ProgressLine()
    try:
        for engine in chosen_engines(arguments):
            checked.append(_check(engine, bounds, arguments, line))
            line.clear()
            if not arguments.json:
                _print_checked(checked[-1])
    finally:
        line.clear()
    if arguments.json:
        print_json([_document(each) for each in checked])
    has_budget = arguments.budget is not None
    complaints = [text for each in checked for text in _complaints(each, has_budget)]
    for text in complaints:
        complain(text)
    return 1 if complaints else 0


class Checked:
    """One engine's exploration and how long it took."""

    def __init__(self, exploration: Exploration, seconds: float) -> None:
        self.exploration = exploration
        self.seconds = seconds

    @property
    def states_per_second(self) -> int:
        """Of the processor's time, so that a busy machine tells the same."""
        return round(self.exploration.states / max(self.seconds, 1e-3))


def _bounds(arguments: argparse.Namespace) -> Bounds:
    # Loaded only now: a command line that prints its help needs no model.
    from replog.testing.model import Bounds

    bounds = Bounds(**{name: getattr(arguments, name) for name in BOUNDS})
    problems = bounds.problems()
    if problems:
        raise CallerError("\n".join(f"--{text}" for text in problems))
    return bounds


def _check(
    engine: str, bounds: Bounds, arguments: argparse.Namespace, line: ProgressLine
) -> Checked:
    from replog.testing.model import explore

    begun = time.process_time()
    exploration = explore(
        find_engine(engine),
        bounds,
        is_reduced=not arguments.no_reduction,
        states_max=arguments.budget or STATES_MAX,
        handle_progress=_progress(engine, line),
    )
    return Checked(exploration, time.process_time() - begun)


def _progress(engine: str, line: ProgressLine) -> Callable[[int, int], None]:
    def show(states: int, waiting: int) -> None:
        line.show(f"{engine}: {states:,} states explored, {waiting:,} waiting")

    return show


def _complaints(checked: Checked, has_budget: bool) -> list[str]:
    """What is wrong with an engine or its space, as sentences."""
    found = checked.exploration
    if found.violation is not None:
        return [f"{found.engine}: {found.violation.problem}"]
    if not found.is_complete:
        if has_budget:
            return []
        return [
            f"{found.engine}: the space has more than {STATES_MAX:,} states; give lower bounds, or "
            "a --budget to be content with a part of it"
        ]
    if found.is_vacuous:
        return [
            f"{found.engine}: nothing was ever committed within these bounds, so they prove "
            "nothing; give higher ones"
        ]
    return []


def _document(checked: Checked) -> Mapping[str, object]:
    found = checked.exploration
    violation = found.violation
    return {
        "engine": found.engine,
        "states": found.states,
        "transitions": found.transitions,
        "violations": []
        if violation is None
        else [{"sentence": violation.problem, "trace": list(violation.trace)}],
        "complete": found.is_complete,
        "states_per_second": checked.states_per_second,
        "seconds": round(checked.seconds, 1),
        "reduced": found.is_reduced,
        "bounds": found.bounds.named(),
        "goals": dict(found.goals),
        "unseen_messages": list(found.unseen_messages),
    }


def _print_checked(checked: Checked) -> None:
    """Show one engine's result to people; a counterexample last, where it is seen."""
    found = checked.exploration
    shown = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in found.bounds.named().items()
    )
    print(f"{found.engine}: {shown}")
    end = "complete" if found.is_complete else "not complete"
    print(
        f"  {found.states:,} states, {found.transitions:,} transitions, {end}, "
        f"{checked.seconds:.1f} s, {checked.states_per_second:,} states/s"
    )
    print_table(
        ("  states", "in which there was"),
        [(f"  {count:,}", name) for name, count in found.goals.items()],
    )
    if found.unseen_messages:
        print(f"  never sent: {', '.join(found.unseen_messages)}")
    if found.violation is not None:
        print(f"\nVIOLATION by {found.engine}: {found.violation.problem}")
        for line in found.violation.trace:
            print(f"  {line}")
    print()
