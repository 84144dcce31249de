"""Make a failing run small: the fewest strikes of chance, ticks and commands that still break it.

A run of the simulator is a function of its :class:`~replog.testing.sim.SimOptions`, so to shrink
it is to search smaller options that break the same invariant.  First the run is cut off where it
broke; then whole kinds of faults are left out; then single strikes, by halves and quarters and so
on (*ddmin*: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002); then
commands.  What is left replays with the same command line as any other run.

The rules this module keeps: a smaller run counts only if it breaks the same invariant; the number
of attempts is bounded, and what was found until then is the result; nothing depends on a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from replog.testing.chance import KINDS, Selection
from replog.testing.checks import Violation
from replog.testing.registers import Workload
from replog.testing.sim import SimOptions, Simulation
from replog.types import record

ATTEMPTS_MAX: Final = 300
"""How many smaller runs are tried at most."""

Strike: TypeAlias = "tuple[str, int]"
"""The kind and number of a strike."""


@record
class Shrunk:
    """A small run that breaks what a larger one broke."""

    options: SimOptions
    violation: Violation
    attempts: int
    """How many runs the search took."""
    strikes: int
    """How many strikes take effect in the small run."""


class _Search:
    """The smallest failing run so far, and how to try a smaller one."""

    def __init__(
        self, options: SimOptions, workload: Workload | None, invariant: str, attempts_max: int
    ) -> None:
        self.options = options
        self.attempts = 0
        self.violation: Violation | None = None
        self.strikes: list[Strike] = []
        """The strikes of the smallest run so far, in the order of the kinds."""
        self._workload = workload
        self._invariant = invariant
        self._attempts_max = attempts_max

    @property
    def is_over(self) -> bool:
        return self.attempts >= self._attempts_max

    def attempt(self, options: SimOptions) -> bool:
        """Run it; keep it when it breaks the same invariant."""
        if self.is_over:
            return False
        self.attempts += 1
        simulation = Simulation(options, self._workload)
        try:
            simulation.run()
        except Violation as violation:
            if violation.invariant != self._invariant:
                return False
            struck = simulation.chance.struck
            # Its traceback would keep the whole cluster in memory for as long as it is kept.
            violation.__cause__ = violation.__context__ = None
            self.options, self.violation = options, violation.with_traceback(None)
            self.strikes = [(kind, number) for kind in KINDS for number in struck[kind]]
            return True
        return False

    def attempt_strikes(self, strikes: Sequence[Strike]) -> bool:
        """Run it with these strikes alone."""
        numbers: dict[str, list[int]] = {}
        for kind, number in strikes:
            numbers.setdefault(kind, []).append(number)
        return self.attempt(replace(self.options, faults=Selection((), numbers)))


def shrink(
    options: SimOptions,
    invariant: str,
    workload: Workload | None = None,
    attempts_max: int = ATTEMPTS_MAX,
    handle_attempt: Callable[[int], None] = lambda _: None,
) -> Shrunk | None:
    """Search a smaller run than ``options`` that breaks ``invariant`` (as
    :attr:`~replog.testing.checks.Violation.invariant` names it).

    ``handle_attempt`` is told the number of attempts so far, now and then.  ``None``: the run of
    ``options`` itself does not break it.
    """
    search = _Search(options, workload, invariant, attempts_max)
    if not search.attempt(options):
        return None
    assert search.violation is not None
    _cut_ticks(search)
    handle_attempt(search.attempts)
    _leave_out_kinds(search)
    handle_attempt(search.attempts)
    _leave_out_strikes(search, handle_attempt)
    _cut_operations(search)
    _cut_ticks(search)
    return Shrunk(search.options, search.violation, search.attempts, len(search.strikes))


def _cut_ticks(search: _Search) -> None:
    """End the faults where the invariant broke; what breaks in calm may need less of them too."""
    assert search.violation is not None
    if search.violation.tick < search.options.ticks:
        search.attempt(replace(search.options, ticks=search.violation.tick))
    step = search.options.ticks // 2
    while step and not search.is_over:
        if not search.attempt(replace(search.options, ticks=search.options.ticks - step)):
            step //= 2
        step = min(step, search.options.ticks // 2)


def _leave_out_kinds(search: _Search) -> None:
    for kind in KINDS:
        if any(of == kind for of, _ in search.strikes):
            search.attempt_strikes([strike for strike in search.strikes if strike[0] != kind])


def _leave_out_strikes(search: _Search, handle_attempt: Callable[[int], None]) -> None:
    """Leave out one part of the strikes after another, in ever smaller parts."""
    parts = 2
    while len(search.strikes) >= 1 and not search.is_over:
        strikes = search.strikes
        size = max(1, len(strikes) // parts)
        # The latest first: what led to the fault lies mostly before them.
        starts = range(len(strikes) - size, -size, -size)
        if any(
            search.attempt_strikes(strikes[: max(0, at)] + strikes[at + size :]) for at in starts
        ):
            parts = max(2, parts - 1)
        elif size == 1:
            return
        else:
            parts *= 2
        handle_attempt(search.attempts)


def _cut_operations(search: _Search) -> None:
    """Halve the number of commands for as long as it still breaks, then go up in halves."""
    low, high = 0, min(search.options.operations_max, 1 << 12)
    while low < high and not search.is_over:
        middle = (low + high) // 2
        if search.attempt(replace(search.options, operations_max=middle)):
            high = middle
        else:
            low = middle + 1
