"""Snapshots between nodes: limits, terms, changing needs, and peers that lie."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from transfer_world import (
    CHUNK_BYTES,
    EPOCH,
    INDEX,
    LIMITS,
    STATE_BYTES,
    World,
    check_arrived,
    chunk_of,
    fetch_of,
    meta_of,
    offer_of,
    query_of,
    slow,
)

from replog.errors import SchemaError, SnapshotFailed, StorageFailed
from replog.limits import Limits
from replog.storage.snapshot_format import META_BYTES_MAX, pack_meta
from replog.transfer_arrival import STALL_TICKS
from replog.transfer_messages import (
    TRANSFER_SPECS,
    SnapshotChunk,
    SnapshotFetch,
    SnapshotGone,
    SnapshotOffer,
    SnapshotQuery,
)
from replog.transfer_receiving import (
    NO_ROOM_TICKS,
    QUERY_TICKS,
)
from replog.transfer_sending import HOLD_TICKS, STUCK_TICKS
from replog.transfer_window import WINDOW, Window
from replog.types import SnapshotMeta, Voter
from replog.wire import HEADER_BYTES, MessageCodec

# --- Limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 3])
def test_rate_limit_holds(chunks: int) -> None:
    """No more leaves in a tick than the limit says, for all peers together, and everybody gets as
    much as the others."""
    world = World(nodes=4, limits=slow(chunks))
    info = world[1].publish(INDEX)
    for node_id in (2, 3, 4):
        world[node_id].wanted_index = INDEX
    before = 0
    while not all(world[node_id].installed for node_id in (2, 3, 4)):
        world.tick()
        assert world[1].chunk_bytes() - before <= chunks * CHUNK_BYTES
        before = world[1].chunk_bytes()
        offsets = [world[node_id].offset() for node_id in (2, 3, 4)]
        if not any(world[node_id].installed for node_id in (2, 3, 4)) and world.now > 5:
            assert max(offsets) - min(offsets) <= 2 * WINDOW * CHUNK_BYTES
    assert world.now >= 3 * info.size_bytes // (chunks * CHUNK_BYTES)
    assert world[1].chunk_bytes() == 3 * info.size_bytes


def test_rate_limit_lets_one_chunk_leave() -> None:
    """However low the limit is, a chunk leaves in each tick."""
    limits = replace(LIMITS, snapshot_bytes_per_second_max=CHUNK_BYTES)
    world = World(limits=limits)
    info = world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    ticks = world.run_until(lambda: world[1].installed)
    assert abs(ticks - info.size_bytes / CHUNK_BYTES) < 5


def test_requests_bounded() -> None:
    """However much a peer asks for, a window of it waits, and one chunk is read at a time."""
    world = World(limits=slow(2))
    info = world[2].publish(INDEX)
    world[2].tick()
    for offset in range(0, 9000, 10):
        world[2].transfer.step(fetch_of(info, offset))
        assert len(world[2].waiting) <= 1
    world.run(20)
    assert 0 < len([m for m in world[2].sent if isinstance(m, SnapshotChunk)]) <= WINDOW + 1


def test_repeated_request_replaces() -> None:
    """A request that is repeated before it was served is served once."""
    world = World(limits=slow())
    info = world[2].publish(INDEX)
    world[2].tick()
    for _ in range(5):
        for offset in (0, 700, 1400):
            world[2].transfer.step(fetch_of(info, offset))
    world.run(20)
    offsets = [m.offset for m in world[2].sent if isinstance(m, SnapshotChunk)]
    assert sorted(set(offsets)) == [0, 700, 1400]
    assert len(offsets) <= 4  # the first may have left before it was repeated


def test_repeated_request_is_the_newest() -> None:
    """Of too many requests the oldest are forgotten, and a repeated one is none of these."""
    world = World(limits=slow())
    info = world[2].publish(INDEX)
    world[2].tick()
    for chunk in (0, 1, 2, 3, 4, 1, 5, 6):
        world[2].transfer.step(fetch_of(info, chunk * CHUNK_BYTES))
    world.run(20)
    offsets = [m.offset // CHUNK_BYTES for m in world[2].sent if isinstance(m, SnapshotChunk)]
    assert offsets == [0, 4, 1, 5, 6]


def test_smaller_chunks_of_a_peer() -> None:
    """A peer whose chunks are smaller is asked for chunks of its size."""
    world = World()
    world[2].limits = replace(LIMITS, snapshot_chunk_bytes=300)
    world[2].start()
    info = world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    assert world.run_until(lambda: world[1].installed) < STALL_TICKS
    check_arrived(world[1], info, world[2])
    assert world[2].chunk_bytes() <= info.size_bytes + WINDOW * 300


def test_larger_chunks_of_the_next() -> None:
    """After a source with small chunks, the next one is asked for as much as ever."""
    world = World(nodes=3, limits=slow())
    world[2].limits = replace(slow(), snapshot_chunk_bytes=300)
    world[2].start()
    info = world[2].publish(INDEX)
    receiver = world[1]
    receiver.wanted_index = INDEX
    world.run_until(lambda: receiver.offset() > STATE_BYTES // 2)
    world[3].publish(INDEX)
    world[2].is_down = True
    world.run_until(lambda: receiver.installed)
    check_arrived(receiver, info, world[3])
    fetches = [message for message in receiver.sent if isinstance(message, SnapshotFetch)]
    assert fetches[-2].bytes_max == CHUNK_BYTES


def test_no_room_tries_again_later() -> None:
    """A full disk ends the arrival, not the node, and after a pause it begins anew."""
    world = World(limits=slow())
    info = world[2].publish(INDEX)
    receiver = world[1]
    receiver.wanted_index = INDEX
    full = True

    def fault(number: int, operation: str, path: Path) -> None:
        if full and operation == "write" and receiver.offset() > 5000:
            raise OSError(errno.ENOSPC, "no space left on device")

    receiver.files.fault = fault
    world.run_until(lambda: receiver.transfer.problem)
    assert "there is no room to write it" in receiver.transfer.problem
    assert receiver.names() == []
    sent = world[2].chunk_bytes()
    world.run(NO_ROOM_TICKS - 5)
    assert world[2].chunk_bytes() <= sent + WINDOW * CHUNK_BYTES  # what was on its way
    full = False
    world.run_until(lambda: receiver.installed)
    check_arrived(receiver, info, world[2])


def test_failing_disk_goes_through() -> None:
    """A disk that fails stops the node: the job raises, and nobody catches it."""
    world = World()
    world[2].publish(INDEX)
    receiver = world[1]
    receiver.wanted_index = INDEX

    def fault(number: int, operation: str, path: Path) -> None:
        if operation == "write":
            raise OSError(errno.EIO, "input/output error")

    receiver.files.fault = fault
    with pytest.raises(StorageFailed):
        world.run(5)


# --- The term ------------------------------------------------------------------------------------


def test_term_first() -> None:
    """The sender's term is entered with the offer, and no snapshot gets its name before that term
    is durable."""
    world = World()
    world[2].term = 9
    info = world[2].publish(INDEX)
    receiver = world[1]
    receiver.wanted_index = INDEX
    world.run_until(lambda: receiver.offset() == info.size_bytes)
    assert receiver.observed == [9]
    world.run(50)
    assert not receiver.installed
    assert all(name.endswith(".part") for name in receiver.names())
    receiver.durable_term = 8
    world.run(5)
    assert not receiver.installed
    receiver.durable_term = 9
    world.run(2)
    check_arrived(receiver, info, world[2])


def test_term_of_chunk_counts() -> None:
    """A chunk whose sender is in a higher term by now raises the bar."""
    world = World(limits=slow())
    info = world[2].publish(INDEX)
    receiver = world[1]
    receiver.wanted_index = INDEX
    world.run(10)
    world[2].term = 7
    world.run_until(lambda: receiver.offset() == info.size_bytes)
    assert receiver.observed == [5, 7]
    world.run(5)
    assert not receiver.installed
    receiver.durable_term = 7
    world.run_until(lambda: receiver.installed, 3)


def test_offer_waits_for_tick() -> None:
    """What became offerable since the last tick is not offered yet: it may hold entries of a term
    that the tick did not know."""
    world = World()
    world[2].tick()
    world[2].publish(INDEX)
    world[2].transfer.step(query_of(INDEX))
    assert not world[2].sent
    world[2].term = 6
    world[2].tick()
    world[2].transfer.step(query_of(INDEX))
    (offer,) = world[2].sent
    assert isinstance(offer, SnapshotOffer)
    assert offer.term == 6


# --- What is needed changes --------------------------------------------------------------------


def test_given_up_when_passed() -> None:
    """What arrives is removed when the log has gone past it."""
    world = World(limits=slow())
    world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run(10)
    world[1].applied_index = INDEX
    world.run(2)
    assert world[1].transfer.picture.arriving is None
    assert world[1].names() == []
    assert not world[1].files._open
    world.run(200)
    assert not world[1].installed


def test_paused_while_not_needed() -> None:
    """While the log brings the node on nothing is asked for, and what is here is kept."""
    world = World(limits=slow())
    info = world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run(10)
    world[1].wanted_index = 0
    world.run(5)
    sent = len(world[1].sent)
    offset = world[1].offset()
    world.run(100)
    assert (len(world[1].sent), world[1].offset()) == (sent, offset)
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].installed)
    check_arrived(world[1], info, world[2])
    assert world[1].transfer.picture.received_bytes == info.size_bytes


def test_passed_while_finishing() -> None:
    """A snapshot that the log passes while it is verified is not installed."""
    world = World(job_chance=0.0)
    world[2].publish(INDEX)
    receiver = world[1]
    receiver.wanted_index = INDEX
    world.job_chance = 1.0
    receiver.durable_term = 4
    world.run(5)
    world.job_chance = 0.0
    receiver.durable_term = 5
    world.tick()
    assert len(receiver.waiting) == 1
    receiver.applied_index = INDEX
    world.tick()
    world.job_chance = 1.0
    world.run(5)
    assert not receiver.installed


def test_too_old_replaced_by_better() -> None:
    """What arrives is given up for a better one when it does not reach far enough any more."""
    world = World(nodes=3, limits=slow())
    world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run(10)
    newer = world[3].publish(INDEX + 5)
    world[1].is_stuck = True  # what is under way of the first ends when the second has begun
    world.run(5)
    world[1].wanted_index = INDEX + 3
    world.run(QUERY_TICKS + 1)
    assert len(world[1].waiting) > 3
    world[1].is_stuck = False
    world.run_until(lambda: world[1].installed)
    check_arrived(world[1], newer, world[3])


def test_next_one_after_installed() -> None:
    """After one is installed, the next that is needed is fetched."""
    world = World()
    world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].installed)
    world.run(3)
    world[2].publish(INDEX + 7)
    world[1].wanted_index = INDEX + 7
    world.run_until(lambda: len(world[1].installed) == 2)
    assert [info.meta.last.index for info in world[1].installed] == [INDEX, INDEX + 7]
    assert len(world[2].files._open) == 1


def test_kept_index() -> None:
    """A query keeps the entries behind the snapshot that is fetched, for a while; of several peers
    the lowest counts."""
    world = World(nodes=3)
    transfer = world[3].transfer
    assert transfer.kept_index is None
    transfer.step(query_of(50, to=3))
    assert transfer.kept_index == 50
    transfer.step(query_of(50, fetching_index=60, to=3))
    assert transfer.kept_index == 60
    world.run(HOLD_TICKS // 2)
    transfer.step(replace(query_of(30, to=3), sender=2))
    assert transfer.kept_index == 30
    transfer.step(query_of(50, fetching_index=20, to=3))
    assert transfer.kept_index == 20
    world.run(HOLD_TICKS - 1)
    assert transfer.kept_index == 20
    world.run(1)
    assert transfer.kept_index is None


def test_query_names_what_is_fetched() -> None:
    """While a snapshot is fetched, and until it is applied, every peer is told which one."""
    world = World(nodes=3, limits=slow())
    world[2].publish(INDEX)
    world[1].wanted_index = INDEX - 2
    world.run_until(lambda: world[1].installed)
    queries = [message for message in world[1].sent if isinstance(message, SnapshotQuery)]
    assert {query.to for query in queries} == {2, 3}
    assert [query.fetching_index for query in queries if query.to == 3] == [
        0,
        *([INDEX] * ((world.now - 1) // QUERY_TICKS)),
    ]
    assert world[3].transfer.kept_index == INDEX


# --- Enemies ------------------------------------------------------------------------------------


STRANGERS = replace(EPOCH, voters=(Voter(1, 99), Voter(2, 98)))


@pytest.mark.parametrize(
    ("meta", "sentence"),
    [
        (meta_of(INDEX, machine="other"), "of the state machine 'other'"),
        (meta_of(INDEX, epoch=replace(EPOCH, number=2)), "of epoch 2"),
        (meta_of(INDEX, epoch=STRANGERS), "another founding record"),
    ],
)
def test_offer_of_strangers_declined(meta: SnapshotMeta, sentence: str) -> None:
    """A snapshot of another machine, epoch or cluster is not fetched, and the node says why."""
    world = World()
    info = world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world[1].tick()
    world[1].transfer.step(offer_of(info, meta))
    assert sentence in world[1].transfer.problem
    assert not world[1].waiting
    assert not world[1].observed


def test_offer_of_later_release_declined() -> None:
    """A meta with a key of a later release is declined, and stops nobody."""
    world = World()
    info = world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world[1].tick()
    meta = pack_meta(info.meta)
    extended = bytes((meta[0] + 1,)) + meta[1:] + b"\x63new\x01"
    world[1].transfer.step(replace(offer_of(info), meta=extended))
    assert "'new', which this release does not know" in world[1].transfer.problem
    assert not world[1].waiting


def test_offer_too_old_declined() -> None:
    """A snapshot that does not reach what is needed is neither offered nor taken."""
    world = World()
    info = world[2].publish(INDEX)
    world[1].wanted_index = INDEX + 1
    world.run(30)
    assert not world[2].sent
    world[1].transfer.step(offer_of(info))
    assert not world[1].waiting
    assert "no node offers a snapshot that reaches index 41" in world[1].transfer.problem


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": 1 << 63},
        {"size_bytes": (1 << 64) - 1},
        {"size_bytes": 100},
        {"meta": b""},
        {"meta": b"\xff" * 100},
        {"meta": b"\xa0"},
    ],
)
def test_offer_impossible_refused(change: dict[str, object]) -> None:
    """What cannot be a snapshot is a peer's error, whether one is needed or not."""
    world = World()
    info = world[2].publish(INDEX)
    for wanted_index in (0, INDEX):
        world[1].wanted_index = wanted_index
        world[1].tick()
        with pytest.raises(SchemaError, match="node 2 offers"):
            world[1].transfer.step(replace(offer_of(info), **change))  # type: ignore[arg-type]
        assert not world[1].waiting


