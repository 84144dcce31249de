"""Sessions: a command is applied once, however often it is sent."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_replica import Journal, Outcomes, ScriptedEngine, committed

from replog.control import pack_closing, pack_opening
from replog.digests import outcome_mark
from replog.envelope import SessionCommand, check_size
from replog.errors import (
    CommandFailed,
    CommandTooLarge,
    InvalidResult,
    MachineDamaged,
    Overloaded,
    SessionExpired,
    SessionFull,
    SnapshotDamaged,
    StaleSequence,
    StateMachineCrashed,
    StateMachineError,
    UnknownFormat,
)
from replog.limits import Limits
from replog.loading import new_sessions, replay_session
from replog.machine import NOTHING_APPLIED, ApplyContext, Opened
from replog.replica import Replica
from replog.sessions import (
    ANSWER_MEMORY_BYTES,
    ANSWER_OVERHEAD_BYTES,
    NOT_KEPT,
    Answer,
    Sessions,
    SessionTerms,
)
from replog.types import NO_TERM, Entry, EntryKind, entry_body

TERMS = SessionTerms(
    idle_ms_max=1000,
    answers_max=4,
    answer_bytes_max=1000,
    sessions_max=3,
    all_bytes_max=6 * ANSWER_MEMORY_BYTES,
)


class TooPoor(StateMachineError):
    """An error that a machine declares."""


def opened(terms: SessionTerms = TERMS) -> Sessions:
    """Sessions of which one, 7, was opened at time 100."""
    sessions = new_sessions()
    sessions.open(7, terms, 100)
    return sessions


def done(
    sessions: Sessions, sequence: int, result: object = None, *, lowest: int = 1, time_ms: int = 100
) -> Answer | None:
    """Have command ``sequence`` of session 7 come up at index 10 + ``sequence``, and end with
    ``result`` if it is to be applied; the answer that was known."""
    answer = sessions.begin(7, sequence, lowest, time_ms)
    if answer is None:
        error = result if isinstance(result, StateMachineError) else None
        sessions.finish(7, sequence, 10 + sequence, None if error else result, error)
    return answer


# The table


@pytest.mark.parametrize(
    "result",
    [
        None,
        True,
        False,
        0,
        -5,
        1 << 62,
        1.5,
        "",
        "grüß",
        b"",
        b"\x00\xff",
        [],
        [1, [b"x"]],
        {"a": 1},
    ],
    ids=repr,
)
def test_second_copy_gets_first_answer(result: object) -> None:
    """A command that comes again is not applied, and its answer is that of the first time, with
    the first index; also when the sessions were in a snapshot between the two."""
    sessions = opened()
    assert done(sessions, 1, result) is None
    restored = new_sessions()
    restored.restore(sessions.freeze())
    for each in (sessions, restored):
        answer = each.begin(7, 1, 1, 100)
        assert answer == (11, result, None)
        assert answer is not None
        assert type(answer[1]) is type(result)


def test_second_copy_gets_first_error() -> None:
    """A declared error is an answer like any other."""
    sessions = opened()
    assert done(sessions, 1, TooPoor("there is not enough")) is None
    for _ in range(2):
        answer = done(sessions, 1)
        assert answer is not None
        index, result, error = answer
        assert (index, result) == (11, None)
        assert isinstance(error, CommandFailed)
        assert (error.name, str(error)) == ("TooPoor", "there is not enough")
        restored = new_sessions()
        restored.restore(sessions.freeze())
        sessions = restored


def test_answer_kept_as_it_was() -> None:
    """A list that the machine changes later is kept as it was when it was the answer."""
    sessions, result = opened(), [1, 2]
    done(sessions, 1, result)
    result.append(3)
    assert done(sessions, 1) == (11, [1, 2], None)


def test_answer_that_cannot_travel() -> None:
    """What a command returned and cannot travel is an error, the second time as the first."""
    sessions = opened()
    done(sessions, 1, object())
    answer = done(sessions, 1)
    assert answer is not None
    assert isinstance(answer[2], CommandFailed)
    assert answer[2].name == InvalidResult.__name__


@pytest.mark.parametrize("result", [1 << 64, -(1 << 63) - 1, 1 << 200])
def test_int_that_cannot_travel(result: int) -> None:
    """An int beyond 64 bits is such an answer, and does not keep a snapshot from being taken."""
    sessions = opened()
    done(sessions, 1, result)
    for _ in range(2):
        answer = done(sessions, 1)
        assert answer is not None
        assert isinstance(answer[2], CommandFailed)
        assert answer[2].name == InvalidResult.__name__
        restored = new_sessions()
        restored.restore(sessions.freeze())
        sessions = restored


def test_largest_ints_are_kept() -> None:
    """The largest and the smallest int that travel are answers like any other."""
    sessions = opened()
    for sequence, result in ((1, (1 << 64) - 1), (2, -(1 << 63))):
        done(sessions, sequence, result)
        assert len(list(sessions.freeze())) == 1 + sequence
        assert done(sessions, sequence) == (10 + sequence, result, None)


@pytest.mark.parametrize("message", ["half of a pair: \ud800", "x" * 70_000])
def test_any_declared_error_is_kept(message: str) -> None:
    """Whatever a machine puts into its error, a snapshot can be taken of it."""
    sessions = opened(replace(TERMS, answer_bytes_max=1 << 20, all_bytes_max=1 << 20))
    done(sessions, 1, type("E" * 70_000, (StateMachineError,), {})(message))
    answers = []
    for _ in range(2):
        answers.append(repr(done(sessions, 1)))
        restored = new_sessions()
        restored.restore(sessions.freeze())
        sessions = restored
    assert answers[0] == answers[1]
    assert "half of a pair" in answers[0] or "xxx" in answers[0]


def test_commands_come_in_any_order() -> None:
    """A session's commands may be in flight together: each is applied once, in any order."""
    sessions = opened()
    assert [done(sessions, sequence) for sequence in (3, 1, 2)] == [None] * 3
    assert [done(sessions, sequence) for sequence in (1, 2, 3)] == [
        (11, None, None),
        (12, None, None),
        (13, None, None),
    ]


