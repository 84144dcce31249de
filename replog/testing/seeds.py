"""Many seeds of the simulator, on every core: what is counted, and what is found.

Each run is a process's own affair, so the seeds are dealt out in small parts and the results are
put together in the order of the seeds: the same seeds come to the same result, whoever ran them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import median
from typing import Final

from replog.plugins import find_engine
from replog.testing.checks import Violation
from replog.testing.goals import COMMON, ON_FILES
from replog.testing.sim import SimOptions, SimReport, Simulation
from replog.testing.trials import find_trial
from replog.types import record

PART_SEEDS: Final = 4
"""How many seeds a process is given at a time."""


@record
class Found:
    """A seed that broke something."""

    options: SimOptions
    invariant: str
    sentence: str
    tick: int
    trace_tail: tuple[str, ...]


@record
class SeedResult:
    """What one seed came to: a report or something found."""

    report: SimReport | None
    found: Found | None
    seconds: float
    """The processor's time."""


@dataclass
class Tally:
    """What the seeds of one engine came to so far."""

    engine: str
    sentences: Mapping[str, str]
    """The goals that a run of this engine can come to."""
    seeds: int = 0
    events: int = 0
    seconds: float = 0.0
    """The processor's time, of all processes together."""
    real_count: int = 0
    """How many seeds ran over the real log and codec."""
    found: list[Found] = field(default_factory=list)
    goals: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    """In how many seeds each kind of fault took effect."""
    events_by_seed: list[int] = field(default_factory=list)
    operations_by_seed: list[int] = field(default_factory=list)

    def add(self, result: SeedResult) -> None:
        """Count what a seed came to."""
        self.seeds += 1
        self.seconds += result.seconds
        if result.found is not None:
            self.found.append(result.found)
        if (report := result.report) is not None:
            self.events += report.events
            self.real_count += report.is_real
            self.goals.update(report.goals)
            self.struck.update(report.struck)
            self.events_by_seed.append(report.events)
            self.operations_by_seed.append(report.operations)

    @property
    def goal_counts(self) -> dict[str, int]:
        """In how many seeds each goal was reached, those never reached included."""
        return {name: self.goals[name] for name in self.sentences}

    @property
    def missed_goals(self) -> list[str]:
        """The goals that no seed came to."""
        return [name for name, count in self.goal_counts.items() if not count]

    @property
    def events_per_second(self) -> float:
        """Events for each second of one core."""
        return self.events / self.seconds if self.seconds else 0.0

    @property
    def median_events(self) -> float:
        """How many events half of the seeds exceed."""
        return median(self.events_by_seed) if self.events_by_seed else 0.0

    @property
    def median_operations(self) -> float:
        """How many commands ended for clients in half of the seeds, or more."""
        return median(self.operations_by_seed) if self.operations_by_seed else 0.0


def fresh_tally(engine: str) -> Tally:
    """A tally of nothing; raises :class:`~replog.errors.PluginError` without that engine."""
    trial = find_trial(find_engine(engine))
    return Tally(engine, {**COMMON, **ON_FILES, **trial.goals})


def run_simulation(simulation: Simulation) -> SeedResult:
    """Run one simulation and note what it came to, whatever that is."""
    began = time.process_time()
    report: SimReport | None = None
    found: Found | None = None
    try:
        report = simulation.run()
    except Violation as violation:
        found = _found(simulation.options, violation)
    return SeedResult(report, found, time.process_time() - began)


def _found(options: SimOptions, violation: Violation) -> Found:
    tail = tuple(violation.trace_tail)
    return Found(options, violation.invariant, violation.sentence, violation.tick, tail)


def run_part(options: SimOptions, seeds: Sequence[int]) -> Sequence[SeedResult]:
    """Run a few seeds in this process; ``options.seed`` is of no account."""
    return [run_simulation(Simulation(replace(options, seed=seed))) for seed in seeds]


def run_seeds(
    engines: Sequence[str],
    options: SimOptions,
    seeds: Iterable[int],
    handle_part: Callable[[Mapping[str, Tally]], None] = lambda _: None,
    processes: int = 0,
) -> Mapping[str, Tally]:
    """Run each seed of each engine, the other ``options`` being the same.

    ``handle_part`` is told of the tallies whenever a part has ended.  ``processes`` 0: one for each
    core.  Raises :class:`~replog.errors.PluginError` when an engine is not installed.
    """
    tallies = {engine: fresh_tally(engine) for engine in engines}
    parts = [
        (replace(options, engine=engine), part) for part in _parts(seeds) for engine in engines
    ]
    processes = min(processes or os.cpu_count() or 1, len(parts))
    if processes <= 1:
        for of, part in parts:
            for result in run_part(of, part):
                tallies[of.engine].add(result)
            handle_part(tallies)
        return tallies
    # A child that is forked would inherit whatever threads and patches this process has.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_leave_interrupts) as pool:
        results: dict[Future[Sequence[SeedResult]], str] = {
            pool.submit(run_part, of, part): of.engine for of, part in parts
        }
        try:
            waiting = set(results)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in results:
                    if future in done:
                        for result in future.result():
                            tallies[results[future]].add(result)
                handle_part(tallies)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for tally in tallies.values():
        tally.found.sort(key=lambda found: found.options.seed)
    return tallies


def _parts(seeds: Iterable[int]) -> Iterator[tuple[int, ...]]:
    at = iter(seeds)
    while part := tuple(islice(at, PART_SEEDS)):
        yield part


def _leave_interrupts() -> None:
    """Ctrl-C is for the process that waits: it ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
