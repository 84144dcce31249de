"""A node's meetings with the others: what is heard in handshakes, made durable beside the loop.

The rule of :mod:`replog.formation` needs an order: hear, make durable, tell.  A sync takes as long
as the disk likes, so it runs in a thread; one at a time, and what was heard meanwhile is in the
next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from replog.errors import HandshakeError, StorageFull
from replog.formation import Formation, Meeting, MetRecord
from replog.types import NodeId


class Meetings:
    """The formation of one running node; on its event loop."""

    def __init__(
        self,
        formation: Formation,
        save: Callable[[MetRecord], None],
        handle_news: Callable[[], None],
    ) -> None:
        """``save`` makes a record durable, in a thread; ``handle_news`` follows each time."""
        self._formation = formation
        self._save = save
        self._handle_news = handle_news
        self._saving = trio.Lock()

    @property
    def birth(self) -> int:
        """Of the node's own directory."""
        return self._formation.birth

    @property
    def told(self) -> tuple[Meeting, ...]:
        """Whom the node has met, as it may tell others."""
        return self._formation.told

    async def take_in(self, node_id: NodeId, birth: int, told: Sequence[Meeting]) -> None:
        """Take in what a founding voter says of itself; it is durable on return.

        Raises :class:`~replog.errors.HandshakeError` for who must be refused, and
        :class:`~replog.errors.StorageFailed`, which stops the node.
        """
        self._formation.hear(node_id, birth, told)
        async with self._saving:
            if self._formation.is_saved:
                return
            recorded = self._formation.record()
            try:
                await trio.to_thread.run_sync(self._save, recorded)
            except StorageFull as error:
                raise HandshakeError(
                    f"node {self._formation.node_id} cannot remember whom it meets: {error}"
                ) from error
            self._formation.handle_saved(recorded)
            self._handle_news()
