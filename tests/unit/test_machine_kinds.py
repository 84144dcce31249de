"""What a machine offers to snapshots, and what a class may define together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import pytest

from replog.chunks import pack_chunks
from replog.errors import SnapshotDamaged, SnapshotUnavailable, UnknownFormat
from replog.machine import (
    ApplyContext,
    ConcurrentMachine,
    DumpPage,
    DurableMachine,
    KeepsAnswers,
    MachineKind,
    SnapshotMachine,
    answer_keeper,
    machine_kind,
)
from replog.statemachine import (
    NOTHING_APPLIED,
    CommandMachine,
    Opened,
    StateMachine,
    command,
)


class Box(StateMachine):
    """Holds whatever it is given as attributes."""

    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)


class Frozen(StateMachine):
    def freeze(self) -> Iterable[bytes]:
        return ()

    def restore(self, chunks: Iterable[bytes]) -> None: ...


class Kept(CommandMachine):
    def open(self, directory: Path) -> Opened:
        return NOTHING_APPLIED

    def freeze(self) -> Iterable[bytes]:
        return ()

    def restore(self, chunks: Iterable[bytes], index: int, time_ms: int) -> None: ...

    def close(self) -> None: ...


def _do(machine: object) -> None:
    """Some method."""


class Plain:
    def apply(self, context: ApplyContext, payload: bytes) -> object:
        return None

    def answer(self, payload: bytes) -> object:
        return None

    def check_payload(self, payload: bytes) -> None: ...

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        return DumpPage([], None)


# --- kinds -------------------------------------------------------------------------------------


def test_kinds_told() -> None:
    """The kind follows from the methods, and of several kinds the later one counts."""
    assert machine_kind(Plain()) is MachineKind.PLAIN
    assert machine_kind(CommandMachine()) is MachineKind.PLAIN
    assert machine_kind(Box()) is MachineKind.IN_MEMORY
    assert machine_kind(Frozen()) is MachineKind.CONCURRENT
    assert machine_kind(Kept()) is MachineKind.DURABLE
    assert isinstance(Box(), SnapshotMachine)
    assert isinstance(Frozen(), ConcurrentMachine)
    assert isinstance(Kept(), DurableMachine)


class Keeping(Kept):
    def keep_answer(self, index: int, answer: bytes) -> None: ...

    def kept_answer(self, index: int) -> bytes | None:
        return None

    def forget_answers(self, upto: int) -> None: ...


def test_keeper_of_answers_told() -> None:
    """Who keeps answers is told by methods, too, and is on a disk of its own."""

    class Afloat(StateMachine):
        keep_answer = Keeping.keep_answer
        kept_answer = Keeping.kept_answer
        forget_answers = Keeping.forget_answers

    class Commanded(Kept):
        kept_answer = Keeping.kept_answer
        forget_answers = Keeping.forget_answers

        @command
        def keep_answer(self) -> None: ...

    keeper = Keeping()
    assert answer_keeper(keeper) is keeper
    assert isinstance(keeper, KeepsAnswers)
    assert machine_kind(keeper) is MachineKind.DURABLE
    assert [answer_keeper(each) for each in (Kept(), Afloat(), Commanded(), Box())] == [None] * 4


def test_kind_ignores_commands() -> None:
    """Commands named open, close and freeze make no machine durable or concurrent."""

    class Door(StateMachine):
        @command
        def open(self) -> None: ...

        @command
        def close(self) -> None: ...

        @command
        def freeze(self) -> None: ...

    assert machine_kind(Door()) is MachineKind.IN_MEMORY


# --- what one class defines --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "methods"),
    [
        (StateMachine, {"snapshot"}),
        (StateMachine, {"restore"}),
        (StateMachine, {"freeze"}),
        (StateMachine, {"freeze", "snapshot"}),
        (CommandMachine, {"freeze"}),
        (CommandMachine, {"restore"}),
        (Frozen, {"restore"}),
        (Frozen, {"freeze"}),
        (Frozen, {"snapshot"}),
        (Frozen, {"snapshot", "restore"}),
        (Kept, {"freeze"}),
    ],
)
def test_half_of_a_pair_refused(base: type, methods: set[str]) -> None:
    """A class that would read with one method what another class's wrote is refused when made."""
    with pytest.raises(TypeError, match="same class body"):
        type("Half", (base,), dict.fromkeys(methods, _do))


