"""The contract between a consensus engine and everything around it.  Read this first.

An *engine* is a deterministic object that decides; it never acts.  It has no clock, no randomness
and no I/O.  Messages and ticks go in; what must be done comes out through one door, ``ready()``.
Raft stands behind this protocol, Multi-Paxos fits behind it, and no shared code asks which one it
serves.

The rules of the contract:

* **Time arrives as integer ticks.**  Jitter is a function of (seed, node, term, attempt), so clones
  agree and replays are exact; an attempt that does not raise the term must not repeat its timing.
* **One door out.**  ``ready()`` hands out everything that has come up since the last call, as one
  :class:`~replog.types.Ready`, whose fields stand in the order of the duties:

  1. ``messages`` may leave at once: they state only what is already durable, or promise nothing.
  2. ``hard_state``, ``base``, ``truncate_from`` and ``entries`` are made durable, as one atomic
     write.
  3. ``advance(ready)`` is called when they are.  Several Readys may be on their way to disk; they
     are advanced in order, on the engine that issued them.  A Ready that writes nothing is
     advanced too, in its turn.
  4. ``messages_after_sync`` leave only when this Ready *and every earlier one* are durable, even
     if this one writes nothing: an acknowledgement repeated for a duplicate must not overtake the
     sync of the first.  Votes, promises, acknowledgements of entries, and the requests for votes
     and promises are in this list: a candidate that crashed after asking must not vote again in
     the same term.
  5. ``committed`` is applied.  Each index is handed out exactly once, in order, without gaps.
  6. ``reads`` are answered.  They wait for no disk, only until their index is applied.

* **Durable before counted.**  A candidate counts its own vote, and a leader its own copy of an
  entry, only at ``advance``.  ``advance`` marks an index durable only if the log still holds the
  very same (epoch, term, index): the entry may have been replaced meanwhile.
* **A slow disk deposes nobody.**  What states only a term already on disk (the answer to a
  heartbeat) is in ``messages``.
* **Commit and notice.**  A Ready that hands out committed entries may hold back the bare notice
  of the new commit index to the peers until the next ``ready()``: what the driver proposes in
  between carries it for nothing.  The driver calls ``ready()`` until it returns ``None``.
* **The past goes into snapshots.**  What a durable snapshot holds may be trimmed (``trim``); a node
  that lacks what others trimmed says so (``Status.wanted_index``), is given a snapshot by whoever
  has one, and installs it (``install``).  The bytes of a snapshot never enter an engine.  A
  snapshot is a *fact*, and travels with the term of its sender: the receiver enters that term
  first, durably (``observe_term``), or a late message of a lower term could pass its promises.
* **Entries travel as they are.**  A message holds :class:`~replog.types.Entry` records; their
  bodies were encoded once and are spliced, never decoded, on the way.
* **Role variables die with the role**: one record per role, replaced at each change.
* **Leases are opt-in.**  Where the cluster agreed on them (:mod:`replog.leases`), the engine is
  told the time, by a clock that counts suspended time: before each message and each tick, and with
  each read that a lease may serve.
* **A read needs no entry.**  Who wants to read asks up to which index it must have applied
  (``read``); a leader answers when a quorum has shown, since it was asked, that nobody else leads
  (:mod:`replog.reads`), and any other node asks its leader.
* An engine *owns* the shared parts (:mod:`~replog.quorum`, :mod:`~replog.progress`,
  :mod:`~replog.reads`) and calls them; a part never calls back.
* ``clone()``, ``key()`` and ``check()`` serve the model checker and the invariants: a clone shares
  nothing mutable, equal keys mean equal futures, ``check`` raises
  :class:`~replog.errors.InvariantViolated`.

An engine comes as a *plugin*: an object behind an entry point of the group ``replog.engines``,
which brings its message records with their schemas and limits, so that :mod:`replog.wire` can carry
them without knowing any engine.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from replog.limits import Limits
from replog.stored_log import StoredLog
from replog.types import (
    NO_ENTRY,
    Entry,
    EntryId,
    EntryKind,
    Epoch,
    HardState,
    LogIndex,
    NodeId,
    Ready,
    SoftState,
    Status,
    Term,
    Voter,
    record,
)


class Engine(Protocol):
    """One node's part in the agreement on one log.  See the module's essay for the contract."""

    @property
    def term(self) -> Term:
        """The highest term seen; may not be durable yet."""

    @property
    def soft_state(self) -> SoftState:
        """The role and the known leader, as of now."""

    @property
    def learners(self) -> Sequence[Voter]:
        """Who counts in no quorum; see :meth:`set_learners`."""

    @property
    def commit_index(self) -> LogIndex:
        """Everything up to here is known to be committed, handed out to be applied or not."""

    def step(self, message: object) -> None:
        """Take one message from a peer.  Stale ones are answered or ignored, never an error."""

    def tick(self) -> None:
        """One unit of time has passed."""

    def propose(self, data: bytes, kind: EntryKind = EntryKind.COMMAND) -> Entry:
        """Append one entry at the leader and return it: a batch of one."""

    def propose_batch(self, datas: Sequence[bytes], kind: EntryKind) -> Sequence[Entry]:
        """Append an entry for each of ``datas`` (at least one) at the leader and return them.

        All or nothing: raises :class:`~replog.errors.NotLeader` at any other node and
        :class:`~replog.errors.Overloaded` above ``limits.uncommitted_bytes_max`` or while
        leadership is being handed over, and then nothing was proposed.  The indexes ascend.
        """

    @property
    def is_timed(self) -> bool:
        """Whether :meth:`observe_time` must be called; never changes."""

    def observe_time(self, now_ns: int) -> None:
        """The node's own clock shows ``now_ns`` nanoseconds, read after what is stepped next had
        arrived.  It counts the time for which the process or the machine was suspended, and never
        goes back while the process lives."""

    def read(self, read_id: int, now_ns: int | None = None) -> None:
        """Up to which index must whoever reads now have applied?  Asked at any node.

        Answered once, in ``Ready.reads`` (Raft §8, thesis §6.4): with an index that is not below
        any entry that was committed anywhere before this call, or with ``None``: at a leader that
        loses its leadership, where ``limits.read_wait_ms`` have passed without a leader's answer,
        and above ``limits.reads_max``.  ``read_id`` is the caller's, and not in use.

        ``now_ns``: a lease will do, if this node holds one at that time, which was read from its
        clock after whoever reads had asked.  Then nobody is asked; else all is as without it.
        """

    def campaign(self) -> None:
        """Try to become leader now, without waiting for a timeout."""

    def transfer(self, to: NodeId) -> None:
        """Hand leadership to ``to`` (thesis §3.10); raises ``NotLeader`` or ``CallerError``."""

    def ready(self) -> Ready | None:
        """Everything that is to be done since the last call; ``None`` when there is nothing."""

    def advance(self, ready: Ready) -> None:
        """The writes of ``ready`` and of every earlier one are durable."""

    def entries(self, first: LogIndex, last: LogIndex, bytes_max: int) -> Sequence[Entry]:
        """Entries that were handed out to be applied, from ``first`` to ``last`` at most, at least
        one, and no more than fit into ``bytes_max``.

        ``last`` is not below ``first``.  Raises :class:`~replog.errors.Compacted` where the base is
        not below ``first``.
        """

    def snapshot_id(self, index: LogIndex) -> EntryId:
        """The name of a snapshot of everything up to ``index``, which was handed out to be applied
        and is not below the base: the same at every node."""

    def trim(self, upto: LogIndex) -> LogIndex:
        """Forget entries up to ``upto`` at most, which a durable snapshot holds, and return up to
        where that is done; the disk is told by the next ``ready``.  What is not durable in the log
        yet is kept."""

    def observe_term(self, term: Term) -> None:
        """A fact is to come from a node that has this term: enter it, if it is a higher one."""

    def install(self, last: EntryId) -> None:
        """A durable snapshot holds everything up to ``last``, which is committed, and so does the
        machine; it came from a node of a term that is durable here.  Goes on behind it: nothing up
        to there is handed out any more.  The log stays if as much of it is known as committed."""

    def set_learners(self, learners: Sequence[Voter]) -> None:
        """From now on these nodes count in no quorum, whatever they say; the voters among them are
        lost, and quorums stay as large as they were.  What was known of one that is new, or of
        another incarnation than before, is forgotten: its disk is.  A node that is one of them
        itself follows and does not vote, promise or campaign."""

    def status(self) -> Status:
        """A read-only picture; ``applied_index`` is what was handed out to be applied."""

    def clone(self) -> Engine:
        """An independent copy with the same future."""

    def key(self) -> Hashable:
        """A value that is equal for two engines iff they behave alike from here on."""

    def check(self) -> None:
        """Assert the invariants that one node can see of itself."""


class FieldKind(Enum):
    """What a field of a message may hold; :mod:`replog.wire` checks it strictly."""

    BOOL = "bool"
    U16 = "u16"
    """A node id."""
    U32 = "u32"
    """An epoch number or a checksum."""
    U64 = "u64"
    """A term, an index or a count."""
    ENTRIES = "entries"
    """A sequence of entries, ascending by index; spliced behind the other fields."""
    RANGES = "ranges"
    """A tuple of (first, last) pairs of indexes, both included: ascending, disjoint and not
    adjacent."""
    BYTES = "bytes"
    """Bytes that nobody looks into on the way.  A message has at most one field of entries, ranges
    or bytes."""


@record
class MessageSpec:
    """How one message between nodes travels."""

    number: int
    """Fixed for ever within its protocol: 1 to 63 for an engine's, 80 to 95 for replog's own."""
    record: type
    """The record class; its fields are exactly those of ``fields``, in the same order.

    Every message has the fields ``epoch``, ``term``, ``sender`` and ``to``.
    """
    fields: Mapping[str, FieldKind]
    bytes_max: int | None
    """The largest frame content; ``None``: ``limits.frame_bytes_max`` (carries entries)."""


def entries_fields(specs: Sequence[MessageSpec]) -> Mapping[type, str]:
    """The messages that can carry entries, each with the name of the field that holds them."""
    return {
        spec.record: name
        for spec in specs
        for name, kind in spec.fields.items()
        if kind is FieldKind.ENTRIES
    }


@record
class EngineSetup:
    """Everything that an engine starts from: its identity and what its storage held."""

    node_id: NodeId
    epoch: Epoch
    hard_state: HardState
    """What was recovered; (epoch, 0, nobody) in a fresh directory."""
    log: StoredLog
    """What was recovered, all of it durable; and where older entries are read from as long as the
    engine lives, those included that it hands out to be written.  An engine whose log has no
    holes refuses one that has."""
    limits: Limits
    options: object
    """An instance of the plugin's ``options`` class."""
    seed: int
    """Salt for the jitter of timeouts."""
    nonce: int
    """Requests for reads are numbered from here on.  Drawn at random, below 2^63, whenever the
    process starts: an answer to an earlier life may still be on its way."""
    snapshot: EntryId = NO_ENTRY
    """What the newest durable snapshot ends with, which is not before the log's base;
    ``NO_ENTRY``: there is none.  Where the log may not hold the very entries up to there, the
    engine installs it."""
    applied_index: LogIndex = 0
    """What the state machine holds already, the log's base included: nothing up to here is handed
    out."""
    learners: tuple[Voter, ...] = ()
    """Who counts in no quorum, as of ``applied_index``; the node itself may be one of them."""


