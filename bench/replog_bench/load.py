"""The closed-loop load: a fixed number of commands in flight, the same for everything measured.

A *client* is a command in flight.  When it completes, its client submits the next one at once, in
the very callback; there is no task per client, because the switches between a thousand tasks would
cost more than the pipeline that is to be measured.

The load runs in the process of the leader.  Its commands are encoded before the clock starts, so
that every contestant pays for its own work only, and the load costs each of them the same.

Only what completes within the window counts: the warm-up before it fills the pipeline, connections
and caches; when the window is over each client ends with the command that it has in flight.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final, TypeAlias

import cbor2

from replog.errors import CallerError
from replog.limits import MIB
from replog.types import Waiter

Submit: TypeAlias = Callable[[bytes, Waiter], object]
"""Propose one command; a ``CallerError`` that it raises means that nothing was proposed."""

KEYS: Final = 4096
"""Commands go round over so many keys: a power of two, so that a mask finds the next."""

COMMANDS_BYTES_MAX: Final = 16 * MIB
"""Large commands go round over fewer keys, so that the load itself stays small."""

VALUE_BYTES_MIN: Final = 24
"""Room for the name, the key and an empty value."""


def commands(value_bytes: int) -> list[bytes]:
    """One encoded ``put`` of exactly ``value_bytes`` bytes for each key; a power of two of them.

    ``value_bytes`` is the size of the value to be agreed on, which is the whole command: the array
    [name, key, value], as a key-value store takes it.
    """
    if value_bytes < VALUE_BYTES_MIN:
        raise CallerError(
            f"a value of {value_bytes} bytes has no room for a command; "
            f"give at least {VALUE_BYTES_MIN}"
        )
    keys = KEYS
    while keys > 1 and keys * value_bytes > COMMANDS_BYTES_MAX:
        keys //= 2
    made = []
    for number in range(keys):
        key = f"key-{number:06}"
        filling = value_bytes
        # A long byte string has a longer head: shrink until the whole fits.
        while len(command := cbor2.dumps(["put", key, bytes(filling)])) > value_bytes:
            filling -= len(command) - value_bytes
        # At the few sizes where the head grows no filling fits exactly; a longer key makes up.
        if missing := value_bytes - len(command):
            command = cbor2.dumps(["put", key + "-" * missing, bytes(filling)])
        made.append(command)
    return made


def percentile(ascending: Sequence[float], fraction: float) -> float:
    """The smallest value that at least ``fraction`` of all do not exceed (nearest rank)."""
    assert 0 < fraction <= 1
    return ascending[max(0, math.ceil(fraction * len(ascending)) - 1)]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What one run of the load measured."""

    operations: int
    """Commands that completed within the window."""
    ops_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    """Clients that ended early, because a command of theirs failed."""
    first_error: str
    """What the first of them was told; empty without errors."""


class Window:
    """When completions count, and those that did."""

    def __init__(self, *, warm_up_seconds: float, seconds: float) -> None:
        assert seconds > 0
        self._warm_up_seconds = warm_up_seconds
        self._seconds = seconds
        self.start = 0.0
        """In the time of ``perf_counter``, as the end."""
        self.end = 0.0
        self.latencies = array("d")
        """In seconds; of what completed from ``start`` to ``end``."""
        self._errors = 0
        self._first_error = ""

    def open(self) -> None:
        """The load begins now, the window after the warm-up."""
        self.start = perf_counter() + self._warm_up_seconds
        self.end = self.start + self._seconds

    def note_error(self, error: Exception) -> None:
        """A client ended early."""
        self._errors += 1
        self._first_error = self._first_error or f"{type(error).__name__}: {error}"

    def result(self) -> LoadResult:
        """What was measured; to be asked for after the end."""
        ascending = sorted(self.latencies)
        return LoadResult(
            operations=len(ascending),
            ops_per_second=len(ascending) / self._seconds,
            p50_ms=percentile(ascending, 0.50) * 1e3 if ascending else math.nan,
            p99_ms=percentile(ascending, 0.99) * 1e3 if ascending else math.nan,
            errors=self._errors,
            first_error=self._first_error,
        )


class ClosedLoop:
    """Keeps ``clients`` commands in flight for as long as the window lasts."""

    def __init__(
        self,
        submit: Submit,
        *,
        clients: int,
        value_bytes: int,
        warm_up_seconds: float,
        seconds: float,
        on_end: Callable[[], None],
    ) -> None:
        """``on_end`` is called once, when every client has ended."""
        assert clients > 0
        self._submit = submit
        self._clients = clients
        self._commands = commands(value_bytes)
        self._mask = len(self._commands) - 1
        self._next = 0
        self._window = Window(warm_up_seconds=warm_up_seconds, seconds=seconds)
        self._on_end = on_end
        self._running = 0

    def start(self) -> None:
        """Submit one command for every client; call it on the thread that runs the callbacks."""
        self._window.open()
        self._running = self._clients
        for _ in range(self._clients):
            _Client(self).begin()

    def result(self) -> LoadResult:
        """What was measured; to be asked for after the end."""
        return self._window.result()

    def _next_command(self) -> bytes:
        number = self._next
        self._next = (number + 1) & self._mask
        return self._commands[number]

    def _end_client(self, error: Exception | None) -> None:
        if error is not None:
            self._window.note_error(error)
        self._running -= 1
        if not self._running:
            self._on_end()


class _Client:
    """One command in flight, and the callback that begins the next."""

    __slots__ = ("_load", "_started", "_waiter", "_window")

    def __init__(self, load: ClosedLoop) -> None:
        self._load = load
        self._window = load._window
        self._started = 0.0
        # Bound once: a bound method made anew for each command costs 50 ns.
        self._waiter = self.finish

    def begin(self) -> None:
        """Submit the next command and note the time."""
        load = self._load
        self._started = perf_counter()
        try:
            load._submit(load._next_command(), self._waiter)
        except CallerError as refusal:
            load._end_client(refusal)

    def finish(self, index: int, result: object, error: Exception | None) -> None:
        """The command has completed: count it, and go on unless the window is over."""
        window = self._window
        now = perf_counter()
        if error is not None or now >= window.end:
            self._load._end_client(error)
            return
        if now >= window.start:
            window.latencies.append(now - self._started)
        self.begin()
