"""A command that is to be done in one term only."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_replica import Journal, Outcomes, ScriptedEngine, committed

from replog import loading
from replog.control import pack_opening
from replog.envelope import (
    ENVELOPE_BYTES,
    IN_SESSION,
    IN_TERM,
    MARKED,
    check_size,
    check_term,
    mark_command,
    marks_in,
    open_envelope,
    pack_envelopes,
)
from replog.errors import (
    BadCommand,
    CommandTooLarge,
    NotLeader,
    OutcomeUnknown,
    SessionExpired,
    TermChanged,
    Unavailable,
    UnknownFormat,
)
from replog.frames import pack_terms, terms_in
from replog.limits import Limits
from replog.loading import Loaded, MachineHome, load_machine, new_sessions, replay_session
from replog.machine import Opened
from replog.replica import Replica
from replog.sessions import Sessions, SessionTerms
from replog.storage.files import RealFiles
from replog.types import (
    NO_ENTRY,
    Entry,
    EntryId,
    EntryKind,
    Epoch,
    ReadIndex,
    Role,
    SnapshotMeta,
    SoftState,
    Term,
    TermId,
    Voter,
    entry_body,
    pack_term,
    unpack_term,
)

TERMS = SessionTerms(
    idle_ms_max=1000, answers_max=4, answer_bytes_max=1000, sessions_max=3, all_bytes_max=10_000
)


def entry(
    index: int, origin: Term, payload: bytes, *, term: Term = 0, epoch: int = 1, time_ms: int = 5
) -> Entry:
    """A command that was first proposed in ``origin``, by a leader of ``term`` in the end."""
    (data,) = pack_envelopes([payload], time_ms)
    body = entry_body(EntryKind.COMMAND, epoch, origin, index, data)
    return Entry(1, index, term or origin, body)


def noop(index: int, origin: Term) -> Entry:
    """A leader's first entry."""
    return Entry(1, index, origin, entry_body(EntryKind.NOOP, 1, origin, index, b""))


def expecting(term: Term, payload: bytes = b"if", *, epoch: int = 1) -> bytes:
    """A command for one term only."""
    return mark_command(payload, None, TermId(epoch, term))


@pytest.fixture
def machine() -> Journal:
    """What was applied."""
    return Journal()


@pytest.fixture
def engine() -> ScriptedEngine:
    """Hands out nothing by itself."""
    return ScriptedEngine()


@pytest.fixture
def replica(engine: ScriptedEngine, machine: Journal) -> Replica:
    """New, with nothing applied."""
    return Replica(engine, machine, Limits(), new_sessions())  # type: ignore[arg-type]


# -- the envelope --


def test_layout() -> None:
    """Features 0x02: epoch and term in 12 bytes, big-endian, behind the block of a session."""
    (packed,) = pack_envelopes([expecting(7, b"set", epoch=3)], 9)
    assert packed[:2] == b"\x01\x02"
    assert packed[ENVELOPE_BYTES:] == struct.pack(">IQ", 3, 7) + b"set"
    both = mark_command(b"set", (4, 5, 6), TermId(3, 7))
    (packed,) = pack_envelopes([both], 9)
    assert packed[:2] == b"\x01\x03"
    assert packed[ENVELOPE_BYTES:] == struct.pack(">QQQIQ", 4, 5, 6, 3, 7) + b"set"
    found = entry(1, 1, both, time_ms=9)
    assert marks_in(found)[:2] == ((4, 5, 6), TermId(3, 7))
    assert open_envelope(found) == (9, b"set")


@pytest.mark.parametrize("features", [IN_SESSION, IN_TERM, IN_SESSION | IN_TERM])
def test_cut_blocks_stop(features: int, replica: Replica) -> None:
    """A command that is too short for its blocks stops the node, and is not applied."""
    for size_bytes in (0, MARKED[features].blocks_bytes - 1):
        data = bytes((1, features)) + bytes(8 + size_bytes)
        cut = Entry(1, 1, 1, entry_body(EntryKind.COMMAND, 1, 1, 1, data))
        with pytest.raises(UnknownFormat, match="too short for the session or the term"):
            replica.apply(committed([cut]))


