"""A connection of queued frames, at its end."""

from __future__ import annotations

import random

import pytest
import trio

from replog.transport.connection import Connection, take_over

pytestmark = pytest.mark.net


async def connected_pair() -> tuple[Connection, Connection]:
    """Two ends of one connection."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream(*listener.socket.getsockname())
        far = await listener.accept()
    return take_over(near, 1 << 26), take_over(far, 1 << 26)


async def test_receive_after_close_ends() -> None:
    """Reading from a connection that was closed meanwhile ends, as at any other end."""
    near, far = await connected_pair()
    near.close()
    assert await near.receive() == b""
    assert await far.receive() == b""
    far.close()


async def test_queued_bytes_tell_what_never_left() -> None:
    """After the end, the queued bytes are exactly those that the kernel was not given."""
    near, far = await connected_pair()
    total = 1 << 24
    assert near.queue(bytes(total))
    near.flush()
    unsent = near.queued_bytes
    assert 0 < unsent < total, "the kernel took a part"
    near.close()
    assert near.queued_bytes == unsent
    assert not near.queue(b"x")
    came = 0
    while data := await far.receive():
        came += len(data)
    assert came == total - unsent
    far.close()


async def test_large_frames_arrive_as_they_were() -> None:
    """Frames that the kernel takes piece by piece arrive whole and in order, small ones between."""
    near, far = await connected_pair()
    frames = [random.Random(size).randbytes(size) for size in (5_000_000, 3, 1 << 20, 70_000)]
    for frame in frames:
        assert near.queue(frame)
    near.flush()
    assert near.queued_bytes, "the kernel took a part"
    came = bytearray()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.run_writer)
            while len(came) < sum(map(len, frames)):
                came += await far.receive()
            near.close()
    assert came == b"".join(frames)
    assert near.queued_bytes == 0
    far.close()
