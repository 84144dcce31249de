"""Many seeds of the simulator, on every core: what is counted, and what is found.

Each run is a process's own affair, so the seeds are dealt out in small parts and the results are
put together in the order of the seeds: the same seeds come to the same result, whoever ran them.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from statistics import median
from typing import Final, TypeAlias

from replog.errors import Unavailable
from replog.plugins import find_engine
from replog.testing.checks import Violation
from replog.testing.goals import COMMON, ON_FILES
from replog.testing.sim import SimOptions, SimReport, Simulation
from replog.testing.trials import find_trial
from replog.types import record

PART_SEEDS: Final = 4
"""How many seeds a process is given at a time."""

Part: TypeAlias = "tuple[SimOptions, Sequence[int]]"
"""The options that some seeds have in common, and the seeds."""


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
    events: int
    """How many events the nodes dealt with, up to what was found."""
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
        self.events += result.events
        if (report := result.report) is not None:
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
        found = _found(simulation, violation)
    except Exception as error:
        # Of a workload's machine, or of the simulator: as good a reason to look at the seed.
        sentence = f"{type(error).__name__}: {error}"
        found = _found(simulation, simulation.cluster.violation(sentence))
    return SeedResult(report, found, simulation.cluster.turn_count, time.process_time() - began)


def _found(simulation: Simulation, violation: Violation) -> Found:
    tail = tuple(violation.trace_tail)
    return Found(simulation.options, violation.invariant, violation.sentence, violation.tick, tail)


def run_part(options: SimOptions, seeds: Sequence[int]) -> Sequence[SeedResult]:
    """Run a few seeds in this process; ``options.seed`` is of no account."""
    return [run_simulation(Simulation(replace(options, seed=seed))) for seed in seeds]


def run_seeds(
    engines: Sequence[str],
    options: SimOptions,
    seeds: Sequence[int],
    handle_part: Callable[[Mapping[str, Tally]], None] = lambda _: None,
    processes: int = 0,
) -> Mapping[str, Tally]:
    """Run each seed of each engine, the other ``options`` being the same.

    ``handle_part`` is told of the tallies whenever a part has ended.  ``processes`` 0: one for each
    core.  Raises :class:`~replog.errors.PluginError` when an engine is not installed, and
    :class:`~replog.errors.Unavailable` when a process dies.
    """
    tallies = {engine: fresh_tally(engine) for engine in engines}
    parts = (
        (replace(options, engine=engine), seeds[at : at + PART_SEEDS])
        for at in range(0, len(seeds), PART_SEEDS)
        for engine in engines
    )
    part_count = len(engines) * -(-len(seeds) // PART_SEEDS)
    processes = min(processes or os.cpu_count() or 1, part_count)
    ended = _run_here(parts) if processes <= 1 else _run_apart(parts, processes)
    for engine, results in ended:
        for result in results:
            tallies[engine].add(result)
        handle_part(tallies)
    for tally in tallies.values():
        tally.found.sort(key=lambda found: found.options.seed)
    return tallies


def _run_here(parts: Iterator[Part]) -> Iterator[tuple[str, Sequence[SeedResult]]]:
    for options, seeds in parts:
        yield options.engine, run_part(options, seeds)


def _run_apart(parts: Iterator[Part], processes: int) -> Iterator[tuple[str, Sequence[SeedResult]]]:
    """Deal the parts out to processes; whatever ends this ends them."""
    workers: list[tuple[BaseProcess, Connection]] = []
    engines: dict[Connection, str] = {}
    try:
        with _interrupts_waiting():
            workers.extend(_start_worker() for _ in range(processes))
        for _, connection in workers:
            _deal(parts, connection, engines)
        while engines:
            for ready in wait(list(engines)):
                assert isinstance(ready, Connection)
                results: Sequence[SeedResult] = ready.recv()
                yield engines.pop(ready), results
                _deal(parts, ready, engines)
    except (EOFError, ConnectionError) as gone:
        raise Unavailable(
            "a process that simulates was ended from outside; run the command again, with fewer "
            "nodes if memory is short"
        ) from gone
    finally:
        for process, connection in workers:
            connection.close()
            process.terminate()
        for process, _ in workers:
            process.join()


def _deal(parts: Iterator[Part], connection: Connection, engines: dict[Connection, str]) -> None:
    part = next(parts, None)
    if part is not None:
        engines[connection] = part[0].engine
        connection.send(part)


def _start_worker() -> tuple[BaseProcess, Connection]:
    """A process of our own."""
    # A child that is forked would inherit whatever threads and patches this process has.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return process, ours


@contextmanager
def _interrupts_waiting() -> Iterator[None]:
    """Ctrl-C waits for the end of this, and never comes to the processes that begin meanwhile.

    It is for the process that waits for them, and that one ends the others.
    """
    # The first process brings a helper of the library's own, after which Ctrl-C is let through.
    resource_tracker.ensure_running()
    # What is blocked when a process begins stays blocked in it.  If it were ignored instead, a
    # Ctrl-C of this moment would be lost.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _work(connection: Connection) -> None:
    """Run the parts that come, until none does."""
    # Next to nothing that a run makes is garbage while it lasts: looking for it takes a tenth.
    gc.set_threshold(50_000, 50, 50)
    while True:
        try:
            options, seeds = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(run_part(options, seeds))
        except OSError:
            return  # whoever asked is gone
