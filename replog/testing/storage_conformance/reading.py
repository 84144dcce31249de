"""What can be asked of a log: the contract of :class:`~replog.stored_log.StoredLog`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from replog.entries import pack_entries
from replog.errors import Compacted, InvariantViolated
from replog.testing.storage_conformance.subject import (
    JudgedRun,
    Scenario,
    Subject,
    based,
    check_read,
    entries,
    entry,
    put,
    scenarios_of,
    state,
)
from replog.types import LogIndex

LAST = 60


@contextmanager
def filled(subject: Subject) -> Iterator[JudgedRun]:
    """A log with entries of many sizes from 11 to 60, without 31 to 33; a few are not persisted."""
    random = Random(1)
    with subject.begin() as run:
        items = [entry(at, 1 + at // 20, random.randbytes(at * at % 500)) for at in range(1, LAST)]
        run.write(state(4), *(put(*items[at : at + 7]) for at in range(0, 28, 7)))
        for at in range(33, 59, 5):
            run.write(put(*items[at : at + 5]))
        run.write(based(10))
        run.encode(put(entry(20, 4), entry(21, 4), entry(50, 4)), put(items[28], items[29]))
        run.encode(put(entry(LAST, 4)))
        yield run


def persisted_and_not(subject: Subject) -> Iterator[JudgedRun]:
    """The log before and after the last groups are persisted, and in a new run if there can be
    one."""
    with filled(subject) as run:
        yield run
        run.persist()
        yield run
        run.persist()
        yield run
        if subject.plugin.durable:
            run.reopen()
            yield run


def stretches(subject: Subject) -> None:
    """A stretch is read at contiguous indexes from its first on, as far as it goes, whatever was
    asked before it."""
    random = Random(2)
    for run in persisted_and_not(subject):
        for _ in range(60):
            first = random.choice((*range(11, 31), *range(34, LAST + 1)))
            last = first + random.randrange(LAST)
            check_read(run.log, run.model.log, first, last, 1 << 20)


def bytes_max_kept(subject: Subject) -> None:
    """As many entries are read as fit into the bytes that were asked for, as they travel, and not
    one more."""
    random = Random(3)
    for run in persisted_and_not(subject):
        for _ in range(60):
            first = random.choice((*range(11, 28), *range(34, LAST)))
            check_read(run.log, run.model.log, first, LAST, random.randrange(3000))


def one_at_least(subject: Subject) -> None:
    """However few bytes are asked for, one entry is read."""
    for run in persisted_and_not(subject):
        for first in (11, 20, 34, LAST):
            for bytes_max in (0, 1, len(pack_entries(run.log.read(first, first, 0))) - 1):
                found = run.log.read(first, LAST, bytes_max)
                assert [each.index for each in found] == [first], f"{len(found)} are read"


def stops_before_hole(subject: Subject) -> None:
    """A read stops before a hole and at the end of the log, with what stands before them."""
    for run in persisted_and_not(subject):
        found = [each.index for each in run.log.read(28, LAST, 1 << 20)]
        assert found == [28, 29, 30], f"{found} are read, and the hole begins behind 30"
        found = [each.index for each in run.log.read(LAST - 1, 10**12, 1 << 20)]
        assert found == [LAST - 1, LAST], f"{found} are read, and the log ends at {LAST}"


def below_base_compacted(subject: Subject) -> None:
    """What a base cut off is refused with the first index that is still there."""
    for run in persisted_and_not(subject):
        for first in (1, 5, 10):
            available = first_available(run, first)
            assert available == 11, f"names {available} when {first} is asked for, and not 11"


def first_available(run: JudgedRun, first: LogIndex) -> LogIndex:
    """What a log says that can be read instead of what a base cut off."""
    try:
        found = run.log.read(first, LAST, 1 << 20)
    except Compacted as refusal:
        return refusal.first_available
    raise AssertionError(f"{len(found)} entries are read from {first} on")


def in_hole_refused(subject: Subject) -> None:
    """To read where there is no entry, in a hole or behind the end, is a bug and is refused as
    one."""
    for run in persisted_and_not(subject):
        for first in (31, 33, LAST + 1, 10**12):
            try:
                found = run.log.read(first, first + 9, 1 << 20)
            except InvariantViolated:
                continue
            raise AssertionError(f"{len(found)} entries are read from {first} on")


def truncated_unread(subject: Subject) -> None:
    """What a truncation voided is not read again, not even before the truncation is persisted."""
    with subject.begin() as run:
        run.write(state(1), put(*entries(1, 9)))
        run.check()
        run.encode(put(entry(5, 2), truncate_from=5))
        for _ in range(2):
            found = [each.index for each in run.log.read(3, 9, 1 << 20)]
            assert found == [3, 4, 5], f"{found} are read, and 5 is the last"
            run.check()
            run.encode(put(entry(6, 2)), put(truncate_from=6))
        run.persist()
        run.check()


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "reading",
    (
        stretches,
        bytes_max_kept,
        one_at_least,
        stops_before_hole,
        below_base_compacted,
        in_hole_refused,
        truncated_unread,
    ),
)