@pytest.mark.parametrize("lowest", [3, 4, 1 << 63])
def test_acknowledged_is_refused(lowest: int) -> None:
    """A number below the lowest unacknowledged is refused and never applied, answered before or
    not; what was kept for it is forgotten, however far the number jumps."""
    sessions = opened()
    for sequence in (1, 2, 4):
        done(sessions, sequence)
    done(sessions, lowest, lowest=lowest)
    for sequence in (1, 2):
        answer = done(sessions, sequence)
        assert answer is not None
        assert isinstance(answer[2], StaleSequence)
        assert answer[0] == 0
    kept = {sequence for sequence in (3, 4) if sequence >= lowest} | {lowest}
    assert len(list(sessions.freeze())) == 1 + len(kept | ({4} if lowest <= 4 else set()))


def test_number_above_lowest_only() -> None:
    """A command whose own number is below the lowest that it names is refused."""
    answer = done(opened(), 1, lowest=2)
    assert answer is not None
    assert isinstance(answer[2], StaleSequence)


def test_expired_by_replicated_time() -> None:
    """A session without commands for longer than it may be is gone for ever, and the command says
    so; each command keeps it for as long again."""
    sessions = opened()
    assert done(sessions, 1, time_ms=1100) is None
    assert done(sessions, 2, time_ms=2100) is None
    answer = done(sessions, 3, time_ms=3101)
    assert answer is not None
    assert isinstance(answer[2], SessionExpired)
    again = done(sessions, 3, time_ms=3101)
    assert again is not None
    assert isinstance(again[2], SessionExpired)
    assert len(sessions) == 0


def test_closed_and_unknown_refused() -> None:
    """A closed session is gone; closing again, or one that never was, changes nothing."""
    sessions = opened()
    sessions.close(8)
    assert done(sessions, 1) is None
    sessions.close(7)
    sessions.close(7)
    answer = done(sessions, 1)
    assert answer is not None
    assert isinstance(answer[2], SessionExpired)


