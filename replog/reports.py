"""What a node writes into its log about itself, one method for each kind of event."""

from __future__ import annotations

from pathlib import Path

import structlog

from replog.comparison import Difference
from replog.types import LogIndex, NodeId, Role, SoftState, Term


class Reports:
    """The reports of one node."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger, directory: Path) -> None:
        self._log = log
        self._directory = str(directory)

    def tell_snapshot(self, event: str, index: LogIndex, reason: str) -> None:
        """Something has happened to a snapshot; with a ``reason``, something has gone wrong."""
        if reason:
            self._log.warning(event, index=index, reason=reason)
        else:
            self._log.info(event, index=index)

    def tell_full(self, is_full: bool) -> None:
        """The disk is full, or has room again."""
        if is_full:
            self._log.warning("disk_full", directory=self._directory)
        else:
            self._log.info("disk_has_room", directory=self._directory)

    def tell_difference(self, peer: NodeId, difference: Difference) -> None:
        """A peer is in another state than this node."""
        self._log.error(
            "replicas_differ", peer=peer, index=difference.index, is_first=difference.is_first
        )

    def tell_role(self, soft_state: SoftState, term: Term) -> None:
        """The node leads, or follows somebody else."""
        self._log.info(
            "leader_elected" if soft_state.role is Role.LEADER else "role_changed",
            role=soft_state.role.value,
            leader=soft_state.leader_id or None,
            term=term,
        )
