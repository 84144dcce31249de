"""A snapshot that arrives: what is known of it, and of those who have it.

It holds state alone; :mod:`replog.transfer_receiving` decides.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeAlias

from replog.transfer_jobs import Part
from replog.transfer_window import Window
from replog.types import NO_NODE, LogIndex, NodeId, SnapshotMeta, Term

FileName: TypeAlias = tuple[LogIndex, int, int]
"""What names a file in every message: last index, size and checksum."""

STALL_TICKS: Final = 20
"""When nothing has come for so long, what is missing is asked for again."""


class Stage(Enum):
    OPENING = "opening"
    FETCHING = "fetching"
    """And, when everything has come, waiting for the term to be durable."""
    FINISHING = "finishing"
    INSTALLING = "installing"
    """The node has it; until it was installed no other one is needed."""


class Arrival:
    """One snapshot that arrives."""

    __slots__ = (
        "contributors",
        "heard_tick",
        "meta",
        "name",
        "offered",
        "part",
        "patience_ticks",
        "progress_tick",
        "source",
        "sources",
        "stage",
        "stalls",
        "term",
        "window",
    )

    def __init__(self, meta: SnapshotMeta, size_bytes: int, checksum: int) -> None:
        self.meta = meta
        self.name: FileName = (meta.last.index, size_bytes, checksum)
        self.part = Part()
        self.stage = Stage.OPENING
        self.window = Window(0, size_bytes, size_bytes)
        self.source: NodeId = NO_NODE
        """Whom it is fetched from; ``NO_NODE``: nobody is known who has it."""
        self.sources: dict[NodeId, Term] = {}
        """Who may have it, each with the term of its last offer; in the order of the offers."""
        self.offered: dict[NodeId, None] = {}
        """Who ever offered it; nobody else's chunks are taken."""
        self.contributors: dict[NodeId, None] = {}
        """Whose chunks are in it, as far as this process knows."""
        self.term: Term = 0
        """The highest that came with it; durable before it may get its name."""
        self.heard_tick = 0
        """When something came, or was asked for again."""
        self.progress_tick = 0
        """When something came, or was asked for while nothing was missing."""
        self.patience_ticks = STALL_TICKS
        self.stalls = 0
        """In a row."""

    @property
    def last_index(self) -> LogIndex:
        """The last index that it holds."""
        return self.name[0]
