"""The records that every part of replog speaks in.

The rules this module keeps: it imports nothing of ours; its records are made once and never
changed.  ``Term``, ``LogIndex`` and ``NodeId`` are plain integers; index 0 and term 0 mean "before
the first entry".

A **term** is a totally ordered unsigned 64-bit integer that names at most one leader within an
epoch.  Raft makes that true by voting (Raft §5.2), Multi-Paxos by construction (a ballot holds the
id of its owner).  With this one definition the entry, the hard state and the wire header are the
same for every engine.

An entry's term may differ between replicas that hold the same chosen entry (a Paxos leader
re-proposes an entry at its own ballot), so nothing that is applied, digested or shown to a user
depends on it.  What never changes is the entry's *body*: kind, origin and data, encoded once when
the entry is born and spliced into the log and every frame as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from itertools import count, repeat
from typing import Final, NamedTuple, TypeAlias, TypeVar, dataclass_transform

Term: TypeAlias = int
LogIndex: TypeAlias = int
NodeId: TypeAlias = int
EpochNumber: TypeAlias = int

NODE_ID_MAX: Final = 65_535
"""Node ids are 1 to 65535, so that an engine may pack one into a term."""

NO_NODE: Final[NodeId] = 0
"""Stands for "nobody" where a node id is expected: no vote, no known leader."""

_T = TypeVar("_T")

RECORDS: Final[list[type]] = []
"""Every record class that was made; ``replog.testing.freeze_records`` freezes them in tests."""


@dataclass_transform(frozen_default=True)
def record(cls: type[_T]) -> type[_T]:
    """Make a slotted record: frozen for the type checker, free at run time.

    A truly frozen dataclass costs 362 ns to create against 96 ns for a slotted one (CPython 3.11),
    and records are made for every entry; so the type checker refuses a change, the tests freeze
    the classes in earnest, and production pays nothing.
    """
    made = dataclass(slots=True, unsafe_hash=True)(cls)
    RECORDS.append(made)
    return made


class EntryKind(IntEnum):
    """What an entry is; explicit on the wire and on disk: a no-op is never "an empty value"."""

    NOOP = 0
    """Nothing to apply: a new leader's first entry, or the filling of a gap."""
    COMMAND = 1
    """A command envelope for the state machine."""
    CONTROL = 2
    """Sessions, learners and incarnations, each with a sub-kind."""
    EPOCH = 3
    """The seal that ends an epoch."""


BODY_HEAD: Final = struct.Struct(">BIQQ")
"""The fixed head of an entry's body: kind, then the origin (epoch, term, sequence)."""

BODY_HEAD_BYTES: Final = BODY_HEAD.size

_TERM_ID: Final = struct.Struct(">IQ")


@record
class Origin:
    """Where an entry was first proposed; re-proposal by another leader never changes it."""

    epoch: EpochNumber
    term: Term
    sequence: int
    """The proposer's count of proposals within (epoch, term), from 1."""


class TermId(NamedTuple):
    """A term of an epoch; they order as pairs."""

    epoch: EpochNumber
    term: Term


NO_TERM: Final = TermId(0, 0)
"""Before the first entry."""

ORIGIN_TERM: Final = slice(1, 13)
"""Where the epoch and the term of its origin stand in an entry's body, big-endian: what is in there
orders as the :class:`TermId` does."""


def pack_term(term_id: TermId) -> bytes:
    """A term as it stands in :data:`ORIGIN_TERM`."""
    return _TERM_ID.pack(*term_id)


def unpack_term(packed: bytes) -> TermId:
    """What :func:`pack_term` made."""
    return TermId(*_TERM_ID.unpack(packed))


@record
class EntryId:
    """The name of one proposal: at most one entry was ever proposed under it."""

    epoch: EpochNumber
    term: Term
    index: LogIndex


NO_ENTRY: Final = EntryId(0, 0, 0)
"""The base of a log from which nothing was ever cut off."""


@record
class Entry:
    """One entry of the log.

    ``epoch``, ``index`` and ``term`` stand outside the body, in a fixed header on the wire and on
    disk; ``body`` is kind, origin and data, encoded once (see :func:`new_entries`).  Two entries
    hold the same value iff their bodies are equal, whatever their terms.
    """

    epoch: EpochNumber
    index: LogIndex
    term: Term
    body: bytes

    @property
    def kind(self) -> int:
        """The number of the entry's :class:`EntryKind`; may be one that we do not know."""
        return self.body[0]

    @property
    def origin(self) -> Origin:
        """Where the entry was first proposed."""
        _, epoch, term, sequence = BODY_HEAD.unpack_from(self.body)
        return Origin(epoch, term, sequence)

    @property
    def data(self) -> bytes:
        """What the entry carries: a command envelope, a control record, or nothing."""
        return self.body[BODY_HEAD_BYTES:]

    @property
    def id(self) -> EntryId:
        """The name of this proposal of the entry."""
        return EntryId(self.epoch, self.term, self.index)


