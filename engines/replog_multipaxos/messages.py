"""The messages of the Multi-Paxos engine: one documented record each, and how they travel.

Every message names its epoch, a ballot (in the field ``term``), its sender and its receiver.  Whose
ballot it is differs: of Prepare, Accept and Commit the sender's own, of a Promise, an Accepted and
a CommitReply the one that they answer, of a ReadRequest and a ReadReply the leader's, of every
other message the highest that its sender has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from replog.engine import FieldKind, MessageSpec
from replog.types import Entry, EpochNumber, LogIndex, NodeId, Term, record
from replog_multipaxos.indexes import Range

RANGES_MAX: Final = 64
"""How many ranges a message holds at most; what is left out is said another time."""


@record
class Prepare:
    """Phase 1a for every slot from ``from_slot`` on (PMS §2.2, §3)."""

    epoch: EpochNumber
    term: Term
    """The ballot; of a round that binds nobody the one that would be next."""
    sender: NodeId
    to: NodeId
    from_slot: LogIndex
    """Sent again with a higher slot it asks for the next page of the answer."""
    pre: bool
    """Only asks whether a Prepare would be answered; binds nobody."""
    ordered_in: Term
    """The ballot whose owner asked for this election, and at which there is no lease any more; 0:
    nobody did."""


@record
class Promise:
    """Phase 1b, one page: every vote from ``from_slot`` to ``upto_slot``.

    The page says which slots it covers, because a number of pages would not do: a trim or a second
    Prepare between two pages moves their boundaries, and a gap would look like empty slots.
    """

    epoch: EpochNumber
    term: Term
    """The promised ballot."""
    sender: NodeId
    to: NodeId
    pre: bool
    from_slot: LogIndex
    upto_slot: LogIndex
    """0 on the last page: to the end, however long the log may become."""
    trimmed_upto: LogIndex
    """Up to here the sender holds no entries any more: all are chosen, none is empty."""
    chosen_upto: LogIndex
    """Up to here the sender knows every slot as chosen."""
    entries: tuple[Entry, ...]
    """Its votes, each with the ballot at which it was accepted, those known as chosen included."""


@record
class Nack:
    """A ballot is refused: the sender promised a higher one, or hears a leader (``leader_id``)."""

    epoch: EpochNumber
    term: Term
    """The highest ballot that the sender promised."""
    sender: NodeId
    to: NodeId
    rejected: Term
    """The ballot that is refused."""
    leader_id: NodeId
    """Whom the sender follows; ``NO_NODE`` for nobody."""


@record
class Accept:
    """Phase 2a for some slots, which need not be contiguous (PMS §2.2)."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    chosen_upto: LogIndex
    """Up to here the leader knows every slot as chosen."""
    entries: tuple[Entry, ...]
    """All at the leader's ballot; none: asks to be told again what was accepted."""


@record
class Accepted:
    """Phase 2b: which slots are on disk at this ballot: those of the answered Accept, and all open
    ones in front of them.  Counted as a set of voters per slot."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    chosen_upto: LogIndex
    """Up to here the sender holds the chosen values; a fact, no vote."""
    ranges: tuple[Range, ...]


@record
class Commit:
    """A leader lives, and says how far the log is chosen (PMMC: decisions); one that names no slot
    only asks for an answer, as a round of reads does."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    chosen_upto: LogIndex
    sent_upto: LogIndex
    """The highest slot that was sent to the receiver."""
    round: int
    """Returned in the answer, where it also counts as the nonce of a round of reads; 0: a bare
    notice, not to be answered."""


@record
class CommitReply:
    """The answer to :class:`Commit`; also sent when an Accept leaves a hole (round 0).  It states
    only what is on disk already."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    round: int
    chosen_upto: LogIndex
    """Up to here the sender durably holds the chosen values."""
    sent_upto: LogIndex
    """As it was in the Commit; else the last slot in front of the Accept."""
    ranges: tuple[Range, ...]
    """What never arrived of the slots up to ``sent_upto``."""


@record
class LearnRequest:
    """Asks any node for the chosen values of some slots."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    ranges: tuple[Range, ...]


