"""The log in segments: rotation, removal behind a base, reading back, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from replog.errors import Compacted, DirectoryError, InvariantViolated, LogDamaged, StorageFailed
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.replay import Replay
from replog.storage.segment import HEADER_BYTES, segment_name
from replog.storage.wal import Wal, found_log
from replog.stored_log import StoredLog, all_entries
from replog.testing.files import Crashed, ForgetfulFiles, KeepEverything, KeepNothing, KeepSectors
from replog.types import Entry, EntryId, EntryKind, HardState, entry_body

NODE = Path("/node")
SEGMENT_BYTES = 2000


def entry(index: int, term: int = 1, size_bytes: int = 30) -> Entry:
    """An entry whose data has ``size_bytes`` bytes."""
    return Entry(1, index, term, entry_body(EntryKind.COMMAND, 1, term, index, bytes(size_bytes)))


def founded(write_bytes_max: int | None = None) -> ForgetfulFiles:
    """Files with an empty log."""
    files = ForgetfulFiles(write_bytes_max)
    files.make_directory(NODE)
    files.sync_directory(NODE.parent)
    found_log(home_on(files))
    files.sync_directory(NODE)
    return files


def home_on(files: ForgetfulFiles) -> StorageHome:
    """Where the log is."""
    return StorageHome(files, NODE, "demo", 1, 7)


def opened(files: ForgetfulFiles) -> tuple[Wal, StoredLog]:
    """The log, recovered."""
    wal = Wal(home_on(files), SEGMENT_BYTES, extend_bytes=1000, reserve_bytes=100)
    return wal, wal.recover().log


def persist(wal: Wal, *writes: Write) -> None:
    """Make one group durable."""
    wal.persist(wal.encode(writes))


def put(*entries: Entry) -> Write:
    """Put entries."""
    return Write(None, None, entries)


def cut(index: int) -> Write:
    """A base of term 1."""
    return Write(None, None, (), EntryId(1, 1, index))


def long_log(count: int = 60) -> tuple[ForgetfulFiles, Wal, StoredLog]:
    """A log with an entry in each of its groups, which fill several segments."""
    files = founded()
    wal, log = opened(files)
    persist(wal, Write(HardState(1, 1, 1), None, ()))
    for index in range(1, count + 1):
        persist(wal, put(entry(index)))
    return files, wal, log


def names(files: ForgetfulFiles) -> list[str]:
    """The segments that are there."""
    return sorted(name for name in files.names(NODE) if name.endswith(".seg"))


def drawn_write(random: Random, top: int, base: int, term: int) -> Write:
    """Something that an engine may write."""
    kind = random.random()
    if kind < 0.1:
        return Write(HardState(1, term, 2), None, ())
    if kind < 0.2 and top > base + 1:
        return Write(None, random.randint(base + 1, top), ())
    if kind < 0.3 and top > base:
        return cut(random.randint(base + 1, top))
    first = random.randint(max(base + 1, top - 3), max(base, top) + 3)
    entries = [
        entry(index, term, random.randint(0, 60))
        for index in range(first, first + random.randint(1, 4))
        if random.random() < 0.9
    ]
    return put(*entries)


def check_equal(log: StoredLog, model: StoredLog, random: Random) -> None:
    """The log reads like the model."""
    assert log.base == model.base
    assert log.runs.key() == model.runs.key()
    assert all_entries(log) == all_entries(model)
    for run in model.runs:
        first = random.randint(run.first, run.last)
        assert log.read(first, run.last + 9, 150) == model.read(first, run.last + 9, 150)


@pytest.mark.parametrize("seed", range(40))
def test_log_reads_like_model(seed: int) -> None:
    """Random groups over many segments, read before they are durable and after, and recovered: the
    log is what a plain replay of the same writes is."""
    random = Random(seed)
    files = founded(random.choice((None, 50)))
    wal, log = opened(files)
    model, term = Replay(), 1
    segments_max = 0
    for _ in range(60):
        top = model.log.runs.last_index
        term += random.random() < 0.1
        write = drawn_write(random, top, model.log.base.index, term)
        group = wal.encode([write])
        model.apply(write)
        check_equal(log, model.log, random)
        wal.persist(group)
        check_equal(log, model.log, random)
        segments_max = max(segments_max, len(names(files)))
        if random.random() < 0.1:
            wal.close()
            files.crash(random.choice((KeepEverything(), KeepNothing())))
            wal, log = opened(files)
            check_equal(log, model.log, random)
    assert segments_max > 1


def test_segments_are_bounded() -> None:
    """A full segment is followed by another one, and none is larger than was said."""
    files, wal, log = long_log()
    assert len(names(files)) > 3
    assert all(len(files.read(NODE / name)) <= SEGMENT_BYTES for name in names(files)[1:])
    assert [each.index for each in all_entries(log)] == list(range(1, 61))
    persist(wal, put(entry(61, 1, 5 * SEGMENT_BYTES)))
    assert len(files.read(wal.path)) > SEGMENT_BYTES, "a large group has a segment for itself"
    persist(wal, put(entry(62)))
    again = opened(files)[1]
    assert all_entries(again)[-2:] == (entry(61, 1, 5 * SEGMENT_BYTES), entry(62))


def test_segment_opens_with_hard_state() -> None:
    """Where the segment with the vote is gone, the next one still has it."""
    files, wal, _ = long_log()
    persist(wal, cut(60))
    assert len(names(files)) == 1
    recovered = Wal(home_on(files), SEGMENT_BYTES, extend_bytes=1000, reserve_bytes=100).recover()
    assert recovered.hard_state == HardState(1, 1, 1)
    assert recovered.log.base == EntryId(1, 1, 60)
    assert all_entries(recovered.log) == ()


def test_removed_only_below_base() -> None:
    """A base removes whole segments that it has passed, and no entry above it."""
    files, wal, log = long_log()
    before = names(files)
    persist(wal, cut(30))
    after = names(files)
    assert after == before[len(before) - len(after) :]
    assert 1 < len(after) < len(before)
    for reader in (log, opened(files)[1]):
        assert [each.index for each in all_entries(reader)] == list(range(31, 61))
        with pytest.raises(Compacted) as refused:
            reader.read(30, 40, 1000)
        assert refused.value.first_available == 31


def test_lower_base_says_nothing() -> None:
    """A base never falls."""
    files, wal, log = long_log()
    persist(wal, cut(30))
    persist(wal, cut(20))
    assert log.base.index == opened(files)[1].base.index == 30


def test_base_beyond_the_log() -> None:
    """An installed snapshot may be far above everything that the log ever held."""
    files, wal, log = long_log(20)
    persist(wal, cut(5000))
    persist(wal, put(entry(5001)))
    for reader in (log, opened(files)[1]):
        assert (reader.base.index, [each.index for each in all_entries(reader)]) == (5000, [5001])


def test_read_hole_refused() -> None:
    """What was never written cannot be asked for."""
    _, wal, log = long_log(5)
    persist(wal, put(entry(9)))
    assert [each.index for each in log.read(4, 9, 10_000)] == [4, 5]
    with pytest.raises(InvariantViolated, match="entry 7 is asked for"):
        log.read(7, 9, 1000)


def test_read_verifies_again() -> None:
    """A byte that changes behind the log's back is noticed when it is read."""
    files, _, log = long_log()
    path = NODE / segment_name(2)
    at = HEADER_BYTES + 200
    byte = files.read(path)[at]
    files.corrupt(path, at, bytes([byte ^ 1]))
    with pytest.raises(LogDamaged, match=r"log-0000000000000002\.seg: group \d+ at offset \d+"):
        all_entries(log)


