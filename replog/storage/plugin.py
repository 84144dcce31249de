"""What a storage plugin is: an object behind an entry point of the group ``replog.storages``.

A plugin *founds* an empty storage in a node's directory, once, and *opens* it at every start.  The
directory itself (who it belongs to, who may use it) is :mod:`replog.storage.directory`'s; a plugin
only ever sees one that is its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from replog.storage.files import FileLayer
from replog.storage.protocol import Storage
from replog.types import NodeId, record


@record
class StorageHome:
    """Where a storage lives, and on whose behalf."""

    files: FileLayer
    path: Path
    """The node's directory."""
    cluster_id: str
    node_id: NodeId
    incarnation: int
    is_synced: bool = True
    """Whether what is written is synced before it counts (sync level ``always``); else the
    operating system writes it when it likes (``os``), and a power cut loses what it has not."""


class StoragePlugin(Protocol):
    """A kind of storage."""

    @property
    def name(self) -> str:
        """The name that a configuration uses."""

    @property
    def title(self) -> str:
        """One line for people: what it is and what it promises."""

    @property
    def durable(self) -> bool:
        """Whether it outlives the process; if not, its directory serves for one run only."""

    def owns(self, name: str) -> bool:
        """Whether a file of this name in a node's directory is one of this storage's."""

    def found(self, home: StorageHome) -> None:
        """Make the empty storage; its bytes are durable on return, its names need not be.

        What an interrupted founding left is replaced.  Raises
        :class:`~replog.errors.DirectoryError` when there is more than that.
        """

    def open(self, home: StorageHome) -> Storage:
        """The storage in ``home``, which was founded; reads nothing before ``recover``."""
