"""What a sequence of writes comes to: as soon as it is encoded, and in every later run."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from replog.storage.protocol import Write
from replog.storage.replay import Replay
from replog.testing.storage_conformance.subject import (
    JudgedRun,
    Scenario,
    Subject,
    based,
    entries,
    entry,
    put,
    scenarios_of,
    state,
)
from replog.types import Entry, EntryId, HardState, LogIndex

SEEDS = range(3)
GROUPS = 16
FAR: LogIndex = 10**12
TERM_MAX = (1 << 64) - 1


def drawn_write(random: Random, model: Replay) -> Write:
    """Any write that is legal after those of a model."""
    log = model.log
    around = random.choice([run.first for run in log.runs] + [log.runs.last_index, log.base.index])
    term = random.randrange(1, 5) if random.random() < 0.9 else TERM_MAX
    hard_state, truncate_from, base = None, None, None
    if model.hard_state is None or random.random() < 0.4:
        hint = random.choice((0, 0, around))
        hard_state = HardState(1, term, random.randrange(4), hint)
    if random.random() < 0.15:
        base = EntryId(1, term, max(1, around + random.randrange(-4, 4)))
    if random.random() < 0.25:
        truncate_from = max(1, around + random.randrange(-2, 5))
    items = drawn_entries(random, around, term) if random.random() < 0.8 else ()
    return Write(hard_state, truncate_from, items, base)


def drawn_entries(random: Random, around: LogIndex, term: int) -> tuple[Entry, ...]:
    """Entries that ascend, some with a hole between them, near an index or very far behind it."""
    index = max(1, around + random.randrange(-5, 4))
    if random.random() < 0.05:
        index += FAR
    found: list[Entry] = []
    for _ in range(random.randrange(1, 12)):
        found.append(entry(index, term, random.randbytes(random.choice((0, 5, 200)))))
        index += 1 if random.random() < 0.85 else random.randrange(2, 5)
        if random.random() < 0.1:
            term = random.randrange(1, 5)
    return tuple(found)


def drawn_groups(run: JudgedRun, random: Random, step: Callable[[], None]) -> None:
    """Encode random groups, up to three of which are on their way at a time; after each step that
    changes anything, do ``step``."""
    waiting = 0
    for _ in range(GROUPS):
        model, writes = Replay(), []
        model.hard_state, model.log = run.model.hard_state, run.model.log
        for _ in range(random.choice((1, 1, 2, 4))):
            write = drawn_write(random, model)
            model.hard_state = write.hard_state or model.hard_state
            writes.append(write)
        run.encode(*writes)
        waiting += 1
        step()
        while waiting > random.randrange(3):
            run.persist()
            waiting -= 1
            step()


def encoded_counts(subject: Subject) -> None:
    """Whatever was encoded can be read at once, and reads the same when it has been persisted."""
    for seed in SEEDS:
        with subject.begin() as run:
            drawn_groups(run, Random(seed), run.check)


def reopened_as_persisted(subject: Subject) -> None:
    """After it was closed and opened again a storage holds what was persisted, all of it, and
    nothing of what was only encoded."""
    subject.expect_durable()
    for seed in SEEDS:
        with subject.begin() as run:
            for part in range(2):
                drawn_groups(run, Random(100 * seed + part), lambda: None)
                run.reopen()


def crashed_as_persisted(subject: Subject) -> None:
    """After a crash a storage holds what was persisted, all of it, and nothing of what was only
    encoded; and so it does after a second crash at once."""
    subject.expect_durable()
    for seed in SEEDS:
        with subject.begin() as run:
            drawn_groups(run, Random(seed), lambda: None)
            run.encode(state(TERM_MAX), put(entry(FAR * 2)))
            run.crash()
            run.crash()
            run.write(state(TERM_MAX, voted_for=1))
            run.crash()


def after(subject: Subject, *groups: tuple[Write, ...]) -> None:
    """Some groups, judged before and after each is persisted, and after all in a new run."""
    with subject.begin() as run:
        for writes in groups:
            run.encode(*writes)
            run.check()
            run.persist()
            run.check()
        if subject.plugin.durable:
            run.reopen()


def hard_states(subject: Subject) -> None:
    """The last hard state of a group counts, with its vote and hint, alone and beside entries, up
    to the highest term; a later one without a hint takes the hint away."""
    with subject.begin() as run:
        for term, vote, hint in ((1, 0, 0), (1, 3, 0), (2, 1, 7), (2, 1, 0), (1 << 63, 2, FAR)):
            run.write(state(term, 0, 99), state(term, vote, hint))
            if subject.plugin.durable:
                run.reopen()
        run.write(
            Write(HardState(1, TERM_MAX, 65_535, 2), None, entries(1, 4, TERM_MAX)),
        )
        run.check()
        if subject.plugin.durable:
            run.reopen()


def overwrites(subject: Subject) -> None:
    """The last entry per index counts, within a group, between groups, in the midst of others, in
    the same term or a lower one, and is what is read right after the older one was read."""
    with subject.begin() as run:
        run.write(state(5), put(*entries(1, 9, 3)))
        for term in (4, 2, 4):
            run.check()
            run.encode(put(*entries(4, 6, term), entry(8, term, b"first")), put(entry(8, term)))
            run.check()
            run.persist()
            run.check()
        if subject.plugin.durable:
            run.reopen()


def truncations(subject: Subject) -> None:
    """A truncation voids everything at and above its index, comes before the entries of its own
    write and after those of earlier ones; at the end of the log it says nothing."""
    after(
        subject,
        (state(1), put(*entries(1, 9))),
        (put(truncate_from=10),),
        (put(*entries(6, 7, 2), truncate_from=5),),
        (put(*entries(9, 12, 2)), put(entry(11, 3), truncate_from=11)),
        (put(truncate_from=1), put(entry(2, 4))),
        (put(*entries(1, 3, 5)), put(truncate_from=1)),
    )


def holes(subject: Subject) -> None:
    """Entries may be put in any order, with holes between them that later ones fill."""
    after(
        subject,
        (state(1), put(entry(9), entry(12))),
        (put(entry(3), entry(10)),),
        (put(*entries(4, 8, 2)),),
        (put(entry(1, 3), entry(11, 3)),),
    )


def wide_gaps(subject: Subject) -> None:
    """A hole may be as wide as can be: it costs neither time nor space."""
    after(
        subject,
        (state(1), put(*entries(1, 3), entry(FAR))),
        (put(entry(2 * FAR), entry(4 * FAR)), put(entry(FAR // 2))),
        (put(truncate_from=2 * FAR),),
        (based(FAR),),
        (put(*entries(FAR + 2, FAR + 4)),),
    )


def bases(subject: Subject) -> None:
    """A base voids everything at and below it, for ever: a lower base says nothing, an entry below
    is void; it may stand behind the end of the log."""
    after(
        subject,
        (state(1), put(*entries(1, 9))),
        (based(4),),
        (based(2), put(*entries(3, 6, 2))),
        (based(4, term=9), put(entry(4, 3))),
        (Write(None, 8, (entry(8, 4), entry(9, 4)), EntryId(1, 2, 7)),),
        (put(truncate_from=2),),
        (based(20, term=3), put(*entries(18, 22, 5))),
        (based(30),),
        (put(entry(30), entry(33)),),
    )


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "replaying",
    (
        hard_states,
        overwrites,
        truncations,
        holes,
        wide_gaps,
        bases,
        encoded_counts,
        reopened_as_persisted,
        crashed_as_persisted,
    ),
)
