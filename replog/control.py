"""What a ``CONTROL`` entry carries: a change of who takes part, or of the clients' sessions, which
every replica applies alike.

Layout, big-endian: the sub-kind (u8), then what belongs to it.

========  ========  ============================================================================
sub-kind  name      content
========  ========  ============================================================================
1         learner   node id (u16), incarnation (u64): from here on this incarnation of the node,
                    and no other, takes part, and counts in no quorum
2         opening   time in ms (u64), then the terms of a session (u32 each, in the order of
                    :class:`~replog.sessions.SessionTerms`): it begins, and the index of the entry
                    is its id
3         closing   session (u64): it ends
========  ========  ============================================================================

An entry with a sub-kind that a node does not know stops that node with a sentence, because
skipping it would make replicas differ.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NoReturn

from replog.errors import Replaced, UnknownFormat
from replog.sessions import SessionId, SessionTerms
from replog.types import NODE_ID_MAX, Entry, Epoch, NodeId, Voter

LEARNER: Final = 1
OPENING: Final = 2
CLOSING: Final = 3
_LEARNER: Final = struct.Struct(">BHQ")
_OPENING: Final = struct.Struct(">BQIIIII")
_CLOSING: Final = struct.Struct(">BQ")


def pack_learner(learner: Voter) -> bytes:
    """The data of an entry that makes an incarnation of a node a learner."""
    assert 1 <= learner.node_id <= NODE_ID_MAX
    assert 1 <= learner.incarnation < 1 << 63
    return _LEARNER.pack(LEARNER, learner.node_id, learner.incarnation)


def unpack_learner(entry: Entry) -> Voter:
    """Whom a ``CONTROL`` entry makes a learner; raises :class:`~replog.errors.UnknownFormat`."""
    _, node_id, incarnation = _LEARNER.unpack(_data_of(entry, LEARNER, _LEARNER))
    return Voter(node_id, incarnation)


def pack_opening(terms: SessionTerms, time_ms: int) -> bytes:
    """The data of an entry that opens a session; ``time_ms`` is the proposer's wall clock."""
    return _OPENING.pack(
        OPENING,
        time_ms,
        terms.idle_ms_max,
        terms.answers_max,
        terms.answer_bytes_max,
        terms.sessions_max,
        terms.all_bytes_max,
    )


def unpack_opening(entry: Entry) -> tuple[int, SessionTerms]:
    """The time and the terms of the session that an entry opens; raises
    :class:`~replog.errors.UnknownFormat`."""
    _, time_ms, *terms = _OPENING.unpack(_data_of(entry, OPENING, _OPENING))
    return time_ms, SessionTerms(*terms)


def pack_closing(session_id: SessionId) -> bytes:
    """The data of an entry that closes a session."""
    return _CLOSING.pack(CLOSING, session_id)


def unpack_closing(entry: Entry) -> SessionId:
    """Which session an entry closes; raises :class:`~replog.errors.UnknownFormat`."""
    _, session_id = _CLOSING.unpack(_data_of(entry, CLOSING, _CLOSING))
    return SessionId(session_id)


def sub_kind_of(entry: Entry) -> int:
    """The sub-kind of a ``CONTROL`` entry; raises :class:`~replog.errors.UnknownFormat`."""
    data = entry.data
    if not data or data[0] not in (LEARNER, OPENING, CLOSING):
        refuse_control(entry)
    return data[0]


def refuse_control(entry: Entry) -> NoReturn:
    """Stop the node at a control entry that it cannot apply."""
    data = entry.data
    raise UnknownFormat(
        f"entry {entry.index} is a control entry that begins with {data[:1].hex() or 'nothing'}"
        f" and has {len(data)} bytes, which this release cannot apply; upgrade this node"
    )


def _data_of(entry: Entry, sub_kind: int, layout: struct.Struct) -> bytes:
    data = entry.data
    if len(data) != layout.size or data[0] != sub_kind:
        refuse_control(entry)
    return data


def check_not_replaced(own: Voter, took_part: bool, learners: Sequence[Voter]) -> None:
    """Stop a node that ``took_part`` until another incarnation of it was taken in.

    One that has not taken part yet may read of an earlier one in the log.  Raises
    :class:`~replog.errors.Replaced`.
    """
    others = [each for each in learners if each.node_id == own.node_id and each != own]
    if took_part and others:
        raise Replaced(
            f"another incarnation of node {own.node_id} was taken into the cluster, so this one "
            "takes part no more; remove its directory"
        )


def incarnation_in_force(epoch: Epoch, learners: Sequence[Voter], node_id: NodeId) -> int | None:
    """Which incarnation of a node takes part, as far as this replica has applied: the learner's, or
    else the voter's; ``None``: it is no member.

    What another incarnation says must not be heard.  A replica that has not applied the entry of a
    learner still counts the node as a voter, and the learner remembers no vote.
    """
    for each in (*learners, *epoch.voters):
        if each.node_id == node_id:
            return each.incarnation
    return None


def learners_at(own: Voter, epoch: Epoch, learners: tuple[Voter, ...]) -> tuple[Voter, ...]:
    """Who counts in no quorum: the learners, and this very node if it is no voter.

    A node that was made to rejoin is a learner before it has heard of the entry that says so.
    """
    return learners if own in epoch.voters else with_learner(learners, own)


def with_learner(learners: Sequence[Voter], learner: Voter) -> tuple[Voter, ...]:
    """Who the learners are when one was added, sorted by node id: of a node there is one
    incarnation."""
    others = [each for each in learners if each.node_id != learner.node_id]
    return tuple(sorted((*others, learner), key=lambda each: each.node_id))
