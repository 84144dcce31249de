"""The write-ahead log: what it gives back, what it cuts, and what it refuses."""

from __future__ import annotations

import errno
import zlib
from pathlib import Path

import pytest

from replog.errors import DirectoryError, LogDamaged, StorageFailed, UnknownFormat
from replog.storage.files import RealFiles
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.segment import (
    HEAD_BYTES,
    HEADER_BYTES,
    SECTOR_BYTES,
    SegmentHeader,
    header_salt,
    pack_group,
    pack_header,
    segment_name,
)
from replog.storage.wal import FOUNDING_BYTES, Wal, found_log
from replog.stored_log import all_entries
from replog.testing.files import ForgetfulFiles, KeepNothing
from replog.types import Entry, EntryKind, HardState, entry_body

NODE = Path("/node")
LOG = NODE / segment_name(1)
EXTEND_BYTES = 64 * 1024


def home_on(files, path=NODE, cluster_id="demo", node_id=1, incarnation=77):
    return StorageHome(files, path, cluster_id, node_id, incarnation)


def founded(**options):
    files = ForgetfulFiles(**options)
    files.make_directory(NODE)
    files.sync_directory(NODE.parent)
    found_log(home_on(files))
    files.sync_directory(NODE)
    return files


def opened(files, **owner):
    wal = Wal(home_on(files, **owner), extend_bytes=EXTEND_BYTES, reserve_bytes=512)
    return wal, wal.recover()


def entry(index, term=1, data=b"x", epoch=1):
    return Entry(epoch, index, term, entry_body(EntryKind.COMMAND, epoch, term, index, data))


def put(*entries):
    return Write(None, None, entries)


def persist(wal, *writes):
    wal.persist(wal.encode(writes))


def three_groups(last_data=b"z" * 700):
    """A log with three groups behind the opening one, the bytes of its file, and their offsets."""
    files = founded()
    wal, _ = opened(files)
    offsets = [wal.end]
    for number, data in enumerate((b"a" * 40, b"b" * 40, last_data), start=1):
        # The last group says nothing new of the term, of which there is a second copy.
        persist(wal, Write(HardState(1, min(number, 2), 1), None, [entry(number, 2, data)]))
        offsets.append(wal.end)
    wal.close()
    return files, files.read(LOG), offsets


def replaced(files, data):
    """Put ``data`` in the place of the log's bytes."""
    files.cut(LOG, 0)
    files.corrupt(LOG, 0, data)


def refused(files, error=LogDamaged, **owner):
    with pytest.raises(error) as caught:
        opened(files, **owner)
    sentence = str(caught.value)
    assert str(LOG) in sentence
    return sentence


# What it gives back


def test_recover_founded():
    """A log that was founded and never written holds nothing, not even a hard state."""
    _, recovered = opened(founded())
    assert recovered.hard_state is None
    assert all_entries(recovered.log) == ()


def test_recover_twice():
    """Everything persisted is recovered in order, and a second recovery finds the same."""
    files = founded()
    wal, _ = opened(files)
    persist(wal, put(entry(1), entry(2)), Write(HardState(1, 2, 3), None, [entry(3, 2)]))
    persist(wal, put(entry(4, 2, b"")))
    wal.close()
    for _ in range(2):
        wal, recovered = opened(files)
        wal.close()
        assert recovered.hard_state == HardState(1, 2, 3)
        assert all_entries(recovered.log) == (entry(1), entry(2), entry(3, 2), entry(4, 2, b""))


def test_recover_continued():
    """A recovered log goes on where it ended."""
    files = founded()
    for index in range(1, 6):
        wal, recovered = opened(files)
        assert [held.index for held in all_entries(recovered.log)] == list(range(1, index))
        persist(wal, put(entry(index)))
        wal.close()


def test_recover_overwritten():
    """The last write per index wins, and a gap stays a gap."""
    files = founded()
    wal, _ = opened(files)
    persist(wal, put(entry(1), entry(2), entry(9)))
    persist(wal, put(entry(2, 5, b"new"), entry(4, 5)))
    assert list(all_entries(opened(files)[1].log)) == [
        entry(1),
        entry(2, 5, b"new"),
        entry(4, 5),
        entry(9),
    ]