def test_gone_sessions_were_used() -> None:
    """Whether there ever was a session outlives the last one, in a snapshot too: a machine that is
    behind that one may have to go through commands in sessions that are gone by then."""
    sessions = new_sessions()
    assert not sessions.were_used
    sessions.open(7, TERMS, 100)
    sessions.close(7)
    assert list(sessions.freeze()) == []
    restored = new_sessions()
    restored.restore(sessions.freeze())
    assert sessions.were_used
    assert restored.were_used


def test_table_is_bounded() -> None:
    """There are no more sessions than the one that comes may be; those that time took make room."""
    sessions = opened()
    sessions.open(8, TERMS, 600)
    sessions.open(9, TERMS, 600)
    with pytest.raises(Overloaded, match="3 sessions"):
        sessions.open(10, TERMS, 1100)
    assert len(sessions) == 3
    sessions.open(11, TERMS, 1101)
    assert len(sessions) == 3
    assert isinstance((done(sessions, 1, time_ms=1101) or (0, 0, None))[2], SessionExpired)


def test_answers_are_bounded() -> None:
    """A session whose client acknowledges nothing is refused more commands; they are not applied,
    and are taken when it has acknowledged some."""
    sessions = opened()
    for sequence in range(1, 5):
        assert done(sessions, sequence) is None
    refused = done(sessions, 5)
    assert refused is not None
    assert isinstance(refused[2], SessionFull)
    assert done(sessions, 2) == (12, None, None)
    assert done(sessions, 5, lowest=2) is None


def test_lowest_command_is_done_in_a_full_session() -> None:
    """A session whose later commands took all the room does its lowest one all the same, once."""
    sessions = opened()
    for sequence in range(2, 6):
        assert done(sessions, sequence) is None
    refused = done(sessions, 6)
    assert refused is not None
    assert isinstance(refused[2], SessionFull)
    assert "or wait for command 1 of session 7" in str(refused[2])
    assert done(sessions, 1) is None
    assert done(sessions, 1) == (11, None, None)
    assert isinstance((done(sessions, 6, lowest=2) or refused)[2], SessionFull), "four are awaited"
    assert done(sessions, 6, lowest=3) is None


def test_answer_bytes_are_bounded() -> None:
    """An answer that does not fit is not kept; the command is not applied again for that, and who
    asks again is told that it was done."""
    sessions = opened()
    done(sessions, 1, bytes(900))
    assert done(sessions, 1) == (11, bytes(900), None)
    assert done(sessions, 2, bytes(200)) is None
    answer = done(sessions, 2)
    assert answer is not None
    assert isinstance(answer[2], CommandFailed)
    assert answer[2].name == NOT_KEPT
    assert "was done at entry 12" in str(answer[2])
    assert done(sessions, 3, bytes(300), lowest=3) is None
    assert done(sessions, 3, lowest=3) == (13, bytes(300), None)


def test_answers_of_all_are_bounded() -> None:
    """All sessions together keep no more answers than there is room for: a command above that, of a
    session that awaits others, is refused and not applied until somebody acknowledges, closes or is
    gone; and what is known is answered all the same."""
    sessions = full_of_answers()
    for session_id in (7, 8):
        refused = sessions.begin(session_id, 4, 1, 900)
        assert refused is not None
        assert isinstance(refused[2], SessionFull)
        assert "sessions_bytes_max" in str(refused[2])
    assert sessions.begin(7, 2, 1, 900) == (20, None, None)
    acknowledged, closed, expired = new_sessions(), new_sessions(), new_sessions()
    for each in (acknowledged, closed, expired):
        each.restore(sessions.freeze())
    assert acknowledged.begin(7, 4, 2, 900) is None
    closed.close(8)
    assert closed.begin(7, 4, 1, 900) is None
    assert expired.begin(7, 4, 1, 1800) is not None
    sessions.begin(7, 1, 1, 1900)
    assert sessions.begin(7, 4, 1, 1901) is None
    assert len(sessions) == 1


