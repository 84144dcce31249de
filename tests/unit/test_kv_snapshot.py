"""The key-value store's snapshots: frozen beside commands, sorted, and whole or refused."""

from __future__ import annotations

import random

import pytest

from replog.changes import ChangeWindow
from replog.chunks import CHUNK_BYTES, pack_chunks
from replog.errors import SnapshotDamaged, UnknownFormat
from replog.machine import ApplyContext, MachineKind, machine_kind
from replog.testing import check_machine
from replog_kv import Kv
from replog_kv.machine import _RUN_KEYS, SNAPSHOT_FORM


def filled(count: int, value: bytes = b"v") -> Kv:
    kv = Kv()
    for number in range(count):
        kv.context = ApplyContext(index=number + 1, time_ms=0)
        kv.put(f"key-{number * 7919 % 10007:05d}é", value)
    return kv


def payloads(seed: int, count: int) -> list[bytes]:
    dice = random.Random(seed)
    made: list[bytes] = []
    for _ in range(count):
        key = f"key-{dice.randrange(60)}"
        old, new = (dice.choice((None, b"a", b"b")) for _ in range(2))
        made.append(
            dice.choice(
                (
                    Kv.put.encode(key, dice.choice((b"a", b"b"))),
                    Kv.get.encode(key),
                    Kv.delete.encode(key),
                    Kv.compare_and_set.encode(key, old, new),
                    Kv.range.encode(key, None, dice.randrange(-1, 9)),
                )
            )
        )
    return made


def test_machine_passes_check() -> None:
    """The store keeps the rules of a concurrent machine, under commands that meet each other."""
    assert machine_kind(Kv()) is MachineKind.CONCURRENT
    check_machine(Kv, payloads(1, 300))


def test_frozen_view_stands_still() -> None:
    """What was frozen shows no later command, even when it is consumed half-way meanwhile."""
    kv = filled(2000, b"v" * 1000)
    frozen = iter(kv.freeze())
    early = [next(frozen), next(frozen)]
    before = kv.dump(b"", 1 << 20).items
    for number in range(0, 10007, 3):
        kv.delete(f"key-{number:05d}é")
        kv.put(f"new-{number}", b"w")
    other = Kv()
    other.restore([*early, *frozen])
    assert other.dump(b"", 1 << 20).items == before


def test_chunks_bounded_and_ordered() -> None:
    """Chunks are of about a quarter of a MiB, and the same for the same changes, and for the same
    items in another order."""
    kv = filled(9000, b"v" * 200)
    assert len(kv._items) > _RUN_KEYS
    chunks = list(kv.freeze())
    assert 18 < len(chunks) < 24
    assert max(map(len, chunks)) < CHUNK_BYTES + 2000
    other = Kv()
    other._items, other._changes = dict(reversed(kv._items.items())), kv._changes
    assert list(other.freeze()) == chunks
    other.restore(chunks)
    assert list(other._items) == sorted(kv._items)


def test_empty_store() -> None:
    """An empty store is restored as an empty one."""
    kv = filled(10)
    kv.restore(Kv().freeze())
    assert kv.range() == {"items": [], "more": False}


def test_ranges_after_restore() -> None:
    """The order that ranges use is that of the restored keys."""
    kv = filled(600)
    kv.range()
    kv.delete("key-00000é")
    kv.put("zz", b"")
    kv.restore(filled(5).freeze())
    kv.put("aa", b"")
    assert kv.range()["items"][0]["key"] == "aa"
    assert len(kv.range()["items"]) == 6


@pytest.mark.parametrize(
    "records",
    [
        [b"\0"],
        [bytes(14)[:13]],
        [b"\0\x01" + bytes(12)],
        [b"\0\x01\0\0\0\x09" + bytes(8) + b"k"],
        [b"\0\x01\0\0\0\0" + bytes(8) + b"\xff"],
        [b"\0\0\0\0\0\0" + bytes(8)],
        [b"\0\x01\0\0\0\0" + bytes(8) + b"k"] * 2,
    ],
)
def test_foreign_records_refused(records: list[bytes]) -> None:
    """Records that are intact and no items are refused, and nothing is changed."""
    kv = filled(3)
    with pytest.raises(SnapshotDamaged, match="kv 2"):
        kv.restore(pack_chunks(SNAPSHOT_FORM, [*ChangeWindow().freeze(), *records]))
    assert len(kv.range()["items"]) == 3


def test_incomplete_refused() -> None:
    """A snapshot without its end, or of another form, leaves the store as it was."""
    chunks = list(filled(3000, b"v" * 500).freeze())
    kv = filled(3)
    for count in range(len(chunks)):
        with pytest.raises(SnapshotDamaged):
            kv.restore(chunks[:count])
    with pytest.raises(UnknownFormat):
        kv.restore(pack_chunks("kv 3", []))
    assert len(kv.range()["items"]) == 3
