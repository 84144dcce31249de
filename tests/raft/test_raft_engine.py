"""The Raft engine as an engine: its plugin, options, table, clones and checks.

Its rules are tested in ``tests/paper``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from random import Random

import pytest

from replog.engine import Engine, EngineSetup, FieldKind
from replog.errors import ConfigError, InvariantViolated, LogDamaged, ReplogError
from replog.limits import Limits
from replog.stored_log import HeldLog
from replog.types import (
    NO_NODE,
    Entry,
    EntryKind,
    Epoch,
    HardState,
    NodeId,
    Ready,
    Role,
    SoftState,
    Term,
    Voter,
    entry_body,
)
from replog_raft import PLUGIN, Raft, RaftOptions
from replog_raft.messages import (
    MESSAGE_SPECS,
    MESSAGE_TYPES,
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadReply,
    ReadRequest,
    RequestVote,
    TimeoutNow,
    Vote,
)
from replog_raft.table import TABLE

OPTIONS = RaftOptions(heartbeat_ticks=2, election_ticks_min=10, election_ticks_max=20)


def make_setup(voters: int = 3, node_id: NodeId = 1) -> EngineSetup:
    """A fresh node of a cluster."""
    members = tuple(Voter(voter, 100 + voter) for voter in range(1, voters + 1))
    return EngineSetup(
        node_id=node_id,
        epoch=Epoch(1, "raft", members, 1),
        hard_state=HardState(1, 0, NO_NODE),
        log=HeldLog(),
        limits=Limits(in_flight_messages_max=3),
        options=OPTIONS,
        seed=7,
        nonce=0,
    )


def entry(index: int, term: Term) -> Entry:
    """An entry of ``term``."""
    return Entry(1, index, term, entry_body(EntryKind.COMMAND, 1, term, index, b"set"))


def settle(raft: Raft) -> None:
    """Carry out everything, on a disk that takes no time."""
    while (ready := raft.ready()) is not None:
        raft.advance(ready)


def make_leader() -> Raft:
    """A leader of term 1 whose no-op is on its way."""
    raft = Raft(make_setup())
    raft.campaign()
    raft.step(Vote(1, 1, 2, 1, granted=True, pre=True))
    settle(raft)
    raft.step(Vote(1, 1, 2, 1, granted=True, pre=False))
    settle(raft)
    return raft


# -- plugin and messages --


def test_plugin_installed() -> None:
    """The entry point that a configuration names is this plugin."""
    (point,) = [one for one in metadata.entry_points(group="replog.engines") if one.name == "raft"]
    assert point.load() is PLUGIN
    assert PLUGIN.name == "raft"
    assert PLUGIN.title


def test_plugin_creates_engine() -> None:
    """The plugin makes an engine that starts as a follower with nothing to do."""
    engine: Engine = PLUGIN.create(make_setup())
    assert (engine.term, engine.soft_state) == (0, SoftState(Role.FOLLOWER, NO_NODE))
    assert engine.ready() is None
    status = engine.status()
    assert (status.node_id, status.engine, status.epoch, status.peers) == (1, "raft", 1, ())


@pytest.mark.parametrize(
    "entries",
    [
        [entry(1, 1), entry(3, 1)],
        [entry(2, 1)],
        [entry(1, 1), entry(2, 2), entry(3, 1)],
        [entry(1, 1), entry(2, 4)],
    ],
    ids=["gap", "no_beginning", "terms_fall", "term_above_current"],
)
def test_create_with_impossible_log_refused(entries: list[Entry]) -> None:
    """A recovered log that no Raft can have written stops the node, also under ``python -O``."""
    setup = replace(make_setup(), hard_state=HardState(1, 3, 0), log=HeldLog(entries))
    with pytest.raises(LogDamaged, match="`replog rejoin`"):
        PLUGIN.create(setup)


def test_create_with_unknown_preferred_node_refused() -> None:
    """A preferred node that is no voter would only make every node wait longer."""
    setup = replace(make_setup(), options=RaftOptions(preferred_node=9))
    with pytest.raises(ConfigError, match="there is no node 9"):
        PLUGIN.create(setup)


def test_create_for_stranger_refused() -> None:
    """An engine for a node that is no voter is a programmer's error."""
    with pytest.raises(AssertionError, match="not a voter"):
        PLUGIN.create(make_setup(voters=3, node_id=4))