def full_of_answers() -> Sessions:
    """As many answers as fit, in the sessions 7 and 8; number 8 had its last command at time 800,
    7 at 700, and 9 had none."""
    sessions = opened()
    for session_id in (8, 9):
        sessions.open(session_id, TERMS, 100)
    for session_id in (7, 8):
        for sequence in (1, 2, 3):
            assert sessions.begin(session_id, sequence, 1, 100 * session_id) is None
            sessions.finish(session_id, sequence, 20, None, None)
    return sessions


def test_lowest_command_is_always_done() -> None:
    """However many answers others hoard, a session has its commands done one by one, the lowest
    that it awaits each time; the others are refused, also when nothing is kept."""
    sessions = full_of_answers()
    for sequence in range(1, 50):
        for is_done in (False, True):
            refused = sessions.begin(9, sequence + 1, sequence, 900)
            assert refused is not None
            assert isinstance(refused[2], SessionFull)
            assert f"wait for command {sequence} of session 9" in str(refused[2])
            if not is_done:
                assert sessions.begin(9, sequence, sequence, 900) is None
                sessions.finish(9, sequence, 20 + sequence, b"done", None)
        assert sessions.begin(9, sequence, sequence, 900) == (20 + sequence, b"done", None)


def test_answer_bytes_of_all_are_bounded() -> None:
    """An answer that finds no room beside those of all other sessions is not kept; the command was
    done, and says so; where there is room again, answers are kept again."""
    sessions = opened()
    sessions.open(8, TERMS, 100)
    assert done(sessions, 1, bytes(900)) is None
    assert sessions.begin(8, 1, 1, 100) is None
    sessions.finish(8, 1, 20, bytes(600), None)
    answer = sessions.begin(8, 1, 1, 100)
    assert answer is not None
    assert isinstance(answer[2], CommandFailed)
    assert "done at entry 20" in str(answer[2])
    assert "beside those of all other sessions" in str(answer[2])
    assert done(sessions, 2, lowest=2) is None
    assert sessions.begin(8, 2, 1, 100) is None
    sessions.finish(8, 2, 21, bytes(600), None)
    assert sessions.begin(8, 2, 1, 100) == (21, bytes(600), None)


def test_replica_that_lost_answers_refuses_the_same() -> None:
    """Which commands are refused does not depend on what the answers count for: a replica that was
    started again may have lost them, and must not apply what the others refuse."""
    whole, lossy = opened(), opened()
    for sequence in (1, 2, 3, 4):
        for each in (whole, lossy):
            each.begin(7, sequence, 1, 100)
        whole.finish(7, sequence, 20, bytes(180), None)
        lossy.finish_unkept(7, sequence, 20)
    for each in (whole, lossy):
        each.open(8, TERMS, 100)
        for sequence in (1, 2):
            assert each.begin(8, sequence, 1, 100) is None
            each.finish(8, sequence, 20, None, None)
        refused = each.begin(8, 3, 1, 100)
        assert refused is not None
        assert isinstance(refused[2], SessionFull)


def test_room_is_found_where_sessions_are_gone() -> None:
    """A session that is gone makes room at once, also one that was opened after a look found none
    that was gone, and that may be idle for less long than the others."""
    sessions = opened(replace(TERMS, idle_ms_max=5000))
    sessions.open(8, TERMS, 200)

    def fill(session_id: int, time_ms: int) -> None:
        for sequence in (1, 2, 3):
            assert sessions.begin(session_id, sequence, 1, time_ms) is None
            sessions.finish(session_id, sequence, 20, None, None)
        assert isinstance((sessions.begin(7, 4, 1, time_ms) or (0, 0, None))[2], SessionFull)

    for sequence in (1, 2, 3):
        done(sessions, sequence)
    fill(8, 200)
    sessions.close(8)
    sessions.open(9, replace(TERMS, idle_ms_max=10), 300)
    fill(9, 300)
    assert isinstance((sessions.begin(7, 4, 1, 310) or (0, 0, None))[2], SessionFull)
    assert sessions.begin(7, 4, 1, 311) is None
    assert len(sessions) == 1


