"""Entries as bytes: runs of one epoch and term at contiguous indexes, there and back."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Sequence

import pytest

from replog import entries as packing
from replog.entries import (
    RUN_HEAD_BYTES,
    pack_entries,
    packed_entries,
    unpack_batch,
    unpack_entries,
)
from replog.errors import SchemaError
from replog.types import BODY_HEAD_BYTES, Entry, EntryKind, entry_body

BODY = entry_body(EntryKind.NOOP, 1, 1, 1, b"")


def run(
    count: int,
    *lengths: int,
    epoch: int = 1,
    term: int = 1,
    first_index: int = 1,
    rest: bytes = b"",
) -> bytes:
    """The head and the lengths of a run, as its layout says, and then ``rest``."""
    head = struct.pack(">IQQI", epoch, term, first_index, count)
    return head + struct.pack(f">{len(lengths)}I", *lengths) + rest


def entry(index: int, term: int = 1, epoch: int = 1, data: bytes = b"") -> Entry:
    """An entry whose body tells its index."""
    return Entry(epoch, index, term, entry_body(EntryKind.COMMAND, epoch, 1, index, data))


@pytest.mark.parametrize(
    ("entries", "runs"),
    [
        ([], 0),
        ([entry(1)], 1),
        ([entry(at) for at in range(5, 105)], 1),
        ([entry(1), entry(3)], 2),
        ([entry(1, term=1), entry(2, term=2), entry(3, term=1)], 3),
        ([entry(1, term=2), entry(2, term=2), entry(3, term=3)], 2),
        ([entry(1, epoch=1), entry(2, epoch=2)], 2),
        ([entry(1, term=5), entry(2, term=5), entry(4, term=5), entry(5, term=5)], 2),
        ([entry(1, term=1), entry(3, term=2), entry(4, term=2)], 2),
        ([entry((1 << 64) - 2, term=(1 << 64) - 1, epoch=(1 << 32) - 1)], 1),
        ([entry((1 << 64) - 1)], 1),
        ([entry(1, data=b"x" * 100_000), entry(2, data=b""), entry(3, data=b"y")], 1),
    ],
)
def test_unpack_what_was_packed(entries: list[Entry], runs: int) -> None:
    """Entries come back equal, whatever their terms and gaps, in as few runs as can be."""
    data = pack_entries(entries)
    assert unpack_entries(data) == entries
    body_bytes = sum(len(entry.body) for entry in entries)
    assert len(data) == body_bytes + 4 * len(entries) + RUN_HEAD_BYTES * runs


def test_unpack_from_offset() -> None:
    """What stands before the start is not looked at."""
    entries = [entry(1), entry(2)]
    assert unpack_entries(b"\xff" * 7 + pack_entries(entries), 7) == entries
    assert unpack_entries(b"\xff" * 7, 7) == []


@pytest.fixture
def packed_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each run that is packed from now on, how many entries it has."""
    counts: list[int] = []
    pack_run = packing._pack_run

    def counting(entries: Sequence[Entry]) -> bytes:
        counts.append(len(entries))
        return pack_run(entries)

    monkeypatch.setattr(packing, "_pack_run", counting)
    return counts


def test_the_same_batch_packed_once(packed_counts: list[int]) -> None:
    """One tuple for the disk and several peers is packed once; an equal one is another."""
    batch, equal = (entry(1), entry(2), entry(4)), (entry(1), entry(2), entry(4))
    assert packed_entries(batch).runs == [batch[:2], batch[2:]]
    assert pack_entries(batch) == packed_entries(batch).data == pack_entries(list(batch))
    assert packed_counts == [2, 1, 2, 1]  # and the list, which might change
    assert pack_entries(equal) == pack_entries(batch)
    assert packed_counts[4:] == [2, 1, 2, 1]


