"""The lines of a client: which there are, what leaves over them, and when each is looked at.

A line is given up when its handshake takes too long, when nothing at all has arrived for
``limits.connection_idle_ms``, or when it is retired and owes nothing more.  Both sides of a line
send keepalives of their own and answer none: behind a large request on a slow link an answer would
come too late.  For the same reason none is sent behind something that waits.

Looks are counted instead of time, which forgives a process that was paused itself.  What the lines
are for is decided in :mod:`replog.client_logic`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from replog.address import Address
from replog.client_actions import NEVER, Action, Close, Command, Connect, Line, Send
from replog.client_core import ClientCore
from replog.errors import AddressError
from replog.frames import FrameCodec
from replog.limits import Limits

W = TypeVar("W")

ATTEMPT_SECONDS_MAX: Final = 2.0
"""How long one address may take to connect and shake hands: the next one may do."""

REPLY_SECONDS_MAX: Final = 1.0
"""A node that has owed a reply for so long, and has sent none, may be frozen or cut off."""

_REPLY_LOOKS: Final = 4
"""How often within that time replies are looked for."""

_KEEPALIVES_PER_IDLE: Final = 4
"""How many keepalives each side sends before silence ends the connection."""


class Lines(Generic[W]):
    """Every line of a client that has not ended."""

    __slots__ = ("_codec", "_idle_seconds", "_limits", "_lines", "actions")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._codec = FrameCodec(limits)
        self._idle_seconds = limits.connection_idle_ms / 1000
        self._lines: dict[Line[W], None] = {}
        self.actions: list[Action[W]] = []
        """What is to be done, in this order, and was not handed out."""

    def __iter__(self) -> Iterator[Line[W]]:
        return iter(tuple(self._lines))

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, line: Line[W]) -> bool:
        return line in self._lines

    # -- what is to be done --

    def connect(
        self, now: float, address: str, cluster_id: str, question: Command[W] | None
    ) -> Line[W] | None:
        """Begin a line; ``None``: a node has named an address that is none.

        ``cluster_id`` is the only cluster that will do; empty: any.
        """
        try:
            parsed = Address.parse(address)
        except AddressError:
            return None
        seconds = min(self._limits.handshake_ms / 1000, ATTEMPT_SECONDS_MAX)
        core = ClientCore[Command[W]](self._codec, self._limits.client_requests_max, cluster_id)
        line = Line(address, core, now + seconds, question)
        self._lines[line] = None
        self.actions.append(Connect(line, parsed.host, parsed.port))
        return line

    def send(self, line: Line[W], data: bytes) -> None:
        """Hand bytes of the line's core to its connection."""
        line.unsent_bytes += len(data)
        self.actions.append(Send(line, data))

    def close(self, line: Line[W], reason: str) -> None:
        """End a line; an earlier reason stands."""
        if not line.is_closing:
            line.is_closing = True
            line.end_reason = line.end_reason or reason
            self.actions.append(Close(line))

    def remove(self, line: Line[W]) -> bool:
        """The driver says that a line has ended; False: it did so before."""
        if line not in self._lines:
            return False
        del self._lines[line]
        line.is_closing = True
        return True

    # -- a line to the leader --

    def begin_leading(self, now: float, line: Line[W]) -> None:
        """From now on, it is looked at whether the node lives and answers."""
        line.keepalive_at = now + self._idle_seconds / _KEEPALIVES_PER_IDLE
        line.reply_look_at = now + REPLY_SECONDS_MAX / _REPLY_LOOKS

    def retire(self, line: Line[W]) -> None:
        """Nothing new is sent over it, and it ends when nobody waits for a reply."""
        line.is_retired = True
        line.reply_look_at = NEVER

    def close_if_drained(self, line: Line[W]) -> None:
        """Close a retired line over which nothing comes any more that somebody waits for."""
        if line.is_retired and not line.core.open_count:
            self.close(line, "the node does not lead any more")

    # -- time --

    def next_time(self) -> float:
        """When a line is to be looked at next."""
        earliest = NEVER
        for line in self._lines:
            if not line.is_closing:
                earliest = min(earliest, line.deadline, line.keepalive_at, line.reply_look_at)
        return earliest

    def look_for_life(self, now: float) -> None:
        """Send the keepalives that are due, and close what was silent or took too long."""
        for line in self._lines:
            if line.deadline <= now:
                self.close(line, f"no answer within {ATTEMPT_SECONDS_MAX:g} s")
            elif line.keepalive_at <= now and not line.is_closing:
                line.keepalive_at = now + self._idle_seconds / _KEEPALIVES_PER_IDLE
                line.silent_looks += 1
                if line.silent_looks > _KEEPALIVES_PER_IDLE:
                    line.end_reason = f"nothing was heard for {self._idle_seconds:g} s"
                    self.close(line, line.end_reason)
                elif line.unsent_bytes == 0:
                    self.send(line, line.core.keepalive())

    def is_reply_missing(self, now: float, line: Line[W]) -> bool:
        """Look whether replies are owed and none has come for about ``REPLY_SECONDS_MAX``."""
        if line.reply_look_at > now or line.is_closing:
            return False
        line.reply_look_at = now + REPLY_SECONDS_MAX / _REPLY_LOOKS
        core = line.core
        if core.answered_count != line.answered_count or not core.unanswered_count:
            line.answered_count = core.answered_count
            line.reply_looks = 0
            return False
        line.reply_looks += 1
        return line.reply_looks >= _REPLY_LOOKS
