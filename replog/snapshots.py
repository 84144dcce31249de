"""The snapshots of one node: when one is taken, what is trimmed behind it, how one is installed.

A log that only grows fills every disk, and a new node would apply all of it.  So now and then the
state of the machine is written to a *snapshot* (Raft §7), which stands for every entry up to its
last one, and the log behind it is trimmed, but for a margin that slow peers may still ask for.

The rules:

* A snapshot is taken when ``limits.snapshot_entries`` entries were applied since the last one, or
  ``limits.snapshot_log_bytes`` were written to the log, or somebody asks for it.
* The log is trimmed only when the snapshot is durable, and keeps what a peer that fetches a
  snapshot just now will need behind that.
* What a machine on its own disk keeps of answers is forgotten only when a durable snapshot holds
  the sessions in its place.
* A snapshot from another node is installed only when it is durable here, under its name, and the
  term of its sender is durable too (:mod:`replog.transfer`).  Nothing is applied while the machine
  is filled from it, and what it holds is not applied again.

Reading and writing happen in *jobs*, in a thread of the driver's, one at a time and in order; what
is decided is decided on the event loop.  The trio node and the simulator both drive this object, by
way of :mod:`replog.turns`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias, cast

from replog.chunks import pack_chunks
from replog.errors import SnapshotFailed, SnapshotUnavailable
from replog.limits import Limits
from replog.loading import (
    KNOWN_SECTIONS,
    SECTION,
    SESSIONS_SECTION,
    Loaded,
    fill_machine,
    told_of_machine,
)
from replog.machine import (
    ConcurrentMachine,
    Machine,
    MachineKind,
    SnapshotMachine,
    answer_keeper,
    machine_kind,
)
from replog.replica import Replica
from replog.sessions import FORM
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore
from replog.transfer import Transfer
from replog.transfer_outlet import Job, Outlet, TransferPicture
from replog.types import Epoch, LogIndex, NodeId, SnapshotMeta, Status, record

LAG_MARGINS: Final = 20
"""For a peer that comes on behind a snapshot, a leader keeps up to so many times the margin."""

SnapshotTaken: TypeAlias = Callable[[SnapshotInfo | None, Exception | None], None]
"""Is told what came of a snapshot that somebody asked for; must not raise."""


@record
class SnapshotsPicture:
    """A read-only picture of a node's snapshots for people, metrics and tests."""

    newest_index: LogIndex
    """Where the newest durable one ends; 0: there is none."""
    problem: str
    """Why the last one came to nothing, or none comes from elsewhere although one is needed; empty
    when nothing is wrong."""
    transfer: TransferPicture


NO_SNAPSHOTS: Final = SnapshotsPicture(0, "", TransferPicture(None, (), 0, 0, ""))
"""Of a node that has none, needs none and sends none."""


@record
class SnapshotSetup:
    """What a node knows of its snapshots when it starts."""

    store: SnapshotStore
    newest: SnapshotInfo | None
    """The newest one in the store, which is durable."""
    machine: str
    """The name of the state machine: nobody's snapshot fits another one."""
    epoch: Epoch


@record
class SnapshotSurroundings:
    """What the snapshots of a node act on; none of these may call back before it returns."""

    send: Callable[[object], None]
    """Put a message on its way to the peer that it names."""
    start_job: Callable[[Job], None]
    """Have a job run in another thread, after those before it; when it has run,
    :meth:`replog.turns.Turns.handle_job` is called.  These take as long as the machine is large."""
    start_transfer: Callable[[Job], None]
    """The same for the small jobs of transfers, which must not wait for the others: a source that
    is silent while it takes a snapshot of its own would be given up."""
    written_bytes: Callable[[], int]
    """How many bytes were written to the log since the node was started."""
    report: Callable[[str, LogIndex, str], None]
    """Something worth a line in a log has happened: its name, up to which index, and why, where it
    is a failure (else empty)."""


