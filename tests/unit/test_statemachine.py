"""Commands and queries: how they are declared, sent, checked and applied."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import FunctionType
from typing import Any, NewType

import cbor2
import pytest

from replog.cbor import strict_dumps, strict_loads
from replog.errors import BadCommand, DumpUnavailable, InvalidCommand, StateMachineError
from replog.machine import Machine
from replog.statemachine import ApplyContext, StateMachine, command, query

Amount = NewType("Amount", int)


class RefusedError(StateMachineError):
    """A declared error."""


class Counter(StateMachine):
    """The example of the documentation, with a declared error and the context."""

    def __init__(self) -> None:
        self.total = 0
        self.seen: list[list[int]] = []

    @command
    def add(self, amount: int, times: int = 1) -> int:
        """Add ``amount``, ``times`` times."""
        if amount < 0:
            raise RefusedError("only upwards")
        self.total += amount * times
        self.seen.append([self.context.index, self.context.time_ms])
        return self.total

    @query
    def value(self) -> int:
        return self.total


class Fragile(StateMachine):
    """Every command breaks with an undeclared error if an argument is not what it declares."""

    def __init__(self) -> None:
        self.log: list[object] = []

    @command
    def text(self, key: str, value: bytes) -> int:
        return len(key.encode()) + len(value.hex())

    @command
    def maybe(self, value: bytes | None = None) -> str:
        return "none" if value is None else value.hex()

    @command
    def flag(self, on: bool) -> str:
        return {True: "on", False: "off"}[on] + str(on).lower()

    @command
    def real(self, x: float) -> str:
        return x.hex()

    @command
    def number(self, n: int) -> int:
        return n.bit_length() if type(n) is int else [][0]

    @command
    def either(self, n: int | float | None) -> str:
        return type(n).__name__

    @command
    def nothing(self, n: None) -> None:
        assert n is None

    @command
    def sums(self, table: dict[str, list[int]], more: list[float | None]) -> list[object]:
        return [
            {key: sum(items) for key, items in table.items()},
            [None if item is None else item.hex() for item in more],
        ]

    @command
    def pile(self, items: list[object], table: dict[str, Any], thing: object) -> int:
        return len(items) + len(table.keys())

    @command
    def plain(self, items: list, table: dict) -> int:  # type: ignore[type-arg]
        return len([*items]) + len(table.keys())

    @command
    def new(self, amount: Amount) -> int:
        return amount.bit_length()


def call(machine: StateMachine, *request: object, index: int = 1) -> object:
    """Apply the request as a foreign client would have encoded it."""
    return machine.apply(ApplyContext(index=index, time_ms=0), cbor2.dumps(list(request)))


# --- calls -----------------------------------------------------------------------------------


def test_call_instance_directly() -> None:
    """On an instance a command is an ordinary method."""
    counter = Counter()
    assert counter.add(3) == 3
    assert counter.add(amount=2, times=2) == 7
    assert counter.value() == 7


def test_call_on_class() -> None:
    """On the class a command is a call that knows its name, kind, function and documentation."""
    assert (Counter.add.name, Counter.add.is_query) == ("add", False)
    assert (Counter.value.name, Counter.value.is_query) == ("value", True)
    assert isinstance(Counter.add.function, FunctionType)
    assert Counter.add.__doc__ == "Add ``amount``, ``times`` times."
    assert repr(Counter.add).startswith("<command add(amount: ")
    assert Counter.calls == {"add": Counter.add, "value": Counter.value}


def test_encode_defaults_and_names() -> None:
    """However the arguments are given, the payload is the name and every argument in order."""
    wanted = strict_dumps(["add", 5, 1])
    assert Counter.add.encode(5) == wanted
    assert Counter.add.encode(5, 1) == wanted
    assert Counter.add.encode(times=1, amount=5) == wanted
    assert Counter.value.encode() == strict_dumps(["value"])


def test_encode_bad_arguments() -> None:
    """Arguments that the signature does not admit are refused by the caller's own process."""
    mistakes: tuple[Callable[[], bytes], ...] = (
        lambda: Counter.add.encode(),  # type: ignore[call-arg]
        lambda: Counter.add.encode(1, 2, 3),  # type: ignore[call-arg]
        lambda: Counter.add.encode(1, amount=1),  # type: ignore[misc]
        lambda: Counter.add.encode("5"),  # type: ignore[arg-type]
        lambda: Counter.add.encode(True),
        lambda: Counter.add.encode(1 << 70),
        lambda: Fragile.plain.encode([{1}], {}),
    )
    for mistake in mistakes:
        with pytest.raises(BadCommand):
            mistake()


