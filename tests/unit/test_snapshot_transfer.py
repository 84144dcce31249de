"""Snapshots between nodes: whatever the network, the disks and the peers do, the bytes arrive."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from random import Random

import pytest
from transfer_world import (
    CHUNK_BYTES,
    CODEC,
    INDEX,
    LIMITS,
    STATE_BYTES,
    SYNC_BYTES,
    World,
    check_arrived,
    meta_of,
    offer_of,
    slow,
)

from replog.transfer_arrival import STALL_TICKS
from replog.transfer_messages import (
    SnapshotChunk,
    SnapshotFetch,
    SnapshotGone,
    SnapshotOffer,
    TransferMessage,
)
from replog.transfer_receiving import (
    DISTRUST_TICKS,
    PART_TICKS,
    QUERY_TICKS,
)
from replog.transfer_sending import IDLE_TICKS
from replog.transfer_window import WINDOW

# --- It arrives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_transfer_completes(seed: int) -> None:
    """Over lost, doubled and overtaken messages, with jobs that run late, the very bytes come once,
    with no more than a window of them in memory."""
    dice = Random(seed)
    world = World(
        seed,
        nodes=dice.choice((2, 3, 4)),
        loss=dice.choice((0.0, 0.1, 0.4)),
        delay_ticks=dice.choice((0, 3, 30)),
        job_chance=dice.choice((1.0, 0.7, 0.2)),
        limits=dice.choice((LIMITS, slow(1), slow(3))),
    )
    infos = [world[node_id].publish(INDEX) for node_id in world.node_ids[1:]]
    receiver = world[1]
    receiver.wanted_index = dice.choice((1, INDEX))
    world.run_until(lambda: receiver.installed, 6000)
    world.run(50)
    check_arrived(receiver, infos[0], world[2])
    assert 0 < receiver.held_bytes_max <= WINDOW * CHUNK_BYTES
    assert receiver.transfer.picture.arriving is None
    assert receiver.transfer.problem == ""


def test_transfer_same_every_time() -> None:
    """Two runs of one seed send the same bytes in the same order."""

    def log(seed: int) -> list[bytes]:
        world = World(seed, nodes=4, loss=0.2, delay_ticks=5, job_chance=0.5)
        for node_id in (2, 3, 4):
            world[node_id].publish(INDEX)
        world[1].wanted_index = INDEX
        world.run_until(lambda: world[1].installed)
        return world.log

    assert log(7) == log(7)
    assert log(7) != log(8)


def test_transfer_calm_sends_once() -> None:
    """Where nothing is lost every byte is sent once, and all of it within a few turns."""
    world = World()
    info = world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    assert world.run_until(lambda: world[1].installed) <= 3
    check_arrived(world[1], info, world[2])
    assert world[2].chunk_bytes() == info.size_bytes
    assert world[2].transfer.picture.sent_bytes == info.size_bytes
    assert world[1].transfer.picture.received_bytes == info.size_bytes


def test_transfer_to_everybody() -> None:
    """Three nodes fetch from one at the same time."""
    world = World(nodes=4, limits=slow(2))
    info = world[1].publish(INDEX)
    for node_id in (2, 3, 4):
        world[node_id].wanted_index = INDEX
    world.run_until(lambda: all(world[node_id].installed for node_id in (2, 3, 4)))
    for node_id in (2, 3, 4):
        check_arrived(world[node_id], info, world[1])


def test_not_needed_asks_nothing() -> None:
    """A node that can go on asks for nothing and takes nothing."""
    world = World()
    world[2].publish(INDEX)
    world[1].wanted_index = world[1].applied_index = 7
    world.run(30)
    assert not world.log
    info = world[2].transfer.offerable
    assert info is not None
    world[1].transfer.step(offer_of(info))
    assert not world[1].waiting


def test_picture_shows_both_ends() -> None:
    """The picture tells on either side what is under way, how far, and with whom."""
    world = World(limits=slow())
    info = world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run(10)
    arriving = world[1].transfer.picture.arriving
    (leaving,) = world[2].transfer.picture.leaving
    assert arriving is not None
    assert (arriving.last_index, arriving.size_bytes, arriving.source) == (40, info.size_bytes, 2)
    assert (leaving.to, leaving.last_index, leaving.size_bytes) == (1, 40, info.size_bytes)
    assert 0 < arriving.offset == leaving.offset < info.size_bytes


# --- It goes on where it broke off ----------------------------------------------------------------


def test_cut_goes_on() -> None:
    """After a long cut the transfer goes on, and nothing that came is sent again."""
    world = World(limits=slow())
    info = world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].offset() > STATE_BYTES // 2)
    world.cut = {(1, 2), (2, 1)}
    world.run(300)
    assert not world[1].installed
    world.cut = set()
    world.run_until(lambda: world[1].installed, 200)
    check_arrived(world[1], info, world[2])
    assert world[2].chunk_bytes() <= info.size_bytes + 2 * WINDOW * CHUNK_BYTES
    assert world[1].transfer.picture.received_bytes == info.size_bytes


def test_source_dies_other_goes_on() -> None:
    """When the source dies another node that has the very same file sends the rest of it."""
    world = World(nodes=3, limits=slow())
    info = world[2].publish(INDEX)
    world[3].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].offset() > STATE_BYTES // 2)
    arriving = world[1].transfer.picture.arriving
    assert arriving is not None
    first, other = world[arriving.source], world[5 - arriving.source]
    first.is_down = True
    ticks = world.run_until(lambda: world[1].installed)
    assert ticks < 3 * STALL_TICKS + 40
    check_arrived(world[1], info, other)
    assert other.chunk_bytes() < STATE_BYTES * 0.6
    assert world[1].transfer.picture.received_bytes == info.size_bytes


def test_source_dies_other_file_begins_anew() -> None:
    """When the only source dies, and others have another file, that is fetched instead."""
    world = World(nodes=3, limits=slow())
    world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].offset() > STATE_BYTES // 2)
    newer = world[3].publish(INDEX + 1)
    world[2].is_down = True
    world.run_until(lambda: world[1].installed)
    check_arrived(world[1], newer, world[3])


def test_source_back_goes_on() -> None:
    """A source that comes back goes on, although another node offered another file sooner."""
    world = World(nodes=3, limits=slow())
    info = world[2].publish(INDEX)
    receiver = world[1]
    receiver.wanted_index = INDEX
    world.run_until(lambda: receiver.offset() > STATE_BYTES // 2)
    world[3].publish(INDEX + 1)
    world.cut = {(2, 1)}
    world.run_until(lambda: receiver.transfer.picture.arriving.source == 0)  # type: ignore[union-attr]
    world.run(PART_TICKS // 2)
    world.cut = set()
    world.run_until(lambda: receiver.installed)
    check_arrived(receiver, info, world[2])
    assert world[3].chunk_bytes() == 0


@pytest.mark.parametrize("seed", range(8))
def test_receiver_crash_goes_on(seed: int) -> None:
    """A receiver that crashes in the middle goes on from what is synced, also if another file is
    offered sooner by somebody else."""
    world = World(seed, nodes=3, limits=slow())
    info = world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].offset() > STATE_BYTES // 2)
    sent = world[2].chunk_bytes()
    world[1].crash()
    world.flights.clear()
    world[3].publish(INDEX + 1)
    # Node 2 is not heard at first; the part is worth the wait.
    world.cut = {(2, 1)}
    world.run(QUERY_TICKS - 3)
    world.cut = set()
    world.run_until(lambda: world[1].installed)
    check_arrived(world[1], info, world[2])
    assert world[3].chunk_bytes() == 0
    # Up to a stretch and a record were not synced or not whole, and a window was on its way.
    again = world[2].chunk_bytes() - (info.size_bytes - sent)
    assert again <= SYNC_BYTES + STATE_BYTES + WINDOW * CHUNK_BYTES


def test_receiver_crash_keeps_synced() -> None:
    """What is sent again after a crash is only what was not synced of whole records."""
    state = Random(1).randbytes(3 << 20)
    limits = replace(LIMITS, snapshot_chunk_bytes=1 << 16)
    world = World(limits=limits)
    info = world[2].publish(INDEX, state)
    world[1].wanted_index = INDEX
    world[1].durable_term = 4  # it comes whole, and waits for the term
    world.run_until(lambda: world[1].offset() == info.size_bytes)
    world[1].crash()
    world[1].durable_term = 5
    world.run_until(lambda: world[1].installed)
    check_arrived(world[1], info, world[2])
    assert world[2].chunk_bytes() - info.size_bytes < 1.1 * (1 << 20)


def test_part_of_nobody_is_given_up() -> None:
    """What an earlier process left is thrown away when nobody offers it for a while."""
    world = World(nodes=3, limits=slow())
    world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].offset() > STATE_BYTES // 2)
    world[1].crash()
    world[2].is_down = True
    newer = world[3].publish(INDEX + 1)
    started = world.now
    world.run_until(lambda: world[1].transfer.picture.arriving)
    assert PART_TICKS <= world.now - started <= 3 * QUERY_TICKS
    world.run_until(lambda: world[1].installed)
    check_arrived(world[1], newer, world[3])


def test_slow_link_not_flooded() -> None:
    """On a link that takes far longer than a stall, chunks are not asked for again and again."""
    world = World(delay_ticks=0)
    info = world[2].publish(INDEX)
    receiver = world[1]
    receiver.wanted_index = INDEX
    queue: deque[bytes] = deque()
    put = world.put

    def narrow(message: TransferMessage) -> None:
        if isinstance(message, SnapshotChunk):
            queue.append(CODEC.encode(message))
        else:
            put(message)

    world.put = narrow  # type: ignore[method-assign]
    while not receiver.installed:
        world.tick()
        assert world.now < 3000
        if world.now % 60 == 0 and queue:
            world.flights.append((world.now, 0, queue.popleft(), 1))
    chunks = -(-info.size_bytes // CHUNK_BYTES)
    # Until it is known how slow the link is, a few windows are asked for twice.
    assert world[2].chunk_bytes() < (chunks + 3 * WINDOW) * CHUNK_BYTES


# --- The source ---------------------------------------------------------------------------------


def test_replaced_at_source_goes_on() -> None:
    """A snapshot that is replaced at its source while it is fetched is sent to its end."""
    world = World(limits=slow())
    info = world[2].publish(INDEX)
    bytes_of_old = world[2].files.read(info.path)
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].offset() > STATE_BYTES // 2)
    world[2].publish(INDEX + 9)
    world[2].store.remove_older()
    assert info.path.name not in world[2].names()
    world.run_until(lambda: world[1].installed)
    assert world[1].files.read(info.path) == bytes_of_old
    assert world[2].chunk_bytes() == info.size_bytes


def test_replaced_and_restarted_source() -> None:
    """A source that has forgotten the file says so, and the newer one is fetched at once."""
    world = World(limits=slow())
    world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].offset() > STATE_BYTES // 2)
    newer = world[2].publish(INDEX + 9)
    world[2].store.remove_older()
    world[2].crash()
    started = world.now
    world.run_until(lambda: world[1].installed)
    assert any(isinstance(message, SnapshotGone) for message in world[2].sent)
    # The window on its way is asked for again first; then the whole at a chunk per tick.
    assert world.now - started < 2 * STALL_TICKS + QUERY_TICKS + 60
    check_arrived(world[1], newer, world[2])


def test_damaged_source_replaced_by_other() -> None:
    """A damaged file is thrown away, and comes from somebody else."""
    world = World(nodes=3)
    info = world[2].publish(INDEX)
    world[2].files.corrupt(info.path, 9000, b"!!!!")
    world[3].is_down = True
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].transfer.problem)
    assert "did not arrive intact" in world[1].transfer.problem
    world[3].is_down = False
    world[3].publish(INDEX)
    world.run_until(lambda: world[1].installed, 30)
    check_arrived(world[1], info, world[3])


def test_damaged_source_not_asked_for_ever() -> None:
    """A file that comes damaged from its only source is asked for ever less often."""
    world = World()
    info = world[2].publish(INDEX)
    good = world[2].files.read(info.path)[9000:9004]
    world[2].files.corrupt(info.path, 9000, b"!!!!")
    world[1].wanted_index = INDEX
    world.run(DISTRUST_TICKS)
    assert world[2].chunk_bytes() == info.size_bytes
    world.run(10 * DISTRUST_TICKS)
    assert world[2].chunk_bytes() == 4 * info.size_bytes
    assert not [name for name in world[1].names() if name.endswith(".snap")]
    world[2].files.corrupt(info.path, 9000, good)
    world.run_until(lambda: world[1].installed)
    check_arrived(world[1], info, world[2])


def test_damaged_file_newer_one_taken() -> None:
    """Who sent a damaged file may send another one at once."""
    world = World()
    info = world[2].publish(INDEX)
    world[2].files.corrupt(info.path, 9000, b"!!!!")
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].transfer.problem)
    newer = world[2].publish(INDEX + 1)
    world.run_until(lambda: world[1].installed, 30)
    check_arrived(world[1], newer, world[2])


def test_unreadable_at_source_not_offered() -> None:
    """A snapshot that its owner finds damaged is offered no more, and the owner says why."""
    world = World()
    info = world[2].publish(INDEX)
    world[2].files.cut(info.path, info.size_bytes - 7)
    world[1].wanted_index = INDEX
    world.run(2)
    assert isinstance(world[2].sent[1], SnapshotGone)
    world.run(100)
    assert "the end mark is missing" in world[2].transfer.problem
    assert sum(isinstance(message, SnapshotOffer) for message in world[2].sent) == 1
    assert "no node offers" in world[1].transfer.problem


def test_other_cluster_refused_whole() -> None:
    """A snapshot of another cluster never gets its name here, however well its meta fits."""
    world = World()
    world[2].cluster_id = "other"
    world[2].start()
    world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run(100)
    assert "snapshot of cluster 'other'" in world[1].transfer.problem
    assert world[1].names() == []
    assert sum(isinstance(message, SnapshotFetch) for message in world[1].sent) < 40


def test_later_release_refused_whole() -> None:
    """A snapshot with a mandatory section that this release does not know is fetched once, whoever
    has it, and never gets its name."""
    world = World(nodes=3)
    for source in (world[2], world[3]):
        with source.store.begin(meta_of(INDEX)) as writer:
            writer.section("future", mandatory=True)
            writer.write(bytes(STATE_BYTES))
            source.transfer.offerable = writer.publish()
    world[1].wanted_index = INDEX
    world.run(100)
    assert "the section 'future'" in world[1].transfer.problem
    assert world[1].names() == []
    assert world[2].chunk_bytes() + world[3].chunk_bytes() < 2 * STATE_BYTES


def test_idle_file_closed() -> None:
    """A file for which nothing is asked any more is closed."""
    world = World()
    world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run_until(lambda: world[1].installed)
    world.run(IDLE_TICKS - 10)
    assert world[2].transfer.picture.leaving
    assert len(world[2].files._open) == 1
    world.run(20)
    assert not world[2].transfer.picture.leaving
    assert not world[2].files._open
    assert not world[1].files._open


def test_close_releases_files() -> None:
    """A node that stops in the middle leaves no file open on either side, and keeps the part."""
    world = World(limits=slow())
    world[2].publish(INDEX)
    world[1].wanted_index = INDEX
    world.run(10)
    for member in world.members.values():
        assert len(member.files._open) == 1
        member.transfer.close()
        assert not member.files._open
    assert [name for name in world[1].names() if name.endswith(".part")]