def test_chunks_nobody_asked_for() -> None:
    """Chunks of no arrival, of another file, from another node or of another place change
    nothing."""
    world = World(nodes=3, limits=slow())
    info = world[2].publish(INDEX)
    receiver = world[1]
    receiver.transfer.step(chunk_of(info, 0, b"evil"))
    receiver.wanted_index = INDEX
    world.run(10)
    offset = receiver.offset()
    before = receiver.transfer.picture
    evil = b"e" * CHUNK_BYTES
    good = chunk_of(info, offset, evil)
    for message in (
        replace(good, sender=3),
        replace(good, sender=9),
        replace(good, epoch=2),
        replace(good, last_index=INDEX + 1),
        replace(good, checksum=info.checksum ^ 1),
        replace(good, offset=0),
        replace(good, offset=offset + 1),
        replace(good, offset=offset + WINDOW * CHUNK_BYTES),
        replace(good, offset=offset + CHUNK_BYTES, data=b"short"),
        SnapshotGone(1, 5, 3, 1, INDEX, info.checksum),
        SnapshotGone(1, 5, 2, 1, INDEX + 1, info.checksum),
    ):
        receiver.transfer.step(message)
        assert receiver.transfer.picture == before
        assert not receiver.waiting
    for message in (
        replace(good, data=b""),
        replace(good, data=bytes(CHUNK_BYTES + 1)),
        replace(good, offset=info.size_bytes - 1),
        replace(good, offset=(1 << 64) - 1),
    ):
        with pytest.raises(SchemaError, match="node 2 sent"):
            receiver.transfer.step(message)
        assert receiver.transfer.picture == before
    world.run_until(lambda: receiver.installed)
    check_arrived(receiver, info, world[2])


