"""The snapshots of a node: written, published, removed and sent, whatever a crash does to it."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from replog.errors import (
    DirectoryError,
    SchemaError,
    SnapshotDamaged,
    SnapshotFailed,
    SnapshotGone,
    SnapshotMisplaced,
    StorageFailed,
    UnknownFormat,
)
from replog.storage.files import Descriptor, RealFiles
from replog.storage.snapshot_format import BLOCK_BYTES_MAX
from replog.storage.snapshot_transfer import IncomingSnapshot
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore, part_name, snapshot_name
from replog.testing.files import (
    Crashed,
    ForgetfulFiles,
    Keep,
    KeepEverything,
    KeepNothing,
    KeepPrefix,
    KeepSectors,
)
from replog.types import EntryId, Epoch, SnapshotMeta, Voter

NODE = Path("/node")
EPOCH = Epoch(1, "fast", (Voter(1, 17), Voter(2, 18)), 1)
KNOWN = ("machine",)
SYNC_BYTES = 1000
KEEPS = [KeepNothing(), KeepEverything(), KeepPrefix(700), *map(KeepSectors, range(6))]


def meta_of(index: int) -> SnapshotMeta:
    """The meta of a snapshot that ends with ``index``."""
    return SnapshotMeta(EntryId(1, 3, index), EPOCH, 1000 * index, "kv")


def empty(write_bytes_max: int | None = None) -> ForgetfulFiles:
    """A disk with a node's directory."""
    files = ForgetfulFiles(write_bytes_max)
    files.make_directory(NODE)
    files.sync_directory(NODE.parent)
    return files


def store_on(files: ForgetfulFiles | RealFiles, path: Path = NODE) -> SnapshotStore:
    """The store of a node that starts."""
    store = SnapshotStore(files, path, "demo", SYNC_BYTES)
    store.recover()
    return store


def state_of(index: int) -> bytes:
    """The state of the machine after ``index``."""
    return Random(index).randbytes(2500)


def write(store: SnapshotStore, index: int, state: bytes | None = None) -> SnapshotInfo:
    """Publish a snapshot."""
    with store.begin(meta_of(index)) as writer:
        writer.section("machine", mandatory=True)
        writer.write(state_of(index) if state is None else state)
        return writer.publish()


def read(store: SnapshotStore, info: SnapshotInfo) -> dict[str, bytes]:
    """All sections of a snapshot."""
    with store.open(info) as reader:
        assert reader.meta == info.meta
        return {name: b"".join(chunks) for name, chunks in reader.sections(None)}


def files_in(files: ForgetfulFiles) -> list[str]:
    """What the directory holds."""
    return files.names(NODE)


def newest_intact(files: ForgetfulFiles) -> int:
    """The index of the newest snapshot that a starting node finds, after a look at its state."""
    store = store_on(files)
    info = store.newest()
    assert info is not None
    store.verify(info, KNOWN)
    assert read(store, info) == {"machine": state_of(info.meta.last.index)}
    assert not [name for name in files_in(files) if name.endswith(".tmp")]
    return info.meta.last.index


def crashes(files: ForgetfulFiles, number: int, act: Callable[[], object]) -> bool:
    """Whether the ``number``-th operation of ``act`` is reached, and crashes."""
    at = files.operations_count + number

    def crash(count: int, operation: str, path: Path) -> None:
        if count >= at:
            raise Crashed(operation)

    files.fault = crash
    try:
        act()
    except Crashed:
        return True
    finally:
        files.fault = None
    return False


def fail(files: ForgetfulFiles, operation: str, number: int = errno.EIO, nth: int = 1) -> None:
    """Let the ``nth`` such operation from now on fail."""
    left = [nth]

    def fault(count: int, name: str, path: Path) -> None:
        left[0] -= name == operation
        if name == operation and left[0] == 0:
            raise OSError(number, errno.errorcode[number], str(path))

    files.fault = fault


