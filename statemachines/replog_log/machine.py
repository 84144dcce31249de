"""No state machine: whatever is appended is only kept, and nothing comes of it.

An example of a machine that implements :class:`~replog.machine.ConcurrentMachine` itself, without
the table of commands that :class:`~replog.statemachine.StateMachine` brings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NoReturn

from replog.chunks import pack_chunks, unpack_chunks
from replog.errors import BadCommand, SnapshotDamaged
from replog.statemachine import ApplyContext, DumpPage

SNAPSHOT_FORM: Final = "log 1"
"""What the records of a snapshot are: there are none."""


class LogOnly:
    """Takes any bytes as a command, and holds nothing."""

    def apply(self, context: ApplyContext, payload: bytes) -> None:
        """Nothing happens; the entry stays in the log."""

    def answer(self, payload: bytes) -> NoReturn:
        """There is nothing to ask; see :meth:`replog.machine.Machine.answer`."""
        raise BadCommand("the state machine 'log' has no queries; read the entries of the log")

    def check_payload(self, payload: bytes) -> None:
        """Any bytes will do."""

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """One page with nothing on it."""
        return DumpPage(items=[], cursor=None)

    def freeze(self) -> Iterable[bytes]:
        """The form, and no records: with it, the log may be cut off behind a snapshot."""
        return pack_chunks(SNAPSHOT_FORM, ())

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Look that it is a snapshot of nothing; raises
        :class:`~replog.errors.SnapshotDamaged` and :class:`~replog.errors.UnknownFormat`."""
        if list(unpack_chunks(SNAPSHOT_FORM, chunks)):
            raise SnapshotDamaged(f"a snapshot of the form {SNAPSHOT_FORM!r} has records")
