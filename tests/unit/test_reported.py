"""What a node remembers of a machine on its own disk, and the rule that it is held against."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from replog.errors import MachineDamaged, StorageFailed, UnknownFormat
from replog.storage.reported import FILE_NAME, check_reported, read_reported, write_reported
from replog.testing.files import Crashed, ForgetfulFiles, KeepEverything, KeepNothing, KeepSectors

NODE = Path("/node")


def disk() -> ForgetfulFiles:
    files = ForgetfulFiles()
    files.make_directory(NODE)
    files.sync_directory(Path("/"))
    return files


def test_reported_read_back() -> None:
    """What was written down last is read; 0 where nothing was, and after a 0."""
    files = disk()
    assert read_reported(files, NODE) == 0
    for index in (7, (1 << 64) - 1, 0):
        write_reported(files, NODE, index)
        files.crash(KeepNothing())
        assert read_reported(files, NODE) == index


def test_bytes_fixed() -> None:
    """The file is the one that the module describes."""
    files = disk()
    write_reported(files, NODE, 258)
    assert files.read(NODE / FILE_NAME).hex() == (
        "52504c474d41500a" "0001" "0000000000000102" "ccb2ac48"
    )  # fmt: skip


@pytest.mark.parametrize("keep", [KeepNothing(), KeepEverything(), KeepSectors(1), KeepSectors(2)])
def test_crash_leaves_old_or_new(keep: KeepNothing | KeepEverything | KeepSectors) -> None:
    """Wherever a crash interrupts the writing, the index before is read, or the new one."""
    last = 0
    for stop in range(1, 40):
        files = disk()
        write_reported(files, NODE, 5)
        base = files.operations_count

        def fault(number: int, name: str, path: Path, at: int = base + stop) -> None:
            if number == at:
                raise Crashed

        files.fault = fault
        try:
            write_reported(files, NODE, 9)
        except Crashed:
            files.crash(keep)
            assert read_reported(files, NODE) in (5, 9)
            last = stop
        else:
            break
    assert last > 5, "the crash never came"


def test_damage_refused() -> None:
    """Each changed byte and a cut file are refused, and the sentence names file and remedy."""
    files = disk()
    write_reported(files, NODE, 300)
    for at in range(22):
        byte = files.read(NODE / FILE_NAME)[at : at + 1]
        files.corrupt(NODE / FILE_NAME, at, bytes([byte[0] ^ 1]))
        with pytest.raises(MachineDamaged, match=r"/node/machine-applied is damaged.*remove"):
            read_reported(files, NODE)
        files.corrupt(NODE / FILE_NAME, at, byte)
    assert read_reported(files, NODE) == 300
    files.cut(NODE / FILE_NAME, 0)
    with pytest.raises(MachineDamaged):
        read_reported(files, NODE)


def test_later_version_refused() -> None:
    """An intact file of a later version is not taken for a damaged one."""
    files = disk()
    write_reported(files, NODE, 1)
    files.corrupt(NODE / FILE_NAME, 0, bytes.fromhex("52504c474d41500a00020000000000000001"))
    checksum = zlib.crc32(files.read(NODE / FILE_NAME)[:18])
    files.corrupt(NODE / FILE_NAME, 18, checksum.to_bytes(4, "big"))
    with pytest.raises(UnknownFormat, match="version 2"):
        read_reported(files, NODE)


def test_disk_failure_typed() -> None:
    """A disk that fails is a StorageFailed, in reading and in writing."""
    files = disk()
    write_reported(files, NODE, 1)

    def fault(number: int, name: str, path: Path) -> None:
        if name in ("read", "sync"):
            raise OSError(5, "Input/output error")

    files.fault = fault
    with pytest.raises(StorageFailed, match="cannot be written: Input/output"):
        write_reported(files, NODE, 2)
    with pytest.raises(StorageFailed, match="cannot be read: Input/output"):
        read_reported(files, NODE)


@pytest.mark.parametrize(
    ("applied", "reported", "durable", "snapshot"),
    [(0, 0, 0, 0), (0, 90, 100, 50), (100, 90, 100, 0), (90, 90, 80, 90), (91, 90, 100, 95)],
)
def test_fitting_machine_accepted(applied: int, reported: int, durable: int, snapshot: int) -> None:
    """A machine within log or snapshot, not behind itself, fits; so does an empty one."""
    check_reported(NODE, applied, reported, durable, snapshot)


@pytest.mark.parametrize(
    ("applied", "reported", "durable", "snapshot", "sentence"),
    [
        (101, 90, 100, 50, "up to entry 101, and .* reach to entry 100 only.*remove"),
        (101, 0, 0, 100, "reach to entry 100 only"),
        (1, 0, 0, 0, "reach to entry 0 only"),
        (89, 90, 100, 50, "up to entry 89, and held entry 90 before.*remove"),
    ],
)
def test_misfitting_machine_refused(
    applied: int, reported: int, durable: int, snapshot: int, sentence: str
) -> None:
    """A machine ahead of log and snapshot, or behind itself, is refused with the remedy."""
    with pytest.raises(MachineDamaged, match=f"state machine of /node .*{sentence}"):
        check_reported(NODE, applied, reported, durable, snapshot)