def entry_body(kind: int, epoch: EpochNumber, term: Term, sequence: int, data: bytes) -> bytes:
    """Encode kind (an :class:`EntryKind`), origin (epoch, term, sequence) and data into the bytes
    that are spliced everywhere."""
    return BODY_HEAD.pack(kind, epoch, term, sequence) + data


def new_entries(
    kind: int,
    epoch: EpochNumber,
    term: Term,
    first_index: LogIndex,
    first_sequence: int,
    datas: Sequence[bytes],
) -> tuple[Entry, ...]:
    """Entries that are proposed now, at contiguous indexes, one for each of ``datas``.

    A batch at a time: a call per entry would cost as much as making it.
    """
    pack = BODY_HEAD.pack
    bodies = [
        pack(kind, epoch, term, sequence) + data
        for sequence, data in enumerate(datas, first_sequence)
    ]
    return tuple(map(Entry, repeat(epoch), count(first_index), repeat(term), bodies))


@record
class LogEntry:
    """One command in the log, for whoever reads the log as a log."""

    index: LogIndex
    time_ms: int
    """The wall clock of whoever led when it was proposed; it may fall from one to the next."""
    data: bytes
    """What was appended: a command's payload, as it was proposed."""


@record
class LogPage:
    """A stretch of the log, of which only the commands are shown."""

    entries: tuple[LogEntry, ...]
    """Ascending by index; between two of them there may be entries that are no commands."""
    next_index: LogIndex
    """Where the next page begins."""


@record
class Change:
    """What one command changed, for whoever watches a state machine."""

    index: LogIndex
    """Of the command; to go on later, watch from behind it."""
    key: str
    """What was changed."""
    value: bytes | None
    """What it is now; ``None``: it is gone."""


@record
class Voter:
    """A member that counts in quorums: exactly this incarnation of this node, no other."""

    node_id: NodeId
    incarnation: int
    """Random 63-bit number drawn when the node's directory was made."""


@record
class Epoch:
    """A stretch of the log with one engine and one fixed set of voters."""

    number: EpochNumber
    engine: str
    voters: tuple[Voter, ...]
    """Sorted by node id."""
    start_index: LogIndex
    """The first index of the epoch; what lies below is its base and is never compared."""
    agreed: tuple[tuple[str, int], ...] = ()
    """What all nodes must hold to alike and the engine asked to have recorded with the cluster (see
    :meth:`replog.engine.EnginePlugin.agreed`), by name, ascending."""

    @property
    def voter_ids(self) -> tuple[NodeId, ...]:
        """The ids of the voters, ascending."""
        return tuple(voter.node_id for voter in self.voters)


@record
class SnapshotMeta:
    """What a snapshot stands for; the same on every node that makes one of the same entry."""

    last: EntryId
    """The last entry that it holds, as :meth:`replog.engine.Engine.snapshot_id` names it;
    everything up to its index is in it."""
    epoch: Epoch
    """The epoch in force at ``last.index + 1``."""
    time_ms: int
    """The replicated time at ``last``, in milliseconds; no node's own clock."""
    machine: str
    """The name of the state machine; a snapshot of another one is refused by whoever would install
    it."""
    learners: tuple[Voter, ...] = ()
    """Who takes part as of ``last`` without counting in a quorum, in exactly this incarnation;
    sorted by node id.  One with the id of a voter stands in for a voter that is lost."""
    highest_term: TermId = NO_TERM
    """The highest term in the origin of any entry up to ``last``."""


@record
class HardState:
    """What an engine must find again after a crash, as one atomic durable record.

    Raft: current term and the vote in it (Raft §5.1, figure 2).  Multi-Paxos: ``term`` is the
    promised ballot and ``voted_for`` its owner.  Hard states order as (epoch, term).
    """

    epoch: EpochNumber
    term: Term
    voted_for: NodeId
    """``NO_NODE`` when no vote was given in ``term``."""
    commit_hint: LogIndex = 0
    """Everything up to here was committed when this was written, and is on this disk; 0: nothing
    is said.  Safety never needs it; with it a restart need not agree on the past again."""