def test_fetches_hostile() -> None:
    """Fetches beyond the end, of nothing or of no bytes are a peer's error; one of a file that is
    not here is answered with that."""
    world = World()
    info = world[2].publish(INDEX)
    world[2].tick()
    fetch = fetch_of(info, 0)
    for message in (
        replace(fetch, offset=info.size_bytes),
        replace(fetch, offset=(1 << 64) - 1),
        replace(fetch, size_bytes=0),
        replace(fetch, bytes_max=0),
    ):
        with pytest.raises(SchemaError, match="node 1 asks for"):
            world[2].transfer.step(message)
    with pytest.raises(SchemaError, match="reaches index 0"):
        world[2].transfer.step(query_of(0))
    assert not world[2].sent
    assert not world[2].waiting
    for message in (
        replace(fetch, size_bytes=(1 << 64) - 1),
        replace(fetch, last_index=3),
        replace(fetch, checksum=info.checksum ^ 1),
    ):
        world[2].sent.clear()
        world[2].transfer.step(message)
        (answer,) = world[2].sent
        assert isinstance(answer, SnapshotGone)
        assert (answer.last_index, answer.checksum) == (message.last_index, message.checksum)
        assert not world[2].waiting


def test_fetch_of_much_gets_a_chunk() -> None:
    """Whoever asks for 2^64 bytes gets a chunk."""
    world = World()
    info = world[2].publish(INDEX)
    world[2].tick()
    world[2].transfer.step(replace(fetch_of(info, 0), bytes_max=(1 << 64) - 1))
    world[2].work(Random(0))
    (answer,) = world[2].sent
    assert isinstance(answer, SnapshotChunk)
    assert answer.data == world[2].files.read(info.path)[:CHUNK_BYTES]


