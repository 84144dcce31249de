"""The synchronous heart of a node, with an engine and a state machine that do as they are told."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from replog.control import pack_learner
from replog.engine import Engine, EngineSetup
from replog.envelope import open_envelope, pack_envelope
from replog.errors import (
    BadCommand,
    CommandTooLarge,
    EntryReplaced,
    InvariantViolated,
    NotLeader,
    OutcomeUnknown,
    Replaced,
    StateMachineCrashed,
    StateMachineError,
    UnknownFormat,
)
from replog.limits import Limits
from replog.loading import new_sessions
from replog.machine import ApplyContext, DumpPage
from replog.plugins import engine_names, find_engine
from replog.replica import Replica
from replog.stored_log import HeldLog
from replog.types import (
    Entry,
    EntryId,
    EntryKind,
    Epoch,
    HardState,
    LogIndex,
    NodeId,
    Ready,
    Role,
    SnapshotMeta,
    SoftState,
    Status,
    Term,
    Voter,
    Waiter,
    entry_body,
)


class TooPoor(StateMachineError):
    """An error that the machine declares."""


class Journal:
    """A machine that notes what it was given; some payloads do something."""

    def __init__(self) -> None:
        self.applied: list[tuple[LogIndex, int, bytes]] = []

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Note the payload and answer with how many came so far."""
        if payload == b"declared":
            raise TooPoor("there is not enough")
        if payload == b"crash":
            raise ZeroDivisionError("division by zero")
        self.applied.append((context.index, context.time_ms, payload))
        return len(self.applied)

    def answer(self, payload: bytes) -> object:
        """How many payloads were applied; some queries fail."""
        if payload == b"declared":
            raise TooPoor("there is not enough")
        if payload == b"crash":
            raise ZeroDivisionError("division by zero")
        if payload == b"command":
            raise BadCommand("a command is no query")
        return len(self.applied)

    def check_payload(self, payload: bytes) -> None:
        """Nothing is refused but one payload."""
        if payload == b"bad":
            raise BadCommand("no command is called bad")

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """Nothing to show."""
        return DumpPage([], None)


