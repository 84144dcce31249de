"""The yardstick: the bare pipeline, as fast as Python honestly does it, and no consensus at all.

Three processes on one machine, each with a durable file.  The leader takes commands from the load
within its own process, sends each batch to both followers, appends it to its file and syncs; the
followers do the same and acknowledge; what two of the three have on disk is committed, decoded,
applied to a dict and completed.  Followers apply too, when they learn the commit index from the
next batch.  There are no terms, no elections, no repair, and nothing is checked per command: what
an engine does beyond this is what the ratio to ``bare`` shows.

A batch is encoded once; the same bytes go to both followers and to all three files:

=============  ====================================================================
part           content (big-endian)
=============  ====================================================================
head           length and crc32 of all that follows the crc (u32 each), commit index
               (u64), first index (u64), number of commands (u32)
lengths        length of each command (u32 each)
commands       the commands, back to back
=============  ====================================================================

An acknowledgement is the last durable index (u64).

What shapes the pipeline, and what it earned (commits per second, medians of five to ten interleaved
runs on two shared cores, where less than a tenth is hard to tell from noise):

* everything that waits goes into one batch, no delay is added.  Applying in slices of 16 to 512
  commands, to overlap them with the disk, lost 18 to 25 %: more and smaller batches cost more
  wake-ups than the overlap gains;
* zeros written ahead: +22 to +39 % (see :mod:`replog_bench.journal`);
* the wake-up through a pipe: +22 % with 1 in flight, +16 % with 64, nothing with 1024;
* the batch is handed to the disk *before* it is sent: +22 % with 1 in flight, +15 % with 64.  The
  sends take longer than the hand-over, and while they are in the kernel the sync thread begins;
* a follower applies *after* its sync, not while its sync thread waits for the interpreter's lock
  in order to begin: +7 % with 64 and with 1024;
* the sync thread sends the acknowledgement itself, without a switch to the event loop: +4 % with
  64 in flight, +15 % with 1024;
* sockets are written to directly, by whoever has something to send; only what does not fit is
  left to a task.
"""

from __future__ import annotations

import argparse
import socket
import struct
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import cbor2
import trio

from replog.cli.shared import collect_less
from replog.config import SYNC_LEVELS
from replog.limits import MIB
from replog.types import LogIndex, Waiter
from replog_bench.journal import Journal, SyncThread
from replog_bench.load import ClosedLoop
from replog_bench.processes import hear, limit_lifetime, say

HEAD: Final = struct.Struct(">IIQQI")
CHECKED_FROM: Final = 8
"""Where in a batch the part begins that its length and crc cover."""
ACK: Final = struct.Struct(">Q")
RECEIVE_BYTES: Final = 1 * MIB


def encode_batch(commit: LogIndex, first: LogIndex, commands: Sequence[bytes]) -> bytes:
    """The bytes of one batch; without commands it only tells the commit index."""
    count = len(commands)
    checked = b"".join(
        (
            struct.pack(f">QQI{count}I", commit, first, count, *map(len, commands)),
            *commands,
        )
    )
    return struct.pack(">II", len(checked), zlib.crc32(checked)) + checked


def split_commands(data: bytes, offset: int, count: int) -> list[bytes]:
    """The ``count`` commands whose lengths stand at ``offset``."""
    lengths = struct.unpack_from(f">{count}I", data, offset)
    offset += 4 * count
    commands = []
    for length in lengths:
        commands.append(data[offset : offset + length])
        offset += length
    return commands


