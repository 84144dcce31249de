"""A state machine that is judged for determinism while it serves.

Replicas that apply the same entries must come to the same results, at any time, on any node, again
after a restart.  So the result at each index is remembered for the whole cluster, whoever applied
the entry first, and whoever applies it later must come to the same one.

And what a machine is told must be fit to be relied on: the index rises, the time never falls.
"""

from __future__ import annotations

from hashlib import blake2b

from replog.cbor import strict_dumps, strict_loads
from replog.errors import BadCommand, StateMachineError
from replog.machine import ApplyContext, DumpPage, Machine
from replog.testing.checks import Broken
from replog.testing.nodes import Proposal
from replog.types import LogIndex

DUMP_ITEMS = 100


class Results:
    """What applying each entry came to, in one cluster."""

    __slots__ = ("_by_index", "_times_ms")

    def __init__(self) -> None:
        self._by_index: dict[LogIndex, tuple[bytes, str]] = {}
        self._times_ms: dict[LogIndex, int] = {}

    def judge(self, context: ApplyContext, result: object, error: str) -> None:
        """An entry was applied, with a result or with a declared error."""
        index, time_ms = context.index, context.time_ms
        first_ms = self._times_ms.setdefault(index, time_ms)
        if first_ms != time_ms:
            raise Broken(
                f"I10: entry {index} is applied at {time_ms} ms of replicated time, and on another "
                f"replica or in an earlier run at {first_ms} ms"
            )
        came_to = (_encoded(result), error)
        first = self._by_index.setdefault(index, came_to)
        if first != came_to:
            raise Broken(
                f"I10: applying entry {index} came to {_text(*came_to)}, and on another replica or "
                f"in an earlier run to {_text(*first)}: the state machine is not deterministic"
            )

    def judge_answer(self, proposal: Proposal) -> None:
        """A client is being told what its command came to."""
        index, error = proposal.index, proposal.error
        came_to = (_encoded(proposal.result), "" if error is None else _named(error))
        first = self._by_index.get(index)
        if first != came_to:
            applied = "nothing" if first is None else _text(*first)
            raise Broken(
                f"I6: applying entry {index} came to {applied}, and the client is told "
                f"{_text(*came_to)}"
            )
        if self._times_ms[index] < proposal.stamp_ms:
            raise Broken(
                f"I10: the command at index {index} was proposed at {proposal.stamp_ms} ms, and "
                f"where it is applied it is {self._times_ms[index]} ms"
            )

    def digest(self) -> str:
        """One short text for all of it."""
        whole = blake2b(digest_size=8)
        for index in sorted(self._by_index):
            result, error = self._by_index[index]
            whole.update(b"%d %d %b %b" % (index, len(result), result, error.encode()))
        return whole.hexdigest()


class JudgedMachine:
    """A machine whose every result is judged; see the module."""

    __slots__ = ("_index", "_machine", "_results", "_time_ms")

    def __init__(self, machine: Machine, results: Results) -> None:
        self._machine = machine
        self._results = results
        self._index: LogIndex = 0
        self._time_ms = 0
        """What the machine was told last."""

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """See :class:`~replog.machine.Machine`."""
        if context.index <= self._index or context.time_ms < self._time_ms:
            raise Broken(
                f"I10: entry {context.index} of time {context.time_ms} is applied after entry "
                f"{self._index} of time {self._time_ms}"
            )
        self._index, self._time_ms = context.index, context.time_ms
        try:
            result = self._machine.apply(context, payload)
        except StateMachineError as declared:
            self._results.judge(context, None, _named(declared))
            raise
        self._results.judge(context, result, "")
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


def _encoded(result: object) -> bytes:
    """A result as it would travel, so that it stays what it was."""
    try:
        return strict_dumps(result)
    except BadCommand:
        return repr(result).encode()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _text(result: bytes, error: str) -> str:
    try:
        return error or repr(strict_loads(result))
    except ValueError:
        return error or result.decode(errors="replace")
