"""The rule of :mod:`replog.engine` about reading the log as a log: what was handed out to be
applied can be read again, as it was, until it is trimmed."""

from __future__ import annotations

from typing import Final

from replog.engine import Engine
from replog.errors import Compacted
from replog.testing.conformance.snapshots import (
    COMMANDS,
    FILLED_TICKS_MAX,
    LIMITS,
    is_filled,
    overtaken,
    trim,
)
from replog.testing.conformance.subject import Scenario, Subject, done, scenarios_of
from replog.types import Entry, LogIndex


def read_all(engine: Engine, bytes_max: int) -> list[Entry]:
    """Everything above the base that was handed out, in stretches of ``bytes_max``."""
    status = engine.status()
    found: list[Entry] = []
    next_index = status.base_index + 1
    while next_index <= status.applied_index:
        entries = engine.entries(next_index, status.applied_index, bytes_max)
        assert entries, f"nothing was read at {next_index}, and entry {status.applied_index} is"
        found += entries
        next_index = entries[-1].index + 1
    return found


def check_read(engine: Engine, chosen: dict[LogIndex, bytes]) -> None:
    """Whatever fits into a page, all pages together are what was chosen, in order."""
    status = engine.status()
    span = range(status.base_index + 1, status.applied_index + 1)
    for bytes_max in (1, 150, 1 << 20):
        found = read_all(engine, bytes_max)
        assert [entry.index for entry in found] == list(span), "an index is missed or comes twice"
        for entry in found:
            assert chosen.setdefault(entry.index, entry.body) == entry.body, (
                f"another entry is read at {entry.index} than at another node"
            )


def check_compacted(engine: Engine, first: LogIndex) -> None:
    """What is not above the base is refused, with the first index that is."""
    status = engine.status()
    first_available = 0
    try:
        engine.entries(first, status.applied_index, 1 << 20)
    except Compacted as refusal:
        first_available = refusal.first_available
    assert first_available == status.base_index + 1, f"entry {first} is read, and is trimmed"


def read_again_as_applied(subject: Subject) -> None:
    """What was handed out to be applied is read again, at every node, across leaders and restarts,
    and the same everywhere."""
    cluster = subject.led()
    for at in range(COMMANDS):
        done(cluster, b"%d" % at)
    cluster.transfer(1, 2)
    cluster.tick(subject.election_ticks)
    subject.wait_leader(cluster)
    done(cluster, b"last")
    cluster.tick(subject.election_ticks)
    chosen: dict[LogIndex, bytes] = {}
    for node in cluster.nodes.values():
        check_read(node.replica.engine, chosen)
    bodies = list(chosen.values())
    assert all(any(b"%d" % at in body for body in bodies) for at in range(COMMANDS))
    cluster.crash(3)
    cluster.restart(3)
    subject.recover(cluster)
    check_read(cluster.nodes[3].replica.engine, chosen)


def reading_disturbs_nobody(subject: Subject) -> None:
    """Who reads the log changes nothing of what the engine does next."""
    cluster = subject.led()
    for at in range(COMMANDS):
        done(cluster, b"%d" % at)
    engine = cluster.nodes[1].replica.engine.clone()
    before = engine.key()
    read_all(engine, 1)
    assert engine.key() == before
    assert engine.ready() is None


def trimmed_is_refused(subject: Subject) -> None:
    """What was trimmed is refused with the first index that is there; what is above is read."""
    cluster = subject.led(limits=LIMITS)
    for at in range(COMMANDS):
        done(cluster, b"%d" % at)
    trim(cluster, 1, 2, 3)
    chosen: dict[LogIndex, bytes] = {}
    for node in cluster.nodes.values():
        engine = node.replica.engine
        base_index = engine.status().base_index
        assert base_index > 1
        check_read(engine, chosen)
        for first in range(1, base_index + 1):
            check_compacted(engine, first)


def nothing_is_read_from_below_a_snapshot(subject: Subject) -> None:
    """A node with entries that nobody else has, which is filled from a snapshot that reaches
    beyond them, gives out none of them; and goes on behind it like all others."""
    for own_count in (2, 2 * COMMANDS):
        cluster = overtaken(subject, own_count)
        assert cluster.run_until(lambda: is_filled(cluster, 1), FILLED_TICKS_MAX), (  # noqa: B023
            "never filled"
        )
        subject.recover(cluster)
        done(cluster, b"behind")
        cluster.tick(subject.election_ticks)
        for first in range(1, cluster.nodes[1].installed_index + 1):
            check_compacted(cluster.nodes[1].replica.engine, first)
        chosen: dict[LogIndex, bytes] = {}
        for node in cluster.nodes.values():
            check_read(node.replica.engine, chosen)


SCENARIOS: Final[tuple[Scenario, ...]] = scenarios_of(
    "log",
    (
        read_again_as_applied,
        reading_disturbs_nobody,
        trimmed_is_refused,
        nothing_is_read_from_below_a_snapshot,
    ),
)