def test_size_is_the_payloads() -> None:
    """What the term adds to a command does not count against the limit of commands."""
    check_size(expecting(3, bytes(100)), 100)
    with pytest.raises(CommandTooLarge, match="101 bytes"):
        check_size(expecting(3, bytes(101)), 100)


@pytest.mark.parametrize("lower", [(0, 9), (1, 2), (1, 255)])
def test_packed_terms_order_as_pairs(lower: tuple[int, int]) -> None:
    """The bytes of a term order as the pair does."""
    higher = TermId(1, 256)
    assert pack_term(TermId(*lower)) < pack_term(higher)
    assert unpack_term(pack_term(higher)) == higher


# -- the condition --


def test_done_in_its_term(replica: Replica, engine: ScriptedEngine, machine: Journal) -> None:
    """It is done when its term is the highest of any origin so far, and its waiter is told so."""
    outcomes = Outcomes()
    replica.propose_batch([expecting(3)], 5, [outcomes.waiter("a")])
    replica.apply(committed(engine.proposed))
    assert outcomes.told == [("a", 1, 1, None)]
    assert machine.applied == [(1, 5, b"if")]
    assert replica.highest_term == (1, 3)


@pytest.mark.parametrize("expected", [1, 2, 4, 9])
def test_refused_in_another_term(
    replica: Replica, engine: ScriptedEngine, machine: Journal, expected: Term
) -> None:
    """In any other term, an earlier or a later one, it is refused, and counts as not done."""
    outcomes = Outcomes()
    replica.propose_batch([expecting(expected), b"next"], 5, [outcomes.waiter("a")] * 2)
    replica.apply(committed(engine.proposed))
    (_, index, result, error), (_, *following) = outcomes.told
    assert (index, result) == (0, None)
    assert isinstance(error, TermChanged)
    assert (error.expected, error.found) == ((1, expected), (1, 3))
    assert error.is_final is (expected < 3)
    assert following == [2, 1, None]
    assert machine.applied == [(2, 5, b"next")]
    assert replica.digests.marks[0] == 0, "what was not applied has no mark"


def test_own_origin_counts(replica: Replica, machine: Journal) -> None:
    """A command that another leader than the expected one proposed is refused, though nothing of
    that leader was applied before."""
    replica.apply(committed([entry(1, 3, b"before"), entry(2, 5, expecting(3))]))
    assert [payload for _, _, payload in machine.applied] == [b"before"]


@pytest.mark.parametrize("first", [noop(1, 5), entry(1, 5, b"other")])
def test_highest_counts_and_not_the_last(replica: Replica, machine: Journal, first: Entry) -> None:
    """Behind an entry of a later leader, one of an earlier leader is refused, which a leader of
    Multi-Paxos may have found in an open slot; whatever kind of entry the later one is."""
    late = entry(2, 3, expecting(3), term=5)
    replica.apply(committed([first, late, entry(3, 3, expecting(5, b"odd"), term=5)]))
    assert [payload for _, _, payload in machine.applied if payload != b"other"] == [b"odd"]
    assert replica.highest_term == (1, 5)


def test_terms_of_entries_do_not_count(replica: Replica, machine: Journal) -> None:
    """The origin counts, for the terms of one entry differ between replicas."""
    replica.apply(committed([entry(1, 3, b"before", term=9), entry(2, 3, expecting(3), term=9)]))
    assert [payload for _, _, payload in machine.applied] == [b"before", b"if"]


def test_epoch_counts(replica: Replica, machine: Journal) -> None:
    """A term is one of its epoch."""
    replica.apply(committed([entry(1, 3, expecting(3, epoch=2)), entry(2, 3, expecting(3))]))
    assert [index for index, _, _ in machine.applied] == [2]