class ScriptedEngine:
    """An engine that hands out what the test gives it."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.proposed: list[Entry] = []
        self.leads = True

    term: Term = 3
    soft_state = SoftState(Role.LEADER, 1)
    commit_index: LogIndex = 0

    def step(self, message: object) -> None:
        """Note the call."""
        self.calls.append(("step", message))

    def tick(self) -> None:
        """Note the call."""
        self.calls.append(("tick",))

    def read(self, read_id: int) -> None:
        """Note the call."""
        self.calls.append(("read", read_id))

    def propose(self, data: bytes, kind: EntryKind = EntryKind.COMMAND) -> Entry:
        """A batch of one."""
        (entry,) = self.propose_batch((data,), kind)
        return entry

    def propose_batch(self, datas: Sequence[bytes], kind: EntryKind) -> Sequence[Entry]:
        """Append behind what was proposed before."""
        if not self.leads:
            raise NotLeader(1, 2)
        first = len(self.proposed) + 1
        entries = [
            Entry(1, index, 3, entry_body(kind, 1, 3, index, data))
            for index, data in enumerate(datas, first)
        ]
        self.proposed += entries
        return entries

    learners: Sequence[Voter] = ()

    def set_learners(self, learners: Sequence[Voter]) -> None:
        """Note the call."""
        self.learners = learners
        self.calls.append(("set_learners", tuple(learners)))

    def snapshot_id(self, index: LogIndex) -> EntryId:
        """All of one term."""
        return EntryId(1, 3, index)

    def trim(self, upto: LogIndex) -> LogIndex:
        """Nothing is kept."""
        return upto

    def observe_term(self, term: Term) -> None:
        """Note the call."""
        self.calls.append(("observe_term", term))

    def install(self, last: EntryId) -> None:
        """Note the call."""
        self.calls.append(("install", last))

    def campaign(self) -> None:
        """Note the call."""
        self.calls.append(("campaign",))

    def transfer(self, to: NodeId) -> None:
        """Note the call."""
        self.calls.append(("transfer", to))

    def ready(self) -> Ready | None:
        """Nothing: tests give a Ready to ``apply`` themselves."""
        return None

    def advance(self, ready: Ready) -> None:
        """Note the call."""
        self.calls.append(("advance", ready))

    def status(self) -> Status:
        """A picture in which more was handed out than is applied."""
        return Status(1, "scripted", Role.LEADER, 1, 1, 3, 9, 9, 9, 9, ())

    def clone(self) -> Engine:
        """Not needed here."""
        raise NotImplementedError

    def key(self) -> Hashable:
        """Not needed here."""
        raise NotImplementedError

    def check(self) -> None:
        """Nothing to check."""


@dataclass
class Outcomes:
    """What the waiters were told, by name and in order."""

    told: list[tuple[str, LogIndex, object, Exception | None]] = field(default_factory=list)

    def waiter(self, name: str) -> Waiter:
        """A waiter that notes its outcome."""
        return partial(self._note, name)

    def _note(self, name: str, index: LogIndex, result: object, error: Exception | None) -> None:
        self.told.append((name, index, result, error))

    @property
    def last_error(self) -> Exception | None:
        """The error of the last outcome."""
        return self.told[-1][3]


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
    """The replica between them."""
    return Replica(engine, machine, Limits(command_bytes_max=100), new_sessions())


@pytest.fixture
def outcomes() -> Outcomes:
    """What the waiters are told."""
    return Outcomes()


def committed(entries: Sequence[Entry], soft_state: SoftState | None = None) -> Ready:
    """A Ready that hands out entries to be applied."""
    return Ready((), None, None, (), (), entries, soft_state)


def command(index: LogIndex, payload: bytes, time_ms: int = 5, term: Term = 3) -> Entry:
    """A command that some leader proposed."""
    body = entry_body(EntryKind.COMMAND, 1, term, index, pack_envelope(payload, time_ms))
    return Entry(1, index, term, body)


# -- proposing --


def test_propose_in_envelope(replica: Replica, engine: ScriptedEngine, outcomes: Outcomes) -> None:
    """A proposal reaches the engine as a command with its time around the payload."""
    assert replica.propose(b"set", 1234, outcomes.waiter("a")) == 1
    (entry,) = engine.proposed
    assert entry.kind == EntryKind.COMMAND
    assert open_envelope(entry) == (1234, b"set")
    assert (outcomes.told, replica.waiting_count) == ([], 1)


def test_propose_too_large(replica: Replica, engine: ScriptedEngine, outcomes: Outcomes) -> None:
    """A payload above the limit is refused before anything is proposed; one at the limit is not."""
    with pytest.raises(CommandTooLarge, match=r"101 bytes, above limits\.command_bytes_max = 100"):
        replica.propose(bytes(101), 5, outcomes.waiter("a"))
    assert (engine.proposed, replica.waiting_count) == ([], 0)
    replica.propose(bytes(100), 5, outcomes.waiter("b"))
    assert len(engine.proposed) == 1


def test_propose_not_leader(replica: Replica, engine: ScriptedEngine, outcomes: Outcomes) -> None:
    """What the engine refuses is raised to the caller, and its waiter is never called."""
    engine.leads = False
    with pytest.raises(NotLeader):
        replica.propose(b"set", 5, outcomes.waiter("a"))
    replica.end_waits(OutcomeUnknown("the node stops"))
    assert (outcomes.told, replica.waiting_count) == ([], 0)


# -- applying --


def test_apply_in_order(replica: Replica, machine: Journal) -> None:
    """Committed commands reach the machine in order, each once, with their index."""
    replica.apply(committed([command(1, b"a"), command(2, b"b")]))
    replica.apply(committed([command(3, b"c")]))
    assert [(index, payload) for index, _, payload in machine.applied] == [
        (1, b"a"),
        (2, b"b"),
        (3, b"c"),
    ]
    assert replica.applied_index == 3


def test_exchanged_answers_are_compared(engine: ScriptedEngine) -> None:
    """Two replicas that answer two commands in exchanged places differ, though what they answered
    is the same in sum."""

    class Hands(Journal):
        """A machine that gives out what it has in the order that it was made with."""

        def __init__(self, *things: object) -> None:
            super().__init__()
            self.things = list(things)

        def apply(self, context: ApplyContext, payload: bytes) -> object:
            """Give out the next thing."""
            return self.things.pop(0)

    sums = []
    for things in ((b"a", b"b"), (b"b", b"a"), (b"a", b"b"), (None, b"a"), (b"a", None)):
        replica = Replica(engine, Hands(*things), Limits(), new_sessions())
        replica.apply(committed([command(1, b"x"), command(2, b"x")]))
        sums.append(replica.digests.between(0, 2))
    assert sums[0] == sums[2]
    assert len(set(sums)) == 4


@pytest.mark.parametrize("index", [1, 3])
def test_apply_out_of_order_refused(replica: Replica, machine: Journal, index: LogIndex) -> None:
    """An entry that is handed out twice, or behind a gap, stops the node and is not applied."""
    replica.apply(committed([command(1, b"a")]))
    with pytest.raises(InvariantViolated, match=rf"entr\w+ {index} .*handed out .* after 1"):
        replica.apply(committed([command(index, b"b")]))
    assert len(machine.applied) == 1


def test_apply_gap_refused(replica: Replica, machine: Journal) -> None:
    """A gap between the entries of one Ready stops the node before any of them is applied."""
    with pytest.raises(InvariantViolated):
        replica.apply(committed([command(1, b"a"), command(3, b"c")]))
    assert machine.applied == []


def test_apply_after_applied_index(engine: ScriptedEngine, machine: Journal) -> None:
    """A replica whose machine holds a prefix already goes on behind it."""
    replica = Replica(engine, machine, Limits(), new_sessions(), applied_index=7)
    replica.apply(committed([command(8, b"a")]))
    assert replica.applied_index == 8


def test_apply_noop(replica: Replica, machine: Journal) -> None:
    """A no-op moves the applied index and reaches no machine."""
    replica.apply(committed([Entry(1, 1, 3, entry_body(EntryKind.NOOP, 1, 3, 1, b""))]))
    assert (replica.applied_index, machine.applied) == (1, [])


@pytest.mark.parametrize("kind", [EntryKind.EPOCH])
def test_apply_unknown_kind(replica: Replica, kind: EntryKind) -> None:
    """An entry of a kind that this release cannot apply stops the node; it is not skipped."""
    entry = Entry(1, 1, 3, entry_body(kind, 1, 3, 1, b""))
    with pytest.raises(UnknownFormat, match=f"entry 1 is of kind {int(kind)}"):
        replica.apply(committed([entry]))
    assert replica.applied_index == 0


def test_install_goes_on_behind_a_snapshot(
    replica: Replica, engine: ScriptedEngine, machine: Journal
) -> None:
    """A machine that was filled goes on behind the snapshot, with its time and its learners."""
    learner = Voter(2, 99)
    epoch = Epoch(1, "e", (Voter(1, 1),), 1)
    replica.install(SnapshotMeta(EntryId(1, 3, 7), epoch, 500, "kv", (learner,)), new_sessions())
    assert engine.calls == [("set_learners", (learner,)), ("install", EntryId(1, 3, 7))]
    replica.apply(committed([command(8, b"x", 400)]))
    assert machine.applied == [(8, 500, b"x")]
    assert replica.learners == (learner,)


def test_install_ends_the_waits_within(replica: Replica) -> None:
    """Who waits for an entry within a snapshot is told that nobody knows; the others wait on."""
    ended: list[tuple[LogIndex, object, Exception | None]] = []
    for _ in range(3):
        replica.propose(b"x", 1, lambda *outcome: ended.append(outcome))
    epoch = Epoch(1, "e", (Voter(1, 1),), 1)
    replica.install(SnapshotMeta(EntryId(1, 3, 2), epoch, 500, "kv"), new_sessions())
    assert [type(error) for _, _, error in ended] == [OutcomeUnknown, OutcomeUnknown]
    assert replica.waiting_count == 1


def learner_entry(index: LogIndex, learner: Voter) -> Entry:
    """An entry that takes a learner in."""
    return Entry(1, index, 3, entry_body(EntryKind.CONTROL, 1, 3, index, pack_learner(learner)))


def test_apply_learner(replica: Replica, engine: ScriptedEngine, machine: Journal) -> None:
    """A control entry takes a learner in, one incarnation per node, and reaches no machine."""
    heard: list[tuple[Voter, ...]] = []
    replica.handle_learners = lambda: heard.append(replica.learners)
    replica.apply(committed([learner_entry(1, Voter(3, 7)), learner_entry(2, Voter(2, 8))]))
    replica.apply(committed([learner_entry(3, Voter(3, 9))]))
    assert replica.learners == (Voter(2, 8), Voter(3, 9))
    assert engine.calls[-1] == ("set_learners", (Voter(2, 8), Voter(3, 9)))
    assert heard[-1] == replica.learners
    assert (replica.applied_index, machine.applied) == (3, [])


def test_replaced_node_stops(engine: ScriptedEngine, machine: Journal) -> None:
    """A voter whose other incarnation is taken in takes part no more."""
    replica = Replica(engine, machine, Limits(), new_sessions(), own=Voter(3, 7))
    with pytest.raises(Replaced, match="another incarnation of node 3"):
        replica.apply(committed([learner_entry(1, Voter(3, 8))]))


def test_learner_before_its_entry(engine: ScriptedEngine, machine: Journal) -> None:
    """A node that was made as a learner stays one when the first entry is about another."""
    replica = Replica(engine, machine, Limits(), new_sessions(), own=Voter(3, 7), is_voter=False)
    replica.apply(committed([learner_entry(1, Voter(2, 9))]))
    assert engine.calls == [("set_learners", (Voter(2, 9), Voter(3, 7)))]


def test_learner_reads_of_an_earlier_one(engine: ScriptedEngine, machine: Journal) -> None:
    """A node that was lost twice reads of its earlier return in the log, and goes on; when a later
    one is taken in, it stops."""
    replica = Replica(engine, machine, Limits(), new_sessions(), own=Voter(3, 8), is_voter=False)
    replica.apply(committed([learner_entry(1, Voter(3, 7))]))
    assert engine.learners == (Voter(3, 8),)
    replica.apply(committed([learner_entry(2, Voter(3, 8))]))
    with pytest.raises(Replaced):
        replica.apply(committed([learner_entry(3, Voter(3, 9))]))


def test_propose_control(replica: Replica) -> None:
    """A control entry is proposed and waited for like a command; its result is None."""
    ended: list[tuple[LogIndex, object, Exception | None]] = []
    index = replica.propose_control(
        pack_learner(Voter(3, 7)), lambda *outcome: ended.append(outcome)
    )
    [entry] = replica.engine.proposed  # type: ignore[attr-defined]
    assert (index, entry.kind) == (1, EntryKind.CONTROL)
    replica.apply(committed([entry]))
    assert ended == [(1, None, None)]


@pytest.mark.parametrize("data", [b"", b"\x02" + bytes(10), pack_learner(Voter(3, 7)) + b"x"])
def test_apply_unknown_control(replica: Replica, data: bytes) -> None:
    """A control entry that this release cannot apply stops the node; it is not skipped."""
    entry = Entry(1, 1, 3, entry_body(EntryKind.CONTROL, 1, 3, 1, data))
    with pytest.raises(UnknownFormat, match="entry 1 is a control entry"):
        replica.apply(committed([entry]))
    assert replica.applied_index == 0


def test_apply_time_never_goes_back(replica: Replica, machine: Journal) -> None:
    """The time that a machine sees is the highest that a proposer stamped so far."""
    times = [5, 9, 7, 9, 12]
    entries = [command(index, b"x", time_ms) for index, time_ms in enumerate(times, 1)]
    replica.apply(committed(entries))
    assert [time_ms for _, time_ms, _ in machine.applied] == [5, 9, 9, 9, 12]
    assert replica.time_ms == 12


def test_apply_crash_stops(replica: Replica, machine: Journal) -> None:
    """An error that the machine did not declare stops the node at that entry, which counts as not
    applied."""
    with pytest.raises(StateMachineCrashed, match="ZeroDivisionError: division by zero at entry 2"):
        replica.apply(committed([command(1, b"a"), command(2, b"crash"), command(3, b"c")]))
    assert replica.applied_index == 1
    assert [payload for *_, payload in machine.applied] == [b"a"]


# -- waiting --


def test_wait_result(replica: Replica, engine: ScriptedEngine, outcomes: Outcomes) -> None:
    """A waiter gets the machine's result once its entry is applied, and is called once."""
    for name in ("a", "b"):
        replica.propose(name.encode(), 5, outcomes.waiter(name))
    replica.apply(committed(engine.proposed[:1]))
    assert outcomes.told == [("a", 1, 1, None)]
    replica.apply(committed(engine.proposed[1:]))
    assert outcomes.told == [("a", 1, 1, None), ("b", 2, 2, None)]
    replica.end_waits(OutcomeUnknown("the node stops"))
    assert (len(outcomes.told), replica.waiting_count) == (2, 0)


