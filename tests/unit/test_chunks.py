"""Records as chunks and back, however the chunks are cut, and whatever damages them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from replog.chunks import pack_chunks, unpack_chunks, unpack_forms
from replog.errors import SnapshotDamaged, UnknownFormat

RECORDS = [b"one", b"", b"three" * 100, b"\xff" * 5]


def cut(data: bytes, seed: int) -> Iterator[bytes]:
    """The same bytes in drawn pieces, some of them empty."""
    dice = random.Random(seed)
    at = 0
    while at < len(data):
        size_bytes = dice.randrange(0, 9)
        yield data[at : at + size_bytes]
        at += size_bytes


def packed(records: list[bytes] = RECORDS) -> bytes:
    return b"".join(pack_chunks("things 1", records))


def test_records_survive_any_cut() -> None:
    """The records come back from chunks that are cut anywhere."""
    for seed in range(20):
        assert list(unpack_chunks("things 1", cut(packed(), seed))) == RECORDS
    assert list(unpack_chunks("things 1", [packed([])])) == []


def test_bytes_fixed() -> None:
    """The bytes are those that the module describes, for other releases to read."""
    assert packed([b"r"]).hex() == (
        "00000008" "7468696e67732031" "6dab530a" "00000001" "72" "f744c9ca" "ffffffff"
        "cfbdb1ec"
    )  # fmt: skip


def test_every_damage_noticed() -> None:
    """Each changed byte, each missing end and each byte too many is refused."""
    data = packed([b"first", b"second"])
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x20
        with pytest.raises(SnapshotDamaged):
            list(unpack_chunks("things 1", [bytes(changed)]))
        with pytest.raises(SnapshotDamaged, match="too early"):
            list(unpack_chunks("things 1", [data[:at]]))
    with pytest.raises(SnapshotDamaged, match="follows its end"):
        list(unpack_chunks("things 1", [data, b"\0"]))


def test_no_damaged_record_handed_out() -> None:
    """A record is handed out only when its checksum fitted."""
    chunks = list(pack_chunks("things 1", RECORDS))
    swapped = [chunks[0], chunks[1], chunks[3], chunks[2], *chunks[4:]]
    records = unpack_chunks("things 1", swapped)
    assert next(records) == RECORDS[0]
    with pytest.raises(SnapshotDamaged, match="checksum"):
        next(records)


def test_other_form_refused() -> None:
    """A stream of another form is refused before its first record."""
    with pytest.raises(UnknownFormat, match="'things 2'"):
        next(unpack_chunks("things 2", [packed()]))


def test_large_record_refused() -> None:
    """A record beyond what the reader holds is refused before it is read."""
    with pytest.raises(SnapshotDamaged, match="500 bytes"):
        list(unpack_chunks("things 1", [packed()], record_bytes_max=499))


def test_forms_of_earlier_releases() -> None:
    """Whoever reads several forms is told which one it is, and refuses what is none of them."""
    for form in ("things 1", "things 2"):
        found, records = unpack_forms(("things 1", "things 2"), pack_chunks(form, [b"a", b"b"]))
        assert (found, list(records)) == (form, [b"a", b"b"])
    with pytest.raises(UnknownFormat, match="reads 'things 1' and 'things 2'"):
        unpack_forms(("things 1", "things 2"), pack_chunks("things 3", []))
