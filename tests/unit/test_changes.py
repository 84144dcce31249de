"""The window of the last changes, and whoever reads it: no gap that nobody tells of, no repeat."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TypeAlias

import pytest

from replog.cbor import strict_dumps
from replog.changes import (
    LARGE_BYTES,
    PAGE_BYTES,
    SCAN_CHANGES_MAX,
    ChangeCursor,
    ChangesPage,
    ChangeWindow,
)
from replog.errors import BadCommand, FellBehind, NotYet, SchemaError, SnapshotDamaged
from replog.types import Change, ReadLevel

Noted: TypeAlias = "list[tuple[int, str, bytes | None]]"


def page_of(window: ChangeWindow, after: int | None, prefix: str = "") -> ChangesPage:
    """A page, also one that is empty because there is nothing yet."""
    try:
        return window.page(after, prefix)
    except NotYet as nothing:
        return nothing.result  # type: ignore[return-value]


def noted(seed: int, count: int, window: ChangeWindow, index: int = 0) -> Noted:
    """Note changes with gaps between their indexes, some of them large; and return them."""
    dice = random.Random(seed)
    made: Noted = []
    for _ in range(count):
        index += dice.choice((1, 1, 1, 2, 5))
        size_bytes = dice.choice((1, 5, LARGE_BYTES, LARGE_BYTES + 1, 3 * LARGE_BYTES))
        value = None if dice.random() < 0.2 else bytes(size_bytes)
        made.append((index, dice.choice("abc") + str(index % 3), value))
        window.note(*made[-1])
    return made


def told(window: ChangeWindow, after: int, prefix: str) -> Noted:
    """All that a watcher is told behind an index, page by page."""
    cursor = ChangeCursor(lambda _: b"", after, is_any_node=True)
    found: Noted = []
    while True:
        assert cursor.after is not None
        page = page_of(window, cursor.after, prefix)
        before = cursor.after
        found += [(each.index, each.key, each.value) for each in cursor.take(page, 1 << 40)]
        if cursor.after == before:
            return found


@pytest.mark.parametrize("seed", range(20))
def test_all_is_told_or_fell_behind(seed: int) -> None:
    """From whatever index somebody watches, it is told exactly what was changed behind that, or
    that it fell behind; and the latter only if a change behind it is gone."""
    window = ChangeWindow(changes_max=20, values_bytes_max=6 * LARGE_BYTES)
    made: Noted = []
    for _ in range(8):
        made += noted(
            seed, random.Random(seed).randrange(1, 12), window, made[-1][0] if made else 0
        )
        for after in range(made[-1][0] + 2):
            behind = [each for each in made if each[0] > after]
            if after + 1 < window.first_index:
                with pytest.raises(FellBehind) as caught:
                    told(window, after, "")
                assert caught.value.first_available == window.first_index
                assert behind[0][0] < window.first_index
                continue
            assert told(window, after, "") == behind
            assert told(window, after, "b") == [each for each in behind if each[1][0] == "b"]


def test_bounds() -> None:
    """A window holds so many changes, and so many bytes of large values or one, and no more."""
    window = ChangeWindow(changes_max=10, values_bytes_max=10 * LARGE_BYTES)
    for index in range(1, 31):
        window.note(index, "k", b"")
    assert (window.first_index, len(page_of(window, 20)["changes"])) == (21, 10)
    for index in range(31, 36):
        window.note(index, "k", bytes(4 * LARGE_BYTES))
    assert [change[0] for change in page_of(window, 33)["changes"]] == [34, 35]
    assert window.first_index == 34
    window.note(36, "k", bytes(99 * LARGE_BYTES))
    assert window.first_index == 36
    assert len(page_of(window, 35)["changes"]) == 1
    for index in range(37, 47):
        window.note(index, "k", b"")
    window.note(47, "k", bytes(9 * LARGE_BYTES))
    assert (window.first_index, window._large_bytes) == (38, 9 * LARGE_BYTES)


def test_default_bounds() -> None:
    """With a hundred thousand changes of one byte a window holds 8192 and the one that is gone."""
    window = ChangeWindow()
    for index in range(1, 100_001):
        window.note(index, "k", b"v")
    assert window.first_index == 100_001 - 8192
    assert len(window.noted) == 8193


def test_page_waits_for_the_next() -> None:
    """Where there is nothing yet, a page waits for the first entry that nobody knows: the one
    behind the last change, or behind what a node in front has told."""
    window = ChangeWindow()
    window.note(7, "a", b"1")
    with pytest.raises(NotYet) as nothing:
        window.page(3, "b")
    page: ChangesPage = {"first": 1, "changes": [], "upto": 7}
    assert (nothing.value.at_index, nothing.value.result) == (8, page)
    with pytest.raises(NotYet) as nothing:
        window.page(99)
    assert (nothing.value.at_index, nothing.value.result) == (100, page | {"upto": 99})


def test_page_as_of_now() -> None:
    """Who asks behind no index gets an empty page at once, with the index of the last change."""
    window = ChangeWindow()
    assert window.page(None) == {"first": 1, "changes": [], "upto": 0}
    window.note(7, "a", None)
    assert window.page(None) == {"first": 1, "changes": [], "upto": 7}
    assert window.emptied(9).page(None) == {"first": 10, "changes": [], "upto": 9}


def test_key_or_prefix() -> None:
    """A prefix is the beginning of a key, and a key is only that key."""
    window = ChangeWindow()
    for index, key in enumerate(("a", "ab", "b", "a"), 1):
        window.note(index, key, b"")
    assert [each[0] for each in window.page(0, "a")["changes"]] == [1, 2, 4]
    assert [each[0] for each in window.page(0, "a", is_key=True)["changes"]] == [1, 4]


def test_short_pages() -> None:
    """Looking for a page ends behind so many changes, found or not, and behind so many bytes."""
    window = ChangeWindow()
    for index in range(1, 2 * SCAN_CHANGES_MAX + 2):
        window.note(index, "a", b"")
    page = window.page(0, "b")
    assert (page["changes"], page["upto"]) == ([], SCAN_CHANGES_MAX)
    assert len(window.page(0)["changes"]) == SCAN_CHANGES_MAX
    assert len(told(window, 0, "")) == 2 * SCAN_CHANGES_MAX + 1
    window.note(1 << 20, "big", bytes(PAGE_BYTES))
    window.note(2 << 20, "big", b"")
    assert len(window.page((1 << 20) - 1)["changes"]) == 1


@pytest.mark.parametrize("seed", range(10))
def test_restored_goes_on_alike(seed: int) -> None:
    """A window that was frozen and restored, at any moment, tells and forgets the very same as one
    that was not, and freezes to the same bytes; the records behind its own are left alone."""
    window = ChangeWindow(changes_max=15, values_bytes_max=5 * LARGE_BYTES)
    other, index = window.emptied(0), 0
    for step in range(12):
        records = iter([*window.freeze(), b"behind"])
        other = other.restored(records)
        assert list(records) == [b"behind"]
        for each in (window, other):
            last = noted(seed * 100 + step, 7, each, index)[-1][0]
        index = last
        assert other.first_index == window.first_index
        assert list(other.freeze()) == list(window.freeze())
        assert told(other, window.first_index - 1, "") == told(window, window.first_index - 1, "")


def test_frozen_stands_still() -> None:
    """What was frozen shows no later change."""
    window = ChangeWindow(changes_max=5)
    noted(1, 9, window)
    before, frozen = list(window.freeze()), window.freeze()
    noted(2, 9, window, 1000)
    assert list(frozen) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda head, _: [head[:5]],
        lambda _head, _changes: [],
        lambda head, _: [head],
        lambda head, changes: [head, changes[:-1]],
        lambda head, changes: [head, changes[:9]],
        lambda head, changes: [head, changes + changes],
        lambda head, changes: [head[:-1] + b"\x04", changes + changes],
        lambda head, changes: [head, changes[:14] + b"\xff" + changes[15:]],
    ],
    ids=["head", "none", "changes", "cut off", "broken", "repeated", "counted", "no text"],
)
def test_foreign_records_refused(damage: object) -> None:
    """Records that are no window are refused, whatever is wrong with them."""
    window = ChangeWindow()
    window.note(3, "key", b"value")
    window.note(5, "key", None)
    head, changes = window.freeze()
    assert told(window.restored(iter([head, changes])), 0, "") == told(window, 0, "")
    with pytest.raises(SnapshotDamaged, match="changes in a snapshot"):
        window.restored(iter(damage(head, changes)))  # type: ignore[operator]


def cursor_at(after: int | None, *, is_any_node: bool = True) -> ChangeCursor:
    """Somebody whose query is its index."""
    return ChangeCursor(strict_dumps, after, is_any_node=is_any_node)


def levels(cursor: ChangeCursor, pages: list[tuple[ChangesPage, int]]) -> Iterator[ReadLevel]:
    """The level of each page, and of the one behind the last."""
    for page, index in pages:
        yield cursor.level
        cursor.take(page, index)
    yield cursor.level


def test_cursor_levels() -> None:
    """The first page is linearizable, and so is one behind an empty page from whoever leads; any
    other is as of what was told."""
    page: ChangesPage = {"first": 1, "changes": [[7, "k", None]], "upto": 7}
    empty: ChangesPage = {"first": 1, "changes": [], "upto": 7}
    passed: ChangesPage = {"first": 1, "changes": [], "upto": 9}
    pages = [(page, 7), (empty, 8), (passed, 9)]
    newest, told_already = ReadLevel.LINEARIZABLE, ReadLevel.TIMELINE
    cursor = cursor_at(3)
    assert list(levels(cursor, pages)) == [newest, told_already, newest, told_already]
    assert (cursor.at_least, cursor.payload) == (9, strict_dumps(9))
    alone = cursor_at(3, is_any_node=False)
    assert list(levels(alone, pages)) == [newest, told_already, told_already, told_already]


def test_cursor_from_now() -> None:
    """Who begins behind no index goes on behind that of the first page, which is not told twice."""
    cursor = cursor_at(None)
    assert (cursor.payload, cursor.at_least) == (strict_dumps(None), 0)
    assert cursor.take({"first": 5, "changes": [], "upto": 7}, 9) == ()
    assert cursor.after == 7
    page: ChangesPage = {"first": 5, "changes": [[8, "k", b"v"]], "upto": 8}
    assert cursor.take(page, 9) == (Change(8, "k", b"v"),)


def test_cursor_never_goes_back() -> None:
    """A node that is behind what was told gives nothing, and moves nobody back."""
    cursor = cursor_at(9)
    assert cursor.take({"first": 1, "changes": [], "upto": 9}, 12) == ()
    assert cursor.take({"first": 1, "changes": [], "upto": 4}, 4) == ()
    assert cursor.after == 9


def test_cursor_fell_behind() -> None:
    """Who asks for what is gone is told the first index that is known, and stays where it is."""
    cursor = cursor_at(6)
    with pytest.raises(FellBehind, match="below index 8 are not known any more") as caught:
        cursor.take({"first": 8, "changes": [], "upto": 6}, 20)
    assert (caught.value.first_available, cursor.after) == (8, 6)
    assert cursor_at(7).take({"first": 8, "changes": [], "upto": 7}, 20) == ()


def test_cursor_of_another_cluster() -> None:
    """An index to which the log has not come is refused at the first page."""
    with pytest.raises(BadCommand, match="only come to 8"):
        cursor_at(9).take({"first": 1, "changes": [], "upto": 9}, 8)
    with pytest.raises(BadCommand, match="not below 0"):
        cursor_at(-1)


@pytest.mark.parametrize(
    "result",
    [
        None,
        {"first": 1, "changes": []},
        {"first": 1, "changes": {}, "upto": 1},
        {"first": 1, "changes": [[1, b"k", b"v"]], "upto": 1},
        {"first": 1, "changes": [[1, "k"]], "upto": 1},
        {"first": 1, "changes": [[1, "k", "v"]], "upto": 1},
    ],
)
def test_cursor_refuses_no_page(result: object) -> None:
    """What is no page of changes is refused with a sentence."""
    with pytest.raises(SchemaError, match="no page of changes"):
        cursor_at(0).take(result, 9)
