"""The commands of a client that have not left: in their order, paused, or held back.

* *Queued* commands leave in their order as soon as there is a leader with room for them.
* A *paused* one was too much for the leader, or would be, and is queued again a little later.
* A *held* one is so far ahead of the first unanswered command of its session that the cluster might
  keep no answer for it: it waits until that one is answered.  Else later commands could take the
  room of earlier ones that are sent again, and none of them would ever be answered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from replog.client_actions import NEVER, Command
from replog.client_session import ClientSession

W = TypeVar("W")

GRAIN_SECONDS: Final = 0.01
"""Deadlines and pauses are looked at no more often than this: one look goes through all of them."""


class CommandQueue(Generic[W]):
    """Every command that is neither in flight nor ended; each is in one place."""

    def __init__(self, answers_max: int) -> None:
        """``answers_max``: so many answers of one session the cluster keeps."""
        self._answers_max = answers_max
        self._queued: OrderedDict[Command[W], None] = OrderedDict()
        """In the order in which they will leave."""
        self._paused: dict[Command[W], float] = {}
        """With when each is queued again."""
        self._held: dict[ClientSession, OrderedDict[Command[W], None]] = {}
        """By session, ascending by number; never empty."""
        self.resume_at = NEVER
        """When paused commands are looked at next."""

    def __len__(self) -> int:
        """How many could leave."""
        return len(self._queued)

    def __iter__(self) -> Iterator[Command[W]]:
        return iter(self._queued)

    @property
    def count(self) -> int:
        """How many there are."""
        held_count = sum([len(held) for held in self._held.values()])
        return len(self._queued) + len(self._paused) + held_count

    def add(self, command: Command[W]) -> None:
        """It is to leave as soon as it can."""
        self._queued[command] = None

    def first(self) -> Command[W] | None:
        """The next one to leave, which stays where it is; those that must wait for others of their
        session are held back."""
        while self._queued:
            command = next(iter(self._queued))
            session = command.session
            if session is None or command.sequence < session.lowest + self._answers_max:
                return command
            del self._queued[command]
            self._held.setdefault(session, OrderedDict())[command] = None
        return None

    def take(self, command: Command[W]) -> None:
        """The :meth:`first` one leaves."""
        del self._queued[command]

    def remove(self, command: Command[W]) -> None:
        """Take it out of wherever it is, if it is here."""
        self._queued.pop(command, None)
        self._paused.pop(command, None)
        session = command.session
        if session in self._held:
            self._held[session].pop(command, None)
            if not self._held[session]:
                del self._held[session]

    def note_settled(self, session: ClientSession) -> bool:
        """A command of the session was answered, or given up; whether others may leave now."""
        held = self._held.get(session)
        if held is None:
            return False
        behind = session.lowest + self._answers_max
        ready = []
        for command in held:
            if command.sequence >= behind:
                break
            ready.append(command)
        for command in ready:
            self.remove(command)
            self.add(command)
        return bool(ready)

    def pause(self, now: float, command: Command[W], seconds: float) -> None:
        """It is to be queued again after so long."""
        self._paused[command] = now + seconds
        self.resume_at = min(self.resume_at, max(self._paused[command], now + GRAIN_SECONDS))

    def resume(self, now: float) -> None:
        """Queue those whose pause is over."""
        for command in [command for command, at in self._paused.items() if at <= now]:
            del self._paused[command]
            # One that would be sent at its deadline only ends there, with what the leader said.
            if command.deadline > now:
                self.add(command)
        self._look_later(now)

    def resume_all(self, now: float) -> None:
        """Queue all of them: another leader may have room."""
        self._queued.update(dict.fromkeys(self._paused))
        self._paused.clear()
        self._look_later(now)

    def _look_later(self, now: float) -> None:
        earliest = min(self._paused.values(), default=NEVER)
        self.resume_at = max(earliest, now + GRAIN_SECONDS)
