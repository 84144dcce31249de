"""A state machine for which it matters whether a command is done once or twice."""

from __future__ import annotations

from collections.abc import Iterable

from replog import StateMachine, command, query


class Counter(StateMachine):
    """One number."""

    def __init__(self) -> None:
        self.total = 0

    @command
    def add(self, number: int) -> int:
        """Add ``number``; what the total is then."""
        self.total += number
        return self.total

    @query
    def get(self) -> int:
        """The total."""
        return self.total

    def freeze(self) -> Iterable[bytes]:
        """The total, as text."""
        return [b"%d" % self.total]

    def restore(self, chunks: Iterable[bytes]) -> None:
        """The total of a snapshot."""
        self.total = int(b"".join(chunks))