def test_frozen_is_as_of_then() -> None:
    """The records of a snapshot are made while commands go on, and are as of when it was begun."""
    sessions = opened()
    done(sessions, 1, b"one")
    expected = list(sessions.freeze())
    frozen = sessions.freeze()
    done(sessions, 2, b"two", lowest=2)
    sessions.open(8, TERMS, 100)
    sessions.close(7)
    assert list(frozen) == expected


def test_freeze_same_from_any_history() -> None:
    """What was restored freezes to the same bytes, and goes on in the same way."""
    dice = random.Random(5)
    first = new_sessions()
    second = new_sessions()
    results: Sequence[object] = (None, 7, "text", b"bytes", [1, 2], TooPoor("no"), bytes(400))
    for index in range(1, 400):
        time_ms = 10 * index
        if dice.random() < 0.05:
            for each in (first, second):
                try:
                    each.open(index, replace(TERMS, idle_ms_max=500), time_ms)
                except Overloaded:
                    assert len(each) == 3
        elif len(first):
            session_id = dice.randrange(max(1, index - 60), index)
            sequence = dice.randrange(1, 12)
            lowest = dice.randrange(0, sequence + 1)
            result = dice.choice(results)
            error = result if isinstance(result, StateMachineError) else None
            answers = [
                each.begin(session_id, sequence, lowest, time_ms) for each in (first, second)
            ]
            assert repr(answers[0]) == repr(answers[1])
            if answers[0] is None:
                for each in (first, second):
                    each.finish(session_id, sequence, index, None if error else result, error)
        assert list(first.freeze()) == list(second.freeze())
        if dice.random() < 0.2:
            second = new_sessions()
            second.restore(first.freeze())


def test_reason_travels() -> None:
    """Why an answer is not kept is known wherever a snapshot of the sessions is; a reason that no
    release writes is refused."""
    sessions = opened()
    sessions.open(8, TERMS, 100)
    sessions.begin(8, 1, 1, 100)
    sessions.finish(8, 1, 20, bytes(900), None)
    done(sessions, 1, bytes(1000))
    done(sessions, 2, bytes(600))
    sessions.begin(7, 3, 1, 100)
    sessions.finish_unkept(7, 3, 13)
    restored = new_sessions()
    restored.restore(sessions.freeze())
    reasons = {1: "was too large to be kept", 2: "found no room beside those", 3: "was lost when"}
    for each in (sessions, restored):
        for sequence, reason in reasons.items():
            answer = done(each, sequence)
            assert answer is not None
            assert isinstance(answer[2], CommandFailed)
            assert answer[2].name == NOT_KEPT
            assert f"done at entry {10 + sequence}, and its answer {reason}" in str(answer[2])
    head, answer_record, *_ = sessions.freeze()
    for wrong in (answer_record[:-1], answer_record[:-1] + b"\x03", answer_record + b"\x00"):
        with pytest.raises(SnapshotDamaged, match="sessions"):
            new_sessions().restore([head, wrong])


def test_restore_doubled_refused() -> None:
    """A session, or an answer, that a snapshot holds twice is not what a correct writer makes."""
    sessions = opened()
    done(sessions, 1, 5)
    head, answer = sessions.freeze()
    for records in ([head, answer, head], [head, answer, answer]):
        with pytest.raises(SnapshotDamaged, match="sessions"):
            new_sessions().restore(records)


@pytest.mark.parametrize(
    "records",
    [[b""], [b"\x07"], [bytes(25)], [b"\x02" + bytes(24)], [b"\x01" + bytes(39)]],
    ids=["empty", "unknown", "zeros", "answer_without_session", "cut"],
)
def test_restore_foreign_refused(records: list[bytes]) -> None:
    """Records that no sessions are made of are refused, and what there was is kept."""
    sessions = opened()
    done(sessions, 1, 5)
    with pytest.raises(SnapshotDamaged, match="sessions"):
        sessions.restore(records)
    assert done(sessions, 1) == (11, 5, None)


def test_answer_counts_for_its_bytes() -> None:
    """The bytes that answers count for go when they are acknowledged, so nothing adds up."""
    sessions = opened(replace(TERMS, answer_bytes_max=2 * (ANSWER_OVERHEAD_BYTES + 100)))
    for sequence in range(1, 1000):
        assert done(sessions, sequence, bytes(100), lowest=sequence - 1) is None
        assert done(sessions, sequence, lowest=sequence - 1) == (10 + sequence, bytes(100), None)