class Role(Enum):
    """What a node is doing in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    """Asks whether an election could succeed; binds nobody and raises no term."""
    CANDIDATE = "candidate"
    LEADER = "leader"


@record
class SoftState:
    """What changes often and need not survive a crash."""

    role: Role
    leader_id: NodeId
    """``NO_NODE`` when no leader is known."""


class ReadLevel(Enum):
    """How new the state must be that a query is run on."""

    LINEARIZABLE = "linearizable"
    """It holds every command that was done anywhere before the query was asked."""
    LEASE = "lease"
    """The same, as long as no clock runs faster or slower than was said (``clock_drift_percent``):
    a leader that holds a lease asks nobody.  Without a lease it is ``linearizable``."""
    TIMELINE = "timeline"
    """It holds everything up to an index that the client names, the highest it has seen: what it
    reads never goes back, and may be old."""
    STALE = "stale"
    """It is what the node has, however old that is."""


@record
class ReadIndex:
    """How one read was answered; see :meth:`replog.engine.Engine.read`."""

    read_id: int
    index: LogIndex | None
    """Whoever reads now must have applied everything up to here; ``None``: the read will not be
    served, for leadership was lost, no leader answered in time, or too many reads wait."""


@record
class Ready:
    """What an engine wants done, in the order of the duties (see :mod:`replog.engine`)."""

    messages: Sequence[object]
    """Engine messages that may leave at once."""
    hard_state: HardState | None
    """To be made durable; ``None`` when it did not change."""
    truncate_from: LogIndex | None
    """Entries at and above this index are void on disk, before ``entries`` are put."""
    entries: Sequence[Entry]
    """To be made durable, each at its index."""
    messages_after_sync: Sequence[object]
    """May leave only when this Ready *and every earlier one* are durable."""
    committed: Sequence[Entry]
    """To be applied in order; each index is handed out exactly once."""
    soft_state: SoftState | None
    """The new soft state; ``None`` when it did not change."""
    base: EntryId | None = None
    """The log begins behind it from now on: a durable snapshot holds everything up to here.  To be
    made durable with the rest, before the truncation; ``None`` when it did not move."""
    reads: Sequence[ReadIndex] = ()
    """Reads that were answered; they wait for no disk."""

    @property
    def writes(self) -> bool:
        """Whether there is anything to make durable."""
        return bool(self.entries or self.hard_state or self.truncate_from is not None or self.base)


class PeerState(Enum):
    """How a leader replicates to a peer."""

    PROBE = "probe"
    """The matching point is not known: one message at a time."""
    REPLICATE = "replicate"
    """Pipelined: messages leave before earlier ones are answered."""
    SNAPSHOT = "snapshot"
    """What the peer lacks was trimmed: nothing is sent until it has got a snapshot."""


@record
class PeerStatus:
    """A leader's view of one peer."""

    node_id: NodeId
    state: PeerState
    match_index: LogIndex
    next_index: LogIndex
    in_flight_messages: int
    recently_active: bool


@record
class Status:
    """A read-only picture of a node for people, metrics and tests."""

    node_id: NodeId
    engine: str
    role: Role
    leader_id: NodeId
    epoch: EpochNumber
    term: Term
    last_index: LogIndex
    durable_index: LogIndex
    """Everything up to here is on this node's disk."""
    commit_index: LogIndex
    applied_index: LogIndex
    peers: tuple[PeerStatus, ...]
    """Sorted by node id; empty unless the node leads."""
    commit_quorum: int = 0
    """How many nodes, the leader among them, must hold an entry before it is committed; 0: the
    engine does not say, which is taken for a majority."""
    election_quorum: int = 0
    """How many nodes must vote for a leader, itself among them; 0 as above."""
    base_index: LogIndex = 0
    """Everything up to here was trimmed from the log: a snapshot holds it."""
    durable_term: Term = 0
    """The highest term that is on this node's disk."""
    wanted_index: LogIndex = 0
    """The node can go on only with a snapshot that reaches at least so far; 0: it needs none."""
    lease_until_ns: int | None = None
    """Until when, by its own clock, a leader reads by lease; ``None``: it holds no lease."""


@record
class Applied:
    """A command that is done."""

    index: LogIndex
    result: object
    """What the state machine returned."""


@record
class RoleChange:
    """A node's place in the cluster, after it changed."""

    role: Role
    leader_id: NodeId
    """``NO_NODE`` when no leader is known."""
    term: Term


Waiter: TypeAlias = "Callable[[LogIndex, object, Exception | None], None]"
"""Called once when a proposal ends: (index, result, None), or (0, None, error).

Of a query: (index as of which it was read, result, None), or (0, None, error)."""
