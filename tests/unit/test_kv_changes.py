"""The key-value store tells what was changed, of each command exactly what it did."""

from __future__ import annotations

import random

import pytest

from replog.changes import ChangesPage
from replog.chunks import pack_chunks
from replog.errors import NotYet
from replog.machine import ApplyContext
from replog.testing import check_machine
from replog_kv import Kv
from replog_kv.machine import SNAPSHOT_FORM_1, _records


def apply(kv: Kv, index: int, payload: bytes) -> object:
    """Apply a command at an index."""
    return kv.apply(ApplyContext(index, 0), payload)


def page_of(kv: Kv, after: int | None, prefix: str = "") -> ChangesPage:
    """A page, also an empty one."""
    try:
        return kv.changes(after, prefix)
    except NotYet as nothing:
        return nothing.result  # type: ignore[return-value]


def commands(seed: int, count: int) -> list[bytes]:
    """Commands that meet each other, with values of all sizes."""
    dice = random.Random(seed)
    found: list[bytes] = []
    for number in range(count):
        key = f"k{dice.randrange(6)}"
        values = [None, b"%d" % number, b"%d" % number * dice.choice((1, 200)), b"same"]
        old, new = dice.choice(values), dice.choice(values)
        found.append(
            dice.choice(
                (
                    Kv.put.encode(key, new or b""),
                    Kv.delete.encode(key),
                    Kv.compare_and_set.encode(key, old, new),
                    Kv.compare_and_set.encode(key, None, new),
                    Kv.changes.encode(number // 2, "k"),
                )
            )
        )
    return found


class SmallKv(Kv):
    """A store that remembers little."""

    def __init__(self) -> None:
        super().__init__(changes_max=12, values_bytes_max=1500)


@pytest.mark.parametrize("seed", range(5))
def test_changes_are_what_changed(seed: int) -> None:
    """Who applies the changes to a copy of the items has the items, after every command."""
    kv, copy = Kv(), dict[str, tuple[int, str, bytes]]()
    for index, payload in enumerate(commands(seed, 300), 1):
        apply(kv, 2 * index, payload)
        for at, key, value in page_of(kv, 2 * index - 2)["changes"]:
            assert (at, type(key)) == (2 * index, str)
            if value is None:
                del copy[str(key)]  # what is told to be gone was there
            else:
                assert isinstance(value, bytes)
                copy[str(key)] = (2 * index, str(key), value)
        assert copy == kv._items


def test_nothing_changed_is_no_change() -> None:
    """A command that changes nothing is not told: a key that was not there, a value that was not
    the expected one."""
    kv = Kv()
    apply(kv, 1, Kv.delete.encode("k"))
    apply(kv, 2, Kv.compare_and_set.encode("k", b"x", b"y"))
    apply(kv, 3, Kv.compare_and_set.encode("k", None, None))
    assert page_of(kv, 0) == {"first": 1, "changes": [], "upto": 0}


def test_small_window_passes_check() -> None:
    """The window is part of the state: the store keeps the rules of snapshots while changes come
    and go."""
    check_machine(SmallKv, commands(3, 400))


def test_query_as_a_command_does_not_wait() -> None:
    """A query for changes that somebody proposes stops no node: it ends with an empty page."""
    kv = Kv()
    assert apply(kv, 5, Kv.changes.encode(4)) == {"first": 1, "changes": [], "upto": 4}
    # What is not plain to the fast path comes to the same.
    assert apply(kv, 6, Kv.changes.encode(None)) == {"first": 1, "changes": [], "upto": 0}


def test_changes_outlive_a_restore() -> None:
    """A store that was filled from a snapshot tells what was changed before that, and nothing that
    it knew itself."""
    kv, other = Kv(), Kv()
    for index, payload in enumerate(commands(1, 50), 1):
        apply(kv, index, payload)
        apply(other, 1000 + index, Kv.put.encode("other", b""))
    other.restore(kv.freeze())
    assert page_of(other, 0) == page_of(kv, 0)
    apply(other, 60, Kv.put.encode("later", b""))
    assert page_of(other, 50)["changes"] == [[60, "later", b""]]


def test_older_snapshot_knows_no_changes() -> None:
    """A snapshot of the form ``kv 1`` is restored; what was changed up to its index is gone, and
    who asks for that is told so."""
    kv = Kv()
    apply(kv, 7, Kv.put.encode("key", b"value"))
    old = list(pack_chunks(SNAPSHOT_FORM_1, _records(kv._items)))
    later = Kv()
    later.context = ApplyContext(20, 0)  # a key was deleted at 15, say
    later.restore(old)
    assert later.get("key") == b"value"
    assert page_of(later, 19)["first"] == 21
    assert page_of(later, None) == {"first": 21, "changes": [], "upto": 20}
    assert page_of(later, 20) == {"first": 21, "changes": [], "upto": 20}
    apply(later, 22, Kv.delete.encode("key"))
    assert page_of(later, 20)["changes"] == [[22, "key", None]]
    # Whoever restores it by hand gets what the items themselves say.
    alone = Kv()
    alone.restore(old)
    assert page_of(alone, None)["first"] == 8