@pytest.mark.parametrize("gap", [0, 1_000_000_000_000])
def test_recover_truncated(gap):
    """A truncation voids everything at and above its index, before its write's entries are put."""
    files = founded()
    wal, _ = opened(files)
    persist(wal, put(entry(1), entry(2), entry(3), entry(4 + gap)))
    persist(wal, Write(None, 2, [entry(3, 7)]), Write(None, 5, []))
    assert list(all_entries(opened(files)[1].log)) == [entry(1), entry(3, 7)]


def test_persist_short_writes():
    """A disk that takes seven bytes at a time stores the same."""
    files = founded(write_bytes_max=7)
    wal, _ = opened(files)
    persist(wal, put(entry(1, data=b"y" * 100)))
    files.crash(KeepNothing())
    assert list(all_entries(opened(files)[1].log)) == [entry(1, data=b"y" * 100)]


def test_persist_real_disk(tmp_path):
    """On the real disk the log is found again, and nobody else may read it."""
    files = RealFiles()
    home = home_on(files, tmp_path)
    found_log(home)
    wal = Wal(home)
    wal.recover()
    persist(wal, Write(HardState(1, 4, 1), None, [entry(1, 4)]))
    wal.close()
    wal.close()
    again = Wal(home)
    recovered = again.recover()
    again.close()
    assert (recovered.hard_state, all_entries(recovered.log)) == (
        HardState(1, 4, 1),
        (entry(1, 4),),
    )
    assert wal.path.stat().st_mode & 0o777 == 0o600


# How it gets there


def operations(files):
    """The names of the operations from here on, as they come."""
    names = []

    def note(number, name, path):
        names.append(name)

    files.fault = note
    return names


def test_persist_one_write_one_sync():
    """A group with room in the file costs one write and one sync, and nothing else."""
    files = founded()
    wal, _ = opened(files)
    persist(wal, put(entry(1, data=b"y" * FOUNDING_BYTES)))
    group = wal.encode([put(entry(2))])
    names = operations(files)
    wal.persist(group)
    assert names == ["write", "sync"]


def test_persist_extends_first():
    """An extension of the file is durable before zeros, and then a group, are written into it."""
    files = founded()
    wal, _ = opened(files)
    group = wal.encode([put(entry(1, data=b"y" * FOUNDING_BYTES))])
    names = operations(files)
    wal.persist(group)
    assert names == ["preallocate", "sync", "write", "write", "sync"]
    assert len(files.read(LOG)) == EXTEND_BYTES


def test_persist_writes_ahead():
    """Zeros are written ahead of the groups in steps, not with each of them."""
    files = founded()
    wal, _ = opened(files)
    wal.persist(wal.encode([put(entry(1))]))
    names = operations(files)
    wal.persist(wal.encode([put(entry(2))]))
    assert names == ["write", "sync"]


def test_encode_no_operation():
    """Encoding touches no file."""
    files = founded()
    wal, _ = opened(files)
    names = operations(files)
    wal.encode([put(entry(1))])
    assert names == []


def test_persist_out_of_order():
    """A group that is not the next one is refused before it is written."""
    wal, _ = opened(founded())
    wal.encode([put(entry(1))])
    second = wal.encode([put(entry(2))])
    with pytest.raises(AssertionError, match="in the order"):
        wal.persist(second)


@pytest.mark.parametrize(
    ("operation", "number"),
    [
        ("write", errno.EIO),
        ("sync", errno.EIO),
        ("preallocate", errno.EIO),
        ("sync", errno.ENOSPC),
    ],
)
def test_persist_failing(operation, number):
    """A failed operation poisons the log, and a failed sync whatever its reason: the error names
    file and reason, nothing is retried."""
    files = founded()
    wal, _ = opened(files)
    groups = [wal.encode([put(entry(1, data=b"y" * FOUNDING_BYTES))]), wal.encode([put(entry(2))])]

    def fault(_, name, path):
        if name == operation:
            raise OSError(number, "Out of order")

    files.fault = fault
    with pytest.raises(StorageFailed, match=f"{LOG}.*group 2 .*Out of order"):
        wal.persist(groups[0])
    names = operations(files)
    for act in (lambda: wal.persist(groups[1]), lambda: wal.encode([put(entry(3))])):
        with pytest.raises(StorageFailed, match="Out of order"):
            act()
    assert names == []


