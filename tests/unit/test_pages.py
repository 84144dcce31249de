"""Results of any size, a page at a time: the convention, and the stores that keep to it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import replog_kv.machine
import replog_sqlite_kv.machine
from replog.client_surface import page_cursor
from replog.errors import BadCommand, SchemaError
from replog.machine import ApplyContext
from replog.pages import PageCursor
from replog_kv import Kv
from replog_sqlite_kv import SqliteKv


@contextmanager
def opened(kind: type[Kv] | type[SqliteKv], tmp_path: Path) -> Iterator[Any]:
    """A store of either kind, ready for commands."""
    machine = kind()
    if isinstance(machine, SqliteKv):
        machine.open(tmp_path)
    try:
        yield machine
    finally:
        if isinstance(machine, SqliteKv):
            machine.close()


def all_items(machine: Any, prefix: str, between: Callable[[], None] = lambda: None) -> list[Any]:
    """What ``client.items(scan, prefix)`` gives, page by page; ``between`` is called in between."""
    cursor = page_cursor(type(machine).scan, (prefix,))
    found: list[Any] = []
    while not cursor.is_at_end:
        found += cursor.take(machine.answer(cursor.payload))
        between()
    return found


@pytest.mark.parametrize("kind", [Kv, SqliteKv])
@pytest.mark.parametrize("seed", range(4))
def test_scan_gives_every_item_once(
    kind: type[Kv] | type[SqliteKv], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All items under a prefix, in order, each once, whatever the size of the pages."""
    for module in (replog_kv.machine, replog_sqlite_kv.machine):
        monkeypatch.setattr(module, "SCAN_ITEMS_MAX", 3)
    drawn = random.Random(seed)
    parts = ("a", "b", "\U0010ffff", "é")
    keys = {"".join(drawn.choices(parts, k=drawn.randrange(1, 5))) for _ in range(60)}
    with opened(kind, tmp_path) as machine:
        for index, key in enumerate(sorted(keys, key=lambda _: drawn.random()), 1):
            machine.apply(ApplyContext(index, 0), Kv.put.encode(key, b"%d" % index))
        for prefix in ("", "a", "ab", "\U0010ffff", "é\U0010ffff", "c"):
            expected = sorted(key for key in keys if key.startswith(prefix))
            assert [item["key"] for item in all_items(machine, prefix)] == expected


@pytest.mark.parametrize("kind", [Kv, SqliteKv])
def test_scan_while_items_come_and_go(
    kind: type[Kv] | type[SqliteKv], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there all the time comes exactly once, though the keys around it change."""
    for module in (replog_kv.machine, replog_sqlite_kv.machine):
        monkeypatch.setattr(module, "SCAN_ITEMS_MAX", 2)
    drawn = random.Random(1)
    index = 0

    def apply(payload: bytes) -> None:
        nonlocal index
        index += 1
        machine.apply(ApplyContext(index, 0), payload)

    def change() -> None:
        for _ in range(5):
            key = f"k{drawn.randrange(100):02}x"
            apply(drawn.choice((Kv.put.encode(key, b"x"), Kv.delete.encode(key))))

    with opened(kind, tmp_path) as machine:
        stable = [f"k{number:02}" for number in range(0, 100, 7)]
        for key in stable:
            apply(Kv.put.encode(key, b"x"))
        found = [item["key"] for item in all_items(machine, "k", change)]
        assert len(set(found)) == len(found)
        assert [key for key in found if len(key) == 3] == stable


@pytest.mark.parametrize("kind", [Kv, SqliteKv])
def test_page_ends_before_it_is_too_large(kind: type[Kv] | type[SqliteKv], tmp_path: Path) -> None:
    """Large values make small pages, and one that is larger than a page comes alone."""
    with opened(kind, tmp_path) as machine:
        for index in range(1, 7):
            value = bytes(2 << 20) if index == 4 else bytes(400 << 10)
            machine.apply(ApplyContext(index, 0), Kv.put.encode(f"k{index}", value))
        cursor = page_cursor(kind.scan, ("k",))
        sizes = []
        while not cursor.is_at_end:
            sizes.append(len(cursor.take(machine.answer(cursor.payload))))
    assert sizes == [2, 1, 1, 2]


@pytest.mark.parametrize(
    "page", [None, [], {}, {"items": []}, {"items": 1, "next": None}, {"next": None}]
)
def test_what_is_no_page(page: object) -> None:
    """A query that gives out something else is told so, by name."""
    with pytest.raises(SchemaError, match="ItemsPage"):
        PageCursor(lambda _: b"").take(page)


def test_page_without_end() -> None:
    """A query that says twice that the next page begins at the same place would never end."""
    asked: list[object] = []
    cursor = PageCursor(lambda after: asked.append(after) or b"")  # type: ignore[func-returns-value]
    pages: Sequence[object] = ({"items": [1], "next": "a"}, {"items": [], "next": "a"})
    assert cursor.payload == b""
    assert cursor.take(pages[0]) == [1]
    with pytest.raises(SchemaError, match="begins where the last one did, at 'a'"):
        cursor.take(pages[1])


def test_items_of_a_command() -> None:
    """Items come from a query; what does not fit is said before anything is asked."""
    with pytest.raises(BadCommand, match="put is a command"):
        page_cursor(Kv.put, ())  # type: ignore[arg-type]
    with pytest.raises(BadCommand, match="prefix"):
        page_cursor(Kv.scan, (7,))