class Snapshots:
    """Takes, trims, sends and installs; see the module."""

    def __init__(
        self,
        node_id: NodeId,
        replica: Replica,
        limits: Limits,
        setup: SnapshotSetup,
        surroundings: SnapshotSurroundings,
    ) -> None:
        self.epoch = setup.epoch
        """The one in force."""
        self.newest = setup.newest
        """The newest snapshot that is durable here."""
        self.is_installing = False
        """Whether the machine is being filled; nothing may be applied, nor the machine be asked."""
        self.problem = ""
        """Why the last snapshot came to nothing; empty: it did not."""
        self._replica = replica
        self._kind = machine_kind(replica.machine)
        self._keeper = answer_keeper(replica.machine)
        self._limits = limits
        self._store = setup.store
        self._setup = setup
        self._surroundings = surroundings
        self._came: dict[NodeId, LogIndex] = {}
        """How far each peer had come when a leader last looked."""
        self._is_ending = False
        self._taking: _Taking | None = None
        self._askers: list[tuple[LogIndex, SnapshotTaken]] = []
        """Who asked for a snapshot, each with what was applied when they did: one that was begun
        before does not hold that."""
        self._begun_index: LogIndex = self.newest.meta.last.index if self.newest else 0
        """The last index of the last snapshot that was begun, and ..."""
        self._begun_bytes = surroundings.written_bytes()
        """... what had been written to the log then."""
        self._trimmed_index: LogIndex = replica.engine.status().base_index
        peer_ids = tuple(peer for peer in setup.epoch.voter_ids if peer != node_id)
        self.transfer = Transfer(
            node_id,
            setup.epoch,
            peer_ids,
            setup.machine,
            limits,
            setup.store,
            KNOWN_SECTIONS,
            Outlet(
                send=surroundings.send,
                start=surroundings.start_transfer,
                observe_term=replica.engine.observe_term,
                durable_term=lambda: replica.engine.status().durable_term,
                install=self._install,
            ),
        )
        self.transfer.offerable = self.newest

    # -- what arrives --

    def tick(self) -> None:
        """One unit of time has passed."""
        status = self._replica.engine.status()
        if self._kind is MachineKind.PLAIN and status.wanted_index:
            self.problem = (
                f"the other nodes have trimmed entries up to {status.wanted_index}, of which this "
                "one lacks some, and its state machine cannot be filled from a snapshot; give it "
                "the methods snapshot() and restore()"
            )
        if status.durable_term == status.term:
            # What is offered is a fact, and may be one of this very term.
            wanted_index = 0 if self._kind is MachineKind.PLAIN else status.wanted_index
            self.transfer.tick(status.term, wanted_index, self._replica.applied_index)
        self._follow_laggards(status)
        self._maybe_trim()
        self._serve_askers()
        if self.newest is not None and self.newest == self.transfer.unreadable:
            self._maybe_take()  # a peer wants one, and this one is of no use

    def note_applied(self) -> None:
        """Something was applied: take a snapshot if it is time for one."""
        limits = self._limits
        if (
            self._replica.applied_index - self._begun_index >= limits.snapshot_entries
            or self._surroundings.written_bytes() - self._begun_bytes >= limits.snapshot_log_bytes
        ):
            self._maybe_take()

    def take(self, asker: SnapshotTaken) -> None:
        """Take a snapshot of what is applied now, and tell ``asker`` what came of it.

        Raises :class:`~replog.errors.SnapshotUnavailable` for a machine that offers none.
        """
        if self._kind is MachineKind.PLAIN:
            raise SnapshotUnavailable(
                f"the state machine {self._setup.machine!r} offers no snapshots; give it the "
                "methods snapshot() and restore()"
            )
        if not self._replica.applied_index:
            raise SnapshotUnavailable("nothing was applied yet: there is nothing to snapshot")
        self._askers.append((self._replica.applied_index, asker))
        self._serve_askers()

    def end(self, error: Exception) -> None:
        """The node stops: answer everybody who waits."""
        self._answer(None, error)

    @property
    def picture(self) -> SnapshotsPicture:
        """A read-only picture."""
        return SnapshotsPicture(
            0 if self.newest is None else self.newest.meta.last.index,
            self.problem or self.transfer.problem,
            self.transfer.picture,
        )

    # -- taking --

    def _serve_askers(self) -> None:
        """Give out the newest snapshot to those for whom it will do, and begin one for the rest."""
        is_readable = self.newest != self.transfer.unreadable
        if self._askers and self.newest is not None and is_readable:
            self._answer(self.newest, None)
        if self._askers and self._taking is None and not self.is_installing:
            self._maybe_take()

    def _answer(self, info: SnapshotInfo | None, failure: Exception | None) -> None:
        """Tell the askers for whom a snapshot will do, or all of them that none comes."""
        reach = None if info is None else info.meta.last.index
        askers, self._askers = self._askers, []
        for index, asker in askers:
            if reach is None or index <= reach:
                asker(info, failure)
            else:
                self._askers.append((index, asker))

    def _maybe_take(self) -> None:
        """Begin a snapshot of what is applied, unless there is one of as much, or one under way."""
        index = self._replica.applied_index
        is_readable = self.newest is not None and self.newest != self.transfer.unreadable
        newest_index = self.newest.meta.last.index if self.newest and is_readable else 0
        status = self._replica.engine.status()
        if (
            self._kind is MachineKind.PLAIN
            or self._taking is not None
            or self.is_installing
            or index <= newest_index
            # What it holds may be of this very term, with which it will be offered.
            or status.durable_term != status.term
        ):
            return
        self._begun_index, self._begun_bytes = index, self._surroundings.written_bytes()
        meta = SnapshotMeta(
            self._replica.engine.snapshot_id(index),
            self._setup.epoch,
            self._replica.time_ms,
            self._setup.machine,
            self._replica.learners,
            self._replica.highest_term,
        )
        try:
            chunks = _frozen(self._replica.machine)
        except SnapshotUnavailable as refusal:
            self.problem = str(refusal)
            self._surroundings.report("snapshot_failed", index, self.problem)
            self._answer(None, refusal)
            return
        sessions = self._replica.sessions
        frozen = sessions.freeze() if sessions.were_used else None
        self._taking = _Taking(self, meta, chunks, frozen)
        self._surroundings.start_job(self._taking)

    def end_taking(self, info: SnapshotInfo | None, failure: Exception | None) -> None:
        """The snapshot that was being taken is durable, or came to nothing."""
        assert self._taking is not None
        index, self._taking = self._taking.index, None
        if info is None and self._is_ending:
            return  # given up; who waits for it is answered by ``end``
        self.problem = "" if failure is None else str(failure)
        event = "snapshot_failed" if failure else "snapshot_taken"
        self._surroundings.report(event, index, self.problem)
        if info is not None:
            self._note_newest(info)
        self._answer(info, failure)
        self._serve_askers()
        if failure is None:
            self.note_applied()  # the next may have become due meanwhile

    def _note_newest(self, info: SnapshotInfo) -> None:
        newest = self.newest
        if (
            newest is None
            or newest == self.transfer.unreadable
            or info.meta.last.index > newest.meta.last.index
        ):
            self.newest = self.transfer.offerable = info
            if self._keeper is not None and not self.is_installing:
                self._keeper.forget_answers(info.meta.last.index)
            self._maybe_trim()

    def _maybe_trim(self) -> None:
        """Trim what the newest snapshot holds, but for the margin and what peers will need."""
        if self.newest is None:
            return
        upto = self.newest.meta.last.index - self._limits.trim_margin_entries
        kept_index = self.transfer.kept_index
        if kept_index is not None:
            upto = min(upto, kept_index)
        if self._trimmed_index < upto <= self._replica.applied_index:
            trimmed_index = self._replica.engine.trim(upto)
            if trimmed_index > self._trimmed_index:
                self._trimmed_index = trimmed_index
                self._surroundings.report("log_trimmed", trimmed_index, "")

    def _follow_laggards(self, status: Status) -> None:
        """A peer that has just installed a snapshot still lacks what came after it, and would soon
        need the next one: a leader keeps that while the peer comes on, up to a bound."""
        if self.newest is None:
            return
        most = LAG_MARGINS * self._limits.trim_margin_entries
        for peer in status.peers:
            if peer.match_index != self._came.get(peer.node_id):
                self._came[peer.node_id] = peer.match_index
                least = self.newest.meta.last.index - most
                self.transfer.handle_progress(peer.node_id, peer.match_index, least)

    # -- installing --

    def _install(self, info: SnapshotInfo) -> None:
        """A snapshot has arrived and is durable: have the machine filled from it, unless that holds
        as much already."""
        if info.meta.last.index <= self._replica.applied_index:
            self._note_newest(info)
            return
        assert not self.is_installing
        self.is_installing = True
        self._surroundings.start_job(_Installing(self, info))

    def fill_machine(self, info: SnapshotInfo) -> Loaded:
        """Fill the machine from a snapshot that was verified.  Blocks."""
        loaded = fill_machine(self._replica.machine, self._store, info)
        self._store.remove_older()
        return loaded

    def end_installing(self, info: SnapshotInfo, loaded: Loaded) -> None:
        """The machine holds what the snapshot does."""
        self.is_installing = False
        self._replica.install(info.meta, loaded.sessions)
        self._surroundings.report("snapshot_installed", info.meta.last.index, "")
        self._begun_index = max(self._begun_index, info.meta.last.index)
        self._begun_bytes = self._surroundings.written_bytes()
        self._trimmed_index = self._replica.engine.status().base_index
        self._note_newest(info)

    def give_up(self) -> None:
        """The node is about to stop: a snapshot that is being written comes to nothing."""
        self._is_ending = True

    def close(self) -> None:
        """The node stops, and no job runs any more: release the files.  Blocks."""
        self.transfer.close()

    def write(
        self, meta: SnapshotMeta, chunks: Iterable[bytes], sessions: Iterable[bytes] | None
    ) -> SnapshotInfo:
        """Write a snapshot, make it durable, and remove those before it.  Blocks."""
        with self._store.begin(meta) as writer:
            if sessions is not None:
                # First, so that a node whose machine has files of its own need not read on.
                writer.section(SESSIONS_SECTION, mandatory=True)
                for chunk in pack_chunks(FORM, sessions):
                    writer.write(chunk)
            writer.section(SECTION, mandatory=True)
            for chunk in _told(chunks):
                if self._is_ending:
                    raise SnapshotUnavailable("the node stops before the snapshot is whole")
                writer.write(chunk)
            info = writer.publish()
        if self._store.remove_older() < info.meta.last.index:
            raise SnapshotFailed(
                f"{info.path} was written and is damaged when it is read again, so the log is "
                "kept; check the disk"
            )
        return info


