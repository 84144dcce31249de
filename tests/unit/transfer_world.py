"""Nodes that send each other snapshots, over a network that loses, doubles and reorders."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from replog.limits import Limits
from replog.storage.snapshot_format import pack_meta
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore
from replog.testing.files import ForgetfulFiles, KeepNothing
from replog.transfer import Job, Outlet, Transfer
from replog.transfer_messages import (
    TRANSFER_SPECS,
    SnapshotChunk,
    SnapshotFetch,
    SnapshotGone,
    SnapshotOffer,
    SnapshotQuery,
    TransferMessage,
)
from replog.types import EntryId, Epoch, LogIndex, NodeId, SnapshotMeta, Voter
from replog.wire import HEADER_BYTES, MessageCodec

NODE = Path("/node")
EPOCH = Epoch(1, "fast", tuple(Voter(node_id, 10 + node_id) for node_id in (1, 2, 3, 4)), 1)
CHUNK_BYTES = 700
SYNC_BYTES = 2000
LIMITS = Limits(snapshot_chunk_bytes=CHUNK_BYTES, snapshot_bytes_per_second_max=1 << 30)
CODEC = MessageCodec((), LIMITS, TRANSFER_SPECS)
STATE_BYTES = 20_000
INDEX = 40


def meta_of(index: LogIndex, epoch: Epoch = EPOCH, machine: str = "kv") -> SnapshotMeta:
    """The meta of a snapshot that ends with ``index``."""
    return SnapshotMeta(EntryId(1, 3, index), epoch, 1000 * index, machine)


class Member:
    """A node: a disk that outlives it, a transfer, and the jobs that wait."""

    def __init__(self, node_id: NodeId, world: World, limits: Limits) -> None:
        self.node_id = node_id
        self.world = world
        self.limits = limits
        self.files = ForgetfulFiles()
        self.files.make_directory(NODE)
        self.files.sync_directory(NODE.parent)
        self.cluster_id = "demo"
        self.term = 5
        self.durable_term = 5
        self.wanted_index: LogIndex = 0
        self.applied_index: LogIndex = 0
        self.is_down = False
        self.is_stuck = False
        """Its jobs wait."""
        self.installed: list[SnapshotInfo] = []
        self.sent: list[TransferMessage] = []
        self.observed: list[int] = []
        self.held_bytes_max = 0
        self.start()

    def start(self) -> None:
        """Start the node on what its disk holds."""
        self.waiting: deque[Job] = deque()
        self.ran: deque[Job] = deque()
        self.store = SnapshotStore(self.files, NODE, self.cluster_id, SYNC_BYTES)
        recovered = self.store.recover()
        self.transfer = Transfer(
            node_id=self.node_id,
            epoch=EPOCH,
            peer_ids=[peer for peer in self.world.node_ids if peer != self.node_id],
            machine="kv",
            limits=self.limits,
            store=self.store,
            known_sections=("machine",),
            outlet=Outlet(
                send=self.send,
                start=self.waiting.append,
                observe_term=self.observe,
                durable_term=lambda: self.durable_term,
                install=self.installed.append,
            ),
        )
        self.transfer.offerable = recovered
        self.is_down = False

    def crash(self) -> None:
        """A power cut, and a new start."""
        self.files.crash(KeepNothing())
        self.start()

    def send(self, message: object) -> None:
        """Put a message into the network of the world."""
        assert isinstance(
            message, SnapshotQuery | SnapshotOffer | SnapshotFetch | SnapshotChunk | SnapshotGone
        )
        assert message.sender == self.node_id
        assert message.term <= self.term
        self.sent.append(message)
        self.world.put(message)

    def observe(self, term: int) -> None:
        """Enter a term, which is durable later."""
        self.observed.append(term)
        self.term = max(self.term, term)

    def publish(self, index: LogIndex, state: bytes | None = None, **meta: object) -> SnapshotInfo:
        """Take a snapshot, and offer it."""
        with self.store.begin(replace(meta_of(index), **meta)) as writer:  # type: ignore[arg-type]
            writer.section("machine", mandatory=True)
            writer.write(Random(index).randbytes(STATE_BYTES) if state is None else state)
            self.transfer.offerable = writer.publish()
        return self.transfer.offerable

    def tick(self) -> None:
        """One tick; what is installed is applied."""
        if self.installed:
            self.applied_index = max(self.applied_index, self.installed[-1].meta.last.index)
        self.transfer.tick(self.term, self.wanted_index, self.applied_index)

    def work(self, dice: Random) -> None:
        """Run some of the jobs, and tell some of those that ran."""
        while self.waiting and dice.random() < self.world.job_chance:
            job = self.waiting.popleft()
            job.run()
            self.ran.append(job)
            while self.ran and dice.random() < self.world.job_chance:
                self.ran.popleft().done()
        while self.ran and dice.random() < self.world.job_chance:
            self.ran.popleft().done()

    def chunk_bytes(self) -> int:
        """How many bytes of chunks it sent."""
        return sum(len(m.data) for m in self.sent if isinstance(m, SnapshotChunk))

    def offset(self) -> int:
        """How far its snapshot has arrived."""
        arriving = self.transfer.picture.arriving
        return arriving.offset if arriving is not None else 0

    def names(self) -> list[str]:
        """What its directory holds."""
        return self.files.names(NODE)


class World:
    """Nodes and the messages between them, all drawn from one seed."""

    def __init__(
        self,
        seed: int = 0,
        nodes: int = 2,
        loss: float = 0.0,
        delay_ticks: int = 0,
        job_chance: float = 1.0,
        limits: Limits = LIMITS,
    ) -> None:
        self.dice = Random(seed)
        self.loss = loss
        self.delay_ticks = delay_ticks
        self.job_chance = min(job_chance, 0.99) if job_chance < 1 else 1.0
        self.now = 0
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.flights: list[tuple[int, float, bytes, NodeId]] = []
        self.log: list[bytes] = []
        self.node_ids = tuple(range(1, nodes + 1))
        self.members = {node_id: Member(node_id, self, limits) for node_id in self.node_ids}

    def __getitem__(self, node_id: NodeId) -> Member:
        return self.members[node_id]

    def put(self, message: TransferMessage) -> None:
        """Lose a message, or let it come once or twice, in any order."""
        frame = CODEC.encode(message)
        self.log.append(frame)
        if (message.sender, message.to) in self.cut or self.members[message.sender].is_down:
            return
        copies = 2 if self.dice.random() < self.loss else 1
        for _ in range(copies):
            if self.dice.random() >= self.loss:
                due = self.now + self.dice.randint(0, self.delay_ticks)
                at = self.dice.random() if self.loss else len(self.log)
                self.flights.append((due, at, frame, message.to))

    def deliver(self) -> None:
        """Hand over what is due, and do the work, until nothing more happens in this tick."""
        for _ in range(50):
            due = sorted(flight for flight in self.flights if flight[0] <= self.now)
            self.flights = [flight for flight in self.flights if flight[0] > self.now]
            for _, _, frame, to in due:
                member = self.members[to]
                if not member.is_down:
                    message = CODEC.decode(frame[3], frame[HEADER_BYTES:])
                    member.transfer.step(message)  # type: ignore[arg-type]
                    held = member.transfer.held_bytes
                    member.held_bytes_max = max(member.held_bytes_max, held)
            for member in self.members.values():
                if not member.is_down and not member.is_stuck:
                    member.work(self.dice)
            busy = any(m.waiting or m.ran for m in self.members.values() if not m.is_stuck)
            more = any(flight[0] <= self.now for flight in self.flights)
            if not due and not more and (self.job_chance < 1 or not busy):
                return

    def tick(self) -> None:
        """One tick everywhere."""
        self.now += 1
        for member in self.members.values():
            if not member.is_down:
                member.tick()
        self.deliver()

    def run_until(self, condition: Callable[[], object], ticks: int = 3000) -> int:
        """Tick until the condition holds; how many ticks it took."""
        for count in range(ticks):
            if condition():
                return count
            self.tick()
        raise AssertionError(f"it did not happen within {ticks} ticks")

    def run(self, ticks: int) -> None:
        """Tick so often."""
        for _ in range(ticks):
            self.tick()


def slow(chunks: int = 1) -> Limits:
    """Limits under which so many chunks leave in a tick."""
    per_second = chunks * CHUNK_BYTES * 1000 // LIMITS.tick_ms
    return replace(LIMITS, snapshot_bytes_per_second_max=per_second)


def check_arrived(member: Member, info: SnapshotInfo, source: Member) -> None:
    """Assert that a snapshot is here as it is there, and was installed once."""
    assert [(at.meta, at.size_bytes, at.checksum) for at in member.installed] == [
        (info.meta, info.size_bytes, info.checksum)
    ]
    assert member.files.read(info.path) == source.files.read(info.path)
    assert not [name for name in member.names() if name.endswith((".part", ".tmp"))]


def query_of(
    index: LogIndex, fetching_index: LogIndex = 0, to: NodeId = 2, offset: int = 0
) -> SnapshotQuery:
    """A query of node 1."""
    return SnapshotQuery(
        epoch=1,
        term=5,
        sender=1,
        to=to,
        index=index,
        fetching_index=fetching_index,
        offset=offset,
    )


def offer_of(info: SnapshotInfo, meta: SnapshotMeta | None = None) -> SnapshotOffer:
    """What node 2 would say of ``info`` to node 1."""
    return SnapshotOffer(
        epoch=1,
        term=5,
        sender=2,
        to=1,
        size_bytes=info.size_bytes,
        checksum=info.checksum,
        meta=pack_meta(meta or info.meta),
    )


def fetch_of(info: SnapshotInfo, offset: int) -> SnapshotFetch:
    """What node 1 would ask node 2."""
    return SnapshotFetch(
        epoch=1,
        term=5,
        sender=1,
        to=2,
        last_index=info.meta.last.index,
        size_bytes=info.size_bytes,
        checksum=info.checksum,
        offset=offset,
        bytes_max=CHUNK_BYTES,
    )


def chunk_of(info: SnapshotInfo, offset: int, data: bytes) -> SnapshotChunk:
    """What node 2 would answer."""
    return SnapshotChunk(
        epoch=1,
        term=5,
        sender=2,
        to=1,
        last_index=info.meta.last.index,
        checksum=info.checksum,
        offset=offset,
        data=data,
    )