def test_encode_names_the_mistake() -> None:
    """The sentence of a refusal names the command, the argument and both types."""
    with pytest.raises(BadCommand, match=r"^add: the argument 'amount' has str where int is decl"):
        Counter.add.encode("5")  # type: ignore[arg-type]
    with pytest.raises(BadCommand, match=r"^maybe: .* has int where bytes or None is declared$"):
        Fragile.maybe.encode(5)  # type: ignore[arg-type]


def test_encode_always_admitted() -> None:
    """What a call encodes passes the check of its machine, and applies to the same result."""
    machine = Fragile()
    payloads = [
        Fragile.text.encode("ключ", b""),
        Fragile.maybe.encode(),
        Fragile.flag.encode(False),
        Fragile.real.encode(3),
        Fragile.number.encode(-(1 << 63)),
        Fragile.either.encode(None),
        Fragile.nothing.encode(None),
        Fragile.sums.encode({"a": [1, 2], "": []}, [1.5, None]),
        Fragile.pile.encode([None, "x", [1]], {"k": b""}, {"deep": [{}]}),
        Fragile.plain.encode([[[[[[[]]]]]]], {}),
        Fragile.new.encode(Amount(3)),
    ]
    for payload in payloads:
        machine.check_payload(payload)
        machine.apply(ApplyContext(index=1, time_ms=0), payload)
    assert {strict_loads(payload)[0] for payload in payloads} == set(Fragile.calls)  # type: ignore[index]


# --- apply -----------------------------------------------------------------------------------


def test_apply_sets_context() -> None:
    """A command sees the index and the replicated time of its own entry."""
    counter = Counter()
    machine: Machine = counter
    assert machine.apply(ApplyContext(index=4, time_ms=70), Counter.add.encode(3)) == 3
    assert machine.apply(ApplyContext(index=9, time_ms=71), Counter.add.encode(1, 2)) == 5
    assert counter.seen == [[4, 70], [9, 71]]


def test_apply_declared_error() -> None:
    """A declared error comes out as it was raised, and the machine goes on."""
    counter = Counter()
    with pytest.raises(RefusedError, match="only upwards"):
        call(counter, "add", -1, 1)
    assert call(counter, "add", 2, 1) == 2


def test_apply_undeclared_error() -> None:
    """An error that is not declared is not hidden: it must stop the node."""

    class Broken(StateMachine):
        @command
        def divide(self, n: int) -> float:
            return 1 / n

    with pytest.raises(ZeroDivisionError):
        call(Broken(), "divide", 0)


def test_apply_missing_default() -> None:
    """An entry from before a parameter was added is applied with the parameter's default."""
    counter = Counter()
    payload = strict_dumps(["add", 4])
    counter.check_payload(payload)
    assert counter.apply(ApplyContext(index=1, time_ms=0), payload) == 4


@pytest.mark.parametrize(
    ("request_value", "sentence"),
    [
        (["nope"], "no command or query named 'nope'"),
        (["x" * 1000], "named '" + "x" * 64 + "'$"),
        (["\u2603"], r"named '\\u2603'"),
        (["apply", 1], "no command or query"),
        (["__init__"], "no command or query"),
        (["add"], r"add takes 1 to 2 arguments \(amount, times\), not 0"),
        (["value", 1], r"value takes 0 arguments \(\), not 1"),
        (["add", 1, 2, 3], "not 3"),
        (["add", "1"], "'amount' has str where int is declared"),
        (["add", True], "has bool where int"),
        (["add", None], "has None where int"),
        (["add", 1.0], "has float where int"),
        ([], "not an array"),
        ([["add"], 1], "not an array"),
        ([{"add": 1}], "not an array"),
        ([b"add", 1], "not an array"),
        ({"add": 1}, "not an array"),
        ("add", "not an array"),
        (None, "not an array"),
    ],
)
def test_refuse_shape(request_value: object, sentence: str) -> None:
    """What is no command is refused at admission, and is a replicated result when applied."""
    counter = Counter()
    payload = cbor2.dumps(request_value)
    with pytest.raises(BadCommand, match=sentence):
        counter.check_payload(payload)
    with pytest.raises(InvalidCommand, match=sentence):
        counter.apply(ApplyContext(index=1, time_ms=0), payload)
    assert counter.total == 0


