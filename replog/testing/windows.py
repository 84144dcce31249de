"""What a leader has on its way to one peer, and what it holds uncommitted, counted from outside.

A leader keeps books of both and obeys its limits by them; whoever asked the books whether they obey
would find every book content.  So the engines' rules count for themselves: what was sent and to
which no answer has come, and what was written and is not committed.  Which messages count and which
answers end them differs between engines and stays with their rules.

Both counts are at most the leader's own, never above: what only the leader can know (which answer
was too old to count, say) is decided in its favour.  So who breaks a limit by them has broken it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from replog.entries import ENTRY_OVERHEAD_BYTES_MAX
from replog.limits import Limits
from replog.testing.nodes import ClusterNode
from replog.types import Entry, EntryKind, LogIndex, Ready, Role, Term


class Unanswered:
    """The messages with entries that one leader sent to one peer, and that nothing has answered."""

    __slots__ = ("_messages",)

    def __init__(self) -> None:
        self._messages: list[tuple[LogIndex, int]] = []
        """The last index and the bytes of each, in the order of sending."""

    @property
    def last_index(self) -> LogIndex:
        """The last index of the youngest; 0 if there is none."""
        return self._messages[-1][0] if self._messages else 0

    def add(self, last_index: LogIndex, size_bytes: int) -> None:
        """A message has left."""
        self._messages.append((last_index, size_bytes))

    def answer(self, first: LogIndex, last: LogIndex) -> None:
        """The messages that end within ``first..last`` are answered."""
        if self._messages:
            self._messages = [each for each in self._messages if not first <= each[0] <= last]

    def forget(self) -> None:
        """The leader begins anew: it takes what is on its way for lost."""
        self._messages.clear()

    def problem(self, limits: Limits) -> str:
        """What is wrong with sending one more message now; ``""``: nothing.

        The window of bytes is open until it is full, so one message may go beyond it.
        """
        count = len(self._messages)
        if count >= limits.in_flight_messages_max:
            return (
                f"sends one more than {count} messages on their way, above "
                f"in_flight_messages_max = {limits.in_flight_messages_max}"
            )
        size_bytes = sum([size_bytes for _, size_bytes in self._messages])
        if size_bytes >= limits.in_flight_bytes_max:
            return (
                f"sends one more than {size_bytes} bytes of messages on their way, above "
                f"in_flight_bytes_max = {limits.in_flight_bytes_max}"
            )
        return ""


class Uncommitted:
    """What one node has proposed as leader, and holds uncommitted."""

    __slots__ = ("_entries", "_led", "_size_bytes")

    def __init__(self) -> None:
        self._led: tuple[int, Term] = (0, 0)
        """The run and the term that this is about."""
        self._entries: deque[tuple[LogIndex, int]] = deque()
        """The index and the bytes of the body of each, ascending."""
        self._size_bytes = 0

    def problem(self, node: ClusterNode, ready: Ready, limits: Limits) -> str:
        """Note what a leader writes of its own term, and judge the first command among that which
        is new: it was taken while no more was uncommitted than what is in front of it here.

        What a new leader proposes again is no command that it took: its origin is of another term.
        The commit index is the one that the status shows; other rules judge that.
        """
        status, found = node.status_seen, ""
        if status.role is not Role.LEADER or not ready.entries:
            return ""
        if self._led != (node.run, status.term):
            self._led = (node.run, status.term)
            self._entries.clear()
            self._size_bytes = 0
        while self._entries and self._entries[0][0] <= status.commit_index:
            self._size_bytes -= self._entries.popleft()[1]
        has_command = False
        for entry in ready.entries:
            if entry.term != status.term or entry.index <= status.commit_index:
                continue
            is_command = entry.kind == EntryKind.COMMAND and entry.origin.term == entry.term
            if is_command and not has_command:
                has_command = True
                found = self._judge(entry, limits)
            if not self._entries or entry.index > self._entries[-1][0]:
                self._entries.append((entry.index, len(entry.body)))
                self._size_bytes += len(entry.body)
        return found

    def _judge(self, entry: Entry, limits: Limits) -> str:
        if self._size_bytes <= limits.uncommitted_bytes_max:
            return ""
        return (
            f"takes a proposal for index {entry.index} with {self._size_bytes} bytes uncommitted, "
            f"above uncommitted_bytes_max = {limits.uncommitted_bytes_max}"
        )


def size_bytes_of(entries: Sequence[Entry]) -> int:
    """What entries count for in the limits of messages: their bytes as they travel, at most."""
    return sum([len(entry.body) for entry in entries]) + ENTRY_OVERHEAD_BYTES_MAX * len(entries)


def size_problem(entries: Sequence[Entry], size_bytes: int, limits: Limits) -> str:
    """What is wrong with one message's size; ``""``: nothing.  One entry always fits."""
    if size_bytes <= limits.message_bytes_max or len(entries) == 1:
        return ""
    return (
        f"sends {len(entries)} entries of {size_bytes} bytes in one message, above "
        f"message_bytes_max = {limits.message_bytes_max}"
    )