@record
class Learn:
    """Chosen values: facts, whoever tells them."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    entries: tuple[Entry, ...]
    """At least one, each with the ballot of the sender's own record."""


@record
class Trimmed:
    """The answer to a :class:`LearnRequest` for slots that the sender holds no more: all of them
    are chosen, and only a snapshot tells what came of them."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    trimmed_upto: LogIndex


@record
class TakeOver:
    """The leader asks its successor to begin phase 1 at once."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId


@record
class ReadRequest:
    """A follower asks its leader up to which slot it must have applied to read."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    nonce: int
    """Returned in the answer; no two requests of a node have the same, whatever it forgot."""


@record
class ReadReply:
    """The answer to :class:`ReadRequest`, when a phase-2 quorum has answered a Commit since."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    nonce: int
    index: LogIndex


Message: TypeAlias = (
    Prepare
    | Promise
    | Nack
    | Accept
    | Accepted
    | Commit
    | CommitReply
    | LearnRequest
    | Learn
    | TakeOver
    | Trimmed
    | ReadRequest
    | ReadReply
)

MESSAGE_TYPES: Final[tuple[type, ...]] = (
    Prepare,
    Promise,
    Nack,
    Accept,
    Accepted,
    Commit,
    CommitReply,
    LearnRequest,
    Learn,
    TakeOver,
    Trimmed,
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
_RANGES_BYTES_MAX: Final = _SMALL_BYTES_MAX + 16 * RANGES_MAX
_U64, _BOOL, _ENTRIES, _RANGES = (
    FieldKind.U64,
    FieldKind.BOOL,
    FieldKind.ENTRIES,
    FieldKind.RANGES,
)


def _spec(
    number: int, message: type, bytes_max: int | None, fields: Mapping[str, FieldKind]
) -> MessageSpec:
    return MessageSpec(
        number=number, record=message, fields={**_COMMON, **fields}, bytes_max=bytes_max
    )


MESSAGE_SPECS: Final[tuple[MessageSpec, ...]] = (
    _spec(1, Prepare, _SMALL_BYTES_MAX, {"from_slot": _U64, "pre": _BOOL, "ordered_in": _U64}),
    _spec(
        2,
        Promise,
        None,
        {
            "pre": _BOOL,
            "from_slot": _U64,
            "upto_slot": _U64,
            "trimmed_upto": _U64,
            "chosen_upto": _U64,
            "entries": _ENTRIES,
        },
    ),
    _spec(3, Nack, _SMALL_BYTES_MAX, {"rejected": _U64, "leader_id": FieldKind.U16}),
    _spec(4, Accept, None, {"chosen_upto": _U64, "entries": _ENTRIES}),
    _spec(5, Accepted, _RANGES_BYTES_MAX, {"chosen_upto": _U64, "ranges": _RANGES}),
    _spec(6, Commit, _SMALL_BYTES_MAX, {"chosen_upto": _U64, "sent_upto": _U64, "round": _U64}),
    _spec(
        7,
        CommitReply,
        _RANGES_BYTES_MAX,
        {"round": _U64, "chosen_upto": _U64, "sent_upto": _U64, "ranges": _RANGES},
    ),
    _spec(8, LearnRequest, _RANGES_BYTES_MAX, {"ranges": _RANGES}),
    _spec(9, Learn, None, {"entries": _ENTRIES}),
    _spec(10, TakeOver, _SMALL_BYTES_MAX, {}),
    _spec(11, Trimmed, _SMALL_BYTES_MAX, {"trimmed_upto": _U64}),
    _spec(12, ReadRequest, _SMALL_BYTES_MAX, {"nonce": _U64}),
    _spec(13, ReadReply, _SMALL_BYTES_MAX, {"nonce": _U64, "index": _U64}),
)
