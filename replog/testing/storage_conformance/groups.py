"""Groups on their way to the disk: their order, their sizes, and the thread that takes them."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from replog.limits import MIB
from replog.testing.storage_conformance.subject import (
    JudgedRun,
    Scenario,
    Subject,
    check_read,
    entries,
    entry,
    put,
    scenarios_of,
    state,
)

THREAD_GROUPS = 40
THREAD_SECONDS = 60.0


def only_in_order(subject: Subject) -> None:
    """A group is persisted after those that were encoded before it, once; anything else is refused
    as the bug that it is, and nothing of it is found later."""
    with subject.begin() as run:
        run.write(state(1), put(*entries(1, 3)))
        run.encode(put(entry(4)))
        second = run.encode(put(entry(5)))
        refused(run, second)
        if subject.plugin.durable:
            run.reopen()
    with subject.begin() as run:
        first = run.encode(state(1), put(*entries(1, 3)))
        run.persist()
        run.encode(put(entry(4)))
        refused(run, first)


def refused(run: JudgedRun, group: object) -> None:
    """Persisting a group is a programmer's error."""
    try:
        run.storage.persist(group)
    except AssertionError:
        return
    raise AssertionError("a group is persisted out of order")


def unpersisted_is_gone(subject: Subject) -> None:
    """Of a group that was encoded and not persisted, nothing is found in the next run, neither the
    hard state nor the entries."""
    subject.expect_durable()
    with subject.begin() as run:
        run.encode(state(9, voted_for=2), put(*entries(1, 3, 9)))
        run.reopen()
        run.write(state(1), put(*entries(1, 5)))
        run.encode(state(2, voted_for=1), put(entry(2, 2), truncate_from=2))
        run.encode(state(3), put(*entries(3, 8, 3)))
        run.reopen()
        run.encode(state(4), put(entry(1, 4)))
        run.crash()
        run.write(put(*entries(6, 7)))
        run.reopen()


def whole_groups(subject: Subject) -> None:
    """Of a group that was persisted everything is found, whatever the number of its writes; a group
    of nothing is a group as well."""
    subject.expect_durable()
    with subject.begin() as run:
        run.write(state(1), put(*entries(1, 2)), put(*entries(3, 4)), state(2, 3), put(entry(5, 2)))
        run.crash()
        run.write(put(entry(6, 2)), state(3, 1))
        run.write(put())
        run.write()
        run.reopen()


def small_and_large_entries(subject: Subject) -> None:
    """Entries without data and of a MiB are read back as they were, side by side."""
    with subject.begin() as run:
        large = [bytes([at]) * MIB for at in (1, 2, 3)]
        run.write(state(1), put(entry(1, 1, b""), entry(2, 1, large[0]), entry(3, 1, b"")))
        run.encode(put(entry(4, 1, large[1]), entry(5, 1, large[2])), put(entry(2, 2, b"")))
        run.check()
        run.persist()
        run.check()
        if subject.plugin.durable:
            run.reopen()


def large_groups(subject: Subject) -> None:
    """A group may put thousands of entries, and the next one replace them."""
    with subject.begin() as run:
        run.write(state(1), put(*entries(1, 4096)))
        run.encode(state(2), put(*entries(2049, 6144, 2), truncate_from=2049))
        run.check()
        run.persist()
        run.check()
        if subject.plugin.durable:
            run.reopen()


def persisted_beside_reads(subject: Subject) -> None:
    """One thread may persist while another encodes the next groups and reads: it reads what was
    encoded, at any moment."""
    with subject.begin() as run:
        waiting: SimpleQueue[object] = SimpleQueue()
        failures: list[BaseException] = []

        def persist_all() -> None:
            try:
                while (group := waiting.get()) is not None:
                    run.storage.persist(group)
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=persist_all, name="persists", daemon=True)
        thread.start()
        try:
            for at in range(THREAD_GROUPS):
                first = 1 + 5 * at - at % 3
                write = put(*entries(first, first + 9, 1 + at), truncate_from=first)
                waiting.put(run.encode(state(1 + at), write))
                for _ in range(3):
                    check_read(run.log, run.model.log, max(1, first - 20), first + 9, MIB)
        finally:
            waiting.put(None)
            thread.join(THREAD_SECONDS)
        assert not thread.is_alive(), f"groups take longer than {THREAD_SECONDS} seconds"
        assert not failures, f"persisting in another thread fails: {failures[0]!r}"
        run.check()
        if subject.plugin.durable:
            run.note_persisted()
            run.reopen()


def closed_twice(subject: Subject) -> None:
    """A storage may be closed twice, also one that was never recovered."""
    home = subject.found(subject.home())
    unread = subject.plugin.open(home)
    unread.close()
    unread.close()
    with JudgedRun(subject, home) as run:
        run.write(state(1))
        run.storage.close()
        run.storage.close()


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "groups",
    (
        only_in_order,
        unpersisted_is_gone,
        whole_groups,
        small_and_large_entries,
        large_groups,
        persisted_beside_reads,
        closed_twice,
    ),
)
