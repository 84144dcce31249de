"""The hunt for one mutant, in a process of its own that imports the mutant and nothing else.

``run.py`` starts it with the copy in front of ``PYTHONPATH`` and says on the command line, as JSON,
what to do (:class:`Order`).  It says on standard output, a line of JSON each, what it found, and in
how many seeds the simulator came to each of its goals.

The searchers come one after the other, the cheapest first: the simulator with the first
``SEEDS_FIRST`` seeds (one after the other, of each engine in turn), the model checker (in a space
of so many states), the conformance suite, and the simulator with the other seeds.  The first that
finds something ends the hunt, unless ``is_exhaustive``.  To find is to break a rule, or
to raise anything else: an honest mistake may well run into an assertion.

An endless loop is found by time: a searcher has so many seconds *of the processor*, whatever else
the machine does, and so much memory.  Whoever ordered the hunt makes sure that the unchanged code
takes less.
"""

from __future__ import annotations

import gc
import json
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Final

SIM: Final = "sim"
CHECK: Final = "check"
CONFORMANCE: Final = "conformance"
SEARCHERS: Final = (SIM, CHECK, CONFORMANCE)

SEEDS_FIRST: Final = 40
"""How many seeds go before the other searchers: most faults need fewer, some a great many."""

MEMORY_BYTES_MAX: Final = 2 << 30


@dataclass(frozen=True)
class Order:
    """What to do."""

    copy: str
    """The folder of the mutant."""
    engines: Sequence[str]
    searchers: Sequence[str]
    seeds: Sequence[int]
    states_max: int
    """How many states of each engine the model checker explores."""
    seconds_max: Mapping[str, int]
    """By searcher, how long it may take: the simulator for a seed, the others for an engine."""
    excused: Mapping[str, Sequence[str]]
    """By engine, the scenarios of the conformance suite that the unchanged code fails."""
    is_exhaustive: bool
    """Whether to go on after something was found."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with the mutant."""

    searcher: str
    engine: str
    seeds: int
    """How many seeds of each engine the simulator had begun by then."""
    what: str
    """The rule that is broken, or what was raised; of one line."""
    is_hang: bool = False
    """Whether it only took too long, or too much memory."""
    scenario: str = ""
    """The name of the failed scenario of the conformance suite."""


class Hung(BaseException):
    """A searcher took too long; no part of the code may catch this."""


def hunt(order: Order) -> Iterator[Finding]:
    """Everything that is found, as it is found."""
    goals: dict[str, Counter[str]] = {engine: Counter() for engine in order.engines}
    first = min(SEEDS_FIRST, len(order.seeds))
    if SIM in order.searchers:
        yield from _simulate(order, range(first), goals)
    if CHECK in order.searchers:
        for engine in order.engines:
            yield from _check(order, engine, first)
    if CONFORMANCE in order.searchers:
        for engine in order.engines:
            yield from _conform(order, engine, first)
    if SIM in order.searchers:
        yield from _simulate(order, range(first, len(order.seeds)), goals)
        _say({"goals": goals})


def _simulate(
    order: Order, numbers: Iterable[int], goals: Mapping[str, Counter[str]]
) -> Iterator[Finding]:
    from replog.testing.sim import SimOptions, simulate

    def run(engine: str, seed: int) -> None:
        goals[engine].update(simulate(SimOptions(engine, seed)).goals)

    for number in numbers:
        seed = order.seeds[number]
        for engine in order.engines:
            what, is_hang = _outcome(order.seconds_max[SIM], lambda e=engine, s=seed: run(e, s))
            if what:
                yield Finding(SIM, engine, number + 1, what, is_hang)


def _check(order: Order, engine: str, seeds: int) -> Iterator[Finding]:
    from replog.plugins import find_engine
    from replog.testing.model import Bounds, explore

    def run() -> None:
        exploration = explore(find_engine(engine), Bounds(), states_max=order.states_max)
        if exploration.violation is not None:
            raise AssertionError(exploration.violation.problem)
        is_empty = exploration.is_complete and exploration.is_vacuous
        assert not is_empty, "nothing is ever committed"

    what, is_hang = _outcome(order.seconds_max[CHECK], run)
    if what:
        yield Finding(CHECK, engine, seeds, what, is_hang)


def _conform(order: Order, engine: str, seeds: int) -> Iterator[Finding]:
    from replog.plugins import find_engine
    from replog.testing.conformance import run_scenario, scenarios, subject_of

    try:
        subject = subject_of(find_engine(engine))
    except Exception as error:
        yield Finding(CONFORMANCE, engine, seeds, _line_of(error))
        return
    for scenario in scenarios():
        if scenario.name in order.excused.get(engine, ()):
            continue

        def run(of: Callable[..., object] = run_scenario, chosen: object = scenario) -> None:
            failure = getattr(of(chosen, subject), "failure", "")
            if failure:
                raise AssertionError(f"{getattr(chosen, 'name', '')}: {failure}")

        what, is_hang = _outcome(order.seconds_max[CONFORMANCE], run)
        if what:
            yield Finding(CONFORMANCE, engine, seeds, what, is_hang, scenario=scenario.name)


def _outcome(seconds_max: int, run: Callable[[], None]) -> tuple[str, bool]:
    """(what went wrong, whether it hung); an empty text if nothing did."""
    try:
        with _limited(seconds_max):
            run()
    except Hung:
        return f"did not end within {seconds_max} s", True
    except MemoryError:
        return f"took more than {MEMORY_BYTES_MAX >> 20} MiB", True
    except Exception as error:
        return _line_of(error), False
    return "", False


def _line_of(error: Exception) -> str:
    sentence = getattr(error, "sentence", None) or str(error)
    first_line = sentence.partition("\n")[0] or "no word"
    if isinstance(error, AssertionError):
        if sentence != str(error) or str(error):
            return first_line
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"assertion in {last.name}"
    return f"{type(error).__name__}: {first_line}"


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise :class:`Hung` after so many seconds of the processor."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hung


def _say(words: Mapping[str, object]) -> None:
    print(json.dumps(words), flush=True)


def check_imports(copy: Path) -> None:
    """Make sure that the mutant is what is hunted."""
    import replog

    for package in ("replog", *(path.name for path in copy.glob("replog_*"))):
        found = Path(str(__import__(package).__file__))
        assert copy in found.parents, f"{package} comes from {found}, not from {copy}"
    assert replog.__file__ is not None


def main() -> None:
    """Carry out the order on the command line."""
    # The searchers keep most of what they make, so there is little garbage to look for.
    gc.set_threshold(50_000, 50, 50)
    order = Order(**json.loads(sys.argv[1]))
    signal.signal(signal.SIGPROF, _hang)
    with suppress(ValueError, OSError):  # not every system lets that be limited
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    try:
        check_imports(Path(order.copy))
    except AssertionError:
        raise
    except Exception as error:
        # A mutant that cannot even be imported is no honest mistake; it is said as what it is.
        _say({"broken": _line_of(error)})
        return
    for finding in hunt(order):
        _say({"finding": asdict(finding)})
        if not order.is_exhaustive:
            break
    _say({"ended": True})


if __name__ == "__main__":
    main()