# In a replica


def session_entry(index: int, kind: int, data: bytes) -> Entry:
    """An entry as a scripted engine makes it."""
    return Entry(1, index, 3, entry_body(kind, 1, 3, index, data))


@pytest.fixture
def engine() -> ScriptedEngine:
    """The engine under the replica."""
    return ScriptedEngine()


@pytest.fixture
def machine() -> Journal:
    """The machine on top of it."""
    return Journal()


@pytest.fixture
def replica(engine: ScriptedEngine, machine: Journal) -> Replica:
    """The replica between them, with session 1 open."""
    replica = Replica(engine, machine, Limits(command_bytes_max=100), new_sessions())
    outcomes = Outcomes()
    replica.propose_control(pack_opening(TERMS, 50), outcomes.waiter("session"))
    replica.apply(committed(engine.proposed))
    assert outcomes.told == [("session", 1, 1, None)]
    return replica


def apply_commands(
    replica: Replica, engine: ScriptedEngine, time_ms: int, *commands: bytes
) -> Outcomes:
    """Propose commands together and apply them."""
    outcomes = Outcomes()
    before = len(engine.proposed)
    waiters = [outcomes.waiter(f"{number}") for number in range(len(commands))]
    replica.propose_batch(commands, time_ms, waiters)
    replica.apply(committed(engine.proposed[before:]))
    return outcomes


def test_apply_retry_once(replica: Replica, engine: ScriptedEngine, machine: Journal) -> None:
    """Of two copies of a command the second is not applied, and both waiters get the answer of the
    first, with its index."""
    copies = [SessionCommand.of(b"add", 1, 1, 1)] * 2
    outcomes = apply_commands(replica, engine, 60, *copies)
    assert machine.applied == [(2, 60, b"add")]
    assert outcomes.told == [("0", 2, 1, None), ("1", 2, 1, None)]
    assert replica.applied_index == 3


def test_copy_is_not_compared(replica: Replica, engine: ScriptedEngine) -> None:
    """Replicas are compared by what they applied, and not by what a copy is answered: whoever may
    have lost the answer answers otherwise."""
    apply_commands(replica, engine, 60, *[SessionCommand.of(b"add", 1, 1, 1)] * 2)
    assert list(replica.digests.marks[-2:]) == [outcome_mark(1, None), 0]


def test_apply_declared_error_once(
    replica: Replica, engine: ScriptedEngine, machine: Journal
) -> None:
    """The second copy of a command that failed as declared gets the same error."""
    outcomes = apply_commands(replica, engine, 60, *[SessionCommand.of(b"declared", 1, 1, 1)] * 2)
    (_, _, _, first), (_, index, _, second) = outcomes.told
    assert isinstance(second, CommandFailed)
    assert index == 2
    assert (type(first).__name__, str(first)) == (second.name, str(second))
    assert machine.applied == []


def test_apply_beside_plain_commands(
    replica: Replica, engine: ScriptedEngine, machine: Journal
) -> None:
    """Commands without a session are applied as ever, each time that they are sent."""
    commands = [b"a", SessionCommand.of(b"b", 1, 1, 1), b"a", SessionCommand.of(b"b", 1, 1, 1)]
    apply_commands(replica, engine, 60, *commands)
    assert [payload for _, _, payload in machine.applied] == [b"a", b"b", b"a"]


def test_apply_in_expired_session(
    replica: Replica, engine: ScriptedEngine, machine: Journal
) -> None:
    """The replicated time ends a session, whoever's command brought it."""
    apply_commands(replica, engine, 5000, b"later")
    outcomes = apply_commands(replica, engine, 60, SessionCommand.of(b"add", 1, 1, 1))
    assert isinstance(outcomes.last_error, SessionExpired)
    assert outcomes.told[0][1] == 0
    assert [payload for _, _, payload in machine.applied] == [b"later"]