def test_specs_name_every_message() -> None:
    """Every message has one spec, whose fields are those of its record in the same order."""
    assert [spec.record for spec in MESSAGE_SPECS] == list(MESSAGE_TYPES)
    for spec in PLUGIN.messages:
        names = [field.name for field in dataclasses.fields(spec.record)]
        assert list(spec.fields) == names
        assert names[:4] == ["epoch", "term", "sender", "to"]


def test_specs_numbers_fixed() -> None:
    """The numbers of the messages are for ever."""
    assert {spec.number: spec.record for spec in MESSAGE_SPECS} == {
        1: RequestVote,
        2: Vote,
        3: AppendEntries,
        4: AppendReply,
        5: Heartbeat,
        6: HeartbeatReply,
        7: TimeoutNow,
        8: InstallSnapshot,
        9: ReadRequest,
        10: ReadReply,
    }


def test_specs_field_kinds() -> None:
    """Every field travels as what its annotation says; entries come last, and only the message that
    has them is as large as a frame."""
    kinds = {
        "EpochNumber": FieldKind.U32,
        "Term": FieldKind.U64,
        "NodeId": FieldKind.U16,
        "LogIndex": FieldKind.U64,
        "int": FieldKind.U64,
        "bool": FieldKind.BOOL,
        "tuple[Entry, ...]": FieldKind.ENTRIES,
    }
    for spec in MESSAGE_SPECS:
        for field in dataclasses.fields(spec.record):
            assert spec.fields[field.name] is kinds[str(field.type)], field.name
        counted = Counter(spec.fields.values())
        assert counted[FieldKind.ENTRIES] == (spec.bytes_max is None)
        assert FieldKind.ENTRIES not in list(spec.fields.values())[:-1]


# -- options and jitter --


def test_options_default_sound() -> None:
    """The defaults hold every relation."""
    assert RaftOptions().problems() == []


def test_options_bounds_sound() -> None:
    """The smallest values that are allowed are allowed."""
    options = RaftOptions(
        heartbeat_ticks=1, election_ticks_min=2, election_ticks_max=3, preferred_node=65_535
    )
    assert options.problems() == []


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (RaftOptions(heartbeat_ticks=0), "heartbeat_ticks"),
        (RaftOptions(heartbeat_ticks=13), "election_ticks_min"),
        (RaftOptions(election_ticks_max=10), "election_ticks_max"),
        (RaftOptions(preferred_node=-1), "preferred_node"),
        (RaftOptions(preferred_node=65_536), "preferred_node"),
    ],
)
def test_options_problem_named(options: RaftOptions, key: str) -> None:
    """A relation that does not hold is named with its key."""
    (problem,) = options.problems()
    assert problem.startswith(f"{key}: ")


def test_options_every_problem_named() -> None:
    """Several mistakes are all named, not only the first."""
    options = RaftOptions(
        heartbeat_ticks=0, election_ticks_min=-1, election_ticks_max=-2, preferred_node=-3
    )
    assert len(options.problems()) == 4


def test_election_ticks_pure() -> None:
    """The timeout of an attempt is a function of (seed, node, term, attempt): asked again, it is
    the same, and each of the four matters."""
    base = {"seed": 7, "node_id": 1, "term": 3, "attempt": 0}
    assert OPTIONS.election_ticks(**base) == OPTIONS.election_ticks(**base)
    for part in base:
        drawn = {OPTIONS.election_ticks(**{**base, part: value}) for value in range(30)}
        assert len(drawn) >= 8, f"{part} hardly matters"


def test_election_ticks_even() -> None:
    """No timeout of the range is drawn much more often than another."""
    drawn = Counter(
        OPTIONS.election_ticks(7, node, term, attempt)
        for node in (1, 2, 3)
        for term in range(200)
        for attempt in range(4)
    )
    mean = sum(drawn.values()) / 11
    assert all(0.7 * mean < count < 1.3 * mean for count in drawn.values())


def test_election_ticks_preferred_node() -> None:
    """Every other node waits longer than the preferred node ever does, and no longer than two
    ranges."""
    options = replace(OPTIONS, preferred_node=2)
    for term in range(50):
        assert 10 <= options.election_ticks(7, 2, term, 0) <= 20
        assert 21 <= options.election_ticks(7, 1, term, 0) <= 31


# -- the table --