# --- The window ---------------------------------------------------------------------------------


def test_window_in_order() -> None:
    """Pieces that come in any order are written in theirs, and never more than a window is held."""
    window = Window(100, 1000, 200)
    assert [(piece.offset, piece.size_bytes) for piece in window.extend()] == [
        (100, 200),
        (300, 200),
        (500, 200),
        (700, 200),
    ]
    assert not window.extend()
    assert window.take(300, bytes(200))
    assert not window.take(300, bytes(200))
    assert not window.take(500, bytes(201))
    assert not window.take(500, bytes(199))
    assert window.next_to_write() is None
    assert window.take(100, bytes(200))
    assert [window.next_to_write() for _ in range(3)][2] is None
    assert window.held_bytes == 400
    window.advance()
    assert [(piece.offset, piece.size_bytes) for piece in window.extend()] == [(900, 100)]
    window.advance()
    assert [piece.offset for piece in window.missing()] == [500, 700, 900]
    for offset, size_bytes in ((500, 200), (700, 200), (900, 100)):
        assert window.take(offset, bytes(size_bytes))
        assert window.next_to_write() is not None
        window.advance()
    assert window.is_complete


def test_snapshot_failed_is_of_the_caller() -> None:
    """A chunk that finds no room is told as such, and the ones behind it as the same failure."""
    world = World()
    info = world[2].publish(INDEX)
    receiver = world[1]
    receiver.wanted_index = INDEX
    receiver.tick()
    receiver.transfer.step(offer_of(info))
    receiver.work(Random(0))
    failing = True

    def fault(number: int, operation: str, path: Path) -> None:
        if failing and operation == "write":
            raise OSError(errno.ENOSPC, "no space left on device")

    receiver.files.fault = fault
    data = world[2].files.read(info.path)
    receiver.transfer.step(chunk_of(info, 0, data[:CHUNK_BYTES]))
    receiver.transfer.step(chunk_of(info, CHUNK_BYTES, data[CHUNK_BYTES : 2 * CHUNK_BYTES]))
    jobs = list(receiver.waiting)
    for job in jobs:
        job.run()
        failing = False
    assert len(jobs) == 2
    assert all(isinstance(getattr(job, "failure", None), SnapshotFailed) for job in jobs)


