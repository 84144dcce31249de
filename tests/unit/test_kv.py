"""The key-value store, against a plain dict and against hostile payloads."""

from __future__ import annotations

import random

import cbor2
import pytest

from replog.cbor import strict_dumps
from replog.errors import BadCommand, StateMachineError
from replog.machine import ApplyContext
from replog.statemachine import DumpPage
from replog_kv import Kv, KvError
from replog_kv.machine import INSERTIONS_MAX, RANGE_BYTES_MAX, RANGE_ITEMS_MAX

LONG_KEYS = ("", "k" * 1025, "é" * 513, "\U0001f600" * 257)
LONGEST_KEYS = ("k" * 1024, "é" * 512, "\U0001f600" * 256)


def at(kv: Kv, index: int) -> Kv:
    """The store as it stands while the entry ``index`` is applied."""
    kv.context = ApplyContext(index=index, time_ms=0)
    return kv


def whole_dump(kv: Kv, items_max: int = 1000) -> list[object]:
    """Every page of a dump, put together."""
    items: list[object] = []
    cursor = b""
    page: DumpPage = kv.dump(cursor, items_max)
    while page.cursor is not None:
        items += page.items
        assert 1 <= len(page.items) <= items_max
        assert page.cursor > cursor, "the pages do not come to an end"
        cursor = page.cursor
        page = kv.dump(cursor, items_max)
    return [*items, *page.items]


def keys_of(kv: Kv, start: str = "", end: str | None = None, limit: int = 1000) -> list[str]:
    return [item["key"] for item in kv.range(start, end, limit)["items"]]


