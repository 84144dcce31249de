"""The second copy of the hard state: it tells that a log lost its end, and outlives any crash."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from replog.errors import LogDamaged, UnknownFormat
from replog.storage.hard_state import FILE_NAME, SecondCopy, Vouched
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.segment import SECTOR_BYTES, segment_name
from replog.storage.wal import Wal, found_log
from replog.testing.files import (
    Crashed,
    ForgetfulFiles,
    Keep,
    KeepEverything,
    KeepNothing,
    KeepPrefix,
    KeepSectors,
)
from replog.types import HardState

NODE = Path("/node")
COPY = NODE / FILE_NAME
LOG = NODE / segment_name(1)


def founded() -> ForgetfulFiles:
    """Files with an empty log."""
    files = ForgetfulFiles()
    files.make_directory(NODE)
    files.sync_directory(NODE.parent)
    found_log(home_on(files))
    files.sync_directory(NODE)
    return files


def home_on(files: ForgetfulFiles, incarnation: int = 7) -> StorageHome:
    """Where the log is."""
    return StorageHome(files, NODE, "demo", 1, incarnation)


def opened(files: ForgetfulFiles) -> tuple[Wal, HardState | None]:
    """The log, and the hard state that it recovered."""
    wal = Wal(home_on(files), extend_bytes=4096, reserve_bytes=512)
    return wal, wal.recover().hard_state


def vote(wal: Wal, term: int, voted_for: int = 2, hint: int = 0) -> None:
    """Make a vote durable."""
    wal.persist(wal.encode([Write(HardState(1, term, voted_for, hint), None, ())]))


def voted(*terms: int) -> ForgetfulFiles:
    """Files with a log with a vote in each of ``terms``."""
    files = founded()
    wal, _ = opened(files)
    for term in terms:
        vote(wal, term)
    wal.close()
    return files


def lose_end(files: ForgetfulFiles) -> None:
    """Lose the end of the last group of the log, as a disk may that forgets what it synced."""
    end = len(files.read(LOG).rstrip(b"\0"))
    files.corrupt(LOG, end - 1, b"\0")


def test_format_frozen() -> None:
    """The bytes of a slot are those of docs/log-format.md, for ever."""
    files = founded()
    wal, _ = opened(files)
    vote(wal, 5, 3)
    slot = files.read(COPY)[SECTOR_BYTES:]
    assert slot[:58].hex() == (
        "52504c474853540a" "0001" "0001" "0000000000000007"  # magic, version, node, incarnation
        "0000000000000003"  # the number: founding, start, vote
        "00000001" "0000000000000005" "0003"  # epoch, term, vote
        "0000000000000001" "0000000000000001"  # newest and oldest segment
    )  # fmt: skip
    assert slot[508:] == zlib.crc32(slot[:508]).to_bytes(4)
    assert len(files.read(COPY)) == 2 * SECTOR_BYTES


def test_lost_vote_noticed() -> None:
    """A last group that looks torn is cut, unless a vote goes with it."""
    files = voted(1, 4)
    lose_end(files)
    with pytest.raises(LogDamaged, match=r"/node: the log ends in term \d, and was in term 4"):
        opened(files)


def test_lost_vote_of_the_term_noticed() -> None:
    """The term alone is not enough: of two votes in a term one is too many."""
    files = founded()
    wal, _ = opened(files)
    vote(wal, 4, 0)
    data = files.read(LOG)
    vote(wal, 4, 3)
    files.corrupt(LOG, 0, data)
    with pytest.raises(LogDamaged, match="nothing of the vote for node 3 in term 4"):
        opened(files)


def test_hint_costs_no_sync() -> None:
    """A new commit hint is nothing that must not be forgotten."""
    files = founded()
    wal, _ = opened(files)
    vote(wal, 4, hint=1)
    before = files.read(COPY)
    vote(wal, 4, hint=2)
    assert files.read(COPY) == before
    vote(wal, 5, hint=2)
    assert files.read(COPY) != before


@pytest.mark.parametrize(
    "keep",
    [KeepNothing(), KeepEverything(), KeepPrefix(40), *map(KeepSectors, range(6))],
    ids=str,
)
def test_crash_at_every_operation(keep: Keep) -> None:
    """A crash within a vote leaves a log and a second copy that fit, and the next recovery, also
    one that crashes, finds the same."""
    points = 0
    for number in range(1, 40):
        files = founded()
        wal, _ = opened(files)
        vote(wal, 1)
        if not crashes(files, number, lambda wal=wal: vote(wal, 2)):
            break
        points += 1
        files.crash(keep)
        found = opened(files)[1]
        assert found in (HardState(1, 1, 2), HardState(1, 2, 2))
        for at in range(1, 40):
            if not crashes(files, at, lambda files=files: opened(files)):
                break
            files.crash(keep)
            assert opened(files)[1] == found
        files.crash(KeepNothing())
        assert opened(files)[1] == found
    assert points >= 4


def crashes(files: ForgetfulFiles, number: int, act: object) -> bool:
    """Whether the ``number``-th operation of ``act`` is reached, and crashes."""
    at = files.operations_count + number

    def crash(count: int, operation: str, path: Path) -> None:
        if count >= at:
            raise Crashed(operation)

    files.fault = crash
    try:
        act()  # type: ignore[operator]
    except Crashed:
        return True
    finally:
        files.fault = None
    return False


def test_one_slot_is_enough() -> None:
    """A torn slot is passed over; the log is at least as new as the other one."""
    for at in (0, SECTOR_BYTES):
        files = voted(1, 2, 3)
        files.corrupt(COPY, at + 40, b"\xff")
        assert opened(files)[1] == HardState(1, 3, 2)
        assert files.read(COPY)[at + 40] != 0xFF, "and is mended"


def test_damage_refused() -> None:
    """Missing, empty and damaged are different, and all are refused."""
    files = voted(1)
    files.corrupt(COPY, 30, b"\xff")
    files.corrupt(COPY, SECTOR_BYTES + 30, b"\xff")
    with pytest.raises(LogDamaged, match="/node/hard-state: neither of its two copies"):
        opened(files)
    files.cut(COPY, 0)
    with pytest.raises(LogDamaged, match="/node/hard-state is empty"):
        opened(files)
    files.remove(COPY)
    with pytest.raises(LogDamaged, match="/node/hard-state is missing"):
        opened(files)


def test_copy_of_another_node_refused() -> None:
    """The file of another incarnation says nothing of this log."""
    files = voted(1)
    other = founded()
    SecondCopy(other, NODE, 1, 8).found(Vouched(1, 0, 0, 1, 1))
    files.corrupt(COPY, 0, other.read(COPY))
    with pytest.raises(LogDamaged, match="neither of its two copies of the hard state is intact"):
        opened(files)


def test_later_version_refused() -> None:
    """An intact slot of a later version is no damage."""
    files = voted(1)
    block = bytearray(files.read(COPY)[:508])
    block[9] = 2
    files.corrupt(COPY, 0, bytes(block) + zlib.crc32(block).to_bytes(4))
    with pytest.raises(UnknownFormat, match="is of format version 2"):
        opened(files)
