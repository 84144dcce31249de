"""The Raft engine of replog (Ongaro & Ousterhout, extended version, 2014; thesis: Ongaro 2014).

``PLUGIN`` is what the entry point ``replog.engines: raft`` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from replog.engine import Engine, EngineSetup, MessageSpec
from replog_raft.messages import MESSAGE_SPECS
from replog_raft.options import RaftOptions
from replog_raft.raft import Raft

__all__ = ["PLUGIN", "Raft", "RaftOptions"]


class RaftPlugin:
    """Raft behind the engine contract of :mod:`replog.engine`."""

    name: Final = "raft"
    title: Final = "Raft with pre-vote, check-quorum and pipelining (Ongaro & Ousterhout 2014)"
    options: Final[type] = RaftOptions
    messages: Final[Sequence[MessageSpec]] = MESSAGE_SPECS

    def create(self, setup: EngineSetup) -> Engine:
        """Make the engine of one node."""
        return Raft(setup)


PLUGIN: Final = RaftPlugin()
