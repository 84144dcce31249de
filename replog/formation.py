"""The formation of a cluster: a directory takes part when every other founding voter remembers it.

A founding record can be used twice: who makes a node's directory anew from it gets the incarnation
that the lost one had, and would pass for the node that voted.  So every directory has a *birth*, a
random number of its own, and each node remembers, durably, under which birth it has *met* every
other.  The rule: a node is *formed*, and takes part, when every other founding voter has told it
that it remembers its birth; and nobody meets a node under a second birth.

Why that is enough: whatever a formed node voted or acknowledged, every other founding voter
remembered its birth before.  A directory made in its place is refused by each of them, and without
a word of every single one it is never formed.  Only who loses *all* directories loses the memory.

The rules this module keeps:

* What is told is what is durable here, and nothing else (``told``).  So a crash takes back no word.
* A meeting binds whether it was at first hand or not: a node that is still forming takes over whom
  the others have met, so that a lost record comes back from those who have theirs.  What it knows
  already stands, for two births are told apart only by who came first.
* A node is formed when that is durable (``is_formed``), and then for ever.
* To meet the same birth again is no news.  So either side may call, crash and call again at any
  point: what was remembered is told once more, what was not is met once more.

Births are for the incarnations of the founding record alone: any other incarnation is drawn with
its directory, and names it by itself.

No I/O: who carries the words (:mod:`replog.transport.tcp`) makes them durable in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from replog.errors import DirectoryRemade
from replog.types import NodeId, record

Meeting: TypeAlias = tuple[NodeId, int]
"""A node and the birth of its directory."""


@record
class MetRecord:
    """Whom a directory has met, as it is kept on disk."""

    met: tuple[Meeting, ...] = ()
    """By ascending node id."""
    known_by: tuple[NodeId, ...] = ()
    """Who has told that they remember this directory's birth; ascending."""


NOBODY_MET = MetRecord()
"""Of a fresh directory."""


class Formation:
    """Whom one node has met and who remembers it; made anew from its record at each start."""

    __slots__ = ("_durable", "_known_by", "_met", "_others", "birth", "node_id")

    def __init__(
        self, node_id: NodeId, birth: int, voters: Sequence[NodeId], recorded: MetRecord
    ) -> None:
        """``voters`` are those of the founding record, ``recorded`` is what the disk holds."""
        self.node_id = node_id
        self.birth = birth
        self._others = tuple(voter for voter in sorted(voters) if voter != node_id)
        self._durable = recorded
        self._met = dict(recorded.met)
        self._known_by = dict.fromkeys(recorded.known_by)

    # -- what is so --

    @property
    def is_formed(self) -> bool:
        """Whether the node may take part."""
        return not self.waits_for

    @property
    def waits_for(self) -> tuple[NodeId, ...]:
        """The founding voters of whom it is not durable here that they remember this birth."""
        known_by = self._durable.known_by
        return tuple(other for other in self._others if other not in known_by)

    @property
    def told(self) -> tuple[Meeting, ...]:
        """Whom this node has met, as it may tell others: durably."""
        return self._durable.met

    def accepts(self, node_id: NodeId, birth: int) -> bool:
        """Whether that is the directory under which this node has met the other."""
        return self._met.get(node_id) == birth

    # -- what is heard --

    def hear(self, node_id: NodeId, birth: int, told: Sequence[Meeting]) -> None:
        """A founding voter says who it is and whom it has met, in its hello or its welcome.

        Raises :class:`~replog.errors.DirectoryRemade` when one of the two directories is not the
        one that the other side has met.
        """
        known = dict(told)
        if known.get(self.node_id, self.birth) != self.birth:
            raise DirectoryRemade(self.node_id)
        self.meet(node_id, birth)
        if self.node_id in known:
            self._known_by[node_id] = None
        if not self.is_formed:
            for other in self._others:
                if other in known:
                    self._met.setdefault(other, known[other])

    def meet(self, node_id: NodeId, birth: int) -> None:
        """Remember under which birth a founding voter comes.

        Raises :class:`~replog.errors.DirectoryRemade` when it was met under another one.
        """
        if self._met.setdefault(node_id, birth) != birth:
            raise DirectoryRemade(node_id)

    # -- what is to be made durable --

    def record(self) -> MetRecord:
        """What the disk must hold."""
        return MetRecord(tuple(sorted(self._met.items())), tuple(sorted(self._known_by)))

    @property
    def is_saved(self) -> bool:
        """Whether the disk holds it."""
        return self._durable == self.record()

    def handle_saved(self, saved: MetRecord) -> None:
        """``saved`` is durable now."""
        self._durable = saved


def apart_sentence(node_id: NodeId, waits_for: Sequence[NodeId]) -> str:
    """Why a node does nothing yet."""
    names = " and ".join(f"node {other}" for other in waits_for)
    return (
        f"node {node_id} takes no part yet: it has not heard from {names} that its directory is "
        "known there; see that they run and reach each other"
    )
