"""Runs the contestants in turn, again and again, and compares each with ``bare``.

A contestant runs a *trial*: it starts its processes, has the load of :mod:`replog_bench.load` run,
and returns what was measured.  Its embedded trial has the load inside the leader's process, as that
of ``bare``; its network trial, which follows, has it in a process of a client.  Machines drift by
half within minutes, so the repeats are interleaved (bare, a, b, bare, a, b, ...), and only the
ratios within one run of this program mean anything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeAlias

from replog import plugins
from replog.config import SYNC_LEVELS
from replog_bench.cluster import explain_embedded, run_embedded, run_network
from replog_bench.journal import sync_microseconds
from replog_bench.load import LoadResult
from replog_bench.processes import Processes
from replog_bench.report import BASE, NOT_DURABLE, Measured, ThroughputRow, throughput_rows
from replog_bench.trial import READY_SECONDS, Trial, load_result

Progress: TypeAlias = Callable[[str], None]
Run: TypeAlias = Callable[[Trial], LoadResult]


@dataclass(frozen=True, slots=True)
class Contestant:
    """What is measured under one name."""

    run: Run
    """A trial with the load inside the leader's process."""
    run_network: Run | None
    """A trial with the load in a client's process; ``None``: it serves no clients."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of every contestant."""

    clients: int
    """Commands in flight."""
    value_bytes: int
    warm_up_seconds: float
    seconds: float
    network_seconds: float
    """The window of the network trials; 0: there are none."""
    repeats: int
    directory: Path | None
    """Where the files of the trials lie while they run (``None``: where temporary files go); the
    disk below it is what is measured."""
    sync: str = SYNC_LEVELS[0]
    """The sync level of every contestant, ``bare`` included."""

    @property
    def is_durable(self) -> bool:
        """Whether what is acknowledged survives a power cut."""
        return self.sync == SYNC_LEVELS[0]

    @property
    def title(self) -> str:
        """What is said of every run."""
        in_flight = f"{self.clients} in flight"
        return in_flight if self.is_durable else f"{in_flight}, {NOT_DURABLE}"

    @contextmanager
    def trial(self) -> Iterator[Trial]:
        """A trial in an empty directory, which goes with the block."""
        with tempfile.TemporaryDirectory(prefix="replog-bench-", dir=self.directory) as made:
            yield Trial(
                clients=self.clients,
                value_bytes=self.value_bytes,
                warm_up_seconds=self.warm_up_seconds,
                seconds=self.seconds,
                directory=Path(made),
                sync=self.sync,
            )


def run_bare(trial: Trial) -> LoadResult:
    """One trial of the bare pipeline."""
    lifetime = ("--lifetime-seconds", str(trial.lifetime_seconds), "--sync", trial.sync)
    module = "replog_bench.bare"
    with Processes() as processes:
        followers = [
            processes.start(
                f"bare {name}",
                module,
                ("follower", "--file", str(trial.directory / name), *lifetime),
            )
            for name in ("follower-1", "follower-2")
        ]
        leader = processes.start(
            "bare leader",
            module,
            (
                *("leader", "--file", str(trial.directory / "leader"), *lifetime),
                *("--clients", str(trial.clients), "--value-bytes", str(trial.value_bytes)),
                *("--warm-up-seconds", str(trial.warm_up_seconds)),
                *("--seconds", str(trial.seconds)),
            ),
        )
        leader.tell(ports=[follower.line(READY_SECONDS)["port"] for follower in followers])
        leader.line(READY_SECONDS)
        return load_result(leader.line(trial.load_seconds))


def find_contestants(engines: Sequence[str]) -> dict[str, Contestant]:
    """``bare`` and the installed engines called ``engines``, in this order, each once.

    Raises :class:`~replog.errors.PluginError` for an engine that is not installed.
    """
    found = {BASE: Contestant(run_bare, None)}
    for name in engines:
        if name not in found:
            plugins.find_engine(name)
            found[name] = Contestant(partial(run_embedded, name), partial(run_network, name))
    return found


def run_throughput(
    contestants: Mapping[str, Contestant], plan: Plan, progress: Progress
) -> list[ThroughputRow]:
    """Measure every contestant; one row each."""
    measured = {name: Measured([], []) for name in contestants}
    syncs = []
    for repeat in range(plan.repeats):
        with plan.trial() as trial:
            syncs.append(sync_microseconds(trial.directory))
        for name, contestant in contestants.items():
            run = f"{name}, {plan.title}, run {repeat + 1} of {plan.repeats}"
            progress(run)
            with plan.trial() as trial:
                measured[name].embedded.append(contestant.run(trial))
            if contestant.run_network is not None and plan.network_seconds:
                progress(f"{run}, network")
                with plan.trial() as trial:
                    trial = replace(trial, seconds=plan.network_seconds)
                    measured[name].network.append(contestant.run_network(trial))
    return throughput_rows(
        measured,
        clients=plan.clients,
        value_bytes=plan.value_bytes,
        sync_us=median(syncs),
        is_durable=plan.is_durable,
    )


def explain(engine: str, plan: Plan, *, timeline: bool, progress: Progress) -> str:
    """Where the time of an engine's leader goes, from one more trial, which is no measurement."""
    kind = "timeline" if timeline else "profile"
    title = f"{kind} of {engine}, {plan.title}, embedded"
    progress(title)
    with plan.trial() as trial:
        return f"{title}\n{explain_embedded(engine, trial, timeline=timeline)}\n"