def test_refuse_no_cbor() -> None:
    """Bytes that are not strict CBOR are not admitted; applied all the same, they are refused with
    a replicated sentence that quotes no decoder."""
    counter = Counter()
    with pytest.raises(BadCommand, match=r"^the payload is not one strict CBOR value: 1 bytes"):
        counter.check_payload(cbor2.dumps(["add", 1]) + b"\x00")
    for payload in (b"", b"\xff", b"\x83cadd", b"\x9f\xff"):
        with pytest.raises(BadCommand, match=r"^the payload is not one strict CBOR value: "):
            counter.check_payload(payload)
        with pytest.raises(InvalidCommand, match=r"^the payload is not one strict CBOR value$"):
            counter.apply(ApplyContext(index=1, time_ms=0), payload)


@pytest.mark.parametrize(
    "request_value",
    [
        ["text", b"k", b"v"],
        ["text", "k", "v"],
        ["maybe", "v"],
        ["maybe", False],
        ["flag", 1],
        ["flag", None],
        ["real", "1.0"],
        ["real", True],
        ["number", True],
        ["nothing", 0],
        ["sums", {"a": [1, "2"]}, []],
        ["sums", {"a": [True]}, []],
        ["sums", {"a": 1}, []],
        ["sums", [["a", [1]]], []],
        ["sums", {}, [1.5, "x"]],
        ["pile", {}, {}, None],
        ["plain", [], []],
        ["new", "1"],
    ],
)
def test_refuse_argument_type(request_value: list[object]) -> None:
    """No argument of another type than declared, at any depth, reaches a command."""
    machine = Fragile()
    with pytest.raises(BadCommand, match=r"^\w+: the argument '\w+' has "):
        machine.check_payload(cbor2.dumps(request_value))
    with pytest.raises(InvalidCommand, match=r"^\w+: the argument '\w+' has "):
        call(machine, *request_value)


def test_apply_int_as_float() -> None:
    """An int where a float is declared arrives as a float, also within a list."""
    assert call(Fragile(), "real", 3) == (3.0).hex()
    assert call(Fragile(), "sums", {}, [3, None]) == [{}, [(3.0).hex(), None]]
    assert call(Fragile(), "either", 3) == "int"
    assert call(Fragile(), "either", 3.0) == "float"


def test_check_many_kinds() -> None:
    """A command with very many possible argument types is checked all the same."""

    class Wide(StateMachine):
        @command
        def wide(self, a: object, b: object, c: object, d: int) -> int:
            return d.bit_length()

    assert not Wide.wide.plain_requests
    assert call(Wide(), "wide", None, [], "x", 3) == 2
    with pytest.raises(InvalidCommand, match="'d' has str where int is declared"):
        call(Wide(), "wide", None, [], "x", "3")


# --- hostile payloads ------------------------------------------------------------------------


def _value(dice: random.Random, depth: int) -> object:
    """Any value that CBOR can hold, and some that strict CBOR refuses."""
    kind = dice.randrange(12 if depth else 9)
    if kind >= 9:
        items = [_value(dice, depth - 1) for _ in range(dice.randrange(4))]
        return items if kind < 11 else {str(at): item for at, item in enumerate(items)}
    makers: tuple[Callable[[], object], ...] = (
        lambda: None,
        lambda: dice.random() < 0.5,
        lambda: dice.choice((0, -1, 1 << 64, (1 << 64) - 1, -(1 << 63), dice.getrandbits(80))),
        lambda: dice.choice((0.0, -1.5, float("inf"), float("nan"))),
        lambda: dice.choice(("", "a", "text", "\u0000", "\U0001f600" * 9)),
        lambda: dice.randbytes(dice.randrange(5)),
        lambda: cbor2.CBORTag(dice.randrange(40), 1),
        lambda: cbor2.undefined,
        lambda: cbor2.CBORSimpleValue(dice.randrange(20)),
    )
    return makers[kind]()


