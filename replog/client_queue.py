"""The commands of a client that have not left: in their order, paused, or held back.

* *Queued* commands leave in their order as soon as there is a leader with room for them.
* A *paused* one was too much for the leader, or would be, and is queued again a little later.
* A *held* one is so far ahead of the first unanswered command of its session that the cluster might
  keep no answer for it: it waits until that one is answered.  Else later commands could take the
  room of earlier ones that are sent again, and none of them would ever be answered.  Where the
  cluster has said that there is no room, that is any but the lowest, which is done at any rate;
  and one more is tried again whenever some were done.

Nothing here takes longer for each command the more there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from replog.client_actions import NEVER, Command
from replog.client_session import ClientSession
from replog.errors import SessionFull

W = TypeVar("W")

GRAIN_SECONDS: Final = 0.01
"""Deadlines and pauses are looked at no more often than this: one look goes through all of them."""


class _Held(Generic[W]):
    """The held commands of one session."""

    __slots__ = ("by_sequence", "from_sequence")

    def __init__(self, sequence: int) -> None:
        self.by_sequence: dict[int, Command[W]] = {}
        """In any order."""
        self.from_sequence = sequence
        """There is none below."""

    def put(self, command: Command[W]) -> None:
        """One more."""
        self.by_sequence[command.sequence] = command
        self.from_sequence = min(self.from_sequence, command.sequence)

    def take_below(self, sequence: int) -> list[Command[W]]:
        """Take out those with lower numbers, ascending."""
        numbers = range(self.from_sequence, sequence)
        self.from_sequence = max(self.from_sequence, sequence)
        found = [self.by_sequence.pop(number, None) for number in numbers]
        return [command for command in found if command is not None]


class CommandQueue(Generic[W]):
    """Every command that is neither in flight nor ended; each is in one place."""

    def __init__(self, answers_max: int) -> None:
        """``answers_max``: so many answers of one session the cluster keeps."""
        self._answers_max = answers_max
        self._queued: OrderedDict[Command[W], None] = OrderedDict()
        """In the order in which they will leave."""
        self._paused: dict[Command[W], float] = {}
        """With when each is queued again."""
        self._held: dict[ClientSession, _Held[W]] = {}
        """By session; never empty."""
        self.resume_at = NEVER
        """When paused commands are looked at next."""

    def __len__(self) -> int:
        """How many could leave."""
        return len(self._queued)

    def __iter__(self) -> Iterator[Command[W]]:
        """Those that could leave, and those that wait for others of their session."""
        yield from self._queued
        for held in self._held.values():
            yield from held.by_sequence.values()

    @property
    def count(self) -> int:
        """How many there are."""
        held_count = sum([len(held.by_sequence) for held in self._held.values()])
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
            if session is None or command.sequence < self._behind(session):
                return command
            del self._queued[command]
            self._hold(session, command)
        return None

    def _behind(self, session: ClientSession) -> int:
        """The lowest number that must wait for others of its session."""
        count = self._answers_max
        return session.lowest + (min(session.window, count) if session.refusal else count)

    def _hold(self, session: ClientSession, command: Command[W]) -> None:
        if session.refusal is not None and session.window < self._answers_max:
            # Should its deadline come first, it ends with what was said to those in front of it.
            command.failure = SessionFull(str(session.refusal), session.refusal.retry_after_ms)
        held = self._held.get(session)
        if held is None:
            held = self._held[session] = _Held(command.sequence)
        held.put(command)

    def take(self, command: Command[W]) -> None:
        """The :meth:`first` one leaves."""
        del self._queued[command]
        session = command.session
        if session is not None and session.refusal is not None:
            command.left_as_lowest = command.sequence == session.lowest

    def remove(self, command: Command[W]) -> None:
        """Take it out of wherever it is, if it is here."""
        self._queued.pop(command, None)
        self._paused.pop(command, None)
        session = command.session
        if session is not None and (held := self._held.get(session)):
            held.by_sequence.pop(command.sequence, None)
            if not held.by_sequence:
                del self._held[session]

    def note_settled(self, session: ClientSession) -> bool:
        """A command of the session was answered, or given up; whether others may leave now."""
        held = self._held.get(session)
        if held is None:
            return False
        ready = held.take_below(self._behind(session))
        for command in ready:
            self.add(command)
        if not held.by_sequence:
            del self._held[session]
        return bool(ready)

    def wait_for_others(self, command: Command[W], refusal: SessionFull) -> bool:
        """The cluster had no room for the answer of a command that has left: it is to leave again
        as the lowest of its session, which it may be by now.  ``False``: it had left as that."""
        session = command.session
        if session is None:
            return False
        session.narrow(refusal)
        if command.left_as_lowest:
            return False
        if command.sequence < self._behind(session):
            command.failure = refusal
            self.add(command)
        else:
            self._hold(session, command)
        return True

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