@pytest.mark.parametrize("seed", range(8))
def test_round_trip(seed: int) -> None:
    """Whatever sections and chunks are written are read again, in blocks of at most 1 MiB."""
    random = Random(seed)
    files = empty(random.choice((None, 100_000)))
    store = store_on(files)
    wanted: dict[str, bytes] = {}
    with store.begin(meta_of(5)) as writer:
        for number in range(random.randint(0, 4)):
            name = f"section {number}"
            writer.section(name, mandatory=random.random() < 0.5)
            sizes = (0, 1, 1000, BLOCK_BYTES_MAX - 1, BLOCK_BYTES_MAX, 2 * BLOCK_BYTES_MAX + 3)
            chunks = [random.randbytes(random.choice(sizes)) for _ in range(random.randint(0, 4))]
            for chunk in chunks:
                writer.write(random.choice((bytes, bytearray, memoryview))(chunk))
            wanted[name] = b"".join(chunks)
        info = writer.publish()
    assert [info] == [*store.list()] == [store.newest()]
    assert info.size_bytes == len(files.read(info.path))
    assert info.checksum == int.from_bytes(files.read(info.path)[-4:])
    store.verify(info, wanted)
    assert read(store, info) == wanted
    with store.open(info) as reader:
        assert all(len(chunk) <= BLOCK_BYTES_MAX for _, c in reader.sections(None) for chunk in c)


def test_sections_not_taken() -> None:
    """Whoever takes nothing of a section gets the next one all the same, and nothing unverified."""
    files = empty()
    store = store_on(files)
    with store.begin(meta_of(5)) as writer:
        for name in ("one", "two"):
            writer.section(name, mandatory=False)
            writer.write(bytes(3 * BLOCK_BYTES_MAX))
        info = writer.publish()
    with store.open(info) as reader:
        assert [name for name, _ in reader.sections(None)] == ["one", "two"]
    with store.open(info) as reader:
        taken = [(name, len(next(chunks))) for name, chunks in reader.sections(("two",))]
    assert taken == [("two", BLOCK_BYTES_MAX)]
    files.corrupt(info.path, BLOCK_BYTES_MAX + 1000, b"\1")
    with store.open(info) as reader:
        sections = reader.sections(("two",))
        with pytest.raises(SnapshotDamaged, match="the checksum of a record does not fit"):
            next(sections)


def test_list_in_order() -> None:
    """Snapshots are listed by index, and the newest is the last; other files are none."""
    files = empty()
    store = store_on(files)
    assert store.newest() is None
    for index in (900, 1000, 30):
        write(store, index)
    files.create(NODE / "log-0000000000000001.seg")
    files.create(NODE / "snapshot-5.snap")
    assert [info.meta.last.index for info in store.list()] == [30, 900, 1000]
    assert store.newest() == store.list()[-1]
    assert store.list()[0].path.name == "snapshot-00000000000000000030-0000000000000003.snap"


def test_abort_leaves_nothing() -> None:
    """A writer that is aborted, or left by an error, removes what it wrote."""
    files = empty()
    store = store_on(files)
    writer = store.begin(meta_of(5))
    writer.section("machine", mandatory=True)
    assert files_in(files) == [f"{snapshot_name(meta_of(5).last)}.tmp"]
    writer.abort()
    writer.abort()
    assert files_in(files) == []
    with pytest.raises(ZeroDivisionError), store.begin(meta_of(6)):
        raise ZeroDivisionError
    assert files_in(files) == []