def test_recover_failing():
    """A disk that cannot even store the end of the log again is not built on."""
    files = founded()

    def fault(number, name, path):
        if name == "sync":
            raise OSError(errno.EIO, "Input/output error")

    files.fault = fault
    assert "Input/output error" in refused(files, StorageFailed)


# Torn: cut


def test_recover_torn_at_every_byte():
    """Wherever within it the last write stopped, its group is cut, wiped out, and written anew."""
    files, data, offsets = three_groups()
    start, end = offsets[2:]
    assert end - start > SECTOR_BYTES
    for kept in range(start, end):
        replaced(files, data[:kept].ljust(len(data), b"\0"))
        wal, recovered = opened(files)
        assert recovered.hard_state == HardState(1, 2, 1), kept
        assert [held.index for held in all_entries(recovered.log)] == [1, 2]
        assert not any(files.read(LOG)[start:])
        persist(wal, put(entry(3, 9)))
        wal.close()
        files.crash(KeepNothing())
        assert all_entries(opened(files)[1].log)[2] == entry(3, 9)


def test_recover_lost_sectors():
    """Whichever sectors of the last group were lost, it is cut, and nothing of it stays behind."""
    files, data, offsets = three_groups(last_data=b"z" * 2000)
    start, end = offsets[2:]
    first, last = start // SECTOR_BYTES, (end - 1) // SECTOR_BYTES
    for lost in range(1, 1 << (last - first + 1)):
        torn = bytearray(data)
        for sector in range(first, last + 1):
            if lost >> (sector - first) & 1:
                lost_start = max(start, sector * SECTOR_BYTES)
                lost_end = min(end, (sector + 1) * SECTOR_BYTES)
                torn[lost_start:lost_end] = bytes(lost_end - lost_start)
        replaced(files, bytes(torn))
        assert [held.index for held in all_entries(opened(files)[1].log)] == [1, 2], bin(lost)
        files.crash(KeepNothing())
        assert not any(files.read(LOG)[start:])