def test_wait_declared_error(replica: Replica, engine: ScriptedEngine, outcomes: Outcomes) -> None:
    """An error that the machine declares is a result: the entry counts as applied, and the waiter
    gets the error with the index."""
    replica.propose(b"declared", 5, outcomes.waiter("a"))
    replica.apply(committed(engine.proposed))
    ((name, index, result, error),) = outcomes.told
    assert (name, index, result) == ("a", 1, None)
    assert isinstance(error, TooPoor)
    assert replica.applied_index == 1


def test_wait_entry_replaced(replica: Replica, machine: Journal, outcomes: Outcomes) -> None:
    """When another entry is committed at the index, the waiter is told that its own is definitely
    not done; the other is applied."""
    replica.propose(b"mine", 5, outcomes.waiter("a"))
    replica.apply(committed([command(1, b"other", term=4)]))
    assert outcomes.told[0][:3] == ("a", 0, None)
    assert isinstance(outcomes.last_error, EntryReplaced)
    assert machine.applied[0][2] == b"other"


def test_wait_replaced_by_equal_payload(replica: Replica, outcomes: Outcomes) -> None:
    """An entry with the same payload from another proposal is another entry."""
    replica.propose(b"set", 5, outcomes.waiter("a"))
    replica.apply(committed([command(1, b"set", term=4)]))
    assert isinstance(outcomes.last_error, EntryReplaced)


