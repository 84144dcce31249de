"""The transfer of snapshots between nodes: who needs one pulls it, piece by piece.

A node that cannot go on without a snapshot asks all its peers (:class:`SnapshotQuery`), again and
again.  Whoever has one that reaches far enough offers it; the node takes the first offer, fetches
the file in chunks, and goes on where it broke off after a loss, a restart or the death of the
source, also with any other node that has the very same file.  ``docs/snapshot-transfer.md`` tells
the whole.

The rules this module keeps: no clock, no randomness, no I/O; what is read and written is a
:class:`Job` that the node runs elsewhere; no engine's messages are known here; everything that
waits is bounded.  A snapshot is a *fact*: its receiver enters the sender's term first, durably,
before the snapshot gets its name.

What is left to others: when a snapshot is taken and which one is offered (``offerable``), the
trimming of the log (``kept_index`` says what must stay), and the installing.

The receiving half is :mod:`replog.transfer_receiving`, the sending half
:mod:`replog.transfer_sending`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar, cast

from replog.limits import Limits
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore
from replog.transfer_messages import (
    TRANSFER_TYPES,
    SnapshotChunk,
    SnapshotFetch,
    SnapshotGone,
    SnapshotOffer,
    SnapshotQuery,
    TransferMessage,
)
from replog.transfer_outlet import Arriving, Job, Leaving, Outlet, TransferPicture
from replog.transfer_receiving import Receiving
from replog.transfer_sending import Sending
from replog.types import Epoch, LogIndex, NodeId, Term

__all__ = [
    "Arriving",
    "Job",
    "Leaving",
    "Outlet",
    "Transfer",
    "TransferPicture",
]

_M = TypeVar("_M")


def _handler(handle: Callable[[_M], None]) -> Callable[[TransferMessage], None]:
    """A handler of one type of message, as an entry of the table of all of them."""
    return cast("Callable[[TransferMessage], None]", handle)


class Transfer:
    """One node's part in the transfer of snapshots; see the module."""

    def __init__(
        self,
        node_id: NodeId,
        epoch: Epoch,
        peer_ids: Sequence[NodeId],
        machine: str,
        limits: Limits,
        store: SnapshotStore,
        known_sections: Collection[str] | None,
        outlet: Outlet,
    ) -> None:
        """``machine`` is the name of the node's state machine, ``known_sections`` the names of the
        sections that it can read (``None``: every name); ``store`` has recovered."""
        assert node_id not in peer_ids
        self.offerable: SnapshotInfo | None = None
        """The newest snapshot here that is durable and intact; offered from the next tick on."""
        self._node_id = node_id
        self._epoch = epoch
        self._peer_ids = tuple(sorted(peer_ids))
        self._sending = Sending(node_id, epoch.number, limits, store, outlet)
        self._receiving = Receiving(
            node_id, epoch, self._peer_ids, machine, limits, store, known_sections, outlet
        )
        self._handlers: Mapping[type, Callable[[TransferMessage], None]] = {
            SnapshotQuery: _handler(self._sending.handle_query),
            SnapshotOffer: _handler(self._receiving.handle_offer),
            SnapshotFetch: _handler(self._sending.handle_fetch),
            SnapshotChunk: _handler(self._receiving.handle_chunk),
            SnapshotGone: _handler(self._receiving.handle_gone),
        }
        assert self._handlers.keys() == TRANSFER_TYPES

    def step(self, message: TransferMessage) -> None:
        """Take one message from a peer.  Stale ones, and those of another epoch, are ignored.

        Raises :class:`~replog.errors.SchemaError` for what no correct peer sends; nothing has
        changed then.
        """
        if message.epoch == self._epoch.number and message.sender in self._peer_ids:
            self._handlers[type(message)](message)

    def tick(self, term: Term, wanted_index: LogIndex, applied_index: LogIndex) -> None:
        """One unit of time has passed.

        ``term`` is the engine's.  ``wanted_index`` above ``applied_index`` says that the node
        cannot go on without a snapshot that reaches it; 0: it can.  What was fetched is kept while
        it is not needed, and given up when ``applied_index`` has reached its last index.
        """
        self._sending.tick(term, self.offerable)
        self._receiving.tick(term, wanted_index, applied_index)

    @property
    def kept_index(self) -> LogIndex | None:
        """The entries behind this index must not be trimmed, for a peer that fetches a snapshot
        will need them; ``None``: no peer does."""
        return self._sending.kept_index

    @property
    def problem(self) -> str:
        """Why a snapshot that is needed does not come, or one that is here cannot be sent; one
        sentence, empty when nothing is wrong."""
        return self._receiving.problem or self._sending.problem

    def handle_progress(self, peer: NodeId, index: LogIndex, least: LogIndex) -> None:
        """The leader, this node, knows that a peer holds everything up to ``index``: if the peer
        came by a snapshot, what follows on that is kept as long as the peer comes on, but nothing
        up to ``least``."""
        self._sending.handle_progress(peer, index, least)

    @property
    def unreadable(self) -> SnapshotInfo | None:
        """The last snapshot here that a peer wanted and that could not be read."""
        return self._sending.unreadable

    @property
    def held_bytes(self) -> int:
        """How many bytes of chunks that came are in memory."""
        return self._receiving.held_bytes

    @property
    def picture(self) -> TransferPicture:
        """A read-only picture for people, metrics and tests."""
        return TransferPicture(
            arriving=self._receiving.arriving,
            leaving=tuple(self._sending.leaving),
            received_bytes=self._receiving.received_bytes,
            sent_bytes=self._sending.sent_bytes,
            problem=self.problem,
        )

    def close(self) -> None:
        """The node stops: release every file, and keep what arrived.  Blocks; no job may be on its
        way any more."""
        self._sending.close()
        self._receiving.close()