def test_limits_related() -> None:
    """A chunk that fits no frame, or is more than may leave in a second, is named."""
    assert LIMITS.problems() == []
    wide = Limits(snapshot_chunk_bytes=Limits().frame_bytes_max - 4095)
    assert [problem.partition(":")[0] for problem in wide.problems()] == ["snapshot_chunk_bytes"]
    assert Limits(snapshot_chunk_bytes=Limits().frame_bytes_max - 4096).problems() == []
    narrow = Limits(snapshot_bytes_per_second_max=Limits().snapshot_chunk_bytes - 1)
    assert [problem.partition(":")[0] for problem in narrow.problems()] == [
        "snapshot_bytes_per_second_max"
    ]


def test_largest_messages_fit() -> None:
    """A chunk of the largest size that the limits allow fits a frame, and the largest meta does."""
    limits = Limits(snapshot_chunk_bytes=Limits().frame_bytes_max - 4096)
    codec = MessageCodec((), limits, TRANSFER_SPECS)
    largest = (1 << 64) - 1
    for message in (
        SnapshotChunk(
            1, largest, 65_535, 65_535, largest, 1, 1, bytes(limits.snapshot_chunk_bytes)
        ),
        SnapshotOffer(1, largest, 65_535, 65_535, largest, 1, bytes(META_BYTES_MAX)),
    ):
        frame = codec.encode(message)
        assert codec.decode(frame[3], frame[HEADER_BYTES:]) == message


