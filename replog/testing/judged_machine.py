"""A state machine that is judged for determinism while it serves.

Replicas that apply the same entries must come to the same results, at any time, on any node, again
after a restart.  So the result at each index is remembered for the whole cluster, whoever applied
the entry first, and whoever applies it later must come to the same one.

And what a machine is told must be fit to be relied on: the index rises, the time never falls.
"""

from __future__ import annotations

from replog.errors import StateMachineError
from replog.machine import ApplyContext, DumpPage, Machine
from replog.testing.checks import Broken
from replog.types import LogIndex

DUMP_ITEMS = 100


class Results:
    """What applying each entry came to, in one cluster."""

    __slots__ = ("_by_index",)

    def __init__(self) -> None:
        self._by_index: dict[LogIndex, tuple[object, str]] = {}

    def judge(self, index: LogIndex, result: object, error: str) -> None:
        """The entry at ``index`` was applied, with a result or with a declared error."""
        first = self._by_index.setdefault(index, (result, error))
        if first != (result, error):
            raise Broken(
                f"I10: applying entry {index} came to {_text(result, error)}, and on another "
                f"replica or in an earlier run to {_text(*first)}: the state machine is not "
                "deterministic"
            )


class JudgedMachine:
    """A machine whose every result is judged; see the module."""

    __slots__ = ("_machine", "_results", "_time_ms", "index")

    def __init__(self, machine: Machine, results: Results) -> None:
        self._machine = machine
        self._results = results
        self.index: LogIndex = 0
        self._time_ms = 0
        """What the machine was told last."""

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """See :class:`~replog.machine.Machine`."""
        if context.index <= self.index or context.time_ms < self._time_ms:
            raise Broken(
                f"I10: entry {context.index} of time {context.time_ms} is applied after entry "
                f"{self.index} of time {self._time_ms}"
            )
        self.index, self._time_ms = context.index, context.time_ms
        try:
            result = self._machine.apply(context, payload)
        except StateMachineError as declared:
            self._results.judge(context.index, None, f"{type(declared).__name__}: {declared}")
            raise
        self._results.judge(context.index, result, "")
        return result

    def check_payload(self, payload: bytes) -> None:
        """See :class:`~replog.machine.Machine`."""
        self._machine.check_payload(payload)

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """See :class:`~replog.machine.Machine`."""
        return self._machine.dump(cursor, items_max)


def dump_all(machine: Machine) -> list[object]:
    """The whole state of a machine, page by page."""
    items: list[object] = []
    cursor: bytes | None = b""
    while cursor is not None:
        page = machine.dump(cursor, DUMP_ITEMS)
        items += page.items
        cursor = page.cursor
    return items


def _text(result: object, error: str) -> str:
    return error or repr(result)