class EnginePlugin(Protocol):
    """What an entry point of the group ``replog.engines`` names."""

    @property
    def name(self) -> str:
        """The name that a configuration uses."""

    @property
    def title(self) -> str:
        """One line for people: what it is, and from which paper."""

    @property
    def options(self) -> type:
        """A record class of int, float, bool and str fields, all with defaults.

        Its method ``problems() -> list[str]`` names every relation that does not hold, as
        ``key: sentence``.
        """

    @property
    def messages(self) -> Sequence[MessageSpec]:
        """Every message of the engine's protocol."""

    def agreed(self, options: object, voter_count: int) -> Mapping[str, int]:
        """What ``options`` ask for that all nodes of a cluster must hold to alike.

        It is written into the founding record and comes back in ``setup.epoch.agreed``: two nodes
        with two files that differ in it would each be right, and decide two things.  Raises
        :class:`~replog.errors.ConfigError` for what does not fit so many voters.
        """

    def create(self, setup: EngineSetup) -> Engine:
        """Make the engine of one node.

        Raises :class:`~replog.errors.LogDamaged` for a recovered log that the engine cannot have
        written, :class:`~replog.errors.ConfigError` for options that do not fit the epoch, and
        :class:`~replog.errors.UnknownFormat` or :class:`~replog.errors.DirectoryError` for
        something agreed that the engine does not know or cannot have recorded.
        """
