"""The open-loop load: commands come at their own pace, whether or not those before are done.

A closed loop cannot overload anything: it waits.  Here so many commands come per second, as from
users who do not know of each other, through some *clients* that do what replog's own do: when a
command is refused, its client asks for nothing before the time that it was told, or up to half of
that later; what comes meanwhile waits in the client, and is given up when its patience ends.

The load runs in the process of the leader, as the closed loop does: what is measured is what it
takes to refuse, and not what it takes to carry that over a network.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from time import perf_counter
from typing import Final

import trio

from replog.errors import NotDone, Overloaded, ReplogError
from replog_bench.load import Submit, commands, percentile

CLIENTS: Final = 16

STEP_SECONDS: Final = 0.005
"""How often the load looks what has come by now."""

END_SECONDS_MAX: Final = 20.0
"""How long commands that were taken may go on after the load has ended."""


@dataclass(frozen=True, slots=True)
class OpenLoopResult:
    """What one run of the load measured."""

    offered: int
    """Commands that came."""
    asked: int
    """How often one was submitted, ..."""
    refused: int
    """... and how often that was refused."""
    done: int
    """Commands that completed before the load ended."""
    given_up: int
    """Commands whose patience ended."""
    done_per_second: float
    p50_ms: float
    """From when a command came, the times that it was refused included."""
    p99_ms: float
    gap_max: int
    """The most entries that were seen committed and not applied."""
    other_errors: int
    first_error: str


class _Client:
    """The commands that wait in one client, and until when."""

    __slots__ = ("room_at", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[float] = deque()
        """When each came."""
        self.room_at = 0.0
        """The leader has no room before."""


class OpenLoop:
    """Offers ``rate`` commands per second for some time."""

    def __init__(
        self,
        submit: Submit,
        look_gap: Callable[[], int],
        *,
        rate: float,
        value_bytes: int,
        seconds: float,
        patience_seconds: float,
    ) -> None:
        assert rate > 0
        self._submit = submit
        self._look_gap = look_gap
        self._rate = rate
        self._seconds = seconds
        self._patience_seconds = patience_seconds
        self._commands = commands(value_bytes)
        self._mask = len(self._commands) - 1
        self._random = Random("retries")
        self._clients = [_Client() for _ in range(CLIENTS)]
        self._end = math.inf
        self._in_flight = 0
        self._offered = self._asked = self._refused = self._given_up = self._gap_max = 0
        # 8 bytes each, not 32: a million of them are within the memory that is measured.
        self._latencies = array("d")
        self._other_errors: list[Exception] = []

    async def run(self) -> None:
        """Offer everything; returns when all that was taken has ended."""
        began = perf_counter()
        self._end = began + self._seconds
        while (now := perf_counter()) < self._end:
            due = int((now - began) * self._rate) - self._offered
            for number in range(self._offered, self._offered + due):
                self._clients[number % CLIENTS].waiting.append(now)
            self._offered += due
            for client in self._clients:
                self._send(client, now)
            self._gap_max = max(self._gap_max, self._look_gap())
            await trio.sleep(STEP_SECONDS)
        with trio.move_on_after(END_SECONDS_MAX):
            while self._in_flight:
                await trio.sleep(STEP_SECONDS)

    def _send(self, client: _Client, now: float) -> None:
        """Let a client ask for what waits, as long as the leader has room."""
        waiting = client.waiting
        while waiting and waiting[0] + self._patience_seconds < now:
            waiting.popleft()
            self._given_up += 1
        while waiting and client.room_at <= now:
            self._ask(client, waiting.popleft())

    def _ask(self, client: _Client, came: float) -> None:
        self._asked += 1

        def end_wait(_index: int, _result: object, error: Exception | None) -> None:
            self._in_flight -= 1
            if error is not None:
                self._handle_failure(client, came, error)
            elif (ended := perf_counter()) < self._end:
                self._latencies.append(ended - came)

        try:
            self._submit(self._commands[self._asked & self._mask], end_wait)
        except NotDone as refusal:
            self._handle_failure(client, came, refusal)
        else:
            self._in_flight += 1

    def _handle_failure(self, client: _Client, came: float, error: Exception) -> None:
        if not isinstance(error, Overloaded):
            assert isinstance(error, ReplogError)
            self._other_errors.append(error)
            return
        self._refused += 1
        client.waiting.appendleft(came)
        told = error.retry_after_ms / 1000 * (1 + 0.5 * self._random.random())
        client.room_at = max(client.room_at, perf_counter() + told)

    def result(self) -> OpenLoopResult:
        """What was measured; to be asked for after the end, and after a look at the memory, for it
        sorts what the load noted."""
        ascending = sorted(self._latencies)
        errors = self._other_errors
        return OpenLoopResult(
            offered=self._offered,
            asked=self._asked,
            refused=self._refused,
            done=len(ascending),
            given_up=self._given_up,
            done_per_second=len(ascending) / self._seconds,
            p50_ms=percentile(ascending, 0.50) * 1e3 if ascending else math.nan,
            p99_ms=percentile(ascending, 0.99) * 1e3 if ascending else math.nan,
            gap_max=self._gap_max,
            other_errors=len(errors),
            first_error=f"{type(errors[0]).__name__}: {errors[0]}" if errors else "",
        )
