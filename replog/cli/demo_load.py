"""The load of the demonstration: many writes in flight, and a strict account of each.

Every write ends up acknowledged, however often the cluster has to be asked, and the account says
how it got there.  A write that was definitely not done is sent again.  One whose outcome is unknown
is never just repeated: it is *settled* by a compare-and-set from absence to its own value, which no
other write has.  If the key is taken already, then by the first attempt; the comparison at the
end looks whether it holds exactly that value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import trio

from replog.cli.demo_words import Put
from replog.client import Client
from replog.errors import EntryReplaced, NotLeader, OutcomeUnknown, Overloaded, Unavailable
from replog.statemachine import StateMachine
from replog.types import Applied, LogIndex

_PAUSE_SECONDS: Final = 0.02
_LATER: Final = (Unavailable, NotLeader, Overloaded, EntryReplaced)
"""Definitely not done, and worth another try."""


@dataclass(slots=True)
class Acknowledged:
    """A write that the cluster has confirmed."""

    key: str
    value: bytes
    index: LogIndex | None
    """Where it was applied; ``None`` if the confirmed attempt is not known."""


class Load:
    """Writes ``puts`` with ``in_flight`` requests at a time; :meth:`run` it once."""

    def __init__(
        self,
        client: Client,
        machine: type[StateMachine],
        puts: Iterator[Put],
        *,
        in_flight: int,
        writes_min: int,
        seconds_min: float,
        writes_max: int | None,
    ) -> None:
        """The load goes on for ``writes_min`` writes and ``seconds_min`` seconds and until
        :meth:`let_end`; it ends in any case after ``writes_max``, if that is given."""
        self._client = client
        self._calls = machine.calls
        self._puts = puts
        self._in_flight = in_flight
        self._writes_min = writes_min
        self._seconds_min = seconds_min
        self._writes_max = writes_max
        self._middle = trio.Event()
        self._recovered = trio.Event()
        self._failed_at: float | None = None
        """When the leader was certainly dead."""
        self._gate = trio.Event()
        self._may_end = False
        self._started_at = 0.0
        self.written_count = 0
        """Writes that were begun."""
        self.acknowledged: list[Acknowledged] = []
        self.latencies: list[float] = []
        """Seconds from the first attempt to the acknowledgement, per write."""
        self.unknown_count = 0
        """Writes whose first outcome was unknown."""
        self.recovered_at: float | None = None
        """When a command was acknowledged that was sent after the leader's death."""
        self.seconds = 0.0
        """How long the load took."""

    async def run(self) -> None:
        """Write everything; returns when the last write is acknowledged."""
        self._started_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(self._in_flight):
                nursery.start_soon(self._work)
        self.seconds = trio.current_time() - self._started_at
        # A text that is shorter than the pipeline reaches its middle only at its end.
        self._middle.set()

    async def wait_middle(self) -> None:
        """Wait for the moment that is best for a failure."""
        await self._middle.wait()

    async def wait_recovered(self) -> None:
        """Wait until a command is acknowledged that was sent after :meth:`note_failure`."""
        await self._recovered.wait()

    def note_failure(self) -> None:
        """The leader is dead from now on."""
        self._failed_at = trio.current_time()
        self._gate.set()

    def let_end(self) -> None:
        """Nothing more is waited for than the number of writes and the time."""
        self._may_end = True

    async def _work(self) -> None:
        while True:
            self._watch_middle()
            if self._is_held():
                await self._gate.wait()
            if self._is_over():
                return
            put = next(self._puts, None)
            if put is None:
                return
            self.written_count += 1
            started_at = trio.current_time()
            index = await self._write(*put)
            self.latencies.append(trio.current_time() - started_at)
            self.acknowledged.append(Acknowledged(*put, index))

    def _watch_middle(self) -> None:
        if not self._middle.is_set():
            half_written = self.written_count >= self._writes_min // 2
            elapsed = trio.current_time() - self._started_at
            if half_written and elapsed >= self._seconds_min / 2:
                self._middle.set()

    def _is_held(self) -> bool:
        """Whether the rest of a text with an end has to wait for the failure."""
        if self._writes_max is None or self._gate.is_set():
            return False
        return self.written_count >= min(self._writes_max * 3 // 4, self._writes_max - 1)

    def _is_over(self) -> bool:
        if self._writes_max is not None and self.written_count >= self._writes_max:
            return True
        elapsed = trio.current_time() - self._started_at
        return (
            self._may_end
            and self.written_count >= self._writes_min
            and elapsed >= self._seconds_min
        )

    async def _write(self, key: str, value: bytes) -> LogIndex | None:
        """Write until it is done; the index, if the attempt that was done is known."""
        put = self._calls["put"].encode(key, value)
        try:
            return (await self._propose(put)).index
        except OutcomeUnknown:
            self.unknown_count += 1
        swap = self._calls["compare_and_set"].encode(key, None, value)
        while True:
            try:
                await self._propose(swap)
            except OutcomeUnknown:
                continue
            # Either it was set now, or the key was taken: by this very write, unless something is
            # wrong, which the comparison at the end would find.  A first attempt that is still
            # under way would only write the same value again, so the index is not known.
            return None

    async def _propose(self, payload: bytes) -> Applied:
        """One command, again and again while it is definitely not done."""
        while True:
            sent_at = trio.current_time()
            try:
                applied = await self._client.propose(payload)
            except _LATER:
                await trio.sleep(_PAUSE_SECONDS)
                continue
            failed_at = self._failed_at
            if self.recovered_at is None and failed_at is not None and sent_at >= failed_at:
                self.recovered_at = trio.current_time()
                self._recovered.set()
            return applied