class _Taking:
    """Writes one snapshot."""

    def __init__(
        self,
        snapshots: Snapshots,
        meta: SnapshotMeta,
        chunks: Iterable[bytes],
        sessions: Iterable[bytes] | None,
    ) -> None:
        self._snapshots = snapshots
        self._meta = meta
        self._chunks = chunks
        self._sessions = sessions
        self._info: SnapshotInfo | None = None
        self._failure: Exception | None = None

    @property
    def index(self) -> LogIndex:
        """Up to where the snapshot reaches."""
        return self._meta.last.index

    def run(self) -> None:
        """See :class:`~replog.transfer.Job`."""
        try:
            self._info = self._snapshots.write(self._meta, self._chunks, self._sessions)
        except (SnapshotFailed, SnapshotUnavailable) as failure:
            self._failure = failure

    def done(self) -> None:
        """See :class:`~replog.transfer.Job`."""
        self._snapshots.end_taking(self._info, self._failure)


class _Installing:
    """Fills the machine from one snapshot."""

    def __init__(self, snapshots: Snapshots, info: SnapshotInfo) -> None:
        self._snapshots = snapshots
        self._info = info
        self._loaded: Loaded | None = None

    def run(self) -> None:
        """See :class:`~replog.transfer.Job`."""
        self._loaded = self._snapshots.fill_machine(self._info)

    def done(self) -> None:
        """See :class:`~replog.transfer.Job`."""
        assert self._loaded is not None
        self._snapshots.end_installing(self._info, self._loaded)


def _frozen(machine: Machine) -> Iterable[bytes]:
    """The chunks of a snapshot as of now; of a machine that must stand still, all at once."""
    with told_of_machine("its snapshot was taken"):
        if machine_kind(machine) is MachineKind.IN_MEMORY:
            return list(cast(SnapshotMachine, machine).snapshot())
        return cast(ConcurrentMachine, machine).freeze()


def _told(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks as the machine gives them."""
    with told_of_machine("its snapshot was taken"):
        yield from chunks