class Peer:
    """The leader's connection to one follower."""

    def __init__(self, port: int, nursery: trio.Nursery) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        _prepare(self.socket)
        self.acked: LogIndex = 0
        self._received = b""
        self._nursery = nursery
        self._unsent: deque[bytes] = deque()

    def send(self, batch: bytes) -> None:
        """Send now, or leave what does not fit to a task; never blocks."""
        if self._unsent:
            self._unsent.append(batch)
            return
        try:
            sent = self.socket.send(batch)
        except BlockingIOError:
            sent = 0
        if sent < len(batch):
            self._unsent.append(batch[sent:])
            self._nursery.start_soon(self._send_unsent)

    async def _send_unsent(self) -> None:
        while self._unsent:
            await trio.lowlevel.wait_writable(self.socket)
            data = self._unsent[0]
            sent = self.socket.send(data)
            if sent == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = data[sent:]

    async def wait_acked(self) -> None:
        """Wait for the next acknowledgement."""
        while True:
            await trio.lowlevel.wait_readable(self.socket)
            data = self._received + self.socket.recv(4096)
            whole = len(data) - len(data) % ACK.size
            self._received = data[whole:]
            if whole:
                (self.acked,) = ACK.unpack_from(data, whole - ACK.size)
                return
            if not data:
                raise ConnectionError("a follower ended before the leader")


class Leader:
    """Takes commands, replicates them in batches, applies what is committed."""

    def __init__(self, journal: Journal, ports: Sequence[int], nursery: trio.Nursery) -> None:
        self._syncs = SyncThread(journal, after_sync=None)
        self._peers = [Peer(port, nursery) for port in ports]
        self._nursery = nursery
        self._commands: list[bytes] = []
        """What waits for the next batch, and beside it who waits for each command."""
        self._waiters: list[Waiter] = []
        self._batches: deque[tuple[LogIndex, LogIndex, list[bytes], list[Waiter]]] = deque()
        """What is on its way: first and last index, commands, waiters."""
        self._durable: LogIndex = 0
        self._last: LogIndex = 0
        self._commit: LogIndex = 0
        self._announced: LogIndex = 0
        """The commit index that the followers know or are being told."""
        self._state: dict[str, bytes] = {}

    def run(self) -> None:
        """Start the tasks."""
        self._nursery.start_soon(self._watch_syncs)
        for peer in self._peers:
            self._nursery.start_soon(self._watch_acks, peer)

    def submit(self, command: bytes, waiter: Waiter) -> None:
        """Propose one command; it leaves at the next flush."""
        self._commands.append(command)
        self._waiters.append(waiter)

    def flush(self) -> None:
        """Send and write all that waits, as one batch."""
        commands, waiters = self._commands, self._waiters
        if not commands:
            # Nobody brings the news of the last commits along: tell it alone.
            if self._announced < self._commit and not self._batches:
                self._announced = self._commit
                self._send(encode_batch(self._commit, self._last + 1, ()))
            return
        self._commands, self._waiters = [], []
        first = self._last + 1
        self._last += len(commands)
        self._batches.append((first, self._last, commands, waiters))
        self._announced = self._commit
        batch = encode_batch(self._commit, first, commands)
        self._syncs.submit(batch, self._last)
        self._send(batch)

    def stop(self) -> None:
        """Close connections and file; the followers end by that."""
        for peer in self._peers:
            peer.socket.close()
        self._syncs.stop()

    def _send(self, batch: bytes) -> None:
        for peer in self._peers:
            peer.send(batch)

    async def _watch_syncs(self) -> None:
        while True:
            self._durable = await self._syncs.wait_synced()
            self._advance_commit()

    async def _watch_acks(self, peer: Peer) -> None:
        while True:
            await peer.wait_acked()
            self._advance_commit()

    def _advance_commit(self) -> None:
        _, committed, _ = sorted((self._durable, *(peer.acked for peer in self._peers)))
        if committed <= self._commit:
            return
        self._commit = committed
        while self._batches and self._batches[0][1] <= committed:
            index, _, commands, waiters = self._batches.popleft()
            loads, state = cbor2.loads, self._state
            for command, waiter in zip(commands, waiters, strict=True):
                _, key, value = loads(command)
                state[key] = value
                waiter(index, None, None)
                index += 1
        self.flush()