def test_command_over_freeze_refused() -> None:
    """A command that hides freeze leaves a restore that nothing writes for."""
    with pytest.raises(TypeError, match="same class body"):

        class Hidden(Frozen):
            @command
            def freeze(self) -> None: ...  # type: ignore[override]


@pytest.mark.parametrize(
    ("base", "methods"),
    [
        (StateMachine, {"snapshot", "restore"}),
        (StateMachine, {"freeze", "restore"}),
        (StateMachine, {"freeze", "snapshot", "restore"}),
        (Frozen, {"freeze", "restore"}),
        (Frozen, set()),
    ],
)
def test_whole_pair_accepted(base: type, methods: set[str]) -> None:
    """A class that defines both halves, or neither, is made."""
    made = type("Whole", (base,), dict.fromkeys(methods, _do))
    type("Below", (made,), {})


@pytest.mark.parametrize("first", ["mixin", "base"])
def test_pair_from_mixin_accepted(first: str) -> None:
    """Both halves may come from one mixin, unless the base stands before it."""

    class Mixin:
        def freeze(self) -> Iterable[bytes]:
            return ()

        def restore(self, chunks: Iterable[bytes]) -> None: ...

    if first == "mixin":
        assert machine_kind(type("M", (Mixin, StateMachine), {})()) is MachineKind.CONCURRENT
    else:
        with pytest.raises(TypeError, match="same class body"):
            type("M", (StateMachine, Mixin), {})


# --- attributes --------------------------------------------------------------------------------


def test_attributes_come_back() -> None:
    """Every attribute comes back as it was, with its type, and new objects hold them."""
    state = {
        "b": [1, 2.0, -0.0, True, None, "ä", b"\xff", {"k": [{}]}],
        "a": (1 << 64) - 1,
        "empty": {},
        "order": {"z": 1, "a": 2},
    }
    box, other = Box(**state), Box(extra=1, a=5)
    chunks = list(box.snapshot())
    assert len(chunks) == 2 + len(state)
    other.restore([b"".join(chunks)])
    assert repr(sorted(vars(other).items())) == repr(sorted(state.items()))
    assert list(vars(other)["order"]) == ["z", "a"]
    assert vars(other)["b"] is not state["b"]
    assert list(other.snapshot()) == chunks


def test_restore_keeps_context() -> None:
    """The context is neither snapshotted nor lost, and no attribute of before is left."""
    box = Box(a=1)
    box.context = ApplyContext(7, 8)
    other = Box(left=2)
    other.context = ApplyContext(1, 2)
    other.restore(box.snapshot())
    assert vars(other) == {"a": 1, "context": ApplyContext(1, 2)}


SHARED: list[int] = []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ((1, 2), "tuple"),
        ([{"k": (1,)}], "tuple"),
        ({1, 2}, "set"),
        ({1: 2}, "key of type int"),
        ({None: 2}, "key of type NoneType"),
        (bytearray(b"x"), "bytearray"),
        (1 << 64, "64 bits"),
        ([[[[[[[[[1]]]]]]]]], "deeper"),
        ([SHARED, SHARED], "twice"),
        ("\udcff", "surrogate"),
        (type("Odd", (dict,), {})(), "Odd"),
    ],
)
def test_attribute_refused(value: object, reason: str) -> None:
    """An attribute that would come back as something else is refused by name, with the remedy."""
    with pytest.raises(SnapshotUnavailable, match=f"'odd' of Box .*{reason}.*a restore\\(\\)"):
        list(Box(fine=1, odd=value).snapshot())


def test_shared_attribute_refused() -> None:
    """One list under two attributes would come back as two, and is refused."""
    with pytest.raises(SnapshotUnavailable, match="twice"):
        Box(a=SHARED, b={"k": SHARED}).snapshot()


def test_slots_refused() -> None:
    """State in __slots__ would be forgotten, and is refused."""

    class Slotted(StateMachine):
        __slots__: ClassVar = ("hidden",)

    with pytest.raises(SnapshotUnavailable, match="'hidden' of Slotted"):
        Slotted().snapshot()


def test_damage_changes_nothing() -> None:
    """A damaged or foreign snapshot is refused, and the machine keeps what it had."""
    box = Box(a=1)
    data = b"".join(Box(a=2, b=[3]).snapshot())
    for bad in (data[:-1], data[:20] + b"\x7f" + data[21:], b""):
        with pytest.raises(SnapshotDamaged):
            box.restore([bad])
    with pytest.raises(UnknownFormat):
        box.restore(pack_chunks("attributes 2", []))
    assert vars(box) == {"a": 1}
