"""The jobs of a snapshot that arrives: open, append, finish, close.

They run in another thread, one at a time and in the order in which they were started, and touch
nothing but the :class:`Part` that they share.  When one of them fails the ones behind it do
nothing, and are told the same failure.

What a peer or a full disk causes is a failure that the transfer understands; whatever else is
raised (a disk that fails) goes through, and stops the node.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from replog.errors import (
    DirectoryError,
    ReplogError,
    SchemaError,
    SnapshotDamaged,
    SnapshotFailed,
    SnapshotMisplaced,
    UnknownFormat,
)
from replog.storage.snapshot_transfer import IncomingSnapshot
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore
from replog.types import SnapshotMeta


class Part:
    """The file of a snapshot that arrives, as its jobs know it."""

    __slots__ = ("failure", "incoming")

    def __init__(self) -> None:
        self.incoming: IncomingSnapshot | None = None
        """``None``: not opened yet, or that failed."""
        self.failure: ReplogError | None = None
        """Why it is over."""


class Receiver(Protocol):
    """Whom the jobs report to."""

    def handle_opened(self, job: OpenJob) -> None:
        """The file is open, or could not be made."""

    def handle_appended(self, job: AppendJob) -> None:
        """A piece is written, or could not be."""

    def handle_finished(self, job: FinishJob) -> None:
        """The snapshot is published, or was refused."""


class OpenJob:
    """Opens the file, where something of it arrived before at the end of that."""

    def __init__(
        self,
        receiver: Receiver,
        part: Part,
        store: SnapshotStore,
        meta: SnapshotMeta,
        size_bytes: int,
        checksum: int,
    ) -> None:
        self.part = part
        self.offset = 0
        """Where the first piece goes."""
        self.failure: ReplogError | None = None
        self._receiver = receiver
        self._store = store
        self._meta = meta
        self._size_bytes = size_bytes
        self._checksum = checksum

    def run(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
        part = self.part
        try:
            part.incoming = self._store.receive(self._meta, self._size_bytes, self._checksum)
            self.offset = part.incoming.offset
        except (SnapshotFailed, SchemaError) as error:
            part.failure = self.failure = error

    def done(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
        self._receiver.handle_opened(self)


class AppendJob:
    """Writes one piece."""

    def __init__(self, receiver: Receiver, part: Part, offset: int, data: bytes) -> None:
        self.part = part
        self.failure: ReplogError | None = None
        self._receiver = receiver
        self._offset = offset
        self._data = data

    def run(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
        part = self.part
        if part.failure is None:
            assert part.incoming is not None, "opened before"
            try:
                part.incoming.append(self._offset, self._data)
            except (SnapshotFailed, SnapshotMisplaced) as error:
                part.failure = error
        self.failure = part.failure

    def done(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
        self._receiver.handle_appended(self)


class FinishJob:
    """Verifies the whole, and gives it the name of a snapshot."""

    def __init__(
        self, receiver: Receiver, part: Part, known_sections: Collection[str] | None
    ) -> None:
        self.part = part
        self.info: SnapshotInfo | None = None
        """``None``: it failed."""
        self.failure: ReplogError | None = None
        self._receiver = receiver
        self._known_sections = known_sections

    def run(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
        part = self.part
        assert part.incoming is not None, "opened before"
        assert part.failure is None, "written before"
        try:
            self.info = part.incoming.finish(self._known_sections)
        except (SnapshotDamaged, SnapshotFailed, UnknownFormat, DirectoryError) as error:
            part.failure = self.failure = error

    def done(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
        self._receiver.handle_finished(self)


class CloseJob:
    """Closes the file, or (``is_abort``) removes what arrived; nothing where it is over."""

    def __init__(self, part: Part, is_abort: bool) -> None:
        self._part = part
        self._is_abort = is_abort

    def run(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
        incoming = self._part.incoming
        if incoming is None:
            return
        if self._is_abort:
            incoming.abort()
        else:
            incoming.close()

    def done(self) -> None:
        """See :class:`~replog.transfer_outlet.Job`."""
