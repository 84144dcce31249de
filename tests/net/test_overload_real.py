"""Overload at real and at scripted nodes: who is refused, what is said over the port for clients,
and what the three libraries make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from scripted import Conversation, done, scripted_nodes

from replog.admission import RETRY_MS_MIN
from replog.client_session import PROPOSE
from replog.config import local_config
from replog.errors import DiskFull, Overloaded
from replog.frames import Outcome, Reply, Request, pack_more
from replog.limits import Limits
from replog.node import Node
from replog.plugins import engine_names
from replog.server import ClientServer, _Caller
from replog.types import Waiter
from replog_kv import Kv

from libraries import LIBRARIES, OPENERS, OpenClient
from running import leader_of, running_cluster, until

pytestmark = pytest.mark.net

HINT_SECONDS = 0.3


@pytest.fixture(params=LIBRARIES)
def open_client(request: pytest.FixtureRequest) -> OpenClient:
    """Opens a client of one of the libraries."""
    return OPENERS[request.param]


def busy(request: Request, code: str, seconds: float = HINT_SECONDS) -> Reply:
    """A refusal that says when to come back."""
    more = pack_more(int(seconds * 1000))
    return Reply(request.request_id, Outcome.NOT_DONE, 0, more, code, "too much", 0, "")


# --- The libraries ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["Overloaded", "DiskFull"])
async def test_libraries_come_back_no_earlier(open_client: OpenClient, code: str) -> None:
    """A command that was refused comes again when the leader said, over the same connection."""
    times: list[float] = []

    async def be_busy(conversation: Conversation) -> None:
        await conversation.welcome()
        for _ in range(2):
            request = await conversation.request()
            times.append(trio.current_time())
            await conversation.send(busy(request, code))
        request = await conversation.request()
        times.append(trio.current_time())
        await conversation.send(done(request, b"x"))
        await conversation.serve()

    async with scripted_nodes(be_busy) as (node,), open_client(node.address) as client:
        assert (await client.propose(b"x")).result == b"x"
        assert len(node.conversations) == 1
    for before, after in pairwise(times):
        assert after - before >= HINT_SECONDS - 0.02


@pytest.mark.parametrize(("code", "made"), [("Overloaded", Overloaded), ("DiskFull", DiskFull)])
async def test_libraries_tell_the_hint(
    open_client: OpenClient, code: str, made: type[Overloaded]
) -> None:
    """A caller whose deadline is shorter is told when to come back, for one command or many."""

    async def be_busy(conversation: Conversation) -> None:
        await conversation.welcome()
        while (request := await conversation.receive()) is not None:
            assert isinstance(request, Request)
            conversation.node.requests.append(request)
            await conversation.send(busy(request, code, 5.0))

    async with scripted_nodes(be_busy) as (node,), open_client(node.address) as client:
        with pytest.raises(made) as refused:
            await client.propose(b"x", deadline_seconds=0.5)
        assert refused.value.retry_after_ms == 5000
        outcomes = await client.propose_many([b"1", b"2"], deadline_seconds=0.1)
        for outcome in outcomes:
            assert isinstance(outcome, made)
            assert outcome.retry_after_ms == 5000
        assert node.bodies == [b"x"], "what came later was held back"


# --- Real nodes ---------------------------------------------------------------------------------


def stalled(node: Node) -> Callable[[], None]:
    """Have a node apply nothing until what is returned is called: as if it were being filled."""
    turns = node._turns
    apply_next, is_stalled = turns._apply_next, True

    class Stalled(type(turns)):  # type: ignore[misc]
        __slots__ = ()

        def _apply_next(self) -> None:
            if not is_stalled:
                apply_next()

    turns.__class__ = Stalled

    def go_on() -> None:
        nonlocal is_stalled
        is_stalled = False
        node.wake()

    return go_on


@pytest.mark.parametrize("engine", engine_names())
async def test_machine_that_cannot_follow(
    open_client: OpenClient, engine: str, tmp_path: Path
) -> None:
    """While its machine does not follow, a leader refuses commands in time; when it follows again,
    all that was taken is done, and so is what is sent again."""
    limits = Limits(unapplied_entries_max=10)
    config = local_config(tmp_path, nodes=3, engine=engine, limits=limits)
    async with running_cluster(tmp_path, config=config) as nodes:
        leader = nodes[await nodes[1].wait_leader()]
        async with open_client(config) as client:
            await client.call(Kv.put, "before", b"1")
            go_on = stalled(leader)
            taken: list[int] = []
            async with trio.open_nursery() as nursery:

                async def put(number: int) -> None:
                    await client.call(Kv.put, f"taken-{number}", b"1")
                    taken.append(number)

                for number in range(10):
                    nursery.start_soon(put, number)
                await until(lambda: _gap(leader) >= 10)
                waiting_count = leader._replica.waiting_count
                with pytest.raises(Overloaded, match="unapplied_entries_max = 10") as refused:
                    await client.propose(Kv.put.encode("late", b"1"), deadline_seconds=0.3)
                assert refused.value.retry_after_ms >= RETRY_MS_MIN
                assert leader._replica.waiting_count == waiting_count
                assert leader._turns._submitted_bytes == 0
                nursery.start_soon(client.call, Kv.put, "later", b"1")
                await trio.sleep(0.1)
                go_on()
            assert len(taken) == 10
            assert await client.call(Kv.get, "later") == b"1"
            assert await client.call(Kv.get, "late") is None
            assert (client.logic.unsettled_count, client.logic.queued_count) == (0, 0)


def _gap(node: Node) -> int:
    status = node.status()
    return status.commit_index - status.applied_index


async def test_more_in_flight_than_the_node_allows(open_client: OpenClient, tmp_path: Path) -> None:
    """A client whose limit is above the node's is refused what is too much, sends it again, and all
    of it is done; the node holds nothing of what it refused."""
    limits = Limits(client_requests_max=4)
    config = local_config(tmp_path, nodes=1, limits=limits)
    async with running_cluster(tmp_path, config=config) as nodes:
        node = await leader_of(nodes)
        roomy = replace(config, limits=Limits())
        async with open_client(roomy) as client:
            payloads = [Kv.put.encode(f"key-{number}", b"1") for number in range(60)]
            outcomes = await client.propose_many(payloads)
            assert [type(outcome).__name__ for outcome in outcomes] == ["Applied"] * 60
            (caller,) = node._server._callers
            assert caller.in_flight == set()
        assert node._replica.waiting_count == 0


class _Stuffed:
    """A connection whose client reads nothing."""

    is_closed = False
    queued_bytes = 0

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def queue(self, frame: bytes) -> bool:
        """Keep it."""
        self.frames.append(frame)
        return True

    def flush(self) -> None:
        """Nothing leaves."""


async def test_client_that_reads_nothing_is_refused(tmp_path: Path) -> None:
    """Above half of what may be queued for a client its commands are refused, with the limit in the
    sentence, and the node is not asked; queries and all else go on."""
    config = local_config(tmp_path, nodes=1)
    async with running_cluster(tmp_path, config=config) as nodes:
        node = await leader_of(nodes)
        server: ClientServer = node._server
        connection = _Stuffed()
        caller = _Caller(connection)  # type: ignore[arg-type]
        half = config.limits.client_queue_bytes_max // 2
        submitted: list[bytes] = []

        def submit(payload: bytes, waiter: Waiter) -> None:
            submitted.append(payload)

        node.submit = submit  # type: ignore[method-assign]
        for number, queued_bytes in enumerate((half + 1, half)):
            connection.queued_bytes = queued_bytes
            request = Request(number, PROPOSE, Kv.put.encode("key", b"1"))
            server._handle_request(caller, request)
        assert len(submitted) == 1
        (frame,) = connection.frames
        assert b"client_queue_bytes_max" in frame
        assert b"retry_after_ms" in frame
        assert caller.in_flight == {1}
