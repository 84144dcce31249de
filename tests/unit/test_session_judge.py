"""What is judged by the second reading of the rules of sessions: each wrong outcome is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replog.control import pack_opening
from replog.envelope import SessionMark, mark_command, pack_envelopes
from replog.errors import SessionExpired, SessionFull, StaleSequence, TermChanged
from replog.machine import ApplyContext
from replog.sessions import SessionTerms
from replog.testing.checks import Broken
from replog.testing.goals import Goals
from replog.testing.judged_machine import Results
from replog.testing.nodes import Proposal
from replog.testing.session_rules import SessionRules, Verdict, check_sessions
from replog.types import Entry, EntryKind, LogIndex, Term, TermId, entry_body

GOALS = ("done_in_its_term", "full_session_refused", "full_sessions_refused")
OPENED = 1
"""The session."""

GONE, STALE = SessionExpired(9), StaleSequence(OPENED, 1, 2)


class History:
    """A log with one session, which keeps three answers, and all sessions four; what applying its
    entries came to; and what clients were told: all as it should be."""

    def __init__(self) -> None:
        self.chosen: dict[LogIndex, Entry] = {}
        self.results = Results()
        self.copies: list[Proposal] = []
        self.told_terms: list[tuple[LogIndex, TermId]] = []
        self.goals = Goals(dict.fromkeys(GOALS, "There is such a thing."))
        terms = SessionTerms(400, 3, 1000, 3, 4 * 256)
        assert self._add(EntryKind.CONTROL, pack_opening(terms, 100)) == OPENED

    def ask(
        self,
        mark: SessionMark | None,
        told: Exception | LogIndex | None = None,
        term: Term = 1,
        expected: Term = 0,
    ) -> Proposal:
        """A command, which its client asks for at the next index and is told of: where it was done
        (``None``: there), or why it is not."""
        expected_term = TermId(1, expected) if expected else None
        payload = mark_command(b"x", mark, expected_term)
        index = self._add(EntryKind.COMMAND, pack_envelopes([payload], 100)[0], term)
        if told is None:
            self.results.judge(ApplyContext(index, 100), b"done", "")
            told = index
        copy = Proposal(len(self.copies) + 1, 1, b"x", lambda *_: None)
        copy.mark, copy.expected, copy.index, copy.term = mark, expected_term, index, term
        if isinstance(told, Exception):
            copy.end(0, None, told)
        else:
            copy.end(told, b"done", None)
        self.copies.append(copy)
        return copy

    def check(self) -> SessionRules:
        """Judge it."""
        return check_sessions(
            self.chosen, len(self.chosen), self.copies, self.results, self.told_terms, self.goals
        )

    def _add(self, kind: EntryKind, data: bytes, term: Term = 1) -> LogIndex:
        index = len(self.chosen) + 1
        self.chosen[index] = Entry(1, index, term, entry_body(kind, 1, term, index, data))
        return index


def of_all_verdicts() -> History:
    """A history that comes to every verdict."""
    history = History()
    history.ask((OPENED, 1, 1))
    history.ask((OPENED, 1, 1), 2)
    history.ask((OPENED, 2, 1))
    history.ask((OPENED, 3, 1), expected=1)
    history.ask((OPENED, 4, 1), SessionFull("the session is full"))
    history.ask((OPENED, 4, 2), TermChanged((1, 2), (1, 1)), expected=2)
    history.ask((OPENED, 1, 1), STALE)
    history.ask((9, 1, 1), GONE)
    history.ask(None, term=2)
    history.told_terms = [(5, TermId(1, 1)), (10, TermId(1, 2))]
    return history


def test_right_history_passes() -> None:
    """What became of every command is what the rules say, and the goals are seen."""
    history = of_all_verdicts()
    rules = history.check()
    assert set(rules.verdicts.values()) == set(Verdict) - {Verdict.CROWDED}
    assert rules.numbers() == {OPENED: [2, 3]}
    assert history.goals.reached == ["done_in_its_term", "full_session_refused"]


def apply(history: History, index: LogIndex, time_ms: int = 100) -> None:
    """Say that an entry was applied."""
    history.results.judge(ApplyContext(index, time_ms), b"done", "")


def tell(history: History, index: LogIndex, error: Exception) -> None:
    """Say that a client was told something else."""
    copy = next(copy for copy in history.copies if copy.index == index)
    copy.error = error


def tell_done(history: History, index: LogIndex, done_at: LogIndex) -> None:
    """Say that a client was told that its command was done there."""
    copy = next(copy for copy in history.copies if copy.index == index)
    later = Proposal(copy.number, 1, b"x", lambda *_: None)
    later.mark, later.index, later.term = copy.mark, index, copy.term
    later.end(done_at, b"done", None)
    history.copies[history.copies.index(copy)] = later


WRONG: dict[str, tuple[Callable[[History], object], str]] = {
    "a copy is applied": (lambda it: apply(it, 3), "I21: .*3 was done before, and was applied"),
    "a stale one is applied": (lambda it: apply(it, 8), "I21: .*8 is acknowledged, and was app"),
    "a foreign one is applied": (lambda it: apply(it, 9), "I21: .*9 is in a session that is gone"),
    "one too many is applied": (lambda it: apply(it, 6), "I21: .*6 is more than its session may"),
    "one of another term is applied": (lambda it: apply(it, 7), "I27: .*7 is for another term"),
    "a command is passed over": (
        lambda it: it.ask((OPENED, 4, 4), 11),
        "I21: .*11 is to be applied, and was not applied",
    ),
    "a command is applied at another time": (
        lambda it: (it.ask((OPENED, 4, 4), 11), apply(it, 11, time_ms=101)),
        "I10: entry 11 is applied at 101 ms, .* is 100 ms",
    ),
    "a copy is told as done at its own index": (
        lambda it: tell_done(it, 3, 3),
        "I21: .*3 was done before, .* told that it was done at 3",
    ),
    "a refused one is told as done": (
        lambda it: tell_done(it, 8, 2),
        "I21: .*8 is acknowledged, .* told that it was done at 2",
    ),
    "a full session is told as gone": (
        lambda it: tell(it, 6, GONE),
        "I21: .*6 is more than its session may keep, .* told: the cluster does not know",
    ),
    "a full session is told as full sessions": (
        lambda it: tell(it, 6, SessionFull("limits.sessions_bytes_max")),
        "I21: .*6 is more than its session may keep, .* told: limits",
    ),
    "a session that is gone is told as a number that is": (
        lambda it: tell(it, 9, STALE),
        "I21: .*9 is in a session that is gone, .* told: command 1 of",
    ),
    "one that was done is told as refused": (
        lambda it: it.ask((OPENED, 2, 2), STALE),
        "I21: .*11 was done before, .* told: command 1 of",
    ),
    "another term is told": (
        lambda it: tell(it, 7, TermChanged((1, 2), (1, 3))),
        "I27: entry 7 is for .*term=2.* only, .*term=1.* told: .*term 3",
    ),
    "a leader says an older term": (
        lambda it: it.told_terms.append((10, TermId(1, 1))),
        "I27: a leader says as of entry 10 .*term=1.*term=2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_outcome_is_found(name: str) -> None:
    """One thing is other than it should be, and is named with the entry and the rule."""
    history = of_all_verdicts()
    change, sentence = WRONG[name]
    change(history)
    with pytest.raises(Broken, match=sentence):
        history.check()


def test_full_sessions_are_told_apart() -> None:
    """Who is refused for all sessions is told so, and not that its own is full."""
    history = History()
    terms = SessionTerms(400, 64, 1000, 3, 256)
    session = history._add(EntryKind.CONTROL, pack_opening(terms, 100))
    history.ask((session, 1, 1))
    refused = history.ask((session, 2, 1), SessionFull("limits.sessions_bytes_max"))
    history.check()
    assert history.goals.reached == ["full_sessions_refused"]
    refused.error = SessionFull("the session is full")
    with pytest.raises(Broken, match=r"I21: .*4 is more than all sessions may keep"):
        history.check()


def test_done_after_its_term_was_over() -> None:
    """Of a command whose term is not there yet a later copy may be done; of one whose term is over
    none."""
    for expected, found in ((2, 1), (1, 2)):
        history = History()
        refusal = TermChanged((1, expected), (1, found))
        history.ask((OPENED, 1, 1), refusal, term=found, expected=expected)
        history.ask((OPENED, 1, 1), term=2)
        if not refusal.is_final:
            history.check()
            continue
        with pytest.raises(Broken, match="I27: entry 2 was refused as its term was over"):
            history.check()


def test_applied_twice_whatever_the_rules_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """That no command is applied twice does not hang on the second reading of the other rules."""
    history = History()
    history.ask((OPENED, 1, 1))
    history.ask((OPENED, 1, 1))
    monkeypatch.setattr(SessionRules, "_in_session", lambda *_: Verdict.APPLIED)
    with pytest.raises(Broken, match="I21: command 1 of session 1 was applied at 2 and at 3"):
        history.check()


def test_what_one_replica_applies_none_passes_over() -> None:
    """A machine that is not given what another one is given is found, whichever comes first."""
    results = Results()
    results.judge_step(0, 2)
    results.judge(ApplyContext(2, 100), b"done", "")
    with pytest.raises(Broken, match="I21: entry 2 was applied by a replica, and another one goes"):
        results.judge_step(1, 3)
    with pytest.raises(Broken, match="I21: entry 1 is applied, and another replica has passed it"):
        results.judge_step(0, 1)