def test_read_failing() -> None:
    """A segment that cannot be read is named."""
    files, _, log = long_log()

    def fail(number: int, operation: str, path: Path) -> None:
        if operation == "read":
            raise OSError(5, "Input/output error", str(path))

    files.fault = fail
    with pytest.raises(StorageFailed, match=r"log-0000000000000001\.seg cannot be read: Input"):
        log.read(1, 1, 1)


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_missing_segment_refused(number: int) -> None:
    """A segment that is gone is damage, wherever it was, for nothing says that it was obsolete."""
    files, wal, _ = long_log()
    wal.close()
    files.remove(NODE / segment_name(number))
    with pytest.raises(LogDamaged, match=r"missing"):
        opened(files)


def test_last_segments_missing() -> None:
    """Without its last segments a log looks whole; the second copy of the hard state tells."""
    files, wal, _ = long_log()
    wal.close()
    for number in (8, 7):
        files.remove(NODE / segment_name(number))
        with pytest.raises(LogDamaged, match=f"ends with segment {number - 1}, and had 8 already"):
            opened(files)


def test_damage_in_sealed_segment_refused() -> None:
    """What looks like a tear is damage where another segment follows."""
    files, wal, _ = long_log()
    wal.close()
    path = NODE / segment_name(2)
    end = len(files.read(path).rstrip(b"\0"))
    files.corrupt(path, end - 1, b"\0")
    with pytest.raises(LogDamaged, match=r"seg follows it"):
        opened(files)


