"""What a transfer of snapshots needs from its node, and what it shows of itself.

A transfer does no I/O.  What it wants read or written is a :class:`Job`, which the node runs in
another thread; everything else that it wants done goes through its :class:`Outlet`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from replog.storage.snapshot_writer import SnapshotInfo
from replog.types import LogIndex, NodeId, Term, record


class Job(Protocol):
    """One piece of blocking work.

    The jobs of a node run one at a time and in the order in which they were started; ``run`` of
    one may be under way while ``done`` of the one before is called.
    """

    def run(self) -> None:
        """Do the work.  Blocks; called in another thread.

        What it raises stops the node, and ``done`` is not called then.
        """

    def done(self) -> None:
        """The work is done; called on the event loop."""


@record
class Outlet:
    """What a transfer acts on.  None of these may call back into the transfer before it returns."""

    send: Callable[[object], None]
    """Put a message on its way to the peer that it names."""
    start: Callable[[Job], None]
    """Have a job run after those that were started before."""
    observe_term: Callable[[Term], None]
    """What is taken comes from a node in this term: the engine enters it at once, if it is a higher
    one, and a leader or candidate steps down."""
    durable_term: Callable[[], Term]
    """The highest term that is on this node's disk."""
    install: Callable[[SnapshotInfo], None]
    """A snapshot has arrived and has its name, durably: the node installs it, unless it has applied
    what it holds meanwhile.  Called once for each."""


@record
class Arriving:
    """A snapshot that is being fetched."""

    last_index: LogIndex
    offset: int
    """So many bytes of it are written."""
    size_bytes: int
    source: NodeId
    """Who sends it; ``NO_NODE`` while nobody is known who has it."""


@record
class Leaving:
    """A snapshot that a peer fetches from this node."""

    to: NodeId
    last_index: LogIndex
    offset: int
    """Where the last chunk that left has its end."""
    size_bytes: int


@record
class TransferPicture:
    """A read-only picture of a transfer for people, metrics and tests."""

    arriving: Arriving | None
    leaving: tuple[Leaving, ...]
    """Sorted by node id."""
    received_bytes: int
    """Of chunks that were taken, since the node started."""
    sent_bytes: int
    problem: str
    """Why no snapshot arrives although one is needed, in one sentence; empty when nothing is
    wrong."""