def test_close_session(replica: Replica, engine: ScriptedEngine, machine: Journal) -> None:
    """A session that was closed takes no commands."""
    outcomes = Outcomes()
    replica.propose_control(pack_closing(1), outcomes.waiter("close"))
    replica.apply(committed(engine.proposed[1:]))
    assert outcomes.told == [("close", 2, None, None)]
    outcomes = apply_commands(replica, engine, 60, SessionCommand.of(b"add", 1, 1, 1))
    assert isinstance(outcomes.last_error, SessionExpired)
    assert machine.applied == []


def test_open_too_many(replica: Replica, engine: ScriptedEngine) -> None:
    """Who asks for one session too many is told, and the node goes on."""
    outcomes = Outcomes()
    for _ in range(3):
        replica.propose_control(pack_opening(TERMS, 50), outcomes.waiter("session"))
    replica.apply(committed(engine.proposed[1:]))
    assert [result for _, _, result, _ in outcomes.told] == [2, 3, None]
    assert isinstance(outcomes.last_error, Overloaded)
    assert outcomes.told[-1][1] == 0


@pytest.mark.parametrize("data", [b"", b"\x09", b"\x02", b"\x03" + bytes(9), b"\x02" + bytes(30)])
def test_control_of_later_release_stops(replica: Replica, data: bytes) -> None:
    """A control entry that this release does not know, or not so, stops the node."""
    with pytest.raises(UnknownFormat, match="entry 2 is a control entry"):
        replica.apply(committed([session_entry(2, EntryKind.CONTROL, data)]))