def test_recover_torn_around_foreign_log():
    """A log of another owner, carried in a command, is not taken for a later group of this one."""
    foreign_header = pack_header(SegmentHeader("other", 2, 5, 1, 1, 0))
    foreign, _ = pack_group([put(entry(1))], 9, 0, header_salt(foreign_header))
    files, data, offsets = three_groups(last_data=b"z" * 1000 + foreign)
    start = offsets[2]
    boundary = (start // SECTOR_BYTES + 1) * SECTOR_BYTES
    replaced(files, data[:start] + bytes(boundary - start) + data[boundary:])
    assert foreign in files.read(LOG)
    assert [held.index for held in all_entries(opened(files)[1].log)] == [1, 2]


# Damaged: refused


def test_recover_flipped_byte():
    """A flipped byte is noticed wherever it is: header, any group, and the last one too."""
    files, data, offsets = three_groups()
    for at in range(offsets[-1]):
        flipped = bytearray(data)
        flipped[at] ^= 0xFF
        replaced(files, flipped)
        assert "check the disk" in refused(files), at


@pytest.mark.parametrize("number", [0, 1])
def test_recover_lost_group(number):
    """A group that is gone entirely while a later one is there was acknowledged: no cut."""
    files, data, offsets = three_groups()
    start, end = offsets[number : number + 2]
    replaced(files, data[:start] + bytes(end - start) + data[end:])
    sentence = refused(files)
    assert f"group {number + 2} at offset {start}" in sentence
    assert f"a later group follows at offset {end}" in sentence


def test_recover_torn_before_more():
    """A group that misses something is damage if anything at all follows it."""
    files, data, offsets = three_groups()
    end = offsets[3]
    torn = bytearray(data)
    torn[end - 200 : end + 1] = bytes(200) + b"?"
    replaced(files, torn)
    assert "more follows it" in refused(files)


def test_recover_stale_group():
    """A group that is intact and of the right number, but of another history, breaks the chain."""
    files, data, offsets = three_groups()
    _, other, _ = three_groups()
    second, third = offsets[1:3]
    salt = header_salt(data)
    first_chain = int.from_bytes(data[offsets[0] + HEAD_BYTES - 4 : offsets[0] + HEAD_BYTES])
    stale, _ = pack_group(
        [Write(HardState(1, 9, 1), None, [entry(2, 9, b"b" * 40)])], 3, first_chain, salt
    )
    assert len(stale) == third - second
    replaced(files, other[:second] + stale + other[third:])
    assert f"group 4 at offset {third} is a misplaced or stale one" in refused(files)


def test_recover_repeated_group():
    """A group that stands where the next one belongs is noticed, at the end of the log too."""
    files, data, offsets = three_groups(last_data=b"c" * 40)
    first, second = data[offsets[0] : offsets[1]], data[offsets[1] : offsets[2]]
    assert len(first) == len(second)
    replaced(files, data[: offsets[3]] + second + data[offsets[3] + len(second) :])
    assert "misplaced or stale one (number 3)" in refused(files)


def test_recover_cut_file():
    """A file cut anywhere up to its last group's end is refused; cut behind that, it is whole."""
    files, data, offsets = three_groups()
    for size in range(1, offsets[-1] + SECTOR_BYTES):
        replaced(files, data[:size])
        refused(files)
    replaced(files, data[: offsets[-1] + SECTOR_BYTES])
    assert len(all_entries(opened(files)[1].log)) == 3


def test_recover_missing_empty_garbage():
    """Missing, empty and damaged are three states with three sentences."""
    files, data, _ = three_groups()
    replaced(files, b"")
    assert "is empty" in refused(files)
    replaced(files, b"\0" * len(data))
    assert "the header at offset 0 is damaged" in refused(files)
    files.remove(LOG)
    assert "is missing" in refused(files)


def test_recover_without_opening_group():
    """A file whose opening group is lost has lost the hard state: it is not a new log."""
    files = founded()
    files.cut(LOG, HEADER_BYTES)
    files.corrupt(LOG, HEADER_BYTES, bytes(FOUNDING_BYTES))
    assert "the hard state" in refused(files)


@pytest.mark.parametrize(
    ("owner", "named"),
    [
        ({"cluster_id": "other"}, "cluster 'demo'"),
        ({"node_id": 2}, "node 1"),
        ({"incarnation": 78}, "incarnation 77"),
    ],
)
def test_recover_foreign(owner, named):
    """The log of another cluster, node or incarnation is refused by name."""
    sentence = refused(founded(), DirectoryError, **owner)
    assert named in sentence
    assert "never copy a log" in sentence


def test_recover_later_version():
    """A header of a later version is named as such, and is not called damaged."""
    files = founded()
    header = bytearray(files.read(LOG)[:HEADER_BYTES])
    header[8:10] = (2).to_bytes(2)
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4)
    files.corrupt(LOG, 0, bytes(header))
    assert "version 2" in refused(files, UnknownFormat)


def with_body(body, sequence=5):
    """A log whose last group is intact and has these records and this number."""
    files, data, offsets = three_groups()
    chain = data[offsets[2] + HEAD_BYTES - 4 : offsets[2] + HEAD_BYTES]
    head = (
        b"RGRP"
        + len(body).to_bytes(4)
        + sequence.to_bytes(8)
        + chain
        + zlib.crc32(body).to_bytes(4)
    )
    head += zlib.crc32(head, header_salt(data)).to_bytes(4)
    files.corrupt(LOG, offsets[3], head + body + b"\xe7")
    return files


def test_recover_no_records():
    """A group without any record is legal."""
    assert opened(with_body(b""))[1].log.runs.last_index == 3


def test_recover_misnumbered_group():
    """A group that fits the chain under a wrong number was not written by this log."""
    assert "misplaced or stale one (number 6)" in refused(with_body(b"", sequence=6))


def test_recover_unknown_record():
    """A record of a later release stops the node with a sentence; it is never skipped."""
    sentence = refused(with_body(b"\x09\0\0\0\x01?"), UnknownFormat)
    assert "group 5" in sentence
    assert "type 9" in sentence


@pytest.mark.parametrize(
    "body",
    [
        b"\x03\0\0",
        b"\x03\0\0\0\x09abc",
        b"\x03\0\0\0\x03abc",
        b"\x01\0\0\0\x01a",
        b"\x02\0\0\0\x01a",
    ],
)
def test_recover_senseless_record(body):
    """Records that were written wrongly are damage, however right their checksum."""
    assert "group 5" in refused(with_body(body))
