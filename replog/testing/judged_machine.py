"""A state machine that is judged for determinism while it serves.

Replicas that apply the same entries must come to the same results, at any time, on any node, again
after a restart.  So the result at each index is remembered for the whole cluster, whoever applied
the entry first, and whoever applies it later must come to the same one.

And what a machine is told must be fit to be relied on: the index rises, the time never falls.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Final, cast

from replog.cbor import strict_dumps, strict_loads
from replog.errors import BadCommand, CommandFailed, StateMachineError
from replog.machine import (
    ApplyContext,
    ConcurrentMachine,
    DumpPage,
    Machine,
    MachineKind,
    Opened,
    SnapshotMachine,
    digested,
    machine_kind,
)
from replog.sessions import LOST, NOT_KEPT, Sessions
from replog.testing.checks import Broken
from replog.testing.nodes import MachineDisk, Proposal
from replog.types import LogIndex

DUMP_ITEMS = 100

SAVED_COUNT: Final = 3
"""How many commands a machine on a disk applies before it makes them durable."""

_COMMAND: Final = struct.Struct(">QQ")
"""The index and the time of the last command."""


class Results:
    """What applying each entry came to, in one cluster."""

    __slots__ = ("_by_index", "_passed", "_states", "_times_ms")

    def __init__(self) -> None:
        self._by_index: dict[LogIndex, tuple[bytes, str]] = {}
        self._passed: set[LogIndex] = set()
        """What some machine was not given although it was given what is behind it."""
        self._times_ms: dict[LogIndex, int] = {}
        self._states: dict[LogIndex, list[object]] = {}
        """The state of the machine, of which a snapshot was taken, by its last command."""

    def judge_step(self, before: LogIndex, index: LogIndex) -> None:
        """A machine that was given the command at ``before``, or is as of then, is given the one at
        ``index`` next: what is between them is applied nowhere."""
        for passed in range(before + 1, index):
            self._passed.add(passed)
            if passed in self._by_index:
                raise Broken(
                    f"I21: entry {passed} was applied by a replica, and another one goes from "
                    f"{before} to {index}"
                )
        if index in self._passed:
            raise Broken(f"I21: entry {index} is applied, and another replica has passed it over")

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

    def judge_state(self, index: LogIndex, items: list[object]) -> None:
        """A machine that came up to the command at ``index`` is in this state."""
        first = self._states.setdefault(index, items)
        if first != items:
            raise Broken(
                f"I10: after entry {index} a machine is in another state than the same machine on "
                "another replica or before it was snapshotted"
            )

    def judge_answer(self, proposal: Proposal) -> None:
        """A client is being told what its command came to."""
        index = proposal.answer_index
        self._judge_told("I6", index, proposal.result, proposal.error, "the client is told")
        if index == proposal.index and self._times_ms[index] < proposal.stamp_ms:
            raise Broken(
                f"I10: the command at index {index} was proposed at {proposal.stamp_ms} ms, and "
                f"where it is applied it is {self._times_ms[index]} ms"
            )

    def judge_kept(self, sessions: Sessions) -> None:
        """A node whose machine keeps answers begins a run with these sessions."""
        for index, result, error in sessions.answers():
            if is_lost(error):
                raise Broken(f"I21: a machine keeps answers, and that of entry {index} is lost")
            if not is_unkept(error):
                self._judge_told("I21", index, result, error, "what is kept is")

    def _judge_told(
        self, rule: str, index: LogIndex, result: object, error: Exception | None, whom: str
    ) -> None:
        came_to = (_encoded(result), "" if error is None else _named(error))
        first = self._by_index.get(index)
        if first != came_to:
            applied = "nothing" if first is None else _text(*first)
            raise Broken(
                f"{rule}: applying entry {index} came to {applied}, and {whom} {_text(*came_to)}"
            )

    def time_ms_at(self, index: LogIndex) -> int:
        """The replicated time at the command at ``index``, which a machine was given."""
        return self._times_ms[index]

    def has_applied(self, index: LogIndex) -> bool:
        """Whether a machine was given the command at ``index``."""
        return index in self._by_index

    def result_of(self, index: LogIndex) -> object:
        """What the command at ``index`` came to, which was applied; of a declared error None."""
        result, _ = self._by_index[index]
        return strict_loads(result)

    def digest(self) -> str:
        """One short text for all of it."""
        whole = blake2b(digest_size=8)
        for index in sorted(self._by_index):
            result, error = self._by_index[index]
            whole.update(b"%d %d %b %b" % (index, len(result), result, error.encode()))
        return whole.hexdigest()


class JudgedMachine:
    """A machine whose every result is judged; see the module."""

    __slots__ = ("_digested", "_index", "_machine", "_results", "_time_ms", "error", "wrong_index")

    def __init__(self, machine: Machine, results: Results) -> None:
        self._machine = machine
        self._digested = digested(machine)
        self._results = results
        self._index: LogIndex = 0
        self._time_ms = 0
        """What the machine was told last."""
        self.error = 0
        """What is added to the digest of the state; above 0 it seems to be another state, ..."""
        self.wrong_index: LogIndex = 0
        """... since this command; 0: there was none since."""

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """See :class:`~replog.machine.Machine`."""
        if context.index <= self._index or context.time_ms < self._time_ms:
            raise Broken(
                f"I10: entry {context.index} of time {context.time_ms} is applied after entry "
                f"{self._index} of time {self._time_ms}"
            )
        self._results.judge_step(self._index, context.index)
        self._index, self._time_ms = context.index, context.time_ms
        try:
            result = self._machine.apply(context, payload)
        except StateMachineError as declared:
            self._results.judge(context, None, _named(declared))
            raise
        self._results.judge(context, result, "")
        return result

    @property
    def state_digest(self) -> int:
        """See :class:`~replog.machine.Digested`."""
        digest = 0 if self._digested is None else self._digested.state_digest
        if self.error:
            self.wrong_index = self.wrong_index or self._index
        return digest + self.error

    def answer(self, payload: bytes) -> object:
        """See :class:`~replog.machine.Machine`."""
        return self._machine.answer(payload)

    def check_payload(self, payload: bytes) -> None:
        """See :class:`~replog.machine.Machine`."""
        self._machine.check_payload(payload)

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """See :class:`~replog.machine.Machine`."""
        return self._machine.dump(cursor, items_max)


class JudgedSnapshots(JudgedMachine):
    """One that can be snapshotted as well: what is filled from a snapshot must be what was frozen.

    The first chunk of its snapshots says up to which command the machine had come.
    """

    __slots__ = ()

    def freeze(self) -> Iterable[bytes]:
        """See :class:`~replog.machine.ConcurrentMachine`."""
        self._results.judge_state(self._index, dump_all(self._machine))
        machine = self._machine
        is_in_memory = machine_kind(machine) is MachineKind.IN_MEMORY
        chunks = (
            list(cast(SnapshotMachine, machine).snapshot())
            if is_in_memory
            else cast(ConcurrentMachine, machine).freeze()
        )
        return chain((_COMMAND.pack(self._index, self._time_ms),), chunks)

    def restore(self, chunks: Iterable[bytes]) -> None:
        """See :class:`~replog.machine.ConcurrentMachine`."""
        whole = b"".join(chunks)
        self._index, self._time_ms = _COMMAND.unpack_from(whole)
        cast(ConcurrentMachine, self._machine).restore((whole[_COMMAND.size :],))
        self._results.judge_state(self._index, dump_all(self._machine))


class JudgedOnDisk(JudgedMachine):
    """One on a disk of its own, which makes what it holds durable now and then."""

    __slots__ = ("_unsaved_count", "disk")

    def __init__(self, machine: Machine, results: Results) -> None:
        super().__init__(machine, results)
        self.disk = MachineDisk()
        """To be set before ``open``."""
        self._unsaved_count = 0

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """See :class:`~replog.machine.Machine`."""
        try:
            return super().apply(context, payload)
        finally:
            self._unsaved_count += 1
            self._maybe_save(context)

    def _maybe_save(self, context: ApplyContext) -> None:
        if self._unsaved_count >= SAVED_COUNT:
            self._save()

    def _save(self) -> None:
        disk, self._unsaved_count = self.disk, 0
        disk.index, disk.time_ms = self._index, self._time_ms
        disk.state = b"".join(cast(ConcurrentMachine, self._machine).freeze())

    def open(self, directory: Path) -> Opened:
        """See :class:`~replog.machine.DurableMachine`."""
        disk = self.disk
        if disk.index:
            cast(ConcurrentMachine, self._machine).restore((disk.state,))
            self._index, self._time_ms = disk.index, disk.time_ms
        return Opened(disk.index, disk.time_ms)

    def freeze(self) -> Iterable[bytes]:
        """See :class:`~replog.machine.DurableMachine`."""
        self._results.judge_state(self._index, dump_all(self._machine))
        return cast(ConcurrentMachine, self._machine).freeze()

    def restore(self, chunks: Iterable[bytes], index: LogIndex, time_ms: int) -> None:
        """See :class:`~replog.machine.DurableMachine`."""
        cast(ConcurrentMachine, self._machine).restore(chunks)
        self._index, self._time_ms = index, time_ms
        self._save()

    def close(self) -> None:
        """See :class:`~replog.machine.DurableMachine`."""


class JudgedKeeper(JudgedOnDisk):
    """One that keeps, on its disk, what commands in sessions were answered."""

    __slots__ = ("_answers", "recalled")

    def __init__(self, machine: Machine, results: Results) -> None:
        super().__init__(machine, results)
        self._answers: dict[LogIndex, bytes] = {}
        self.recalled: set[LogIndex] = set()
        """Whose answers were asked for when this run began, and found."""

    def _maybe_save(self, context: ApplyContext) -> None:
        if not context.in_session:
            super()._maybe_save(context)

    def _save(self) -> None:
        super()._save()
        self.disk.answers = dict(self._answers)

    def open(self, directory: Path) -> Opened:
        """See :class:`~replog.machine.DurableMachine`."""
        self._answers = dict(self.disk.answers)
        return super().open(directory)

    def restore(self, chunks: Iterable[bytes], index: LogIndex, time_ms: int) -> None:
        """See :class:`~replog.machine.DurableMachine`."""
        self._answers = {}
        super().restore(chunks, index, time_ms)

    def keep_answer(self, index: LogIndex, answer: bytes) -> None:
        """See :class:`~replog.machine.KeepsAnswers`."""
        self._answers[index] = answer
        if self._unsaved_count >= SAVED_COUNT:
            self._save()

    def kept_answer(self, index: LogIndex) -> bytes | None:
        """See :class:`~replog.machine.KeepsAnswers`."""
        found = self._answers.get(index)
        if found is not None:
            self.recalled.add(index)
        return found

    def forget_answers(self, upto: LogIndex) -> None:
        """See :class:`~replog.machine.KeepsAnswers`."""
        self._answers = {index: kept for index, kept in self._answers.items() if index > upto}

    def judge_sessions(self, sessions: Sessions) -> None:
        """A run begins with these sessions: nothing that was kept is missing in them."""
        self._results.judge_kept(sessions)


def judged(
    machine: Machine, results: Results, is_on_disk: bool = False, keeps_answers: bool = False
) -> JudgedMachine:
    """A machine that is judged; it offers snapshots if ``machine`` does; ``is_on_disk`` says
    whether a concurrent one is kept on a disk, and ``keeps_answers`` whether answers are, too."""
    kind = machine_kind(machine)
    if kind is MachineKind.PLAIN:
        return JudgedMachine(machine, results)
    if kind is MachineKind.CONCURRENT and is_on_disk:
        return (JudgedKeeper if keeps_answers else JudgedOnDisk)(machine, results)
    return JudgedSnapshots(machine, results)


def dump_all(machine: Machine) -> list[object]:
    """The whole state of a machine, page by page."""
    items: list[object] = []
    cursor: bytes | None = b""
    while cursor is not None:
        page = machine.dump(cursor, DUMP_ITEMS)
        items += page.items
        cursor = page.cursor
    return items


def is_unkept(error: Exception | None) -> bool:
    """Whether a session knows that a command was done, and no more."""
    return isinstance(error, CommandFailed) and error.name == NOT_KEPT


def is_lost(error: Exception | None) -> bool:
    """Whether that is so because a node was started again, and not for the answer's size."""
    return is_unkept(error) and LOST in str(error)


def _encoded(result: object) -> bytes:
    """A result as it would travel, so that it stays what it was."""
    try:
        return strict_dumps(result)
    except BadCommand:
        return repr(result).encode()


def _named(error: Exception) -> str:
    name = error.name if isinstance(error, CommandFailed) else type(error).__name__
    return f"{name}: {error}"


def _text(result: bytes, error: str) -> str:
    try:
        return error or repr(strict_loads(result))
    except ValueError:
        return error or result.decode(errors="replace")