def test_in_session_the_answer_comes_first(replica: Replica, machine: Journal) -> None:
    """What was done in its term has its answer in every later one; what was refused is not kept,
    and a session that is gone is told before anything else."""
    opening = entry_body(EntryKind.CONTROL, 1, 3, 1, pack_opening(TERMS, 5))
    in_three, late = (mark_command(b"if", (1, number, 1), TermId(1, 3)) for number in (1, 2))
    outcomes = Outcomes()
    applied = [Entry(1, 1, 3, opening), entry(2, 3, in_three), noop(3, 5)]
    replica.apply(committed(applied))
    replica.engine.proposed += applied  # type: ignore[attr-defined]
    replica.propose_batch([in_three, late], 5, [outcomes.waiter("a"), outcomes.waiter("b")])
    replica.apply(committed(replica.engine.proposed[3:]))  # type: ignore[attr-defined]
    assert outcomes.told[0] == ("a", 2, 1, None)
    assert isinstance(outcomes.last_error, TermChanged)
    assert [payload for _, _, payload in machine.applied] == [b"if"]
    assert [answer[0] for answer in replica.sessions.answers()] == [2]
    gone = mark_command(b"if", (7, 1, 1), TermId(1, 3))
    replica.propose_batch([gone], 5, [outcomes.waiter("c")])
    replica.apply(committed(replica.engine.proposed[5:]))  # type: ignore[attr-defined]
    assert isinstance(outcomes.last_error, SessionExpired)


# -- after a restart, and behind a snapshot --


def test_snapshot_brings_the_highest(replica: Replica, machine: Journal) -> None:
    """Who is filled from a snapshot refuses what the others refuse."""
    epoch = Epoch(1, "raft", (Voter(1, 11),), 1)
    meta = SnapshotMeta(EntryId(1, 5, 4), epoch, 5, "journal", (), TermId(1, 5))
    replica.install(meta, new_sessions())
    replica.apply(committed([entry(5, 3, expecting(3), term=6), entry(6, 5, expecting(5))]))
    assert [index for index, _, _ in machine.applied] == [6]


def test_replay_knows_what_was_refused() -> None:
    """A command that a machine on its own disk did not apply, for its term was over, is not taken
    for one that was done."""
    sessions = new_sessions()
    sessions.open(1, TERMS, 5)
    refused, done = (mark_command(b"if", (1, number, 1), TermId(1, 3)) for number in (1, 2))

    def kept_answer(_: int) -> None:
        """The machine keeps none."""

    replay_session(sessions, entry(2, 3, refused), 5, TermId(1, 5), kept_answer)
    replay_session(sessions, entry(3, 3, done), 5, TermId(1, 3), kept_answer)
    assert sessions.begin(1, 1, 1, 5) is None
    answered = sessions.begin(1, 2, 1, 5)
    assert answered is not None
    assert answered[0] == 3


# -- a machine on its own disk --