def test_segment_of_another_log_refused() -> None:
    """An intact segment of the same node that does not go on where the one before ends."""
    files, wal, _ = long_log()
    wal.close()
    stranger = founded()
    wal, _ = opened(stranger)
    persist(wal, Write(HardState(1, 9, 1), None, ()))
    for index in range(1, 61):
        persist(wal, put(entry(index)))
    path = NODE / segment_name(2)
    data = stranger.read(path)
    files.corrupt(path, 0, data)
    with pytest.raises(LogDamaged, match="of another chain"):
        opened(files)


def test_persist_out_of_order_refused() -> None:
    """A group that opens a segment counts as two; none may be left out."""
    files = founded()
    wal, _ = opened(files)
    persist(wal, Write(HardState(1, 1, 1), None, ()))
    groups = [wal.encode([put(entry(index))]) for index in range(1, 40)]
    assert any(group.opening for group in groups)
    for group in groups[:-2]:
        wal.persist(group)
    with pytest.raises(AssertionError, match="in the order"):
        wal.persist(groups[-1])


@pytest.mark.parametrize("keep", [KeepNothing(), KeepEverything(), KeepSectors(3)], ids=str)
def test_crash_while_segments_change(keep: object) -> None:
    """A crash at any operation of a group that opens a segment, or removes some, leaves the state
    before the group or the one after, and a second recovery finds the same."""
    points = 0
    for last in (put(entry(40, 1, SEGMENT_BYTES)), cut(30)):
        for number in range(1, 60):
            files, wal, log = long_log(39)
            before = all_entries(log), log.base
            group = wal.encode([last])
            at = files.operations_count + number

            def crash(count: int, operation: str, path: Path, at: int = at) -> None:
                if count >= at:
                    raise Crashed(operation)

            files.fault = crash
            try:
                wal.persist(group)
            except Crashed:
                points += 1
            else:
                break
            files.fault = None
            after = all_entries(log), log.base
            files.crash(keep)  # type: ignore[arg-type]
            found = opened(files)[1]
            assert (all_entries(found), found.base) in (before, after)
            kept = all_entries(found), found.base
            files.crash(KeepNothing())
            again = opened(files)[1]
            assert (all_entries(again), again.base) == kept
    assert points > 10


def test_sync_level_os() -> None:
    """With the sync level ``os`` a group costs no sync; the end of the process loses nothing, and a
    power cut what the system had not written: whole groups from the last one on, or so much that
    the log is refused."""
    for is_power_cut in (False, True):
        files = founded()
        wal = Wal(
            replace(home_on(files), is_synced=False),
            SEGMENT_BYTES,
            extend_bytes=1000,
            reserve_bytes=100,
        )
        assert not wal.durable
        wal.recover()
        persist(wal, Write(HardState(1, 1, 1), None, ()))
        operations: list[str] = []

        def note(count: int, operation: str, path: Path, seen: list[str] = operations) -> None:
            seen.append(operation)

        files.fault = note
        for index in range(1, 4):
            persist(wal, put(entry(index)))
        assert "sync" not in operations
        files.fault = None
        files.crash(KeepNothing() if is_power_cut else KeepEverything())
        if is_power_cut:
            with pytest.raises(LogDamaged, match="was in term 1 already: its end is lost"):
                opened(files)
        else:
            assert [each.index for each in all_entries(opened(files)[1])] == [1, 2, 3]


