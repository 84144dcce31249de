"""The receiving side of a transfer: asks for a snapshot, fetches it, and has it installed.

The rules:

* **Asked of everybody.**  As long as a snapshot is needed all peers are asked, again and again.
  Their offers of the very same file make them sources of it; one is fetched from at a time.
* **What is here is used.**  A file of which a part is here already goes before any other, for
  ``PART_TICKS``.  A part is thrown away only for a file that is better, when
  it is damaged, or when the log has gone past it.
* **Nothing is believed.**  The whole file is verified before it gets its name.  Who sent a damaged
  one is not asked for it again for a while, each time a longer one.
* **The term comes first.**  The snapshot is a fact, and gets its name only when the highest term of
  those who offered it and sent it is durable here.
* **In bounds.**  At most one file arrives at a time, and at most a window of it is in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from replog.errors import (
    DirectoryError,
    ReplogError,
    SchemaError,
    SnapshotDamaged,
    SnapshotFailed,
    SnapshotMisplaced,
    UnknownFormat,
)
from replog.limits import Limits
from replog.storage.snapshot_format import SNAPSHOT_BYTES_MIN, parse_meta
from replog.storage.snapshots import SnapshotStore, part_name
from replog.transfer_arrival import (
    STALL_TICKS,
    Arrival,
    FileName,
    Stage,
)
from replog.transfer_jobs import AppendJob, CloseJob, FinishJob, OpenJob, Part
from replog.transfer_messages import (
    SnapshotChunk,
    SnapshotFetch,
    SnapshotGone,
    SnapshotOffer,
    SnapshotQuery,
)
from replog.transfer_outlet import Arriving, Outlet
from replog.transfer_window import Piece, Window
from replog.types import NO_NODE, Epoch, LogIndex, NodeId, SnapshotMeta, Term

QUERY_TICKS: Final = 10
"""How often the peers are asked."""

PART_TICKS: Final = QUERY_TICKS + QUERY_TICKS // 2
"""So long a file of which a part is here goes before all others: two queries, and their answers."""

PATIENCE_TICKS_MAX: Final = 640
"""On a slow link the same is not asked for more often than it comes, but at least so often."""

DISTRUST_TICKS: Final = 200
"""So long a peer is not asked for a file that came damaged from it; doubled each time."""

NO_ROOM_TICKS: Final = 100
"""So long nothing is fetched after the disk was full."""

_DOUBLINGS_MAX: Final = 5


class Receiving:
    """How a node gets the snapshot that it needs; see the module."""

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
        self.problem = ""
        self.received_bytes = 0
        self._node_id = node_id
        self._epoch = epoch
        self._peer_ids = peer_ids
        self._machine = machine
        self._chunk_bytes = limits.snapshot_chunk_bytes
        self._store = store
        self._known_sections = known_sections
        self._outlet = outlet
        self._unfinished = store.unfinished
        """Names of what an earlier process left, as long as nothing was fetched since."""
        self._arrival: Arrival | None = None
        self._tick = 0
        self._term: Term = 0
        self._wanted_index: LogIndex = 0
        self._applied_index: LogIndex = 0
        self._query_tick = 0
        """When the peers are asked next."""
        self._seeking_tick = 0
        """Since when no source is known."""
        self._room_tick = 0
        """Nothing is fetched before, for there was no room."""
        self._distrusted: dict[tuple[NodeId, FileName], int] = {}
        """Until which tick a file is not taken from a node; ``NO_NODE``: from any."""
        self._damages = 0
        """In a row."""

    @property
    def arriving(self) -> Arriving | None:
        """What is being fetched."""
        arrival = self._arrival
        if arrival is None or arrival.stage is Stage.INSTALLING:
            return None
        last_index, size_bytes, _ = arrival.name
        return Arriving(last_index, arrival.window.offset, size_bytes, arrival.source)

    @property
    def held_bytes(self) -> int:
        """How many bytes of chunks are in memory."""
        return 0 if self._arrival is None else self._arrival.window.held_bytes

    @property
    def _is_needed(self) -> bool:
        return self._wanted_index > self._applied_index

    # -- time --

    def tick(self, term: Term, wanted_index: LogIndex, applied_index: LogIndex) -> None:
        """See :meth:`replog.transfer.Transfer.tick`."""
        was_needed = self._is_needed
        self._tick += 1
        self._term = term
        self._wanted_index, self._applied_index = wanted_index, applied_index
        arrival = self._arrival
        if arrival is not None and applied_index >= arrival.last_index:
            self._give_up(arrival)
        if not self._is_needed:
            self.problem = ""
            return
        if not was_needed:
            self._seeking_tick = self._query_tick = self._tick
            if self._arrival is not None:
                self._arrival.heard_tick = self._arrival.progress_tick = self._tick
        for known, until in tuple(self._distrusted.items()):
            if self._tick >= until:
                del self._distrusted[known]
        if self._tick >= self._query_tick:
            self._query()
        if self._arrival is not None:
            self._go_on(self._arrival)
        if not self.problem and self._has_sought_in_vain():
            self.problem = (
                f"no node offers a snapshot that reaches index {wanted_index}; start a node whose "
                "log or snapshot does"
            )

    def _query(self) -> None:
        self._query_tick = self._tick + QUERY_TICKS
        arrival = self._arrival
        for peer in self._peer_ids:
            self._outlet.send(
                SnapshotQuery(
                    epoch=self._epoch.number,
                    term=self._term,
                    sender=self._node_id,
                    to=peer,
                    index=self._wanted_index,
                    fetching_index=0 if arrival is None else arrival.last_index,
                    offset=0 if arrival is None else arrival.window.offset,
                )
            )

    def _seek(self) -> None:
        """No source is known any more: ask for one with the next tick."""
        self._seeking_tick = self._tick
        self._query_tick = self._tick + 1

    # -- what is offered --

    def handle_offer(self, message: SnapshotOffer) -> None:
        """A peer has a snapshot; raises :class:`~replog.errors.SchemaError`."""
        meta = self._read_offer(message)
        if meta is None or not self._may_take(message, meta):
            return
        name = (meta.last.index, message.size_bytes, message.checksum)
        arrival = self._arrival
        if arrival is None or self._is_better(arrival, name):
            if arrival is not None:
                self._give_up(arrival)
            arrival = self._arrival = Arrival(meta, message.size_bytes, message.checksum)
            self._unfinished = ()
            self._outlet.start(
                OpenJob(self, arrival.part, self._store, meta, message.size_bytes, message.checksum)
            )
        if (arrival.name, arrival.meta) != (name, meta):
            return
        arrival.sources[message.sender] = message.term
        arrival.offered[message.sender] = None
        if not arrival.source:
            self._use(arrival, message.sender)

    def _read_offer(self, message: SnapshotOffer) -> SnapshotMeta | None:
        """The meta of what is offered; ``None``: this release cannot read it."""
        source = f"the snapshot that node {message.sender} offers"
        if not SNAPSHOT_BYTES_MIN <= message.size_bytes < 1 << 63:
            raise SchemaError(f"{source} cannot have {message.size_bytes} bytes")
        try:
            return parse_meta(source, message.meta)
        except SchemaError as error:
            raise SchemaError(f"{source} cannot be one: {error}") from error
        except UnknownFormat as error:
            self.problem = str(error)
            return None

    def _may_take(self, message: SnapshotOffer, meta: SnapshotMeta) -> bool:
        """Whether the snapshot is for this node, and may be fetched from the sender now."""
        if not self._is_needed or meta.last.index < self._wanted_index:
            return False
        if complaint := self._complaint(message.sender, meta):
            self.problem = complaint
            return False
        if self._tick < self._room_tick:
            return False
        name = (meta.last.index, message.size_bytes, message.checksum)
        if (message.sender, name) in self._distrusted or (NO_NODE, name) in self._distrusted:
            return False
        # What an earlier process left may be offered by another node.
        part = part_name(meta.last, message.size_bytes, message.checksum)
        return not self._unfinished or part in self._unfinished or self._has_sought()

    def _complaint(self, sender: NodeId, meta: SnapshotMeta) -> str:
        """Why the snapshot is none for this node, in one sentence; empty if it is one."""
        if meta.machine != self._machine:
            return (
                f"node {sender} offers a snapshot of the state machine {meta.machine!r}, and this "
                f"node runs {self._machine!r}; configure the same one on every node"
            )
        if meta.epoch.number != self._epoch.number:
            return (
                f"node {sender} offers a snapshot of epoch {meta.epoch.number}, and this node "
                f"knows epoch {self._epoch.number} alone; upgrade this node"
            )
        if meta.epoch != self._epoch:
            return (
                f"node {sender} offers a snapshot of a cluster with another founding record; one "
                "of the two directories is another cluster's: put the right one back"
            )
        return ""

    def _is_better(self, arrival: Arrival, name: FileName) -> bool:
        """Whether what arrives is to be given up for another file."""
        if name == arrival.name or arrival.stage in (Stage.FINISHING, Stage.INSTALLING):
            return False
        if arrival.last_index < self._wanted_index:
            return True
        return not arrival.source and (not arrival.window.offset or self._has_sought())

    def _has_sought(self) -> bool:
        """Whether everybody had the time to offer the file of which a part is here."""
        return self._tick - self._seeking_tick >= PART_TICKS

    def _has_sought_in_vain(self) -> bool:
        """Whether nobody is known who has what is needed, although everybody was asked twice."""
        arrival = self._arrival
        if arrival is not None and (arrival.source or arrival.window.is_complete):
            return False
        return self._tick - self._seeking_tick >= 2 * QUERY_TICKS

    # -- what is fetched --

    def _use(self, arrival: Arrival, source: NodeId) -> None:
        """Fetch from ``source`` from now on."""
        self.problem = ""
        arrival.source = source
        arrival.stalls = 0
        arrival.heard_tick = self._tick
        arrival.window.piece_bytes = self._chunk_bytes
        self._observe(arrival, arrival.sources[source])
        if arrival.stage is Stage.FETCHING:
            self._fetch(arrival, arrival.window.missing())
            self._fetch_more(arrival)

    def _observe(self, arrival: Arrival, term: Term) -> None:
        if term > arrival.term:
            arrival.term = term
            self._outlet.observe_term(term)

    def _fetch(self, arrival: Arrival, pieces: Sequence[Piece]) -> None:
        last_index, size_bytes, checksum = arrival.name
        for piece in pieces:
            self._outlet.send(
                SnapshotFetch(
                    epoch=self._epoch.number,
                    term=self._term,
                    sender=self._node_id,
                    to=arrival.source,
                    last_index=last_index,
                    size_bytes=size_bytes,
                    checksum=checksum,
                    offset=piece.offset,
                    bytes_max=piece.size_bytes,
                )
            )

    def _fetch_more(self, arrival: Arrival) -> None:
        if arrival.source and self._is_needed:
            if not arrival.window.missing():
                arrival.heard_tick = arrival.progress_tick = self._tick
            self._fetch(arrival, arrival.window.extend())

    def handle_chunk(self, message: SnapshotChunk) -> None:
        """A piece came; raises :class:`~replog.errors.SchemaError`."""
        if not 0 < len(message.data) <= self._chunk_bytes:
            raise SchemaError(
                f"node {message.sender} sent {len(message.data)} bytes of a snapshot at once, and "
                f"was asked for 1 to {self._chunk_bytes}"
            )
        arrival = self._arrival
        if arrival is None or arrival.stage is not Stage.FETCHING:
            return
        last_index, size_bytes, checksum = arrival.name
        if (message.last_index, message.checksum) != (last_index, checksum):
            return
        if message.offset + len(message.data) > size_bytes:
            raise SchemaError(
                f"node {message.sender} sent {len(message.data)} bytes at offset {message.offset} "
                f"of a snapshot that has {size_bytes}"
            )
        if message.sender not in arrival.offered:
            return
        self._hear(arrival)
        if not arrival.window.take(message.offset, message.data):
            return
        self.received_bytes += len(message.data)
        arrival.contributors[message.sender] = None
        self._observe(arrival, message.term)
        while (piece := arrival.window.next_to_write()) is not None:
            assert piece.data is not None
            self._outlet.start(AppendJob(self, arrival.part, piece.offset, piece.data))
        self._fetch_more(arrival)

    def _hear(self, arrival: Arrival) -> None:
        """A chunk came, be it one that came before: the link lives, and what is missing is behind
        it.  The next one may take as long, so nothing is asked for twice on a slow link."""
        gap_ticks = self._tick - arrival.progress_tick
        arrival.patience_ticks = min(max(2 * gap_ticks, STALL_TICKS), PATIENCE_TICKS_MAX)
        arrival.heard_tick = arrival.progress_tick = self._tick
        arrival.stalls = 0

    def handle_gone(self, message: SnapshotGone) -> None:
        """A peer has the file no more."""
        arrival = self._arrival
        if arrival is None or arrival.stage not in (Stage.OPENING, Stage.FETCHING):
            return
        last_index, _, checksum = arrival.name
        if (message.last_index, message.checksum) == (last_index, checksum):
            self._leave(arrival, message.sender)

    def _leave(self, arrival: Arrival, source: NodeId) -> None:
        """Fetch from ``source`` no more, until it offers the file again."""
        arrival.sources.pop(source, None)
        if arrival.source != source:
            return
        arrival.source = NO_NODE
        if arrival.sources:
            self._use(arrival, next(iter(arrival.sources)))
        elif not arrival.window.is_complete:
            self._seek()

    def _go_on(self, arrival: Arrival) -> None:
        """A tick has passed and the snapshot is still needed."""
        if arrival.stage is not Stage.FETCHING:
            return
        if arrival.window.is_complete:
            self._maybe_finish(arrival)
        elif arrival.source:
            waited_ticks = self._tick - arrival.heard_tick
            if arrival.window.missing() and waited_ticks >= arrival.patience_ticks:
                self._handle_stall(arrival)
            self._fetch_more(arrival)

    def _handle_stall(self, arrival: Arrival) -> None:
        """Nothing has come for too long: ask again, and the second time somebody else."""
        arrival.stalls += 1
        arrival.heard_tick = self._tick
        if arrival.stalls == 1:
            self._fetch(arrival, arrival.window.missing())
            return
        arrival.patience_ticks = min(2 * arrival.patience_ticks, PATIENCE_TICKS_MAX)
        self._leave(arrival, arrival.source)

    def _maybe_finish(self, arrival: Arrival) -> None:
        """Verify and publish what has come whole, once its term is durable."""
        if not arrival.window.is_complete or not self._is_needed:
            return
        if self._outlet.durable_term() >= arrival.term:
            arrival.stage = Stage.FINISHING
            self._outlet.start(FinishJob(self, arrival.part, self._known_sections))

    # -- what the jobs did --

    def handle_opened(self, job: OpenJob) -> None:
        """The file of an arrival is open, or could not be made."""
        arrival = self._arrival_of(job.part)
        if arrival is None:
            return
        if job.failure is not None:
            self._handle_failure(arrival, job.failure)
            return
        arrival.stage = Stage.FETCHING
        arrival.window = Window(job.offset, arrival.name[1], self._chunk_bytes)
        arrival.heard_tick = self._tick
        self._fetch_more(arrival)
        self._maybe_finish(arrival)

    def handle_appended(self, job: AppendJob) -> None:
        """A piece is written, or could not be."""
        arrival = self._arrival_of(job.part)
        if arrival is None:
            return
        if job.failure is not None:
            self._handle_failure(arrival, job.failure)
            return
        arrival.window.advance()
        self._fetch_more(arrival)
        self._maybe_finish(arrival)

    def handle_finished(self, job: FinishJob) -> None:
        """A snapshot is published, or was refused."""
        arrival = self._arrival_of(job.part)
        if arrival is None:
            return
        if job.failure is not None:
            self._handle_failure(arrival, job.failure)
            return
        assert job.info is not None
        arrival.stage = Stage.INSTALLING
        self._damages = 0
        self.problem = ""
        self._outlet.install(job.info)

    def _arrival_of(self, part: Part) -> Arrival | None:
        """The arrival that a job belongs to; ``None``: it was given up meanwhile."""
        arrival = self._arrival
        return arrival if arrival is not None and arrival.part is part else None

    def _handle_failure(self, arrival: Arrival, failure: ReplogError) -> None:
        """What arrived is lost; go on with what its loss teaches."""
        self.problem = str(failure)
        if isinstance(failure, SnapshotFailed):
            self._room_tick = self._tick + NO_ROOM_TICKS
        elif isinstance(failure, UnknownFormat | SchemaError):
            # Whoever has it, this release cannot read it.
            self._distrust(arrival, [NO_NODE])
        elif isinstance(failure, SnapshotDamaged | DirectoryError):
            self._distrust(arrival, list(arrival.contributors))
        else:
            assert isinstance(failure, SnapshotMisplaced), failure
        self._give_up(arrival)
        self._seek()

    def _distrust(self, arrival: Arrival, nodes: Sequence[NodeId]) -> None:
        ticks = DISTRUST_TICKS << min(self._damages, _DOUBLINGS_MAX)
        self._damages += 1
        for node_id in nodes:
            self._distrusted[(node_id, arrival.name)] = self._tick + ticks

    def _give_up(self, arrival: Arrival) -> None:
        """Remove what has arrived of a snapshot, unless it is published."""
        assert arrival is self._arrival
        self._arrival = None
        if arrival.stage is not Stage.INSTALLING:
            self._outlet.start(CloseJob(arrival.part, is_abort=True))

    def close(self) -> None:
        """Release the file and keep what arrived; no job is on its way any more."""
        if self._arrival is not None:
            CloseJob(self._arrival.part, is_abort=False).run()
            self._arrival = None