class Follower:
    """Writes, acknowledges and applies what the leader sends."""

    def __init__(self, journal: Journal, connection: socket.socket) -> None:
        self._socket = connection
        self._syncs = SyncThread(journal, after_sync=self._acknowledge)
        self._received = b""
        self._unapplied: deque[tuple[LogIndex, bytes, int, int]] = deque()
        """Batches by last index: the bytes, where the lengths begin, how many commands."""
        self._commit: LogIndex = 0
        self._state: dict[str, bytes] = {}

    async def run(self) -> None:
        """Serve until the leader closes the connection."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_syncs)
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                try:
                    data = self._socket.recv(RECEIVE_BYTES)
                except ConnectionResetError:
                    break  # The leader left with acknowledgements unread.
                if not data:
                    break
                self._take(self._received + data if self._received else data)
                # While a group is on its way its thread needs the interpreter to begin; what
                # is applied in the meantime would hold it up, and can wait for the disk.
                if not self._syncs.is_busy:
                    self._apply()
            nursery.cancel_scope.cancel()
        self._syncs.stop()

    def _take(self, data: bytes) -> None:
        """Hand the whole batches in ``data`` to the disk; keep the rest for later."""
        start, size, last = 0, len(data), 0
        while size - start >= HEAD.size:
            length, crc, commit, first, count = HEAD.unpack_from(data, start)
            end = start + CHECKED_FROM + length
            if end > size:
                break
            if zlib.crc32(memoryview(data)[start + CHECKED_FROM : end]) != crc:
                raise ConnectionError(f"the batch from index {first} was damaged on its way")
            self._commit = commit
            if count:
                last = first + count - 1
                self._unapplied.append((last, data, start + HEAD.size, count))
            start = end
        self._received = data[start:]
        if last:
            self._syncs.submit(data if start == size else data[:start], last)

    def _acknowledge(self, durable: LogIndex) -> None:
        """Called in the sync thread; eight bytes fit, for the leader reads all the time."""
        self._socket.send(ACK.pack(durable))

    async def _watch_syncs(self) -> None:
        while True:
            await self._syncs.wait_synced()
            self._apply()

    def _apply(self) -> None:
        loads, state = cbor2.loads, self._state
        while self._unapplied and self._unapplied[0][0] <= self._commit:
            _, data, offset, count = self._unapplied.popleft()
            for command in split_commands(data, offset, count):
                _, key, value = loads(command)
                state[key] = value


def _prepare(connection: socket.socket) -> None:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)


async def run_follower(journal: Journal) -> None:
    """Say the port, serve one leader, end with it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        say(port=listener.getsockname()[1])
        connection, _ = listener.accept()
    with connection:
        _prepare(connection)
        await Follower(journal, connection).run()


async def run_leader(
    journal: Journal,
    ports: Sequence[int],
    *,
    clients: int,
    value_bytes: int,
    warm_up_seconds: float,
    seconds: float,
) -> None:
    """Run the load against the followers at ``ports`` and say its result."""
    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        leader = Leader(journal, ports, nursery)
        load = ClosedLoop(
            leader.submit,
            clients=clients,
            value_bytes=value_bytes,
            warm_up_seconds=warm_up_seconds,
            seconds=seconds,
            on_end=ended.set,
        )
        leader.run()
        say(ready=True)
        load.start()
        leader.flush()
        await ended.wait()
        nursery.cancel_scope.cancel()
    leader.stop()
    say(**asdict(load.result()))


def main() -> None:
    """One process of the pipeline; :mod:`replog_bench.throughput` starts them."""
    parser = argparse.ArgumentParser(prog="python -m replog_bench.bare", description=main.__doc__)
    parser.add_argument("role", choices=("leader", "follower"))
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--lifetime-seconds", type=float, required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--value-bytes", type=int, default=64)
    parser.add_argument("--warm-up-seconds", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--sync", choices=SYNC_LEVELS, default=SYNC_LEVELS[0])
    given = parser.parse_args()
    limit_lifetime(given.lifetime_seconds)
    collect_less()  # as every node that is measured beside it
    journal = Journal(given.file, is_synced=given.sync == SYNC_LEVELS[0])
    if given.role == "follower":
        trio.run(run_follower, journal)
        return

    ports = hear()["ports"]
    assert isinstance(ports, list)

    async def lead() -> None:
        await run_leader(
            journal,
            ports,
            clients=given.clients,
            value_bytes=given.value_bytes,
            warm_up_seconds=given.warm_up_seconds,
            seconds=given.seconds,
        )

    trio.run(lead)


if __name__ == "__main__":
    main()