def test_sync_level_os_seals_segments() -> None:
    """A segment that another one follows is durable at every level, so that only the last one can
    be torn by a power cut."""
    files = founded()
    wal = Wal(
        replace(home_on(files), is_synced=False),
        SEGMENT_BYTES,
        extend_bytes=1000,
        reserve_bytes=100,
    )
    wal.recover()
    persist(wal, Write(HardState(1, 1, 1), None, ()))
    for index in range(1, 61):
        persist(wal, put(entry(index)))
    assert len(names(files)) > 3
    files.crash(KeepNothing())
    kept = [each.index for each in all_entries(opened(files)[1])]
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) > 40


def test_oldest_segments_missing() -> None:
    """Segments that no base removed are missed, also where a base is in force."""
    files, wal, _ = long_log()
    persist(wal, cut(15))
    wal.close()
    oldest = names(files)[0]
    assert oldest != segment_name(1)
    files.remove(NODE / oldest)
    with pytest.raises(LogDamaged, match="the others are missing"):
        opened(files)


def test_base_durable_before_removal() -> None:
    """With the sync level ``os``, too, nothing is removed before the base that allows it is
    durable."""
    files = founded()
    wal = Wal(
        replace(home_on(files), is_synced=False),
        SEGMENT_BYTES,
        extend_bytes=1000,
        reserve_bytes=100,
    )
    wal.recover()
    persist(wal, Write(HardState(1, 1, 1), None, ()))
    for index in range(1, 40):
        persist(wal, put(entry(index)))
    persist(wal, cut(35))
    assert segment_name(1) not in names(files)
    files.crash(KeepNothing())
    log = opened(files)[1]
    assert log.base.index == 35
    assert [each.index for each in all_entries(log)] == [36, 37, 38, 39]


def test_encode_while_a_segment_is_published() -> None:
    """The event loop encodes on while the thread that persists changes the segment."""
    files, wal, log = long_log(10)
    groups = [wal.encode([put(entry(index))]) for index in range(11, 40)]
    more: list[object] = []

    def note(count: int, operation: str, path: Path) -> None:
        if operation == "rename":
            more.append(wal.encode([put(entry(40 + len(more)))]))

    files.fault = note
    for group in groups:
        wal.persist(group)
    files.fault = None
    assert more
    for group in more:
        wal.persist(group)
    assert [each.index for each in all_entries(opened(files)[1])] == list(range(1, 40 + len(more)))
    assert all_entries(log) == all_entries(opened(files)[1])


def test_any_error_poisons() -> None:
    """An error that is none of the disk's poisons the log as well: what is on disk is unknown."""
    files, wal, _ = long_log(3)

    def fail(count: int, operation: str, path: Path) -> None:
        raise MemoryError

    group = wal.encode([put(entry(4))])
    files.fault = fail
    with pytest.raises(MemoryError):
        wal.persist(group)
    files.fault = None
    with pytest.raises(StorageFailed, match="what is on disk is not known"):
        wal.persist(group)


@pytest.mark.parametrize("kept", ["log-0000000000000002.seg", "hard-state"])
def test_founding_over_a_written_log_refused(kept: str) -> None:
    """What is left of a written log is never replaced by a new one."""
    files, wal, _ = long_log()
    wal.close()
    for name in files.names(NODE):
        if name != kept:
            files.remove(NODE / name)
    before = files.read(NODE / kept)
    with pytest.raises(DirectoryError, match="would forget what it voted"):
        found_log(home_on(files))
    assert files.read(NODE / kept) == before
    assert files.names(NODE) == [kept]