def test_an_unpacked_batch_is_packed_already(packed_counts: list[int]) -> None:
    """What came in one run goes to the disk as it came; in more than one, it is packed anew, for
    the sender may have cut it into more than there need to be."""
    one = run(1, 21, first_index=1, rest=BODY)
    two = run(2, 21, 21, first_index=2, rest=BODY + BODY)
    batch = unpack_batch(b"head" + two, 4)
    assert batch == tuple(unpack_entries(two))
    assert (pack_entries(batch), list(packed_entries(batch).runs)) == (two, [batch])
    assert packed_counts == []
    batch = unpack_batch(one + two, 0)
    assert batch == tuple(unpack_entries(one + two))
    assert pack_entries(batch) == run(3, 21, 21, 21, first_index=1, rest=BODY * 3)
    assert packed_counts == [3]
    assert unpack_batch(b"head", 4) == ()


def test_pack_layout() -> None:
    """A run is its head, the lengths of the bodies, and the bodies as they were born."""
    one, two = entry(7, term=3, epoch=2, data=b"a"), entry(8, term=3, epoch=2, data=b"bcd")
    assert pack_entries((one, two)) == run(
        2, 22, 24, epoch=2, term=3, first_index=7, rest=one.body + two.body
    )


def test_unpack_unknown_kind_kept() -> None:
    """A body of a kind that this release does not know travels unharmed."""
    strange = Entry(1, 1, 1, b"\xee" + BODY[1:] + b"new")
    assert unpack_entries(pack_entries([strange])) == [strange]


def test_pack_random_round_trip() -> None:
    """Any ascending row of entries survives."""
    dice = random.Random(5)
    for _ in range(300):
        index, entries = 0, []
        for _ in range(dice.randrange(12)):
            index += dice.choice((1, 1, 1, 2, 900))
            entries.append(
                entry(
                    index, dice.choice((1, 1, 2)), dice.choice((1, 1, 2)), bytes(dice.randrange(9))
                )
            )
        assert unpack_entries(pack_entries(entries)) == entries


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x00", "cut off in its head"),
        (run(1, 21, rest=BODY)[: RUN_HEAD_BYTES - 1], "cut off in its head"),
        (run(1, 21, rest=BODY) + b"\x00" * 5, "cut off in its head"),
        (run(0), "claims 0 entries"),
        (run(1), "claims 1 entries, which do not fit"),
        (run(0xFFFFFFFF, 21, rest=BODY), "claims 4294967295 entries, which do not fit"),
        (run(1, 21, first_index=0, rest=BODY), "starts at index 0, out of order"),
        (run(1, 21, rest=BODY) + run(1, 21, rest=BODY), "starts at index 1, out of order"),
        (
            run(1, 21, first_index=5, rest=BODY) + run(1, 21, first_index=4, rest=BODY),
            "starts at index 4, out of order",
        ),
        (run(2, 21, 21, first_index=(1 << 64) - 1, rest=2 * BODY), "out of order"),
        (run(1, 20, rest=BODY), "too short or cut off"),
        (run(1, 0), "too short or cut off"),
        (run(1, 22, rest=BODY), "too short or cut off"),
        (run(2, 21, 0, rest=BODY), "too short or cut off"),
        (run(2, 0xFFFFFFFF, 21, rest=2 * BODY), "too short or cut off"),
        (run(2, 21, 22, rest=2 * BODY), "too short or cut off"),
    ],
    ids=lambda case: f"{len(case)}_bytes" if isinstance(case, bytes) else None,
)
def test_unpack_broken_refused(data: bytes, sentence: str) -> None:
    """Bytes that are not exactly an ascending sequence of whole runs are refused."""
    with pytest.raises(SchemaError, match=sentence):
        unpack_entries(data)


def test_unpack_bytes_behind_refused() -> None:
    """No cut and no addition of bytes goes unnoticed, unless it falls between two runs."""
    entries = [entry(1, data=b"abc"), entry(2, data=b"de"), entry(9, data=b"f")]
    data = pack_entries(entries)
    between = len(pack_entries(entries[:2]))
    for size in range(1, len(data)):
        if size == between:
            assert unpack_entries(data[:size]) == entries[:2]
            continue
        with pytest.raises(SchemaError):
            unpack_entries(data[:size])


def test_unpack_allocates_by_size() -> None:
    """A claim of four thousand million entries costs no memory."""
    data = run(0xFFFFFFFF, *[BODY_HEAD_BYTES] * 100, rest=100 * BODY)
    tracemalloc.start()
    try:
        with pytest.raises(SchemaError):
            unpack_entries(data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 50_000
