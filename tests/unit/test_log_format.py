"""The bytes of the log: what one release wrote, every later one reads."""

from __future__ import annotations

import zlib
from pathlib import Path

from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.segment import (
    HEAD_BYTES,
    HEADER_BYTES,
    SegmentHeader,
    header_salt,
    pack_group,
    pack_header,
    segment_name,
)
from replog.storage.wal import FOUNDING_BYTES, found_log
from replog.testing.files import ForgetfulFiles
from replog.types import Entry, EntryId, EntryKind, HardState, entry_body


def founded_log():
    files = ForgetfulFiles()
    node = Path("/node")
    files.make_directory(node)
    found_log(StorageHome(files, node, "demo", 1, 77))
    return files.read(node / segment_name(1))


def test_format_frozen():
    """The bytes of a header and of a group are those of docs/log-format.md, for ever."""
    header = pack_header(SegmentHeader("demo", 3, 0x1122334455667788, 1, 1, 0))
    assert header[:46].hex() == (
        "52504c475345470a"  # magic
        "0001" "0003" "1122334455667788"  # version, node, incarnation
        "0000000000000001" "0000000000000001" "00000000"  # segment, first sequence, chain
        "0004" "64656d6f"  # cluster id
    )  # fmt: skip
    assert header[46:508] == bytes(462)
    assert header[508:] == zlib.crc32(header[:508]).to_bytes(4)
    write = Write(HardState(1, 2, 3), 7, [Entry(1, 7, 2, entry_body(EntryKind.NOOP, 1, 2, 1, b""))])
    group, chain = pack_group([write], 5, 0xAABBCCDD, header_salt(header))
    body = (
        "01" "0000000e" "00000001" "0000000000000002" "0003"  # hard state
        "02" "00000008" "0000000000000007"  # truncate
        "03" "00000031" "00000001" "0000000000000002" "0000000000000007" "00000001"  # put: run head
        "00000015" "00" "00000001" "0000000000000002" "0000000000000001"  # a length, a body
    )  # fmt: skip
    assert group[28:-1].hex() == body
    assert group[:20].hex() == "52475250000000560000000000000005aabbccdd"
    assert group[20:24] == zlib.crc32(group[28:-1]).to_bytes(4)
    assert group[24:28] == zlib.crc32(group[:24], header_salt(header)).to_bytes(4)
    assert chain.to_bytes(4) == group[24:28]
    assert group[-1:] == b"\xe7"


def test_format_hint_frozen():
    """A hard state with a commit hint is a record of its own type, also for ever."""
    write = Write(HardState(1, 2, 3, commit_hint=9), None, ())
    group, _ = pack_group([write], 1, 0, 0)
    record = "040000001600000001000000000000000200030000000000000009"
    assert group[28:-1].hex() == record


def test_format_base_frozen():
    """A base stands before the truncation and the entries of its write."""
    write = Write(None, 9, (), EntryId(1, 2, 7))
    group, _ = pack_group([write], 1, 0, 0)
    base = "05000000140000000100000000000000020000000000000007"
    assert group[28:-1].hex() == base + "02000000080000000000000009"


def test_format_founding():
    """A founded log is its header, the opening group with the hard state, and zeros."""
    data = founded_log()
    assert len(data) == FOUNDING_BYTES
    assert (
        data[HEADER_BYTES + HEAD_BYTES :][:20].hex() == "010000000e0000000100000000000000000000e7"
    )
    assert not any(data[HEADER_BYTES + HEAD_BYTES + 20 :])
