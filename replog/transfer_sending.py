"""The sending side of a transfer: offers what there is, and reads it piece by piece for who asks.

The rules:

* A query is answered from memory; the disk is touched only for chunks, by jobs.
* What is open goes on being read, also when the snapshot was removed meanwhile: one file for each
  peer, closed when the peer asks for another one or has asked for nothing for ``IDLE_TICKS``.
* For each peer one chunk is read at a time, and at most ``WINDOW`` requests wait.  A request that
  is repeated takes the place of the first.
* What is read in one tick, for all peers together, stays within ``snapshot_bytes_per_second_max``,
  but for one chunk that may always leave.  Who has waited longest comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from replog import errors
from replog.limits import Limits
from replog.storage.snapshot_format import pack_meta
from replog.storage.snapshot_transfer import OutgoingSnapshot
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore
from replog.transfer_arrival import FileName
from replog.transfer_messages import (
    SnapshotChunk,
    SnapshotFetch,
    SnapshotGone,
    SnapshotOffer,
    SnapshotQuery,
)
from replog.transfer_outlet import Leaving, Outlet
from replog.transfer_receiving import PATIENCE_TICKS_MAX
from replog.transfer_window import WINDOW
from replog.types import EpochNumber, LogIndex, NodeId, Term, record

IDLE_TICKS: Final = 2 * PATIENCE_TICKS_MAX
"""A file for which nothing is asked is closed after so long; a patient receiver asks sooner."""

HOLD_TICKS: Final = 600
"""So long a query keeps the entries that its sender will need."""

STUCK_TICKS: Final = 6_000
"""Who has come no further for so long does not keep them any more: a log must not fill the disk
because one peer cannot take a snapshot."""


@record
class _Hold:
    """What one peer was heard to need."""

    index: LogIndex
    """The entries behind it are kept."""
    tick: int
    """When it was last heard."""
    came: tuple[LogIndex, int]
    """How far the peer has come: with which snapshot, and how many bytes of it."""
    came_tick: int
    """Since when it has come no further."""


class _Stream:
    """One file that one peer fetches."""

    __slots__ = ("fetches", "heard_tick", "info", "is_reading", "offset", "outgoing", "to")

    def __init__(self, to: NodeId, info: SnapshotInfo) -> None:
        self.to = to
        self.info = info
        self.outgoing: OutgoingSnapshot | None = None
        """Touched by jobs alone; ``None``: not open."""
        self.fetches: dict[int, int] = {}
        """What is asked for and not read yet: how many bytes at each offset, oldest first."""
        self.is_reading = False
        self.heard_tick = 0
        self.offset = 0


class _ReadJob:
    """Reads one chunk, and opens the file before if need be."""

    def __init__(self, sending: Sending, stream: _Stream, offset: int, bytes_max: int) -> None:
        self.stream = stream
        self.offset = offset
        self.data = b""
        self.failure: errors.ReplogError | None = None
        self._sending = sending
        self._bytes_max = bytes_max

    def run(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
        stream = self.stream
        try:
            if stream.outgoing is None:
                stream.outgoing = self._sending.store.outgoing(stream.info)
            self.data = stream.outgoing.read_chunk(self.offset, self._bytes_max)
        except (errors.SnapshotGone, errors.SnapshotDamaged) as error:
            self.failure = error

    def done(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
        self._sending.handle_read(self)


class _CloseJob:
    """Closes the file of a stream that ended."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def run(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
        if self._stream.outgoing is not None:
            self._stream.outgoing.close()

    def done(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""


class Sending:
    """What a node sends of its snapshots, to all its peers; see the module."""

    def __init__(
        self,
        node_id: NodeId,
        epoch: EpochNumber,
        limits: Limits,
        store: SnapshotStore,
        outlet: Outlet,
    ) -> None:
        self.store = store
        self.sent_bytes = 0
        self.problem = ""
        self._node_id = node_id
        self._epoch = epoch
        self._outlet = outlet
        self._chunk_bytes = limits.snapshot_chunk_bytes
        self._tick_bytes = max(
            limits.snapshot_bytes_per_second_max * limits.tick_ms // 1000, self._chunk_bytes
        )
        """What may be read in one tick."""
        self._budget_bytes = 0
        """What is left of it."""
        self._term: Term = 0
        self._tick = 0
        self._offered: SnapshotInfo | None = None
        self.unreadable: SnapshotInfo | None = None
        """What turned out to be gone or damaged; not offered again."""
        self._streams: dict[NodeId, _Stream] = {}
        """The one that was served last comes last."""
        self._holds: dict[NodeId, _Hold] = {}

    @property
    def kept_index(self) -> LogIndex | None:
        """The lowest index behind which a peer will need entries; ``None``: no peer does."""
        return min(
            (
                hold.index
                for hold in self._holds.values()
                if self._tick - hold.came_tick < STUCK_TICKS
            ),
            default=None,
        )

    @property
    def leaving(self) -> Sequence[Leaving]:
        """What every peer fetches."""
        return [
            Leaving(to, stream.info.meta.last.index, stream.offset, stream.info.size_bytes)
            for to, stream in sorted(self._streams.items())
        ]

    def tick(self, term: Term, offerable: SnapshotInfo | None) -> None:
        """One unit of time has passed; the node is in ``term`` and may offer ``offerable``.

        What becomes offerable between two ticks is offered after the second: so the term that is
        sent with a snapshot is never an earlier one than that in which its entries were learned.
        """
        self._tick += 1
        self._term = term
        self._offered = None if offerable == self.unreadable else offerable
        if self._offered is not None:
            self.problem = ""
        self._budget_bytes = self._tick_bytes
        for peer, hold in tuple(self._holds.items()):
            if self._tick - hold.tick >= HOLD_TICKS:
                del self._holds[peer]
        for stream in tuple(self._streams.values()):
            if self._tick - stream.heard_tick >= IDLE_TICKS:
                self._end(stream)
        self._read_more()

    def handle_query(self, message: SnapshotQuery) -> None:
        """A peer needs a snapshot; raises :class:`~replog.errors.SchemaError`."""
        if not message.index:
            raise errors.SchemaError(
                f"node {message.sender} asks for a snapshot that reaches index 0, which all do"
            )
        self._hold(message)
        info = self._offered
        stream = self._streams.get(message.sender)
        if stream is not None and stream.info.meta.last.index == message.fetching_index:
            info = stream.info  # it is open, and may be gone from the disk: let it come to its end
        if info is None or info.meta.last.index < message.index:
            return
        self._outlet.send(
            SnapshotOffer(
                epoch=self._epoch,
                term=self._term,
                sender=self._node_id,
                to=message.sender,
                size_bytes=info.size_bytes,
                checksum=info.checksum,
                meta=pack_meta(info.meta),
            )
        )

    def _hold(self, message: SnapshotQuery) -> None:
        came, now = (message.fetching_index, message.offset), self._tick
        hold = self._holds.get(message.sender)
        came_tick = hold.came_tick if hold is not None and hold.came == came else now
        held_index = message.fetching_index or message.index
        self._holds[message.sender] = _Hold(held_index, now, came, came_tick)

    def handle_progress(self, peer: NodeId, index: LogIndex, least: LogIndex) -> None:
        """A peer has come up to ``index``: what it was to be kept for is kept from there on, unless
        that is below ``least``."""
        hold = self._holds.get(peer)
        if hold is None or index < hold.index:
            return
        if index < least:
            del self._holds[peer]
        else:
            self._holds[peer] = _Hold(index, self._tick, hold.came, self._tick)

    def handle_fetch(self, message: SnapshotFetch) -> None:
        """A peer wants a piece of a snapshot; raises :class:`~replog.errors.SchemaError`."""
        if message.offset >= message.size_bytes or not message.bytes_max:
            raise errors.SchemaError(
                f"node {message.sender} asks for {message.bytes_max} bytes at offset "
                f"{message.offset} of a snapshot that has {message.size_bytes}"
            )
        stream = self._stream_for(message)
        if stream is None:
            self._refuse(message.sender, message.last_index, message.checksum)
            return
        stream.heard_tick = self._tick
        stream.fetches.pop(message.offset, None)
        stream.fetches[message.offset] = min(message.bytes_max, self._chunk_bytes)
        while len(stream.fetches) > WINDOW:
            del stream.fetches[next(iter(stream.fetches))]
        self._read_more()

    def handle_read(self, job: _ReadJob) -> None:
        """A chunk was read, or could not be."""
        stream = job.stream
        stream.is_reading = False
        if self._streams.get(stream.to) is not stream:
            return
        info = stream.info
        if job.failure is not None:
            self.problem = str(job.failure)
            self.unreadable = info
            if self._offered == info:
                self._offered = None
            self._end(stream)
            self._refuse(stream.to, info.meta.last.index, info.checksum)
            return
        stream.offset = job.offset + len(job.data)
        self.sent_bytes += len(job.data)
        self._outlet.send(
            SnapshotChunk(
                epoch=self._epoch,
                term=self._term,
                sender=self._node_id,
                to=stream.to,
                last_index=info.meta.last.index,
                checksum=info.checksum,
                offset=job.offset,
                data=job.data,
            )
        )
        self._read_more()

    def close(self) -> None:
        """Release every file; no job is on its way any more."""
        for stream in self._streams.values():
            _CloseJob(stream).run()
        self._streams.clear()

    def _stream_for(self, message: SnapshotFetch) -> _Stream | None:
        """The stream that the fetch belongs to, begun anew where the peer wants another file than
        before; ``None``: this node does not have the file."""
        wanted = (message.last_index, message.size_bytes, message.checksum)
        stream = self._streams.get(message.sender)
        if stream is not None and _name(stream.info) == wanted:
            return stream
        if self._offered is None or _name(self._offered) != wanted:
            return None
        if stream is not None:
            self._end(stream)
        stream = self._streams[message.sender] = _Stream(message.sender, self._offered)
        return stream

    def _end(self, stream: _Stream) -> None:
        del self._streams[stream.to]
        # A chunk of it may be on its way: jobs run in order, so that is read before.
        self._outlet.start(_CloseJob(stream))

    def _refuse(self, to: NodeId, last_index: LogIndex, checksum: int) -> None:
        self._outlet.send(
            SnapshotGone(
                epoch=self._epoch,
                term=self._term,
                sender=self._node_id,
                to=to,
                last_index=last_index,
                checksum=checksum,
            )
        )

    def _read_more(self) -> None:
        """Start what may be read now, the peer first that was served longest ago."""
        for stream in tuple(self._streams.values()):
            if stream.is_reading or not stream.fetches:
                continue
            offset, bytes_max = next(iter(stream.fetches.items()))
            size_bytes = min(bytes_max, stream.info.size_bytes - offset)
            if size_bytes > self._budget_bytes:
                # Nobody overtakes: who wants little would keep this one waiting for ever.
                return
            self._budget_bytes -= size_bytes
            del stream.fetches[offset]
            stream.is_reading = True
            self._streams[stream.to] = self._streams.pop(stream.to)
            self._outlet.start(_ReadJob(self, stream, offset, size_bytes))


def _name(info: SnapshotInfo) -> FileName:
    return (info.meta.last.index, info.size_bytes, info.checksum)
