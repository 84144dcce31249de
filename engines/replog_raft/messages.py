"""The messages of the Raft engine: one documented record each, and how they travel.

Every message names its epoch, its sender's term, its sender and its receiver.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from replog.engine import FieldKind, MessageSpec
from replog.types import Entry, EpochNumber, LogIndex, NodeId, Term, record


@record
class RequestVote:
    """A (pre-)candidate asks for a vote (Raft §5.2, figure 2; pre-vote: thesis §9.6)."""

    epoch: EpochNumber
    term: Term
    """The term that the vote would be for; of a pre-vote the *next* term, which nobody is in."""
    sender: NodeId
    to: NodeId
    last_index: LogIndex
    last_term: Term
    pre: bool
    """Only asks whether an election could succeed; binds nobody."""
    transfer: bool
    """The leader, or a failure detector, asked for this election: stickiness does not apply (thesis
    §4.2.3)."""
    ordered_in: Term
    """The term in which a leader asked for it, without a lease from then on; 0: none did."""


@record
class Vote:
    """The answer to :class:`RequestVote`."""

    epoch: EpochNumber
    term: Term
    """Of a granted pre-vote the term that was asked about; else the voter's own."""
    sender: NodeId
    to: NodeId
    granted: bool
    pre: bool


@record
class AppendEntries:
    """A leader replicates entries (Raft §5.3)."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    prev_index: LogIndex
    """The index just before ``entries``."""
    prev_term: Term
    commit_index: LogIndex
    entries: tuple[Entry, ...]
    """May be empty: a probe."""


@record
class AppendReply:
    """The answer to :class:`AppendEntries`: what is durable and matches, or where it does not."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    accepted: bool
    match_index: LogIndex
    """Accepted: the follower durably holds the leader's log up to here."""
    rejected_index: LogIndex
    """Rejected: the ``prev_index`` that did not match."""
    hint_index: LogIndex
    """Rejected: the follower's highest index that may still match."""
    hint_term: Term
    """Rejected: the follower's term at ``hint_index``."""


@record
class Heartbeat:
    """A leader says that it lives, and how far the follower may commit.

    The paper uses an empty AppendEntries (Raft §5.2).  A message of its own states nothing about
    the log, so its answer need not wait for the disk: a slow disk deposes no leader.
    """

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    commit_index: LogIndex
    """At most what the follower is known to hold."""
    round: int
    """Returned in the answer, where it also counts as the nonce of a round of reads; 0: a bare
    notice of the commit index, not to be answered."""


@record
class HeartbeatReply:
    """The answer to :class:`Heartbeat`."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    round: int


@record
class InstallSnapshot:
    """A leader says that what the follower lacks was trimmed (Raft §7).

    The paper's message brings the snapshot with it; ours only names what it must reach.  The
    follower fetches one that does, from whichever node it can.
    """

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    last_index: LogIndex
    """The leader's log begins behind this entry ..."""
    last_term: Term
    """... of this term."""


@record
class TimeoutNow:
    """The leader asks its successor to start an election at once (thesis §3.10)."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId


@record
class ReadRequest:
    """A follower asks its leader up to which index it must have applied to read (thesis §6.4)."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    nonce: int
    """Returned in the answer; no two requests of a node have the same, whatever it forgot."""


@record
class ReadReply:
    """The answer to :class:`ReadRequest`, when a majority has answered a heartbeat since."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    nonce: int
    index: LogIndex


Message: TypeAlias = (
    RequestVote
    | Vote
    | AppendEntries
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | TimeoutNow
    | InstallSnapshot
    | ReadRequest
    | ReadReply
)

MESSAGE_TYPES: Final[tuple[type, ...]] = (
    RequestVote,
    Vote,
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
    InstallSnapshot,
    ReadRequest,
    ReadReply,
)

_COMMON: Final[Mapping[str, FieldKind]] = {
    "epoch": FieldKind.U32,
    "term": FieldKind.U64,
    "sender": FieldKind.U16,
    "to": FieldKind.U16,
}
_SMALL_BYTES_MAX: Final = 256


def _spec(
    number: int, message: type, bytes_max: int | None, fields: Mapping[str, FieldKind]
) -> MessageSpec:
    return MessageSpec(
        number=number, record=message, fields={**_COMMON, **fields}, bytes_max=bytes_max
    )


_U64, _BOOL = FieldKind.U64, FieldKind.BOOL

MESSAGE_SPECS: Final[tuple[MessageSpec, ...]] = (
    _spec(
        1,
        RequestVote,
        _SMALL_BYTES_MAX,
        {
            "last_index": _U64,
            "last_term": _U64,
            "pre": _BOOL,
            "transfer": _BOOL,
            "ordered_in": _U64,
        },
    ),
    _spec(2, Vote, _SMALL_BYTES_MAX, {"granted": _BOOL, "pre": _BOOL}),
    _spec(
        3,
        AppendEntries,
        None,
        {
            "prev_index": _U64,
            "prev_term": _U64,
            "commit_index": _U64,
            "entries": FieldKind.ENTRIES,
        },
    ),
    _spec(
        4,
        AppendReply,
        _SMALL_BYTES_MAX,
        {
            "accepted": _BOOL,
            "match_index": _U64,
            "rejected_index": _U64,
            "hint_index": _U64,
            "hint_term": _U64,
        },
    ),
    _spec(5, Heartbeat, _SMALL_BYTES_MAX, {"commit_index": _U64, "round": _U64}),
    _spec(6, HeartbeatReply, _SMALL_BYTES_MAX, {"round": _U64}),
    _spec(7, TimeoutNow, _SMALL_BYTES_MAX, {}),
    _spec(8, InstallSnapshot, _SMALL_BYTES_MAX, {"last_index": _U64, "last_term": _U64}),
    _spec(9, ReadRequest, _SMALL_BYTES_MAX, {"nonce": _U64}),
    _spec(10, ReadReply, _SMALL_BYTES_MAX, {"nonce": _U64, "index": _U64}),
)