def test_wait_reproposed_entry(
    replica: Replica, engine: ScriptedEngine, outcomes: Outcomes
) -> None:
    """The same entry accepted again at a higher term is still the one that was proposed: the body
    decides, not the term."""
    replica.propose(b"set", 5, outcomes.waiter("a"))
    replica.apply(committed([Entry(1, 1, 9, engine.proposed[0].body)]))
    assert outcomes.told == [("a", 1, 1, None)]


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_wait_ends_with_leadership(
    replica: Replica, engine: ScriptedEngine, outcomes: Outcomes, role: Role
) -> None:
    """When leadership is lost, what this Ready still commits gets its result and every other
    waiter learns that its outcome is unknown."""
    for name in ("a", "b", "c"):
        replica.propose(name.encode(), 5, outcomes.waiter(name))
    replica.apply(committed(engine.proposed[:1], SoftState(role, 0)))
    assert [(name, index) for name, index, *_ in outcomes.told] == [("a", 1), ("b", 0), ("c", 0)]
    assert isinstance(outcomes.last_error, OutcomeUnknown)
    assert replica.waiting_count == 0


def test_wait_goes_on_as_leader(replica: Replica, outcomes: Outcomes) -> None:
    """A change of the soft state that leaves the node the leader ends no wait."""
    replica.propose(b"set", 5, outcomes.waiter("a"))
    replica.apply(committed([], SoftState(Role.LEADER, 1)))
    assert (outcomes.told, replica.waiting_count) == ([], 1)


