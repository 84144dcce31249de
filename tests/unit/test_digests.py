"""The marks of what was applied: alike on every replica, and known for a bounded stretch."""

from __future__ import annotations

import random
import struct
from hashlib import blake2b

import pytest

from replog.digests import MARK_MASK, MARKS_MAX, Digests, outcome_mark
from replog.errors import InvalidCommand, StateMachineError
from replog.machine import ApplyContext
from replog_kv import Kv


def with_marks(applied_index: int, *marks: int) -> Digests:
    """What a replica has behind an index, after entries with these marks."""
    digests = Digests(applied_index)
    digests.marks.extend(marks)
    return digests


def test_hashes_of_marks() -> None:
    """The hash of a stretch is of its marks alone, in their order, and known only where all of them
    are; it fits into the message that carries it."""
    digests = with_marks(10, 1, 2, 4, MARK_MASK)
    assert (digests.first, digests.last) == (10, 14)
    assert digests.between(11, 13) == with_marks(0, 2, 4).between(0, 2)
    assert digests.between(11, 13) != with_marks(0, 4, 2).between(0, 2)
    assert digests.between(12, 12) == Digests(0).between(0, 0)
    assert digests.between(9, 14) is digests.between(10, 15) is None
    whole = digests.between(10, 14)
    assert whole is not None
    assert 0 < whole <= MARK_MASK


def test_hash_is_the_same_everywhere() -> None:
    """Nodes of other machines and releases make the same of the same marks: little-endian, 64 bits
    each, BLAKE2b of 64 bits."""
    expected = blake2b(struct.pack("<3Q", 1, 256, MARK_MASK), digest_size=8).digest()
    assert with_marks(0, 1, 256, MARK_MASK).between(0, 3) == int.from_bytes(expected)


def test_oldest_marks_are_dropped() -> None:
    """Marks take bounded memory; the last ones stay, under their indexes."""
    digests = with_marks(5, *range(2 * MARKS_MAX))
    digests.shorten()
    assert digests.first == 5
    digests.marks.append(77)
    digests.shorten()
    last = 5 + 2 * MARKS_MAX + 1
    assert (digests.first, digests.last) == (last - MARKS_MAX, last)
    assert list(digests.marks[-2:]) == [2 * MARKS_MAX - 1, 77]
    assert digests.between(last - 1, last) == with_marks(0, 77).between(0, 1)
    assert digests.marks[0] == MARKS_MAX + 1


def test_nothing_is_known_behind_a_snapshot() -> None:
    """A replica that was filled from elsewhere did not apply what is in front of that."""
    digests = with_marks(0, 1, 2, 3)
    digests.forget(40)
    digests.marks.append(9)
    assert digests.between(0, 3) is None
    assert digests.between(40, 41) == with_marks(0, 9).between(0, 1)


def test_outcomes_that_differ_have_other_marks() -> None:
    """Each outcome has a mark of its own, whatever its type."""
    outcomes: list[object] = [b"", b"x", "x", 1, True, 1.0, [1], {"a": 1}, "", 0, False, object()]
    marks = [outcome_mark(each, None) for each in outcomes]
    marks += [outcome_mark(None, error) for error in (InvalidCommand("x"), StateMachineError("x"))]
    marks.append(outcome_mark(None, None))
    assert len({0, *marks}) == len(marks) + 1, "0 is of what is not applied"


def test_words_of_an_error_are_no_difference() -> None:
    """A later release may say the same error in better words."""
    errors = StateMachineError("no such key"), StateMachineError("there is no key of that name")
    assert outcome_mark(None, errors[0]) == outcome_mark(None, errors[1])


def test_deep_results_have_marks() -> None:
    """What is nested too deeply for the encoder is not encoded."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert outcome_mark(deep, None) == outcome_mark([[deep]], None) != outcome_mark([], None)
    while deep:
        deep = deep.pop()  # type: ignore[assignment]


def test_order_of_a_dict_is_no_difference() -> None:
    """Two replicas that made the same dict in another order have answered alike."""
    assert outcome_mark({"a": 1, "b": [2]}, None) == outcome_mark({"b": [2], "a": 1}, None)


@pytest.mark.parametrize("seed", range(5))
def test_store_keeps_its_digest(seed: int) -> None:
    """The digest of the key-value store is that of its items, however they came to be there."""
    drawn, store, context = random.Random(seed), Kv(), ApplyContext(0, 0)
    for index in range(1, 400):
        context.index = index
        key, value = f"k{drawn.randrange(12)}", b"%d" % drawn.randrange(5)
        payload = drawn.choice(
            (
                Kv.put.encode(key, value),
                Kv.delete.encode(key),
                Kv.compare_and_set.encode(key, drawn.choice((None, b"1", b"2")), value),
                Kv.compare_and_set.encode(key, drawn.choice((None, b"1", b"2")), None),
            )
        )
        store.apply(context, payload)
        if index % 40 == 0:
            other = Kv()
            other.restore(store.freeze())
            assert other.state_digest == store.state_digest
    assert store.state_digest != Kv().state_digest


def test_exchanged_values_change_the_digest() -> None:
    """Two items with their values exchanged are another state."""
    digests = set()
    for first, second in ((b"a", b"b"), (b"b", b"a")):
        store = Kv()
        for index, (key, value) in enumerate((("k12", first), ("k21", second)), 1):
            store.apply(ApplyContext(index, 0), Kv.put.encode(key, value))
        digests.add(store.state_digest)
    assert len(digests) == 2


def test_altered_value_is_noticed_when_it_is_replaced() -> None:
    """A value that changed in memory shows in the digest as soon as a command replaces it."""
    stores = Kv(), Kv()
    for store in stores:
        store.apply(ApplyContext(1, 0), Kv.put.encode("key", b"value"))
    stores[1]._items["key"] = (1, "key", b"valve")
    assert stores[0].state_digest == stores[1].state_digest
    for store in stores:
        store.apply(ApplyContext(2, 0), Kv.put.encode("key", b"other"))
    assert stores[0].state_digest != stores[1].state_digest
