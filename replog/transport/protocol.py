"""What a node needs of its network: messages to peers, without a promise that they arrive.

A message may be lost, duplicated, delayed or reordered; the engines bear all of it.  What must not
happen is a changed message: a transport delivers exactly what was sent, or nothing.
"""

from __future__ import annotations

from typing import Protocol

from replog.types import NodeId


class Transport(Protocol):
    """One node's way to its peers."""

    def send(self, message: object) -> None:
        """Queue an engine's message for the node ``message.to``; dropped if there is no room."""

    def flush(self) -> None:
        """Let everything that is queued leave."""

    def is_called_by(self, peer_id: NodeId) -> bool:
        """Whether the peer is connected to this node, or was until a moment ago."""

    def close_replaced(self) -> None:
        """Hear no more of incarnations of a peer that take part no more."""

    async def open(self) -> None:
        """Listen for the peers; raises :class:`~replog.errors.AddressError`."""

    async def run(self) -> None:
        """Call the peers and hear their calls until cancelled."""

    def close(self) -> None:
        """Listen no more; may be called without ``run``."""