def test_damage_is_named() -> None:
    """Damage is found where it is, by each way of reading that meets it, and never passed over."""
    files = empty()
    store = store_on(files)
    write(store, 5)
    info = write(store, 7)
    size = info.size_bytes
    for at, is_listed in ((3, False), (520, False), (1500, True), (size - 2, True)):
        old = files.read(info.path)[at : at + 1]
        files.corrupt(info.path, at, bytes([old[0] ^ 1]))
        with pytest.raises(SnapshotDamaged, match=r"0007-\d+3.snap: .* at offset \d+; no state"):
            store.verify(info, KNOWN)
        if is_listed:
            assert store.newest() is not None
        else:
            with pytest.raises(SnapshotDamaged, match=r"0007-"):
                store.newest()
        files.corrupt(info.path, at, old)
    store.verify(info, KNOWN)
    files.cut(info.path, size - 1)
    for look in (store.newest, store.list, lambda: store_on(files)):
        with pytest.raises(SnapshotDamaged, match="the end mark is missing"):
            look()


def test_wrong_file_refused() -> None:
    """A snapshot of another cluster, or under another's name, is refused by what it is."""
    files = empty()
    store = store_on(files)
    info = write(store, 5)
    files.rename(info.path, NODE / snapshot_name(meta_of(6).last))
    with pytest.raises(DirectoryError, match=r"0006-.* is the snapshot .*0005-.* wrong name"):
        store.newest()
    with pytest.raises(DirectoryError, match="is a snapshot of cluster 'demo', and this node"):
        SnapshotStore(files, NODE, "other").newest()


def test_later_snapshot_refused_before_reading() -> None:
    """An unknown mandatory section is found by ``verify``, before anything is replaced."""
    files = empty()
    store = store_on(files)
    with store.begin(meta_of(5)) as writer:
        writer.section("machine", mandatory=True)
        writer.section("sessions", mandatory=True)
        info = writer.publish()
    with pytest.raises(UnknownFormat, match="the section 'sessions'"):
        store.verify(info, KNOWN)
    store.verify(info, ("machine", "sessions"))


def test_remove_older() -> None:
    """Of the intact snapshots the newest stay, as many as are asked for."""
    files = empty()
    store = store_on(files)
    for index in range(1, 7):
        write(store, index)
    for keep, left in ((9, 6), (4, 4), (4, 4), (1, 1), (1, 1)):
        store.remove_older(keep)
        assert [info.meta.last.index for info in store.list()] == list(range(7 - left, 7))


def test_remove_older_spares_newest_intact() -> None:
    """A damaged snapshot does not count: the newest that is intact stays, and what is newer."""
    files = empty()
    store = store_on(files)
    infos = [write(store, index) for index in range(1, 5)]
    for info in infos[2:]:
        files.corrupt(info.path, 1500, b"\0\0\0\0")
    store.remove_older()
    assert files_in(files) == [info.path.name for info in infos[1:]]
    files.corrupt(infos[1].path, 10, b"\xff")
    store.remove_older()
    assert len(files_in(files)) == 3, "where none is intact, nothing is removed"


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_crash_while_writing(keep: Keep) -> None:
    """A crash at any operation of writing and publishing leaves the old newest snapshot or the new
    one, intact; and a power cut right after the next start takes nothing away."""
    points = 0
    found = set()
    for number in range(1, 60):
        files = empty(2000)
        store = store_on(files)
        write(store, 5)
        if not crashes(files, number, lambda store=store: write(store, 7)):  # type: ignore[misc]
            break
        points += 1
        files.crash(keep)
        index = newest_intact(files)
        found.add(index)
        assert index in (5, 7)
        files.crash(KeepNothing())
        assert newest_intact(files) == index
    files.crash(KeepNothing())
    assert newest_intact(files) == 7, "what was published survives"
    assert points > 8
    assert 5 in found


@pytest.mark.parametrize("keep", [*KEEPS, *map(KeepSectors, range(6, 16))], ids=str)
def test_crash_while_removing(keep: Keep) -> None:
    """A crash at any operation of a removal leaves the newest snapshot, and no gap below it."""
    points = 0
    for number in range(1, 80):
        files = empty()
        store = store_on(files)
        for index in range(1, 5):
            write(store, index)
        if not crashes(files, number, store.remove_older):
            break
        points += 1
        files.crash(keep)
        assert newest_intact(files) == 4
        left = [info.meta.last.index for info in store_on(files).list()]
        assert left == list(range(5 - len(left), 5))
    assert points > 8