def test_automatic_elections_off() -> None:
    """Without automatic elections no timer starts one; who is told to campaign asks for votes at
    once, of those who hear a leader as well, and begins no election while its vote is unsynced."""
    options = replace(OPTIONS, automatic_elections=False)
    raft = Raft(replace(make_setup(), options=options))
    for _ in range(10 * options.election_ticks_max):
        raft.tick()
    assert raft.ready() is None
    raft.campaign()
    raft.campaign()
    ready = raft.ready()
    assert ready is not None
    assert ready.hard_state == HardState(1, 1, 1)
    asked = ready.messages_after_sync
    assert [(type(each), each.pre, each.transfer) for each in asked] == [  # type: ignore[attr-defined]
        (RequestVote, False, True)
    ] * 2


def test_table_total() -> None:
    """Every role has a handler for every message, and the handler is there."""
    assert list(TABLE) == list(Role)
    for row in TABLE.values():
        assert set(row) == set(MESSAGE_TYPES)
        assert all(callable(getattr(Raft, name)) for name in row.values())


def test_step_unknown_message_refused() -> None:
    """What is no message of this engine is a programmer's error."""
    with pytest.raises(AssertionError):
        Raft(make_setup()).step("hello")


# -- one door out --


def test_ready_none_when_idle() -> None:
    """When everything was handed out there is nothing to be done."""
    raft = make_leader()
    assert raft.ready() is None
    raft.tick()
    assert raft.ready() is None


def test_ready_soft_state_once() -> None:
    """A change of role or leader is reported once."""
    raft = Raft(make_setup())
    raft.step(Heartbeat(1, 1, 2, 1, 0, 1))
    first = raft.ready()
    assert first is not None
    assert first.soft_state == SoftState(Role.FOLLOWER, 2)
    raft.step(Heartbeat(1, 1, 2, 1, 0, 2))
    second = raft.ready()
    assert second is not None
    assert second.soft_state is None


def test_ready_soft_state_of_role() -> None:
    """A change of role is reported also when no leader is known before or after."""
    raft = Raft(make_setup())
    raft.campaign()
    ready = raft.ready()
    assert ready is not None
    assert ready.soft_state == SoftState(Role.PRE_CANDIDATE, NO_NODE)


def test_ready_hard_state_alone() -> None:
    """A new term is handed out to be written even when nothing else has come up."""
    raft = Raft(make_setup())
    raft.step(HeartbeatReply(1, 4, 3, 1, 1))
    ready = raft.ready()
    assert ready == Ready([], HardState(1, 4, NO_NODE), None, (), [], (), None)


def test_ready_hands_out_lists_of_its_own() -> None:
    """What was handed out does not change when more comes up."""
    raft = make_leader()
    for _ in range(2):
        raft.tick()
    ready = raft.ready()
    assert ready is not None
    before = list(ready.messages)
    for _ in range(2):
        raft.tick()
    raft.ready()
    assert list(ready.messages) == before


def test_origin_of_proposals() -> None:
    """A leader numbers its proposals within its term, the no-op included."""
    raft = make_leader()
    entries = [raft.view.slice(1, 1)[0], raft.propose(b"a"), raft.propose(b"b")]
    origins = [one.origin for one in entries]
    assert [(origin.epoch, origin.term, origin.sequence) for origin in origins] == [
        (1, 1, 1),
        (1, 1, 2),
        (1, 1, 3),
    ]


# -- clones, keys and checks --


def random_act(random: Random, raft: Raft) -> Callable[[Raft], object]:
    """One thing that may happen to a node: time, a message, an order or a proposal."""
    term = max(0, raft.term + random.choice([-1, 0, 0, 0, 0, 0, 0, 1]))
    sender = random.choice([2, 3])
    at = random.randrange(raft.view.last_index + 2)
    at_term = raft.view.term_at(at) or 0
    messages: list[Message] = [
        Vote(1, term + random.randrange(2), sender, 1, random.random() < 0.8, True),
        HeartbeatReply(1, term, sender, 1, 1),
        AppendReply(1, term, sender, 1, True, min(at, raft.view.last_index), 0, 0, 0),
        AppendReply(1, term, sender, 1, False, 0, at, max(0, at - 1), at_term),
    ]
    if raft.durable.term == raft.term:  # nobody votes for us before he was asked
        messages += [Vote(1, term, sender, 1, random.random() < 0.8, False)] * 2
    if random.random() < 0.3:
        entries = (entry(at + 1, term),) if term else ()
        messages = [
            RequestVote(1, term + 1, sender, 1, at, at_term, random.random() < 0.5, False, 0),
            TimeoutNow(1, term, sender, 1),
            Heartbeat(1, term, sender, 1, min(at, raft.commit_index), 1),
            AppendEntries(1, term, sender, 1, at, at_term, 0, entries),
        ]
    message = random.choice(messages)
    acts: list[Callable[[Raft], object]] = [
        lambda engine: engine.step(message),
        lambda engine: engine.step(message),
        lambda engine: engine.tick(),
        lambda engine: engine.campaign(),
    ]
    if raft.role is Role.LEADER:
        acts += [lambda engine: engine.propose(b"set")] * 2
        acts.append(lambda engine: engine.transfer(2))
    return random.choice(acts)