def _mutated(dice: random.Random, payload: bytes) -> bytes:
    data = bytearray(payload)
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(data) + 1)
        what = dice.randrange(4)
        if what == 0 and data:
            data[at % len(data)] = dice.randrange(256)
        elif what == 1 and data:
            data[at % len(data)] ^= 1 << dice.randrange(8)
        elif what == 2:
            del data[at:]
        else:
            data[at:at] = dice.randbytes(dice.randrange(1, 4))
    return bytes(data)


def test_apply_hostile_payloads() -> None:
    """Random bytes, random values and mutated calls are refused by declared errors only, and what
    was admitted is never refused."""
    dice = random.Random(20)
    machine = Fragile()
    names = [*Fragile.calls, "apply", "dump"]
    good = [
        Fragile.text.encode("key", b"value"),
        Fragile.sums.encode({"a": [1, 2]}, [1.5, None]),
        Fragile.pile.encode([1, "x"], {"k": b"v"}, None),
        Fragile.flag.encode(True),
        Fragile.real.encode(1.5),
    ]
    outcomes = {"applied": 0, "refused": 0}
    for round_ in range(9000):
        if round_ % 3 == 0:
            payload = dice.randbytes(dice.randrange(24))
        elif round_ % 3 == 1:
            arguments = [_value(dice, 3) for _ in range(dice.randrange(4))]
            payload = cbor2.dumps([dice.choice(names), *arguments])
        else:
            payload = _mutated(dice, dice.choice(good))
        try:
            machine.check_payload(payload)
        except BadCommand:
            admitted = False
        else:
            admitted = True
        try:
            machine.apply(ApplyContext(index=round_, time_ms=0), payload)
        except InvalidCommand:
            assert not admitted, payload.hex()
            outcomes["refused"] += 1
        else:
            outcomes["applied"] += 1
    assert min(outcomes.values()) > 300, outcomes


# --- dump ------------------------------------------------------------------------------------


def test_dump_attributes() -> None:
    """A dump shows the attributes in the order of their names, page by page, without context."""
    counter = Counter()
    call(counter, "add", 3, index=8)
    whole = counter.dump(b"", 10)
    assert whole.items == [["seen", [[8, 0]]], ["total", 3]]
    assert whole.cursor is None
    first = counter.dump(b"", 1)
    assert first.items == [["seen", [[8, 0]]]]
    assert first.cursor is not None
    second = counter.dump(first.cursor, 1)
    assert (second.items, second.cursor) == ([["total", 3]], None)


def test_dump_is_a_copy() -> None:
    """A page does not change when the machine does."""
    counter = Counter()
    page = counter.dump(b"", 10)
    call(counter, "add", 3)
    assert page.items == [["seen", []], ["total", 0]]


def test_dump_refused() -> None:
    """A state that CBOR cannot carry is refused with the attribute's name and the remedy."""

    class Opaque(StateMachine):
        def __init__(self) -> None:
            self.members = {1, 2}

    with pytest.raises(DumpUnavailable, match=r"'members' of Opaque .* a dump\(\) of its own"):
        Opaque().dump(b"", 10)


# --- queries that make no entry -------------------------------------------------------------------


def test_answer_runs_queries_alone() -> None:
    """A query is run on the state as it is; a command, and what is neither, is refused."""
    counter = Counter()
    counter.apply(ApplyContext(1, 5), Counter.add.encode(3))
    assert counter.answer(Counter.value.encode()) == 3
    for payload in (Counter.add.encode(1), strict_dumps(["nonesuch"]), b"\xff"):
        with pytest.raises(BadCommand):
            counter.answer(payload)
    assert counter.total == 3