def random_commands(seed: int, count: int) -> list[bytes]:
    """Payloads that meet each other: few keys, few values, every command and query."""
    dice = random.Random(seed)
    payloads: list[bytes] = []
    for _ in range(count):
        key = "" if dice.randrange(20) == 0 else f"key-{dice.randrange(60)}"
        old, new = (dice.choice((None, b"a", b"b")) for _ in range(2))
        payloads.append(
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
    return payloads


def outcomes(kv: Kv, payloads: list[bytes]) -> list[object]:
    """Apply all payloads, at the indexes from 1, and return their results and errors."""
    results: list[object] = []
    for index, payload in enumerate(payloads, 1):
        try:
            results.append(kv.apply(ApplyContext(index=index, time_ms=index * 10), payload))
        except StateMachineError as error:
            results.append((type(error).__name__, str(error)))
    return results


# --- commands --------------------------------------------------------------------------------


def test_put_get_delete() -> None:
    """What was put is there until it is deleted, and a delete says whether there was anything."""
    kv = Kv()
    assert kv.get("k") is None
    kv.put("k", b"one")
    kv.put("k", b"two")
    assert kv.get("k") == b"two"
    assert kv.delete("k") is True
    assert kv.delete("k") is False
    assert kv.get("k") is None


def test_put_records_index() -> None:
    """An item keeps the index of the command that last set it, even to the same value."""
    kv = Kv()
    at(kv, 5).put("a", b"x")
    at(kv, 6).put("b", b"x")
    at(kv, 7).put("a", b"x")
    assert at(kv, 8).compare_and_set("b", b"y", b"z") is False
    assert kv.range() == {
        "items": [
            {"key": "a", "value": b"x", "index": 7},
            {"key": "b", "value": b"x", "index": 6},
        ],
        "more": False,
    }
    assert at(kv, 9).compare_and_set("b", b"x", b"z") is True
    assert whole_dump(kv) == [["a", b"x", 7], ["b", b"z", 9]]


@pytest.mark.parametrize("present", [None, b"", b"v"])
@pytest.mark.parametrize("expected", [None, b"", b"v"])
@pytest.mark.parametrize("value", [None, b"", b"w"])
def test_compare_and_set(
    present: bytes | None, expected: bytes | None, value: bytes | None
) -> None:
    """The value changes iff it is the expected one; None stands for absence on both sides."""
    kv = Kv()
    if present is not None:
        kv.put("k", present)
    done = kv.compare_and_set("k", expected, value)
    assert done is (present == expected)
    assert kv.get("k") == (value if done else present)
    assert keys_of(kv) == ([] if kv.get("k") is None else ["k"])


@pytest.mark.parametrize("key", LONG_KEYS)
def test_refuse_key(key: str) -> None:
    """An empty key and one above 1024 bytes of UTF-8 are declared errors of every command."""
    kv = Kv()
    for payload in (
        Kv.put.encode(key, b"v"),
        Kv.get.encode(key),
        Kv.delete.encode(key),
        Kv.compare_and_set.encode(key, None, b"v"),
    ):
        kv.check_payload(payload)
        with pytest.raises(KvError, match=r"^a key (must not be empty|has at most 1024 bytes)"):
            kv.apply(ApplyContext(index=1, time_ms=0), payload)
    assert whole_dump(kv) == []


@pytest.mark.parametrize("key", LONGEST_KEYS)
def test_accept_longest_key(key: str) -> None:
    """A key of exactly 1024 bytes is served, whatever its characters."""
    kv = Kv()
    kv.put(key, b"v")
    assert kv.get(key) == b"v"
    assert keys_of(kv) == [key]


# --- ranges ----------------------------------------------------------------------------------


def test_range_bounds() -> None:
    """A range starts at its start, ends before its end, and may be empty."""
    kv = Kv()
    for key in ("b", "d", "a", "c"):
        kv.put(key, b"")
    assert keys_of(kv) == ["a", "b", "c", "d"]
    assert keys_of(kv, "b", "d") == ["b", "c"]
    assert keys_of(kv, "aa", "cc") == ["b", "c"]
    assert keys_of(kv, "b\0") == ["c", "d"]
    assert keys_of(kv, "d", "a") == []
    assert kv.range("d", "a") == {"items": [], "more": False}
    assert kv.range("x") == {"items": [], "more": False}


def test_range_limit() -> None:
    """A range says that there is more exactly when its limit cut it short."""
    kv = Kv()
    for key in ("a", "b", "c"):
        kv.put(key, b"")
    assert [kv.range("", None, limit)["more"] for limit in (1, 2, 3, 4)] == [True, True] + [
        False
    ] * 2
    assert kv.range("a", "c", 2)["more"] is False
    assert keys_of(kv, limit=2) == ["a", "b"]
    assert keys_of(kv, "b\0", limit=2) == ["c"]


@pytest.mark.parametrize("limit", [0, -1, RANGE_ITEMS_MAX + 1, (1 << 64) - 1])
def test_range_limit_refused(limit: int) -> None:
    """A limit outside of 1 to 10000 is a declared error that names the bounds."""
    with pytest.raises(KvError, match=r"^the limit of a range is 1 to 10000 items, not "):
        Kv().apply(ApplyContext(index=1, time_ms=0), Kv.range.encode(limit=limit))


def test_range_limit_default() -> None:
    """A range returns 1000 items unless told otherwise, and 10000 at most."""
    kv = Kv()
    for number in range(RANGE_ITEMS_MAX + 1):
        kv.put(f"{number:06}", b"")
    for found, count in ((kv.range(), 1000), (kv.range(limit=RANGE_ITEMS_MAX), RANGE_ITEMS_MAX)):
        assert (len(found["items"]), found["more"]) == (count, True)


def test_range_bytes_limit() -> None:
    """A range and a page end before a mebibyte, but an item larger than that comes alone."""
    kv = Kv()
    for number in range(8):
        kv.put(f"{number}", bytes(RANGE_BYTES_MAX // 4))
    kv.put("x", bytes(RANGE_BYTES_MAX * 2))
    kv.put("y", b"")
    found = kv.range()
    assert [item["key"] for item in found["items"]] == ["0", "1", "2"]
    assert found["more"] is True
    assert len(strict_dumps(found)) <= RANGE_BYTES_MAX
    found = kv.range("x")
    assert [item["key"] for item in found["items"]] == ["x"]
    assert found["more"] is True
    assert len(kv.dump(b"", 100).items) == 3
    assert len(whole_dump(kv)) == 10


def test_range_item_overhead() -> None:
    """A range of many tiny items is not larger as CBOR than it was counted."""
    kv = at(Kv(), (1 << 64) - 1)
    for number in range(RANGE_ITEMS_MAX):
        kv.put(f"{number:07x}" * 8, bytes(24))
    found = kv.range(limit=RANGE_ITEMS_MAX)
    assert found["more"] is True
    assert RANGE_BYTES_MAX * 9 // 10 < len(strict_dumps(found)) <= RANGE_BYTES_MAX


@pytest.mark.parametrize("changes", [3, INSERTIONS_MAX, INSERTIONS_MAX + 1, 4 * INSERTIONS_MAX])
def test_order_keys_follows_changes(changes: int) -> None:
    """However many keys came and went since the last range, the next one shows them in order."""
    dice = random.Random(changes)
    kv, model = Kv(), dict[str, bytes]()
    for _ in range(8):
        for _ in range(changes):
            key = chr(dice.choice((0x61, 0xE9, 0x4E00, 0x1F600))) + str(dice.randrange(changes * 2))
            if dice.random() < 0.5:
                kv.put(key, b"")
                model[key] = b""
            else:
                assert kv.delete(key) is (model.pop(key, None) is not None)
        assert keys_of(kv, limit=RANGE_ITEMS_MAX) == sorted(model)
    assert sorted(model) == sorted(model, key=str.encode)


def test_order_keys_stays_small() -> None:
    """Keys that come and go without a range leave nothing behind."""
    kv = Kv()
    kv.put("stays", b"")
    assert keys_of(kv) == ["stays"]
    for number in range(100):
        kv.put(f"{number}", b"")
        kv.delete(f"{number}")
        kv.delete("stays")
        kv.put("stays", b"")
    assert (kv._added, kv._removed) == ({}, {})
    assert keys_of(kv) == ["stays"]


# --- dumps and replicas ----------------------------------------------------------------------


@pytest.mark.parametrize("items_max", [1, 2, 7, 1000])
def test_dump_pages(items_max: int) -> None:
    """Pages of any size add up to the whole state in the order of the keys."""
    kv = Kv()
    for number in (3, 1, 4, 0, 2, 6, 5):
        at(kv, number + 10).put(f"ключ-{number}", bytes([number]))
    wanted = [[f"ключ-{number}", bytes([number]), number + 10] for number in range(7)]
    assert whole_dump(kv, items_max) == wanted
    strict_dumps(kv.dump(b"", items_max).items)


def test_dump_foreign_cursor() -> None:
    """A cursor that no page gave out is no error: the page starts behind where it would stand."""
    kv = Kv()
    for key in ("a", "c"):
        kv.put(key, b"")
    assert kv.dump(b"b", 10).items == [["c", b"", 0]]
    assert kv.dump(b"\xff\x80", 10).items == []


def test_apply_same_commands_same_state() -> None:
    """Two replicas that apply the same commands have the same results and equal dumps."""
    payloads = random_commands(seed=1, count=3000)
    one, two = Kv(), Kv()
    first = outcomes(one, payloads)
    # The second replica is asked for its state all the time, which must not matter.
    second: list[object] = []
    for index, payload in enumerate(payloads, 1):
        two.dump(b"", 10)
        try:
            second.append(two.apply(ApplyContext(index=index, time_ms=index * 10), payload))
        except StateMachineError as error:
            second.append((type(error).__name__, str(error)))
    assert first == second
    assert whole_dump(one) == whole_dump(two)
    assert len(whole_dump(one)) > 5
    assert {True, False} <= {result for result in first if isinstance(result, bool)}


def test_dump_shows_difference() -> None:
    """Replicas that differ in one value, or in when it was set, have different dumps."""
    payloads = random_commands(seed=2, count=200)
    last = Kv.put.encode("key-0", b"a")
    one, two, three = Kv(), Kv(), Kv()
    outcomes(one, [*payloads, last])
    outcomes(two, [*payloads, Kv.put.encode("key-0", b"b")])
    outcomes(three, [*payloads, last, last])
    assert whole_dump(one) != whole_dump(two)
    assert whole_dump(one) != whole_dump(three)


def test_query_leaves_state() -> None:
    """Queries change nothing that a dump shows."""
    kv = Kv()
    outcomes(kv, random_commands(seed=3, count=300))
    before = whole_dump(kv)
    kv.get("key-1")
    kv.get("nothing")
    kv.range("key-2", None, 5)
    assert whole_dump(kv) == before


def test_apply_hostile_payloads() -> None:
    """Nothing that a client can send raises anything but a declared error."""
    dice = random.Random(4)
    kv = Kv()
    good = [*random_commands(seed=5, count=200), Kv.put.encode("k" * 2000, b"")]
    pieces: tuple[object, ...] = (
        None, True, 0, -1, 1 << 63, 1.5, float("nan"), "", "k", b"", b"\xff", [], {}, [[]],
    )  # fmt: skip
    names = [*Kv.calls, "dump", "_items", "__class__", ""]
    raised: set[str] = set()
    for index in range(1, 6001):
        if index % 2:
            data = bytearray(dice.choice(good))
            for _ in range(dice.randrange(1, 4)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            payload = bytes(data[: dice.randrange(len(data) // 2, len(data) + 9)])
        else:
            chosen = [dice.choice(pieces) for _ in range(dice.randrange(5))]
            payload = cbor2.dumps([dice.choice(names), *chosen])
        try:
            kv.check_payload(payload)
        except BadCommand:
            raised.add("BadCommand")
        try:
            kv.apply(ApplyContext(index=index, time_ms=0), payload)
        except StateMachineError as error:
            raised.add(type(error).__name__)
    assert raised == {"BadCommand", "InvalidCommand", "KvError"}
    assert whole_dump(kv)
