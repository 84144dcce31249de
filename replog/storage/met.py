"""The file ``met`` in a node's directory: whom the node has met (:mod:`replog.formation`).

A text of the same shape as the identity.  It is written anew as a whole when there is news, which
is a few times in the life of a directory, and replaces the one before in one step.

A directory without it has met nobody yet, or has lost it: its node must form, once more if need be,
and hears from the others whom they have met.  A damaged one, or one that was copied here from
another directory, is refused at start: what it held may have been told to others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from replog.errors import DirectoryError, StorageFailed, StorageFull
from replog.formation import NOBODY_MET, MetRecord
from replog.storage.files import NO_ROOM, FileLayer, publish
from replog.storage.identity import Table, seal, unseal
from replog.types import NODE_ID_MAX, NodeId

FILE_NAME: Final = "met"
MET_VERSION: Final = 1
_TITLE: Final = "replog met record"
_BIRTH_MAX: Final = (1 << 63) - 1


class MetFile:
    """The record of one directory; to be used by one thread at a time."""

    __slots__ = ("_birth", "_files", "_node_id", "path")

    def __init__(self, files: FileLayer, folder: Path, node_id: NodeId, birth: int) -> None:
        self.path = folder / FILE_NAME
        self._files = files
        self._node_id = node_id
        self._birth = birth

    def load(self) -> MetRecord:
        """What the directory remembers, durably; raises ``DirectoryError`` or ``UnknownFormat``.

        A crash may have left the name of the file unsynced, and what rests on it is told to others
        from now on: so the directory is synced first.
        """
        try:
            self._files.sync_directory(self.path.parent)
            if self.path.name not in self._files.names(self.path.parent):
                return NOBODY_MET
            data = self._files.read(self.path)
        except OSError as error:
            raise DirectoryError(
                f"{self.path} cannot be read: {error.strerror or error}"
            ) from error
        table = Table(self.path, unseal(self.path, _TITLE, MET_VERSION, data))
        if (table.integer("node_id"), table.integer("birth")) != (self._node_id, self._birth):
            raise DirectoryError(
                f"{self.path} is the record of another directory; put this directory's own back"
            )
        return self._read(table)

    def _read(self, table: Table) -> MetRecord:
        recorded = MetRecord(
            met=tuple(
                (each.integer("node_id"), each.integer("birth")) for each in table.tables("met")
            ),
            known_by=tuple(each.integer("node_id") for each in table.tables("known_by")),
        )
        met_ids = [node_id for node_id, _ in recorded.met]
        is_sound = (
            all(
                ids == sorted(set(ids)) and all(1 <= each <= NODE_ID_MAX for each in ids)
                for ids in (met_ids, list(recorded.known_by))
            )
            and all(1 <= birth <= _BIRTH_MAX for _, birth in recorded.met)
            and set(recorded.known_by) <= set(met_ids)
        )
        if not is_sound:
            raise DirectoryError(
                f"{self.path} names nodes that cannot be; a broken or foreign program wrote it"
            )
        return recorded

    def save(self, recorded: MetRecord) -> None:
        """Replace the record; durable on return.

        Raises ``StorageFull`` when there is no room, and then the record before is still in force;
        ``StorageFailed`` for any other failure.
        """
        content: dict[str, object] = {
            "node_id": self._node_id,
            "birth": self._birth,
            "met": [{"node_id": node_id, "birth": birth} for node_id, birth in recorded.met],
            "known_by": [{"node_id": node_id} for node_id in recorded.known_by],
        }
        try:
            publish(self._files, self.path, seal(_TITLE, MET_VERSION, content))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StorageFull(
                    f"{self.path} cannot be written: there is no room on the disk; make some"
                ) from error
            raise StorageFailed(
                f"{self.path} cannot be written: {error.strerror or error}"
            ) from error
