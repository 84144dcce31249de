"""Whether a leader takes more commands: what its state machine has not followed yet, and when to
come back.

Commits can outrun the state machine: peers and disks acknowledge thousands of entries while it
applies one slow command.  What is committed and not applied is held in memory and makes everybody
wait, so a leader refuses new commands above ``limits.unapplied_entries_max``, and above
``limits.unapplied_bytes_max`` of what it has proposed itself.

The rules this module keeps: what is refused was not proposed, and nothing of it is held or counted;
both limits are looked at once for each batch and once for each turn, so a command costs nothing
here; no clock: the pace is what was applied in the last ticks, so a run that is repeated says the
same.

What is above a limit already goes on: with everything that was uncommitted when the gap came to its
limit, the gap may become so much larger, and that has limits of its own.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from replog.errors import Overloaded
from replog.limits import Limits
from replog.types import LogIndex, NodeId

PACE_TICKS: Final = 8
"""The pace is that of the last so many ticks."""

RETRY_MS_MAX: Final = 1000
"""No refusal asks anybody to stay away for longer, unless one tick is longer."""


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

    def is_exceeded(self, commit_index: LogIndex, applied_index: LogIndex) -> bool:
        """Whether the machine is so far behind that a leader takes nothing more."""
        held = self._held
        while held and held[0][0] <= applied_index:
            self._held_bytes -= held.popleft()[1]
        is_late = commit_index - applied_index > self._entries_max
        return is_late or self._held_bytes > self._bytes_max

    def retry_after_ms(self, waiting_count: int) -> int:
        """When a half of so many waiting entries is applied, at the pace of the last ticks."""
        applied_at = self._applied_at
        applied_count = applied_at[-1] - applied_at[0] if applied_at else 0
        if applied_count:
            half_ticks = (len(applied_at) - 1) * waiting_count // (2 * applied_count)
            milliseconds = half_ticks * self._tick_ms
        else:
            milliseconds = RETRY_MS_MAX if waiting_count else 0
        return max(self._tick_ms, min(milliseconds, RETRY_MS_MAX))

    def refusal(
        self, commit_index: LogIndex, applied_index: LogIndex, waiting_count: int
    ) -> Overloaded:
        """Why nothing is taken while :meth:`is_exceeded`; ``waiting_count``: so many commands were
        proposed and have no outcome."""
        gap = commit_index - applied_index
        remedy = "try again a little later; if this goes on, send less or make its commands quicker"
        if gap > self._entries_max:
            what = (
                f"{gap} entries are committed on node {self._node_id} and not applied, above "
                f"limits.unapplied_entries_max = {self._entries_max}"
            )
        else:
            what = (
                f"node {self._node_id} holds {self._held_bytes} bytes of commands that are not "
                f"applied, above limits.unapplied_bytes_max = {self._bytes_max}"
            )
        sentence = f"{what}, because its state machine cannot follow; {remedy}"
        return Overloaded(sentence, self.retry_after_ms(max(gap, waiting_count)))