def sent(info: SnapshotInfo, source: SnapshotStore, to: IncomingSnapshot, bytes_max: int) -> None:
    """Send a snapshot to its end."""
    sender = source.outgoing(info)
    while chunk := sender.read_chunk(to.offset, bytes_max):
        to.append(to.offset, chunk)
    sender.close()


def transfer(info: SnapshotInfo, source: SnapshotStore, target: SnapshotStore) -> SnapshotInfo:
    """Send a snapshot to a node that may have some of it."""
    incoming = target.receive(info.meta, info.size_bytes, info.checksum)
    sent(info, source, incoming, 300)
    return incoming.finish(KNOWN)


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_crash_while_receiving(keep: Keep) -> None:
    """A crash at any operation of receiving leaves the old newest snapshot or the received one,
    intact; the transfer goes on then, also when that crashes, and ends with the sender's bytes."""
    source_files = empty()
    source = store_on(source_files)
    info = write(source, 7)
    wanted = source_files.read(info.path)
    points = 0
    for number in range(1, 90):
        files = empty()
        store = store_on(files)
        write(store, 5)
        if not crashes(files, number, lambda store=store: transfer(info, source, store)):  # type: ignore[misc]
            break
        points += 1
        files.crash(keep)
        assert newest_intact(files) in (5, 7)
        again = store_on(files)
        is_cut = crashes(files, number // 2 + 1, lambda: transfer(info, source, again))  # noqa: B023
        files.crash(KeepSectors(number) if is_cut else KeepNothing())
        assert newest_intact(files) in ((5, 7) if is_cut else (7,))
        transfer(info, source, store_on(files))
        files.crash(KeepNothing())
        assert newest_intact(files) == 7
        assert files.read(info.path) == wanted
        assert not [name for name in files_in(files) if name.endswith(".part")]
    assert points > 20


def blocks_of(store: SnapshotStore, count: int) -> SnapshotInfo:
    """A snapshot in small records, one of about 400 bytes for each section."""
    with store.begin(meta_of(7)) as writer:
        for number in range(count):
            writer.section(f"section {number}", mandatory=False)
            writer.write(Random(number).randbytes(400))
        return writer.publish()


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_transfer_resumed(keep: Keep) -> None:
    """After a crash a transfer goes on from the last record that was synced, not from the start,
    and never trusts what was not."""
    source_files = empty()
    source = store_on(source_files)
    info = blocks_of(source, 12)
    wanted = source_files.read(info.path)
    for arrived in range(0, info.size_bytes, 130):
        files = empty()
        incoming = store_on(files).receive(info.meta, info.size_bytes, info.checksum)
        incoming.append(0, wanted[:arrived])
        files.crash(keep)
        again = store_on(files).receive(info.meta, info.size_bytes, info.checksum)
        synced = arrived // SYNC_BYTES * SYNC_BYTES
        assert again.offset <= synced
        if arrived > 2 * SYNC_BYTES + 600:
            # A record may cross a synced stretch, and the last one be taken for unsynced.
            assert again.offset > synced - SYNC_BYTES - 600 > 0
        files.crash(KeepNothing())
        part = NODE / part_name(info.meta.last, info.size_bytes, info.checksum)
        durable = files.read(part)[: again.offset]
        assert durable == wanted[: again.offset], "what is resumed from was durable"
        last = store_on(files).receive(info.meta, info.size_bytes, info.checksum)
        sent(info, source, last, 700)
        assert last.finish(None) == info
        assert files.read(info.path) == wanted


def test_synced_before_written_behind() -> None:
    """No byte is written behind a stretch before the stretch is synced: the length of the file is
    what a restart judges by."""
    files = empty()
    incoming = store_on(files).receive(meta_of(7), 5000, 1)
    seen: list[tuple[str, int]] = []

    def watch(count: int, operation: str, path: Path) -> None:
        if operation in ("write", "sync"):
            seen.append((operation, incoming.offset))

    files.fault = watch
    incoming.append(0, bytes(2500))
    incoming.append(2500, bytes(2500))
    assert seen == [
        ("write", 0),
        ("sync", 1000),
        ("write", 1000),
        ("sync", 2000),
        ("write", 2000),
        ("write", 2500),
        ("sync", 3000),
        ("write", 3000),
        ("sync", 4000),
        ("write", 4000),
        ("sync", 5000),
    ]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_unsynced_stretch_not_trusted(number: int) -> None:
    """A stretch that is all there, and whose sync did not return, is sent again."""
    source_files = empty()
    source = store_on(source_files)
    info = blocks_of(source, 12)
    wanted = source_files.read(info.path)
    files = empty()
    incoming = store_on(files).receive(info.meta, info.size_bytes, info.checksum)
    syncs = [number]

    def fault(count: int, operation: str, path: Path) -> None:
        syncs[0] -= operation == "sync"
        if syncs[0] == 0:
            raise Crashed(operation)

    files.fault = fault
    with pytest.raises(Crashed):
        sent(info, source, incoming, SYNC_BYTES)
    files.crash(KeepEverything())
    again = store_on(files).receive(info.meta, info.size_bytes, info.checksum)
    assert again.offset <= (number - 1) * SYNC_BYTES
    files.crash(KeepNothing())
    part = NODE / part_name(info.meta.last, info.size_bytes, info.checksum)
    assert files.read(part)[: again.offset] == wanted[: again.offset]


def test_damaged_part_not_resumed() -> None:
    """Where one byte of what arrived has changed, nothing from it on is trusted."""
    source = store_on(empty())
    info = blocks_of(source, 12)
    for at in range(0, 3000, 29):
        files = empty()
        incoming = store_on(files).receive(info.meta, info.size_bytes, info.checksum)
        sent(info, source, incoming, 700)
        part = NODE / part_name(info.meta.last, info.size_bytes, info.checksum)
        old = files.read(part)[at]
        files.corrupt(part, at, bytes([old ^ 4]))
        again = store_on(files).receive(info.meta, info.size_bytes, info.checksum)
        assert again.offset <= at
        sent(info, source, again, 700)
        again.finish(None)


def test_parts_do_not_gather() -> None:
    """One snapshot arrives at a time, and what is no newer than the newest here is dropped."""
    files = empty()
    store = store_on(files)
    store.receive(meta_of(7), 5000, 1).close()
    assert files_in(files) == [part_name(meta_of(7).last, 5000, 1)]
    store.receive(meta_of(7), 5000, 2).close()
    assert files_in(files) == [part_name(meta_of(7).last, 5000, 2)]
    store_on(files)
    assert len(files_in(files)) == 1, "a restart keeps what can still be used"
    write(store, 7)
    store_on(files)
    assert files_in(files) == [snapshot_name(meta_of(7).last)]


def test_piece_misplaced() -> None:
    """A piece that does not go on where the last one ended is refused, and nothing is lost."""
    source = store_on(empty())
    info = write(source, 7)
    files = empty()
    incoming = store_on(files).receive(info.meta, info.size_bytes, info.checksum)
    with source.open(info):
        data = source.outgoing(info).read_chunk(0, 10_000)
    incoming.append(0, data[:100])
    for offset, piece in ((0, data[:100]), (99, b"x"), (101, b"x"), (100, data[100:] + b"x")):
        with pytest.raises(SnapshotMisplaced, match="goes on at offset 100; send it") as refused:
            incoming.append(offset, piece)
        assert refused.value.offset == 100
    incoming.append(100, data[100:])
    assert incoming.finish(KNOWN) == info


def test_received_damage_removed() -> None:
    """A snapshot that is not whole, not intact or not what was announced never gets its name."""
    source_files = empty()
    source = store_on(source_files)
    info = write(source, 7)
    data = source_files.read(info.path)
    changed = data[:1000] + b"\0\0\0\0" + data[1004:]
    other = replace(info.meta, time_ms=1)
    cases: Sequence[tuple[SnapshotMeta, int, bytes, str]] = (
        (
            info.meta,
            info.checksum,
            data[:-1],
            f"has {len(data) - 1} bytes of the announced {len(data)}",
        ),
        (info.meta, info.checksum, changed, "did not arrive intact .*at offset"),
        (info.meta, info.checksum ^ 1, data, "another one than was announced"),
        (other, info.checksum, data, "another one than was announced"),
    )
    for meta, checksum, received, sentence in cases:
        files = empty()
        store = store_on(files)
        write(store, 5)
        incoming = store.receive(meta, len(data), checksum)
        incoming.append(0, received)
        with pytest.raises(SnapshotDamaged, match=f"{sentence}.*; it is removed and has to be"):
            incoming.finish(KNOWN)
        assert files_in(files) == [snapshot_name(meta_of(5).last)]


def test_received_unknown_removed() -> None:
    """A snapshot with a section that we must know and do not is not kept."""
    source = store_on(empty())
    info = write(source, 7)
    files = empty()
    incoming = store_on(files).receive(info.meta, info.size_bytes, info.checksum)
    sent(info, source, incoming, 700)
    with pytest.raises(UnknownFormat, match="the section 'machine'"):
        incoming.finish(("sessions",))
    assert files_in(files) == []


def test_offer_that_cannot_be_refused() -> None:
    """An offer of a peer that no snapshot can be is the peer's error, and makes no file."""
    files = empty()
    store = store_on(files)
    for meta, size_bytes, checksum in (
        (meta_of(0), 5000, 1),
        (meta_of(1 << 64), 5000, 1),
        (meta_of(7), 5, 1),
        (meta_of(7), 1 << 63, 1),
        (meta_of(7), 5000, 1 << 32),
    ):
        with pytest.raises(SchemaError, match="a snapshot is offered that cannot be one: "):
            store.receive(meta, size_bytes, checksum)
    assert files_in(files) == []


def test_sent_while_removed() -> None:
    """A sender reads its snapshot to the end although it was removed; a new sender is told."""
    files = empty()
    store = store_on(files)
    info = write(store, 5)
    sender = store.outgoing(info)
    data = files.read(info.path)
    write(store, 7)
    store.remove_older()
    assert sender.read_chunk(100, 50) == data[100:150]
    assert sender.read_chunk(info.size_bytes - 3, 50) == data[-3:]
    assert sender.read_chunk(info.size_bytes, 50) == b""
    for look in (store.outgoing, store.open):
        with pytest.raises(SnapshotGone, match=r"0005-.* was removed, for a newer"):
            look(info)


def test_sender_of_another_file_refused() -> None:
    """A sender never mixes two snapshots of the same name, nor sends one that was cut."""
    files = empty()
    store = store_on(files)
    info = write(store, 5, b"one")
    sender = store.outgoing(info)
    write(store, 5, b"two")
    assert b"one" in sender.read_chunk(0, 10_000)
    for look in (store.outgoing, lambda info: store.verify(info, KNOWN)):
        with pytest.raises(SnapshotGone, match=r"0005-.* was replaced by another snapshot of the"):
            look(info)
    newest = store.newest()
    assert newest is not None
    sender = store.outgoing(newest)
    files.cut(newest.path, 600)
    with pytest.raises(SnapshotDamaged, match="ends at offset 600 now"):
        sender.read_chunk(590, 50)
    with pytest.raises(SnapshotDamaged, match="the end mark is missing, at offset 600"):
        store.outgoing(newest)


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_failing_disk(operation: str, number: int) -> None:
    """A full disk ends the snapshot and leaves nothing of it, and the node can go on; any other
    failure is fatal."""
    source = store_on(empty())
    info = write(source, 7)
    for is_received in (False, True):
        files = empty()
        store = store_on(files)
        write(store, 5)
        fail(files, operation, number)
        expected = StorageFailed if number == errno.EIO else SnapshotFailed
        with pytest.raises(expected, match=rf"0007-.*{errno.errorcode[number]}"):
            _ = transfer(info, source, store) if is_received else write(store, 7)
        assert files_in(files) == [snapshot_name(meta_of(5).last)]
        assert newest_intact(files) == 5
        write(store, 7)


def test_failing_directory_sync() -> None:
    """Where it is not known whether a name is durable, the node stops; with room or without."""
    for number in (errno.ENOSPC, errno.EIO):
        files = empty()
        store = store_on(files)
        fail(files, "sync_directory", number)
        with pytest.raises(StorageFailed, match="/node: syncing the names of the snapshots failed"):
            write(store, 7)


def test_failing_read() -> None:
    """A disk that cannot be read is named with its reason."""
    for operation in ("names", "open", "read", "size_bytes"):
        files = empty()
        store = store_on(files)
        write(store, 5)
        fail(files, operation)
        with pytest.raises(StorageFailed, match=r"/node.* cannot be read: EIO"):
            store.newest()


def test_files_released() -> None:
    """Whatever ends, well or not, closes its file."""
    files = empty()
    held = [0]

    def watch(count: int, operation: str, path: Path) -> None:
        held[0] += operation in ("open", "create")
        held[0] -= operation == "close"

    files.fault = watch
    store = store_on(files)
    info = write(store, 5)
    store.begin(meta_of(6)).abort()
    store.verify(info, KNOWN)
    sent(info, store, incoming := store.receive(meta_of(7), info.size_bytes, 1), 500)
    incoming.close()
    incoming = store.receive(meta_of(7), info.size_bytes, 1)
    assert incoming.offset > 0
    assert held == [1]
    sent(info, store, incoming, 500)
    with pytest.raises(SnapshotDamaged):
        incoming.finish(KNOWN)
    with pytest.raises(UnknownFormat):
        store.verify(info, ())
    with pytest.raises(DirectoryError):
        SnapshotStore(files, NODE, "other").open(info)
    files.cut(info.path, 600)
    for look in (store.newest, lambda: store.verify(info, None), lambda: store.outgoing(info)):
        with pytest.raises(SnapshotDamaged):
            look()
    assert held == [0]


class UnsyncedFiles(RealFiles):
    """Real files in a hurry."""

    def sync(self, descriptor: Descriptor) -> None:
        """Leave it to the system."""


def test_memory_constant(tmp_path: Path) -> None:
    """A section of 40 MB takes less than 6 MB to write, verify, send, receive and read."""
    files = UnsyncedFiles()
    store = SnapshotStore(files, tmp_path, "demo")
    store.recover()
    peer_path = tmp_path / "peer"
    files.make_directory(peer_path)
    peer = SnapshotStore(files, peer_path, "demo")
    peer.recover()
    chunk = Random(1).randbytes(100_000)
    tracemalloc.start()
    try:
        with store.begin(meta_of(5)) as writer:
            writer.section("machine", mandatory=True)
            for _ in range(400):
                writer.write(chunk)
            info = writer.publish()
        store.verify(info, KNOWN)
        incoming = peer.receive(info.meta, info.size_bytes, info.checksum)
        sent(info, store, incoming, 256 * 1024)
        received = incoming.finish(KNOWN)
        with peer.open(received) as reader:
            assert sum(len(chunk) for _, chunks in reader.sections(KNOWN) for chunk in chunks)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert info.size_bytes > 40_000_000
    assert peak_bytes < 6_000_000