def outcome(act: Callable[[Raft], object], raft: Raft) -> object:
    """What comes of it: an entry, nothing, or the error."""
    try:
        return act(raft)
    except ReplogError as error:
        return (type(error), str(error))


def live(random: Random) -> set[Role]:
    """One life of a node, in which each step is taken by a clone too; the roles it had."""
    raft = Raft(make_setup())
    under_way: deque[Ready] = deque()
    roles: set[Role] = set()
    for _ in range(250):
        clone = raft.clone()
        before = raft.key()
        assert clone.key() == before
        act = random_act(random, raft)
        if under_way and random.random() < 0.3:
            act = partial(Raft.advance, ready=under_way.popleft())
        happened = outcome(act, raft)
        assert clone.key() == before, "the clone was touched"
        assert outcome(act, clone) == happened
        if random.random() < 0.6:
            ready = raft.ready()
            assert clone.ready() == ready
            if ready is not None:
                under_way.append(ready)
        assert clone.key() == raft.key(), "the clone went another way"
        raft.check()
        roles.add(raft.role)
    return roles


def test_clone_independent_and_alike() -> None:
    """A clone has an equal key, is not touched by what happens to the original, and comes to the
    same end when the same happens to it; and what one node sees of itself stays in order."""
    roles = set().union(*(live(Random(seed)) for seed in range(25)))
    assert roles == set(Role)


def test_key_tells_ticks_apart() -> None:
    """Two nodes that will time out at different moments have different keys."""
    one, other = Raft(make_setup()), Raft(make_setup())
    assert one.key() == other.key()
    other.tick()
    assert one.key() != other.key()


@pytest.mark.parametrize(
    "change",
    [
        lambda raft: setattr(raft, "term", 9),
        lambda raft: setattr(raft, "voted_for", 3),
        lambda raft: setattr(raft, "commit_index", 9),
        lambda raft: raft.leader.progress[2].handle_accepted(1),
        lambda raft: setattr(raft.leader, "successor_id", 2),
        lambda raft: setattr(raft.leader, "proposal_count", 9),
        lambda raft: raft.propose(b"set"),
        lambda raft: raft.step(HeartbeatReply(1, 1, 2, 1, 1)),
        lambda raft: [raft.tick(), raft.tick()],
    ],
)
def test_key_tells_leaders_apart(change: Callable[[Raft], object]) -> None:
    """Whatever decides about a leader's future is in its key."""
    one, other = make_leader(), make_leader()
    assert one.key() == other.key()
    change(other)
    assert one.key() != other.key()


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        (lambda raft: setattr(raft, "_handed_index", 9), "applied beyond the commit index"),
        (lambda raft: setattr(raft, "commit_index", 9), "committed beyond the log"),
        (lambda raft: setattr(raft.view, "durable_index", 9), "durable beyond the log"),
        (lambda raft: setattr(raft, "term", 0), "an entry of a term not yet entered"),
        (lambda raft: setattr(raft, "leader", None), "leader variables without the role"),
        (lambda raft: setattr(raft, "voted_for", 2), "leads without its own vote"),
        (
            lambda raft: setattr(raft, "durable", HardState(1, 0, 0)),
            "leads in a term that is not durable",
        ),
    ],
)
def test_check_finds_violation(change: Callable[[Raft], None], violation: str) -> None:
    """What cannot be is found, and named with the node and its term."""
    raft = make_leader()
    raft.check()
    change(raft)
    with pytest.raises(InvariantViolated, match=f"node 1 in term [01]: {violation}"):
        raft.check()
