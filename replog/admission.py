"""Whether a leader takes more commands: what its state machine has not followed yet, and when to
come back.

Commits can outrun the state machine: peers and disks acknowledge thousands of entries while it
applies one slow command.  And commands can outrun the whole node: what came during one turn is the
batch of the next, which takes longer, so more comes meanwhile, and in the end no heartbeat leaves
in time.  All of it is held in memory and makes everybody wait.  So a leader refuses new commands
above ``limits.unapplied_entries_max`` of what it has taken and not applied, or of what is committed
and not applied, whoever took it; and above ``limits.unapplied_bytes_max`` of what it has taken.

The rules this module keeps: what is refused was not proposed, and nothing of it is held or counted;
the room is worked out once a turn, so that a command is only held against two numbers; no clock:
the pace is what was applied in the last ticks, so a run that is repeated says the same.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from replog.limits import Limits
from replog.types import LogIndex, NodeId

PACE_TICKS: Final = 8
"""The pace is that of the last so many ticks."""

RETRY_MS_MIN: Final = 10
RETRY_MS_MAX: Final = 1000
"""A refusal asks nobody to stay away for less or for longer."""


class Admission:
    """What one leader has taken and not applied, and how fast that becomes less."""

    __slots__ = (
        "_applied_at",
        "_bytes_max",
        "_entries_max",
        "_held",
        "_held_bytes",
        "_node_id",
        "_tick_ms",
    )

    def __init__(self, node_id: NodeId, limits: Limits) -> None:
        self._node_id = node_id
        self._entries_max = limits.unapplied_entries_max
        self._bytes_max = limits.unapplied_bytes_max
        self._tick_ms = limits.tick_ms
        self._held: deque[tuple[LogIndex, int]] = deque()
        """The last index and the bytes of each batch that was proposed and is not all applied."""
        self._held_bytes = 0
        self._applied_at: deque[LogIndex] = deque(maxlen=PACE_TICKS + 1)
        """How far the machine was at the last ticks."""

    def tick(self, applied_index: LogIndex) -> None:
        """One unit of time has passed."""
        self._applied_at.append(applied_index)

    def note_proposed(self, last_index: LogIndex, size_bytes: int) -> None:
        """A batch of commands was proposed."""
        self._held.append((last_index, size_bytes))
        self._held_bytes += size_bytes

    def forget(self) -> None:
        """The leadership is over: what was proposed may be replaced, and never be applied."""
        self._held.clear()
        self._held_bytes = 0

    def room_bytes(self, applied_index: LogIndex) -> int:
        """How many bytes of commands more may be proposed."""
        held = self._held
        while held and held[0][0] <= applied_index:
            self._held_bytes -= held.popleft()[1]
        return self._bytes_max - self._held_bytes

    def room_count(self, waiting_count: int) -> int:
        """How many commands more may be proposed, when so many have no outcome."""
        return self._entries_max - waiting_count

    def is_behind(self, gap: int, waiting_count: int) -> bool:
        """Whether so many entries are committed and not applied, or so many commands have no
        outcome, that a leader takes nothing."""
        return gap > self._entries_max or waiting_count >= self._entries_max

    def retry_after_ms(self, waiting_count: int) -> int:
        """When a half of so many waiting entries is applied, at the pace of the last ticks."""
        applied_at = self._applied_at
        applied_count = applied_at[-1] - applied_at[0] if applied_at else 0
        if applied_count:
            elapsed_ms = (len(applied_at) - 1) * self._tick_ms
            milliseconds = elapsed_ms * waiting_count // (2 * applied_count)
        else:
            milliseconds = RETRY_MS_MAX if waiting_count else 0
        return max(RETRY_MS_MIN, min(milliseconds, RETRY_MS_MAX))

    def sentence(self, gap: int, waiting_count: int) -> str:
        """Why a command is refused: ``gap`` entries are committed and not applied, and so many
        commands were taken and have no outcome."""
        if max(gap, waiting_count) >= self._entries_max:
            what = (
                f"{waiting_count} commands are taken on node {self._node_id}, and {gap} entries "
                f"committed, that are not applied; limits.unapplied_entries_max = "
                f"{self._entries_max}"
            )
        else:
            what = (
                f"node {self._node_id} holds {self._held_bytes} bytes of commands that are not "
                f"applied; limits.unapplied_bytes_max = {self._bytes_max}"
            )
        return (
            f"{what}; try again a little later, and if this goes on, send less or make the state "
            "machine quicker"
        )
