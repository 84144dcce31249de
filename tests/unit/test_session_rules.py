"""The rules of sessions, read twice: what the simulator expects, and what every replica does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from test_replica import Journal, Outcomes, ScriptedEngine, committed

from replog.control import pack_closing, pack_opening
from replog.envelope import SessionMark, mark_command, pack_envelopes
from replog.errors import SessionExpired, SessionFull, StaleSequence, TermChanged
from replog.limits import Limits
from replog.loading import new_sessions
from replog.replica import Replica
from replog.sessions import SessionTerms
from replog.testing.session_rules import SessionRules, Verdict
from replog.types import Entry, EntryKind, LogIndex, Term, TermId, entry_body

TERMS = SessionTerms(
    idle_ms_max=400, answers_max=3, answer_bytes_max=1000, sessions_max=3, all_bytes_max=4 * 256
)

ROOMY = replace(TERMS, all_bytes_max=1 << 20)

TOLD: dict[Verdict, type[Exception] | None] = {
    Verdict.APPLIED: None,
    Verdict.KNOWN: None,
    Verdict.GONE: SessionExpired,
    Verdict.STALE: StaleSequence,
    Verdict.FULL: SessionFull,
    Verdict.CROWDED: SessionFull,
    Verdict.OTHER_TERM: TermChanged,
}


class Log:
    """A log that the rules take entry by entry."""

    def __init__(self) -> None:
        self.rules = SessionRules()
        self.last: LogIndex = 0

    def open(self, terms: SessionTerms, time_ms: int) -> LogIndex:
        """Open a session; its id if it is opened."""
        return self._add(EntryKind.CONTROL, pack_opening(terms, time_ms))

    def command(
        self, mark: SessionMark, time_ms: int, term: Term = 1, expected: Term = 0
    ) -> Verdict:
        """A command in a session, of ``term``, and for ``expected`` only unless that is 0."""
        payload = mark_command(b"x", mark, TermId(1, expected) if expected else None)
        index = self._add(EntryKind.COMMAND, pack_envelopes([payload], time_ms)[0], term)
        return self.rules.verdicts[index]

    def close(self, session_id: int) -> None:
        """Close a session."""
        self._add(EntryKind.CONTROL, pack_closing(session_id))

    def _add(self, kind: EntryKind, data: bytes, term: Term = 1) -> LogIndex:
        self.last += 1
        self.rules.take(Entry(1, self.last, term, entry_body(kind, 1, term, self.last, data)))
        return self.last


# The rules, one by one


def test_rules_of_one_session() -> None:
    """A command is applied once, its copies are known, and what is acknowledged is refused."""
    log = Log()
    session = log.open(ROOMY, 100)
    assert log.command((session, 1, 1), 100) is Verdict.APPLIED
    assert log.command((session, 1, 1), 100) is Verdict.KNOWN
    assert log.rules.done_at[log.last] == 2
    assert log.command((session, 3, 2), 100) is Verdict.APPLIED
    assert log.command((session, 1, 1), 100) is Verdict.STALE
    assert log.command((session, 2, 1), 100) is Verdict.APPLIED
    assert log.command((session, 4, 2), 100) is Verdict.APPLIED
    assert log.command((session, 5, 2), 100) is Verdict.FULL
    assert log.command((session, 5, 3), 100) is Verdict.APPLIED
    assert log.command((session, 6, 3), 100) is Verdict.FULL
    assert log.command((session, 6, 6), 100) is Verdict.APPLIED
    assert log.command((session, 9, 7), 100) is Verdict.APPLIED
    assert log.command((session, 8, 7), 100) is Verdict.APPLIED
    assert log.command((session, 10, 7), 100) is Verdict.APPLIED
    assert log.command((session, 11, 7), 100) is Verdict.FULL
    assert log.command((session, 7, 7), 100) is Verdict.APPLIED, "the lowest is done at any rate"
    assert log.command((session + 1, 1, 1), 100) is Verdict.GONE
    log.close(session)
    assert log.command((session, 11, 11), 100) is Verdict.GONE


def test_rules_of_time() -> None:
    """A session is gone when it was idle for longer than it may be, by the latest time so far, also
    where an older stamp comes later."""
    log = Log()
    first, second = log.open(ROOMY, 100), log.open(ROOMY, 100)
    assert log.command((first, 1, 1), 500) is Verdict.APPLIED
    assert log.command((second, 1, 1), 400) is Verdict.APPLIED
    assert log.command((second, 2, 1), 901) is Verdict.GONE
    assert log.rules.time_ms == 901


def test_rules_of_all_sessions() -> None:
    """Where all keep as many answers as they may, each has its lowest command done and no other;
    who is gone, closes or acknowledges makes room."""
    log = Log()
    first, second = log.open(TERMS, 100), log.open(TERMS, 100)
    for sequence in (1, 2, 3):
        assert log.command((first, sequence, 1), 100) is Verdict.APPLIED
    assert log.command((second, 2, 1), 300) is Verdict.APPLIED
    assert log.command((second, 3, 1), 300) is Verdict.CROWDED
    assert log.command((second, 1, 1), 300) is Verdict.APPLIED
    assert log.command((second, 3, 1), 500) is Verdict.CROWDED
    assert log.command((second, 3, 1), 501) is Verdict.APPLIED, "the first one is gone"


def test_rules_of_terms() -> None:
    """A command for one term is applied in it alone; what was done in it is known for ever."""
    log = Log()
    session = log.open(ROOMY, 100)
    assert log.command((session, 1, 1), 100, expected=1) is Verdict.APPLIED
    assert log.command((session, 2, 1), 100, expected=2) is Verdict.OTHER_TERM
    assert log.command((session, 2, 1), 100, term=2, expected=2) is Verdict.APPLIED
    assert log.command((session, 1, 1), 100, term=2, expected=1) is Verdict.KNOWN
    assert log.command((session, 3, 1), 100, term=1, expected=1) is Verdict.OTHER_TERM


def test_rules_of_too_many_sessions() -> None:
    """Above the bound none is opened, until one is closed or gone."""
    log = Log()
    sessions = [log.open(TERMS, 100) for _ in range(4)]
    log.close(sessions[0])
    sessions.append(log.open(TERMS, 100))
    assert log.command((sessions[3], 1, 1), 100) is Verdict.GONE
    assert log.command((sessions[4], 1, 1), 501) is Verdict.GONE
    assert log.command((log.open(TERMS, 501), 1, 1), 501) is Verdict.APPLIED


# What a replica does


class TermedEngine(ScriptedEngine):
    """One whose entries are of the term that is set."""

    def propose_batch(self, datas: Sequence[bytes], kind: EntryKind) -> Sequence[Entry]:
        """See :class:`ScriptedEngine`."""
        first = len(self.proposed) + 1
        entries = [
            Entry(1, index, self.term, entry_body(kind, 1, self.term, index, data))
            for index, data in enumerate(datas, first)
        ]
        self.proposed += entries
        return entries


@pytest.mark.parametrize("seed", range(6))
def test_replica_keeps_to_the_rules(seed: int) -> None:
    """Whatever clients ask for, a replica applies what the rules say, at the time that they say,
    and tells whoever waits accordingly."""
    dice = random.Random(seed)
    engine, machine, rules = TermedEngine(), Journal(), SessionRules()
    engine.term = 1
    replica = Replica(engine, machine, Limits(command_bytes_max=100), new_sessions())
    seen: set[Verdict] = set()
    opened = [1]
    for index in range(1, 1500):
        outcomes = Outcomes()
        now = 20 * index + dice.randrange(-100, 100) + 100
        engine.term += dice.random() < 0.02
        if (draw := dice.random()) < 0.05:
            terms = replace(dice.choice((TERMS, ROOMY)), idle_ms_max=dice.choice((300, 2000)))
            replica.propose_control(pack_opening(terms, now), outcomes.waiter("it"))
            opened.append(index)
        elif draw < 0.06:
            replica.propose_control(pack_closing(dice.choice(opened)), outcomes.waiter("it"))
        else:
            sequence = dice.randrange(1, 9)
            mark = dice.choice(opened[-4:]), sequence
            lowest = dice.randrange(0, sequence + 1) if dice.random() < 0.3 else 1
            expected = TermId(1, engine.term + dice.choice((0, 0, -1, 1)))
            is_termed = dice.random() < 0.2
            payload = mark_command(b"x", (*mark, lowest), expected if is_termed else None)
            replica.propose_batch([payload], now, [outcomes.waiter("it")])
        entry = engine.proposed[-1]
        replica.apply(committed([entry]))
        rules.take(entry)
        assert entry.index == index
        assert (replica.time_ms, replica.highest_term) == (rules.time_ms, rules.highest)
        if entry.kind != EntryKind.COMMAND:
            continue
        verdict = rules.verdicts[index]
        seen.add(verdict)
        was_applied = bool(machine.applied) and machine.applied[-1][0] == index
        assert was_applied == (verdict is Verdict.APPLIED), (index, verdict)
        ((_, told_index, _, error),) = outcomes.told
        assert (None if error is None else type(error)) is TOLD[verdict]
        assert told_index == rules.done_at.get(index, 0)
    assert seen == set(Verdict)