class Keeper(Journal):
    """A machine on its own disk that keeps answers, and notes the order of all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int, bool]] = []
        self.answers: dict[int, bytes] = {}
        self.failure: Exception | None = None

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        self.calls.append(("apply", context.index, context.in_session))
        super().apply(context, payload)
        return f"answer {context.index}"

    def open(self, directory: Path) -> Opened:
        return NOTHING_APPLIED

    def freeze(self) -> Iterable[bytes]:
        return ()

    def restore(self, chunks: Iterable[bytes], index: int, time_ms: int) -> None: ...

    def close(self) -> None: ...

    def keep_answer(self, index: int, answer: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self.calls.append(("keep", index, False))
        self.answers[index] = answer

    def kept_answer(self, index: int) -> bytes | None:
        return self.answers.get(index)

    def forget_answers(self, upto: int) -> None:
        self.answers = {index: kept for index, kept in self.answers.items() if index > upto}


@pytest.fixture
def keeper() -> Keeper:
    """The machine below."""
    return Keeper()


@pytest.fixture
def keeping(engine: ScriptedEngine, keeper: Keeper) -> Replica:
    """A replica over a machine that keeps answers, with session 1 open."""
    replica = Replica(engine, keeper, Limits(command_bytes_max=100), new_sessions())
    terms = replace(TERMS, answer_bytes_max=330)
    replica.propose_control(pack_opening(terms, 50), Outcomes().waiter("session"))
    replica.apply(committed(engine.proposed))
    return replica


def test_answer_kept_right_behind_its_command(
    keeping: Replica, engine: ScriptedEngine, keeper: Keeper
) -> None:
    """Only commands in sessions have their answers kept, each before anything else is applied, one
    that failed as declared as well; a copy and a refused one have none."""
    late = SessionCommand.of(b"late", 1, 1, 2)
    commands = [
        SessionCommand.of(b"a", 1, 1, 1),
        b"plain",
        SessionCommand.of(b"declared", 1, 2, 1),
        SessionCommand.of(b"a", 1, 1, 1),
        late,
        b"plain",
    ]
    apply_commands(keeping, engine, 60, *commands)
    assert keeper.calls == [
        ("apply", 2, True),
        ("keep", 2, False),
        ("apply", 3, False),
        ("apply", 4, True),
        ("keep", 4, False),
        ("apply", 7, False),
    ]


def test_kept_answers_outlive_a_restart(
    keeping: Replica, engine: ScriptedEngine, keeper: Keeper
) -> None:
    """From entries and kept answers the sessions become the very same again: results, declared
    errors, and answers that were too large; and only what was forgotten is lost."""
    commands = [
        SessionCommand.of(b"a", 1, 1, 1),
        SessionCommand.of(b"declared", 1, 2, 1),
        SessionCommand.of(b"c", 1, 3, 1),
        SessionCommand.of(b"d", 1, 4, 1),
    ]
    apply_commands(keeping, engine, 60, *commands)
    sessions = replayed(engine, keeper)
    assert list(sessions.freeze()) == list(keeping.sessions.freeze())
    assert sessions.begin(1, 1, 1, 60) == (2, "answer 2", None)
    _, _, error = sessions.begin(1, 2, 1, 60) or (0, None, None)
    assert isinstance(error, CommandFailed)
    assert error.name == "TooPoor"
    _, _, error = sessions.begin(1, 4, 1, 60) or (0, None, None)
    assert "too large to be kept" in str(error), "before the restart, too"
    keeper.forget_answers(2)
    sessions = replayed(engine, keeper)
    _, _, error = sessions.begin(1, 1, 1, 60) or (0, None, None)
    assert "was lost" in str(error)
    assert sessions.begin(1, 3, 1, 60) == (4, "answer 4", None)


def replayed(engine: ScriptedEngine, keeper: Keeper) -> Sessions:
    """The sessions after a restart of a machine that holds all that was proposed."""
    sessions, time_ms = new_sessions(), 0
    for entry in engine.proposed:
        known = sessions, entry, time_ms, NO_TERM
        time_ms = max(time_ms, replay_session(*known, keeper.kept_answer))
    return sessions


def test_kept_answer_of_another_command_stops(
    keeping: Replica, engine: ScriptedEngine, keeper: Keeper
) -> None:
    """A machine that gives back what it kept of another command, or rubbish, is damaged."""
    commands = [SessionCommand.of(b"a", 1, 1, 1), SessionCommand.of(b"b", 1, 2, 1)]
    apply_commands(keeping, engine, 60, *commands)
    for wrong in (keeper.answers[3], b"", b"x", bytes(30), keeper.answers[2][:9]):
        keeper.answers[2] = wrong
        with pytest.raises(MachineDamaged, match="entry 2 is not that of command 1"):
            replayed(engine, keeper)


def test_failing_keeper_stops(keeping: Replica, engine: ScriptedEngine, keeper: Keeper) -> None:
    """A machine that cannot keep an answer stops the node, as one that cannot apply does."""
    keeper.failure = OSError("no room")
    with pytest.raises(StateMachineCrashed, match="no room at entry 2"):
        apply_commands(keeping, engine, 60, SessionCommand.of(b"a", 1, 1, 1))


def test_replay_knows_what_was_done(engine: ScriptedEngine, replica: Replica) -> None:
    """From entries that a machine on its own disk holds, sessions learn what was done, at what
    time, and what is gone; only the answers are lost."""
    apply_commands(
        replica,
        engine,
        60,
        SessionCommand.of(b"add", 1, 1, 1),
        b"plain",
        SessionCommand.of(b"add", 1, 2, 2),
    )
    replica.propose_control(pack_opening(TERMS, 70), Outcomes().waiter("session"))
    replica.propose_control(pack_closing(5), Outcomes().waiter("close"))
    sessions, time_ms = new_sessions(), 0
    for entry in engine.proposed:
        time_ms = max(time_ms, replay_session(sessions, entry, time_ms, NO_TERM, lambda _: None))
    assert time_ms == 70
    assert len(sessions) == 1
    stale, answered = sessions.begin(1, 1, 2, 80), sessions.begin(1, 2, 2, 80)
    assert stale is not None
    assert answered is not None
    assert isinstance(stale[2], StaleSequence)
    assert answered[0] == 4
    assert "was done at entry 4" in str(answered[2])
    assert sessions.begin(1, 3, 2, 80) is None


def test_size_is_the_payloads() -> None:
    """What a session adds to a command does not count against the limit of commands."""
    check_size(SessionCommand.of(bytes(100), 1, 1, 1), 100)
    with pytest.raises(CommandTooLarge, match="101 bytes"):
        check_size(SessionCommand.of(bytes(101), 1, 1, 1), 100)
