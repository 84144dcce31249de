"""How long a client waits before it asks again: a busy leader, and the next round of its search.

The rules this module keeps: pauses grow with each refusal of one command, and with each round that
found nobody; whoever was told when to come back comes no earlier; and there is jitter in all of
them, so that clients which were refused together do not come back together.

A leader that says ``retry_after_ms`` has no room for anybody: so it is sent no *other* command
before that time either.  Queries pass, for they need no room in its log.  What it said is forgotten
when another node leads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from replog.client_actions import NEVER, Command
from replog.errors import NotDone, Overloaded
from replog.types import NO_NODE, NodeId

W = TypeVar("W")

_BACKOFF_SECONDS_MIN: Final = 0.02
_BACKOFF_SECONDS_MAX: Final = 0.5
"""Of a search, and of a command that the leader was too busy for."""

_DOUBLINGS_MAX: Final = 10
_SPREAD: Final = 0.5
"""Who was told when to come back does so up to so much of that time later."""


class Pauses(Generic[W]):
    """The pauses of one client."""

    __slots__ = ("_dice", "_leader_id", "_refusal", "_room_at")

    def __init__(self, dice: Callable[[], float]) -> None:
        """``dice`` gives a number from 0 to 1 each time."""
        self._dice = dice
        self._leader_id: NodeId = NO_NODE
        """Who led when the client last found a leader."""
        self._room_at = -NEVER
        """Before that time the leader has no room for commands, ..."""
        self._refusal = Overloaded("")
        """... as it has said so."""

    def _jittered(self, seconds: float) -> float:
        return seconds * (0.5 + 0.5 * self._dice())

    def after_round(self, fruitless_count: int) -> float:
        """How long the search pauses after so many rounds in vain, at least one."""
        backoff = _BACKOFF_SECONDS_MIN * 2.0 ** min(fruitless_count - 1, _DOUBLINGS_MAX)
        return self._jittered(min(backoff, _BACKOFF_SECONDS_MAX))

    def after_refusal(self, now: float, command: Command[W], failure: NotDone) -> float:
        """How long a command pauses that the leader was too busy for, or had no room for."""
        command.failure = failure
        command.backoff_seconds = min(
            max(2 * command.backoff_seconds, _BACKOFF_SECONDS_MIN), _BACKOFF_SECONDS_MAX
        )
        seconds = self._jittered(command.backoff_seconds)
        if isinstance(failure, Overloaded) and failure.retry_after_ms:
            told = failure.retry_after_ms / 1000
            self._refusal, self._room_at = failure, max(self._room_at, now + told)
            seconds = max(seconds, told + self._spread())
        return seconds

    def before_room(self, now: float, command: Command[W]) -> float:
        """How long a command that did not leave waits until the leader may have room; 0: it need
        not wait.  Should its deadline come first, it ends with what the leader said to others."""
        if now >= self._room_at or command.is_query:
            return 0.0
        said = self._refusal
        command.failure = type(said)(str(said), said.retry_after_ms)
        return self._room_at - now + self._spread()

    def _spread(self) -> float:
        return _SPREAD * self._dice() * self._refusal.retry_after_ms / 1000

    def is_new_leader(self, node_id: NodeId) -> bool:
        """A node leads; whether it is another one than before.  What that one said is forgotten: it
        is no word of this one's."""
        if node_id == self._leader_id:
            return False
        self._leader_id, self._room_at = node_id, -NEVER
        return True