def test_stuck_peer_keeps_nothing_for_ever() -> None:
    """A peer that asks on and on and comes no further is not waited for: a log must not fill the
    disks of all because one node cannot take a snapshot."""
    world = World(nodes=3)
    transfer = world[3].transfer
    for offset in (0, 100):
        for _ in range(STUCK_TICKS // 100):
            assert transfer.kept_index == (None if transfer.kept_index is None else 50)
            transfer.step(query_of(40, fetching_index=50, to=3, offset=offset))
            assert transfer.kept_index == 50
            world.run(100)
    transfer.step(query_of(40, fetching_index=50, to=3, offset=100))
    assert transfer.kept_index is None
    transfer.step(query_of(40, fetching_index=50, to=3, offset=101))
    assert transfer.kept_index == 50


def test_kept_index_follows_who_catches_up() -> None:
    """Behind the snapshot that a peer has installed the entries are kept as long as it comes on,
    down to a bound."""
    world = World(nodes=3)
    transfer = world[3].transfer
    transfer.step(query_of(40, fetching_index=50, to=3))
    transfer.handle_progress(1, 45, least=0)  # late word
    assert transfer.kept_index == 50
    for index in (50, 60, 70):
        world.run(HOLD_TICKS - 1)
        transfer.handle_progress(1, index, least=0)
        assert transfer.kept_index == index
    transfer.handle_progress(2, 90, least=0)  # it needed no snapshot
    assert transfer.kept_index == 70
    transfer.handle_progress(1, 80, least=81)
    assert transfer.kept_index is None


def test_open_file_is_offered_to_its_end() -> None:
    """Who has begun to fetch a file is offered that one again, though there is a newer one."""
    world = World(nodes=2, limits=slow())
    first = world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run(10)
    newer = world[2].publish(INDEX + 5)
    world[2].files.remove(first.path)
    world.run(3)
    world[2].transfer.step(query_of(INDEX, fetching_index=INDEX))
    assert world[2].transfer.offerable == newer
    world.run_until(lambda: world[1].installed)
    assert world[1].installed[0].meta.last.index == INDEX