def test_wait_ends_with_node(replica: Replica, outcomes: Outcomes) -> None:
    """When the node stops every waiter is told why, in the order of the proposals."""
    for name in ("a", "b"):
        replica.propose(name.encode(), 5, outcomes.waiter(name))
    replica.end_waits(OutcomeUnknown("the node stops"))
    assert [name for name, *_ in outcomes.told] == ["a", "b"]
    assert str(outcomes.last_error) == "the node stops"


def test_propose_from_waiter(replica: Replica, engine: ScriptedEngine, outcomes: Outcomes) -> None:
    """A waiter may propose the next command right away."""

    def propose_next(index: LogIndex, result: object, error: Exception | None) -> None:
        replica.propose(b"next", 5, outcomes.waiter("next"))

    replica.propose(b"first", 5, propose_next)
    replica.apply(committed(list(engine.proposed)))
    assert replica.waiting_count == 1
    replica.apply(committed(engine.proposed[1:]))
    assert outcomes.told == [("next", 2, 2, None)]


# -- the rest is the engine's --


def test_calls_reach_engine(replica: Replica, engine: ScriptedEngine) -> None:
    """Messages, time, elections, transfers and writes go straight to the engine."""
    ready = committed([])
    calls: list[Callable[[], None]] = [
        partial(replica.step, "message"),
        replica.tick,
        replica.campaign,
        partial(replica.transfer, 2),
        partial(replica.advance, ready),
    ]
    for call in calls:
        call()
    assert engine.calls == [
        ("step", "message"),
        ("tick",),
        ("campaign",),
        ("transfer", 2),
        ("advance", ready),
    ]
    assert replica.ready() is None