@pytest.mark.parametrize(
    ("origin", "has_sessions", "filled"), [(5, False, False), (3, False, True), (5, True, True)]
)
def test_lagging_machine_is_filled(
    origin: Term,
    has_sessions: bool,
    filled: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine that is behind the newest snapshot goes on from where it is only if the highest
    term was that of the snapshot there already, and no sessions are in it; else it cannot tell what
    they were, and is filled."""
    epoch = Epoch(1, "raft", (Voter(1, 11),), 1)
    meta = SnapshotMeta(EntryId(1, 5, 4), epoch, 5, "journal", (), TermId(1, 5))
    newest = SimpleNamespace(meta=meta)
    whole = Loaded(4, 5, (), 4, new_sessions(), TermId(1, 5))
    monkeypatch.setattr(loading, "fill_machine", lambda *_: whole)

    def read_sessions(sessions: Sessions, *_: object) -> None:
        if has_sessions:
            sessions.open(2, SessionTerms(400, 3, 1000, 3, 1 << 20), 5)

    monkeypatch.setattr(loading, "_read_sessions", read_sessions)
    log = HeldLog(entry(1, 3, b"a"), entry(2, origin, b"b"), noop(3, 5), entry(4, 5, b"d"))
    loaded = load_machine(
        SimpleDisk(applied_index=2),  # type: ignore[arg-type]
        MachineHome(RealFiles(), tmp_path, "journal", 1),
        SimpleNamespace(verify=lambda *_: None),  # type: ignore[arg-type]
        newest,  # type: ignore[arg-type]
        log,  # type: ignore[arg-type]
    )
    assert (loaded is whole) == filled
    assert loaded.highest_term == (1, 5)


class HeldLog:
    """The entries of a log from 1 on."""

    def __init__(self, *entries: Entry) -> None:
        self._entries = entries
        self.base = NO_ENTRY
        self.runs = SimpleNamespace(last_index=len(entries))

    def read(self, first: int, last: int, bytes_max: int) -> Sequence[Entry]:
        """All that is asked for."""
        return self._entries[first - 1 : last]


class SimpleDisk(Journal):
    """A machine that says how far its own disk has come."""

    def __init__(self, applied_index: int) -> None:
        super().__init__()
        self._opened = Opened(applied_index, 5)

    def open(self, directory: Path) -> Opened:
        """Nothing is read."""
        return self._opened

    def freeze(self) -> Sequence[bytes]:
        """Nothing to write."""
        return ()

    def restore(self, chunks: object, index: int, time_ms: int) -> None:
        """Nothing to read."""

    def close(self) -> None:
        """Nothing to release."""


# -- the leader's term --


def test_read_term(replica: Replica, engine: ScriptedEngine) -> None:
    """A leader tells its term when a quorum has confirmed it: at first by a no-op of its own, and
    when that is applied without one.  Who does not lead says who does."""
    outcomes = Outcomes()
    replica.read_term(outcomes.waiter("no-op"))
    assert [each.kind for each in engine.proposed] == [EntryKind.NOOP]
    assert outcomes.told == []
    replica.apply(committed(engine.proposed))
    assert outcomes.told == [("no-op", 1, TermId(1, 3), None)]
    replica.read_term(outcomes.waiter("read"))
    assert replica.ready() is None
    replica.serve_reads()
    assert len(engine.proposed) == len(outcomes.told) == 1, "not before it is confirmed"
    (read_id,) = [call[1] for call in engine.calls if call[0] == "read"]
    assert isinstance(read_id, int)
    replica.hear_reads([ReadIndex(read_id, 0)])
    replica.serve_reads()
    assert outcomes.told[1:] == [("read", 1, TermId(1, 3), None)]
    engine.soft_state = SoftState(Role.FOLLOWER, 2)
    with pytest.raises(NotLeader, match="node 2"):
        replica.read_term(outcomes.waiter("follower"))


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.LEADER])
def test_read_term_amid_a_change(replica: Replica, engine: ScriptedEngine, role: Role) -> None:
    """Who has lost the lead meanwhile, or has it back behind another leader, tells no term."""
    outcomes = Outcomes()
    replica.read_term(outcomes.waiter("a"))
    engine.soft_state = SoftState(role, 2)
    replica.apply(committed([*engine.proposed, noop(2, 7)][:1]))
    replica.read_term(outcomes.waiter("b")) if role is Role.LEADER else None
    if role is Role.LEADER:
        replica.apply(committed([noop(2, 7)]))
        assert replica.ready() is None
        (read_id,) = [call[1] for call in engine.calls if call[0] == "read"]
        assert isinstance(read_id, int)
        replica.hear_reads([ReadIndex(read_id, 0)])
        replica.serve_reads()
    assert isinstance(outcomes.last_error, NotLeader if role is Role.FOLLOWER else Unavailable)
    assert outcomes.told[-1][1] == 0


def test_read_term_of_a_leader_that_is_lost(replica: Replica) -> None:
    """Nothing is unknown of a question: it is asked again."""
    outcomes = Outcomes()
    replica.read_term(outcomes.waiter("a"))
    replica.end_waits(OutcomeUnknown("the node lost its leadership"))
    assert isinstance(outcomes.last_error, Unavailable)


@pytest.mark.parametrize("term", [5, (1,), (1, -1), (1 << 32, 1), (1, 1 << 64), ("a", 1), "ab"])
def test_what_is_no_term(term: object) -> None:
    """What is no term is refused where it is given, in one sentence."""
    with pytest.raises(BadCommand, match="expect_term is an epoch and a term"):
        check_term(term)  # type: ignore[arg-type]
    assert check_term((1, 7)) == TermId(1, 7)  # type: ignore[arg-type]
    assert check_term(None) is None


# -- the wire --


def test_terms_travel() -> None:
    """A refusal brings both terms along; what says it in another way says nothing."""
    told = TermId(1, 3), TermId(1, 5)
    assert terms_in(pack_terms(*told)) == told
    assert terms_in(b"") is None
    assert terms_in(b"\x80") is None
    assert terms_in(b"\xa0") is None
