"""What the rules of sessions say of every command in the log, spelled out as plainly as can be.

A second reading of what :mod:`replog.sessions` documents, which shares with it how entries are
encoded and nothing else: it keeps no answers and no bytes, counts anew whenever it is asked, and
remembers nothing to be faster.  When a
run has ended, its whole log is put through it, and what the replicas did is compared:

* I10: the replicated time at a command is the highest that the entries up to it are stamped with.
* I21: a command is applied where the rules say so, and nowhere else; of its copies one at most.
  Who was told that it is done was told where it was done first, and who was refused was refused by
  the rule that says so.
* I27: a command for one term only is refused where that term is not the highest one so far, and
  only there.  Its client is told both; no earlier copy of it was applied then, and where the term
  was over none ever is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

from replog.control import CLOSING, OPENING, sub_kind_of, unpack_closing, unpack_opening
from replog.envelope import Marks, SessionMark, marks_in, open_envelope
from replog.errors import SessionExpired, SessionFull, StaleSequence, TermChanged
from replog.sessions import SessionTerms
from replog.testing.checks import Broken, was_refused_applied
from replog.testing.goals import Goals
from replog.testing.judged_machine import Results
from replog.testing.nodes import Outcome, Proposal
from replog.types import NO_TERM, Entry, EntryKind, LogIndex, TermId

ANSWER_BYTES: Final = 256
"""What each answer counts for, beside those of all sessions; docs/sessions.md."""


class Verdict(Enum):
    """What is to become of one command."""

    APPLIED = "is to be applied"
    KNOWN = "was done before"
    GONE = "is in a session that is gone"
    STALE = "is acknowledged"
    FULL = "is more than its session may keep"
    CROWDED = "is more than all sessions may keep"
    OTHER_TERM = "is for another term"


_REFUSALS: Final[Mapping[Verdict, type[Exception]]] = {
    Verdict.GONE: SessionExpired,
    Verdict.STALE: StaleSequence,
    Verdict.FULL: SessionFull,
    Verdict.CROWDED: SessionFull,
    Verdict.OTHER_TERM: TermChanged,
}


class _Session:
    """One session: what is in it by number, with the index at which it was done."""

    __slots__ = ("done_at", "lowest", "terms", "time_ms")

    def __init__(self, terms: SessionTerms, time_ms: int) -> None:
        self.terms = terms
        self.time_ms = time_ms
        self.lowest = 0
        self.done_at: dict[int, LogIndex] = {}

    def is_gone(self, time_ms: int) -> bool:
        """Whether it was idle for too long."""
        return self.time_ms + self.terms.idle_ms_max < time_ms


class SessionRules:
    """The sessions as of one entry after the other; see the module."""

    __slots__ = ("_sessions", "done_at", "highest", "time_ms", "verdicts")

    def __init__(self) -> None:
        self._sessions: dict[LogIndex, _Session] = {}
        self.time_ms = 0
        """The replicated time."""
        self.highest = NO_TERM
        """The highest term so far."""
        self.verdicts: dict[LogIndex, Verdict] = {}
        """What is to become of each command."""
        self.done_at: dict[LogIndex, LogIndex] = {}
        """Of each that is in a session and done, where it was done first."""

    def take(self, entry: Entry) -> None:
        """The next entry of the log."""
        self.highest = max(self.highest, TermId(entry.origin.epoch, entry.origin.term))
        if entry.kind == EntryKind.COMMAND:
            self.time_ms = max(self.time_ms, open_envelope(entry)[0])
            self.verdicts[entry.index] = self._verdict(entry.index, marks_in(entry))
        elif entry.kind == EntryKind.CONTROL and sub_kind_of(entry) == CLOSING:
            self._sessions.pop(unpack_closing(entry), None)
        elif entry.kind == EntryKind.CONTROL and sub_kind_of(entry) == OPENING:
            stamp_ms, terms = unpack_opening(entry)
            self.time_ms = max(self.time_ms, stamp_ms)
            if len(self._living()) < terms.sessions_max:
                self._sessions[entry.index] = _Session(terms, self.time_ms)

    def numbers(self) -> dict[LogIndex, list[int]]:
        """By session that is not gone, the numbers of the commands that it knows, ascending."""
        return {
            session_id: sorted(session.done_at)
            for session_id, session in self._sessions.items()
            if not session.is_gone(self.time_ms)
        }

    def _living(self) -> list[_Session]:
        return [each for each in self._sessions.values() if not each.is_gone(self.time_ms)]

    def _verdict(self, index: LogIndex, marks: Marks) -> Verdict:
        is_in_term = marks.term in (None, self.highest)
        if marks.session is None:
            return Verdict.APPLIED if is_in_term else Verdict.OTHER_TERM
        verdict = self._in_session(index, marks.session)
        if verdict is Verdict.APPLIED and not is_in_term:
            return Verdict.OTHER_TERM
        if verdict is Verdict.APPLIED:
            session_id, sequence, _ = marks.session
            self._sessions[session_id].done_at[sequence] = self.done_at[index] = index
        return verdict

    def _in_session(self, index: LogIndex, mark: SessionMark) -> Verdict:
        session_id, sequence, lowest = mark
        session = self._sessions.get(session_id)
        if session is None or session.is_gone(self.time_ms):
            return Verdict.GONE
        session.time_ms = self.time_ms
        session.lowest = max(session.lowest, lowest)
        done_at = session.done_at
        for number in [number for number in done_at if number < session.lowest]:
            del done_at[number]
        if sequence < session.lowest:
            return Verdict.STALE
        if sequence in done_at:
            self.done_at[index] = done_at[sequence]
            return Verdict.KNOWN
        terms = session.terms
        if sequence == session.lowest:
            return Verdict.APPLIED
        if len(done_at) >= terms.answers_max:
            return Verdict.FULL
        count = sum([len(each.done_at) for each in self._living()])
        if count * ANSWER_BYTES >= terms.all_bytes_max:
            return Verdict.CROWDED
        return Verdict.APPLIED


def check_sessions(
    chosen: Mapping[LogIndex, Entry],
    upto: LogIndex,
    proposals: Sequence[Proposal],
    results: Results,
    told_terms: Sequence[tuple[LogIndex, TermId]],
    goals: Goals,
) -> SessionRules:
    """Judge what became of all commands up to the entry ``upto``, which was applied, and return the
    sessions as of then.

    ``told_terms``: in which terms leaders said that they lead, each with what was applied there.
    Raises :class:`~replog.testing.checks.Broken`.
    """
    rules = SessionRules()
    highest: dict[LogIndex, TermId] = {}
    applied: dict[tuple[int, int], LogIndex] = {}
    for index in range(1, upto + 1):
        entry = chosen[index]
        rules.take(entry)
        highest[index] = rules.highest
        if entry.kind != EntryKind.COMMAND:
            continue
        _check_applied(rules, entry, results)
        marks = marks_in(entry)
        if not results.has_applied(index) or marks.session is None:
            continue
        if marks.term is not None:
            goals.reach("done_in_its_term")
        session_id, sequence, _ = marks.session
        first = applied.setdefault((session_id, sequence), index)
        if first != index:
            raise Broken(
                f"I21: command {sequence} of session {session_id} was applied at {first} and at "
                f"{index}"
            )
    for index, term in told_terms:
        if highest.get(index) != term:
            raise Broken(
                f"I27: a leader says as of entry {index} that its term is {term}, and the "
                f"highest one there is {highest.get(index)}"
            )
    for copy in proposals:
        if not 0 < copy.index <= upto or chosen[copy.index].origin.term != copy.term:
            continue
        _check_told(rules, copy, goals)
        if isinstance(copy.error, TermChanged):
            done_at = 0 if copy.mark is None else applied.get(copy.mark[:2], 0)
            _check_told_term(copy, copy.error, highest[copy.index], done_at)
    return rules


def _check_applied(rules: SessionRules, entry: Entry, results: Results) -> None:
    """An entry holds a command: it was applied if the rules say so, at its time."""
    index, verdict = entry.index, rules.verdicts[entry.index]
    if results.has_applied(index) != (verdict is Verdict.APPLIED):
        rule = "I27" if verdict is Verdict.OTHER_TERM else "I21"
        became = "was applied" if results.has_applied(index) else "was not applied"
        raise Broken(f"{rule}: the command in entry {index} {verdict.value}, and {became}")
    if verdict is Verdict.APPLIED and results.time_ms_at(index) != rules.time_ms:
        raise Broken(
            f"I10: entry {index} is applied at {results.time_ms_at(index)} ms, and the latest time "
            f"in the log up to there is {rules.time_ms} ms"
        )


def _check_told(rules: SessionRules, copy: Proposal, goals: Goals) -> None:
    """What the client of a copy was told, that stands in the log."""
    verdict = rules.verdicts[copy.index]
    if copy.outcome is Outcome.DONE:
        done_at = rules.done_at.get(copy.index, copy.index)
        if verdict not in (Verdict.APPLIED, Verdict.KNOWN) or copy.answer_index != done_at:
            raise Broken(
                f"I21: the command in entry {copy.index} {verdict.value}, and its client is told "
                f"that it was done at {copy.answer_index}"
            )
    elif was_refused_applied(copy):
        is_of_all = "sessions_bytes_max" in str(copy.error)
        if type(copy.error) is not _REFUSALS.get(verdict) or is_of_all != (
            verdict is Verdict.CROWDED
        ):
            raise Broken(
                f"I21: the command in entry {copy.index} {verdict.value}, and its client is told: "
                f"{copy.error}"
            )
        if verdict is Verdict.FULL:
            goals.reach("full_session_refused")
        elif verdict is Verdict.CROWDED:
            goals.reach("full_sessions_refused")


def _check_told_term(
    copy: Proposal, refusal: TermChanged, highest: TermId, done_at: LogIndex
) -> None:
    """The client of a copy was told that its term is another one; ``done_at``: where some copy of
    the command was applied, 0 for nowhere."""
    if (refusal.expected, refusal.found) != (copy.expected, highest) or highest == copy.expected:
        raise Broken(
            f"I27: entry {copy.index} is for {copy.expected} only, {highest} is the highest term "
            f"there, and its client is told: {refusal}"
        )
    if done_at and (done_at < copy.index or refusal.is_final):
        raise Broken(
            f"I27: entry {copy.index} was refused as its term was over, and another copy of it was "
            f"applied at {done_at}"
        )