def test_status_shows_applied(replica: Replica) -> None:
    """The picture shows what was applied, not what was handed out to be."""
    replica.apply(committed([command(1, b"a")]))
    status = replica.status()
    assert (status.applied_index, status.commit_index) == (1, 9)


@pytest.mark.parametrize("engine", engine_names())
def test_replica_over_engine(engine: str, machine: Journal, outcomes: Outcomes) -> None:
    """Over a real engine, a cluster of one applies a proposal once it is durable, not before."""
    plugin = find_engine(engine)
    options = plugin.options()
    epoch = Epoch(1, engine, (Voter(1, 101),), 1, tuple(plugin.agreed(options, 1).items()))
    setup = EngineSetup(1, epoch, HardState(1, 0, 0), HeldLog(), Limits(), options, 7, 0)
    replica = Replica(plugin.create(setup), machine, Limits(), new_sessions())
    replica.campaign()
    while (ready := replica.ready()) is not None:
        replica.apply(ready)
        replica.advance(ready)
    index = replica.propose(b"set", 5, outcomes.waiter("a"))
    told: list[int] = []
    while (ready := replica.ready()) is not None:
        replica.apply(ready)
        told.append(len(outcomes.told))
        replica.advance(ready)
    assert told == [0, 1]
    assert outcomes.told == [("a", index, 1, None)]
