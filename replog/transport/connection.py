"""One TCP connection: queued frames that leave together, and bytes that arrive.

The rules this module keeps:

* ``queue`` is synchronous and only remembers; ``flush`` hands everything that waits to the kernel
  with one system call, without a task switch.  Only what the kernel does not take is left to the
  writer task, so a healthy connection costs one ``send`` per turn of the node's loop.
* The queue is bounded: a slow receiver costs memory up to its limit, then ``queue`` refuses.
* Nothing here has a deadline of its own: whoever owns the connection looks at ``silent_checks``
  and ``blocked_since`` from time to time and closes it.  A cancel scope per read would cost more
  than the read; and counting looks instead of time forgives a process that was paused.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio

READ_BYTES_MAX: Final = 256 * 1024
"""How much is read per wake-up; every complete frame in it is handled in one go."""


_SEND_BYTES: Final = 1024 * 1024
"""About how much is handed to the kernel at a time; a full queue may hold much more."""


class Connection:
    """A connected, non-blocking TCP socket of which this object is the only user."""

    def __init__(self, sock: socket.socket, queue_bytes_max: int) -> None:
        sock.setblocking(False)
        with suppress(OSError):
            # macOS refuses this on a connection that was reset already; reading will tell.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._queue: list[bytes | memoryview] = []
        self.queued_bytes = 0
        """Bytes that wait to be sent; after the end, those that never left."""
        self._queue_bytes_max = queue_bytes_max
        self._is_blocked = False
        self._unblock = trio.Event()
        self.is_closed = False
        self.silent_checks = 0
        """How often the owner has looked since bytes last arrived; the owner counts."""
        self.blocked_since: float | None = None
        """Since when the kernel takes nothing more; ``None`` while it does."""

    def peer_name(self) -> str:
        """The other end as ``host:port``, for logs."""
        try:
            host, port = self._socket.getpeername()[:2]
        except OSError:
            return "a closed connection"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def queue(self, frame: bytes) -> bool:
        """Remember a frame for the next ``flush``; False: the queue is full, it was dropped."""
        if self.is_closed or self.queued_bytes + len(frame) > self._queue_bytes_max:
            return False
        self._queue.append(frame)
        self.queued_bytes += len(frame)
        return True

    def flush(self) -> None:
        """Send what waits, as far as the kernel takes it; the writer task sends the rest."""
        if self._queue and not self._is_blocked and not self.is_closed:
            self._send_queue()

    def _send_queue(self) -> None:
        while self._queue:
            data = self._join_first()
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            self.queued_bytes -= sent
            if sent < len(data):
                # A view: a large frame leaves in many pieces, and its rest is not copied for each.
                self._queue[0:0] = [memoryview(data)[sent:]]
            if sent == 0:
                if not self._is_blocked:
                    self._is_blocked = True
                    self.blocked_since = trio.current_time()
                    self._unblock.set()
                return
            if self.blocked_since is not None:
                self.blocked_since = trio.current_time()
        self.blocked_since = None

    def _join_first(self) -> bytes | memoryview:
        """Take the first frames off the queue, as one piece that is not copied again and again."""
        count, size_bytes = 0, 0
        for frame in self._queue:
            count += 1
            size_bytes += len(frame)
            if size_bytes >= _SEND_BYTES:
                break
        frames = self._queue[:count]
        del self._queue[:count]
        return frames[0] if count == 1 else b"".join(frames)

    async def run_writer(self) -> None:
        """Send what the kernel did not take at once; ends when the connection is closed."""
        while not self.is_closed:
            await self._unblock.wait()
            self._unblock = trio.Event()
            while self._queue and not self.is_closed:
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except (trio.ClosedResourceError, OSError):
                    return
                self._send_queue()
            self._is_blocked = False
            self.blocked_since = None

    async def drain(self, seconds: float) -> None:
        """Send what waits within ``seconds``, before a connection is closed on purpose."""
        with trio.move_on_after(seconds):
            while self._queue and not self.is_closed:
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except (trio.ClosedResourceError, OSError):
                    return
                self._send_queue()

    async def receive(self) -> bytes:
        """The bytes that have arrived, at least one; empty when the connection has ended."""
        while not self.is_closed:
            try:
                await trio.lowlevel.wait_readable(self._socket)
                data = self._socket.recv(READ_BYTES_MAX)
            except BlockingIOError:
                continue
            except (trio.ClosedResourceError, OSError):
                return b""
            self.silent_checks = 0
            return data
        return b""

    def close(self) -> None:
        """Close the connection; whoever waits on it wakes up.  May be called twice."""
        if self.is_closed:
            return
        self.is_closed = True
        self._queue.clear()
        self._unblock.set()
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


async def connect(host: str, port: int, queue_bytes_max: int) -> Connection:
    """Connect to an address; names are looked up anew each time.  Raises ``OSError``."""
    stream = await trio.open_tcp_stream(host, port)
    return take_over(stream, queue_bytes_max)


def take_over(stream: trio.SocketStream, queue_bytes_max: int) -> Connection:
    """Make a connection of a fresh stream, which must not be used any more."""
    descriptor = stream.socket.detach()
    return Connection(socket.socket(fileno=descriptor), queue_bytes_max)


@contextmanager
def closing(connection: Connection) -> Iterator[Connection]:
    """Close the connection when the block ends, however it ends."""
    try:
        yield connection
    finally:
        connection.close()
