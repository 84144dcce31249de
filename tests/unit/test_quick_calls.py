"""Calls that are read without the library: the very calls that the library would read."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import cbor2
import pytest

from replog.argument_kinds import UNFIT
from replog.errors import BadCommand, InvalidCommand, NotYet
from replog.machine import ApplyContext
from replog.quick_calls import head_of, quick_run
from replog.statemachine import StateMachine, command, query

LENGTHS = (0, 1, 22, 23, 24, 25, 200, 255, 256, 300, 65_536)


class Words(StateMachine):
    """One call of each signature, which notes what it was given."""

    def __init__(self) -> None:
        self.noted: list[object] = []

    @command
    def put(self, key: str, value: bytes) -> object:
        """Note both."""
        return self._note("put", key, value)

    @command
    def swap(self, value: bytes, key: str) -> object:
        """Note both."""
        return self._note("swap", value, key)

    @command
    def one(self, key: str) -> object:
        """Note it."""
        return self._note("one", key)

    @command
    def maybe(self, value: bytes | None) -> object:
        """Note it."""
        return self._note("maybe", value)

    @command
    def three(self, a: str, b: str, c: str) -> object:
        """Note them."""
        return self._note("three", a, b, c)

    @command
    def defaulted(self, key: str, value: bytes = b"?") -> object:
        """Note them."""
        return self._note("defaulted", key, value)

    @command
    def a_name_that_is_rather_too_long(self, key: str) -> object:
        """Note it."""
        return self._note("long", key)

    @query
    def later(self, key: str) -> object:
        """Nothing, yet."""
        raise NotYet(9, key)

    @query
    def seen(self, key: str) -> object:
        """What was asked for."""
        return f"seen {key}"

    def _note(self, *values: object) -> object:
        self.noted.append(list(values))
        return list(values)


PLAIN = ("put", "swap", "one", "later", "seen", "defaulted")


def outcome(run: Callable[[bytes], object], payload: bytes) -> object:
    """What came of it: the result, or the class and the words of the error."""
    try:
        return run(payload)
    except (InvalidCommand, BadCommand, NotYet) as error:
        return type(error), str(error)


def assert_same(payload: bytes) -> None:
    """Applying, asking and checking come to what they do where everything goes to the library."""
    quick, slow = Words(), Words()
    slow._quick_runs = slow._quick_queries = slow._quick_checks = {}  # type: ignore[misc]
    context = ApplyContext(index=7, time_ms=5)
    for each in (quick, slow):
        each.context = context
    for name in ("answer", "check_payload"):
        assert outcome(getattr(quick, name), payload) == outcome(getattr(slow, name), payload)
    results = [
        outcome(lambda given, each=each: each.apply(context, given), payload)  # type: ignore[misc]
        for each in (quick, slow)
    ]
    assert results[0] == results[1], payload
    assert quick.noted == slow.noted


def test_usual_signatures_are_quick() -> None:
    """One or two texts or byte strings are read here, under a short name; nothing else is."""
    assert sorted(Words._quick_runs) == sorted(
        Words.calls[name].encode(*arguments)[: len(name) + 2]
        for name, *arguments in (
            ("put", "k", b"v"),
            ("swap", b"v", "k"),
            ("one", "k"),
            ("later", "k"),
            ("seen", "k"),
            ("defaulted", "k", b"v"),
        )
    )
    assert len(Words._quick_queries) == 2
    assert Words._quick_checks.keys() == Words._quick_runs.keys()


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(length: int) -> None:
    """Short arguments are read here, and long ones by the library, to the same call."""
    text, data = "x" * length, bytes(length)
    for request in (
        ["put", text, data],
        ["put", "k", data],
        ["put", text, b"v"],
        ["swap", data, text],
        ["one", text],
        ["seen", text],
        ["later", text],
        ["maybe", data],
        ["defaulted", text, data],
    ):
        payload = cbor2.dumps(request)
        assert_same(payload)
        found = Words._quick_runs.get(head_of(payload))
        is_short = all(len(value) < 256 for value in request[1:])
        if found is not None and is_short and request[0] != "later":
            assert found(Words(), payload) is not UNFIT


@pytest.mark.parametrize(
    "request_",
    [
        [],
        ["put"],
        ["put", "k"],
        ["put", "k", b"v", 1],
        ["put", b"k", b"v"],
        ["put", "k", "v"],
        ["put", "k", None],
        ["put", "k", [1]],
        ["one", 1],
        ["one", ["k"]],
        ["defaulted", "k"],
        ["maybe", None],
        ["three", "a", "b", "c"],
        ["a_name_that_is_rather_too_long", "k"],
        ["unknown", "k"],
        [b"one", "k"],
        "one",
        {"one": "k"},
        7,
    ],
    ids=repr,
)
def test_other_requests(request_: object) -> None:
    """What is no usual call is left to the library, and answered in its words."""
    assert_same(cbor2.dumps(request_))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x82",
        b"\x82\x63one",
        b"\x82\x63one\x78",
        b"\x82\x63one\x78\x02k",
        b"\x82\x63one\x62k",
        b"\x82\x63one\x61kk",
        b"\x82\x63one\x61\xff",
        b"\x82\x63one\x63\xed\xa0\x80",
        b"\x82\x63one\x78\x01k",
        b"\x82\x63one\x79\x00\x01k",
        b"\x82\x63one\x7f\x61k\xff",
        b"\x98\x02\x63one\x61k",
        b"\x82\x78\x03one\x61k",
        b"\x82\xc1\x63one\x61k",
        b"\x83\x63put\x61k\x58\x01v",
        b"\x83\x63put\x61k\x58\x02v",
        b"\x83\x63put\x61k\x41",
        b"\x83\x63put\x61k",
        b"\x83\x63put\x65k\x41v",
        b"\x83\x63put\x61k\x5f\x41v\xff",
    ],
    ids=bytes.hex,
)
def test_what_no_client_sends(payload: bytes) -> None:
    """A value that is cut off, has something behind it, is no text, or has longer heads than it
    needs comes to what it comes to where the library reads it."""
    assert_same(payload)


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes(seed: int) -> None:
    """Calls of which some bytes are changed, lost or added come to the same."""
    dice = Random(seed)
    for _ in range(1500):
        values = [dice.choice(("k", "käse", "x" * 24, b"v", b"", bytes(200))) for _ in range(2)]
        request = [dice.choice((*PLAIN, "maybe")), *values[: dice.randrange(1, 3)]]
        payload = bytearray(cbor2.dumps(request))
        for _ in range(dice.randrange(3)):
            at = dice.randrange(len(payload))
            match dice.randrange(3):
                case 0:
                    payload[at] = dice.choice((dice.randrange(256), payload[at] ^ 1, 0x78, 0x58))
                case 1:
                    del payload[at]
                case _:
                    payload.insert(at, dice.randrange(256))
        assert_same(bytes(payload))


def test_errors_of_the_method_pass() -> None:
    """An error that the method raises is the method's: it is not taken for a payload that does not
    fit."""

    def fails(machine: object, key: str) -> object:
        raise IndexError(key)

    found = quick_run("one", fails, [frozenset({str})])
    assert found is not None
    with pytest.raises(IndexError, match="k"):
        found[1](None, b"\x82\x63one\x61k")
