"""The keys of an engine hold all that it goes by.

The model takes two moments of a node for one when their keys are equal: what a key leaves out, the
model cannot see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import Final

import pytest

from replog.plugins import engine_names, find_engine
from replog.testing.model import Bounds, explore
from replog.testing.model.local import Action, ActionKind, Local, LocalModel
from replog.testing.model.space import Space

CACHES: Final = ("_slice", "_slice_span", "_slice_bytes", "_within_asked", "_within_last")
"""What was read last, remembered so that it need not be looked up again."""

BEGINNING: Final = ("setup", "_log")
"""What the run started from: read once, when the engine is made, for all of it is held."""


def held(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Everything that an object holds, however deep, as (where, what)."""
    if value is None or isinstance(value, int | str | bytes | Enum):
        yield path, value
    elif isinstance(value, dict):
        yield path, len(value)
        for key in sorted(value, key=repr):
            yield from held(value[key], f"{path}[{key!r}]")
    elif isinstance(value, set | frozenset):
        yield path, tuple(sorted(value))
    elif isinstance(value, tuple | list):
        yield path, len(value)
        for at, each in enumerate(value):
            yield from held(each, f"{path}[{at}]")
    elif not callable(value):
        slots = [name for each in type(value).__mro__ for name in getattr(each, "__slots__", ())]
        for name in sorted({*slots, *getattr(value, "__dict__", {})} - {*CACHES, *BEGINNING}):
            if hasattr(value, name):
                yield from held(getattr(value, name), f"{path}.{name}")


@pytest.mark.parametrize("engine", engine_names())
def test_equal_keys_hold_the_same(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines with equal keys are equal in everything but what they remember of reading."""
    first: dict[int, frozenset[tuple[str, object]]] = {}
    different: set[str] = set()
    number_moment = Space._moment_number

    def number_and_compare(space: Space, local: Local) -> int:
        number = number_moment(space, local)
        mine = frozenset(held(local.engine))
        different.update(path for path, _ in mine ^ first.setdefault(number, mine))
        return number

    monkeypatch.setattr(Space, "_moment_number", number_and_compare)
    explored = explore(find_engine(engine), Bounds(in_flight=1, crashes=1))
    assert explored.is_complete
    assert len(first) > 500
    assert not different


def test_held_sees_everything() -> None:
    """What is compared goes through slots, dictionaries and sequences."""

    class Inner:
        __slots__ = ("number",)

        def __init__(self) -> None:
            self.number = 7

    class Outer:
        def __init__(self) -> None:
            self.inners = {1: [Inner()]}

    assert dict(held(Outer()))[".inners[1][0].number"] == 7


@pytest.mark.parametrize("engine", engine_names())
def test_key_holds_disk_and_pending(engine: str) -> None:
    """The key of a moment tells what is on the disk, and what is on its way to it."""
    plugin = find_engine(engine)
    model = LocalModel(plugin, 3, plugin.options(), is_reduced=True)
    asked = model.act(model.start(1).after, Action(ActionKind.CAMPAIGN))
    assert asked is not None
    moment = asked.after
    (waiting,) = moment.pending
    assert waiting.hard_state is not None
    other = moment.copy()
    assert other.key() == moment.key()
    other.pending = (replace(waiting, messages_after_sync=()),)
    assert other.key() != moment.key()
    other.pending = (replace(waiting, hard_state=None),)
    assert other.key() != moment.key()
    written = moment.copy()
    written.hard_state = waiting.hard_state
    assert written.key() != moment.key()
