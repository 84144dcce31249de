"""What the three client libraries add to what they share, and what is particular to each."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio
from scripted import Conversation, ScriptedNode, done, lead, not_done, scripted_nodes

from replog import aio, blocking
from replog.errors import (
    BadCommand,
    CommandTooLarge,
    OutcomeUnknown,
    Unavailable,
)
from replog.frames import ServerHello
from replog.limits import Limits
from replog.types import Applied
from replog_kv import Kv

from libraries import LIBRARIES, OPENERS, OpenClient
from running import leader_of, running_cluster, until

pytestmark = pytest.mark.net


@pytest.fixture(params=LIBRARIES)
def open_client(request: pytest.FixtureRequest) -> OpenClient:
    """Opens a client of one of the libraries."""
    return OPENERS[request.param]


# --- Many commands in one call ------------------------------------------------------------------


async def test_propose_many_gives_outcomes_in_order(open_client: OpenClient) -> None:
    """One outcome per command, in order; none is lost when another one fails."""

    async def script(conversation: Conversation) -> None:
        await conversation.welcome()
        requests = [await conversation.request() for _ in range(4)]
        # Answered in another order, one badly, and the last one never.
        await conversation.send(
            done(requests[2], "c", index=3),
            not_done(requests[1], "BadCommand"),
            done(requests[0], "a", index=1),
        )
        await conversation.stream.aclose()

    async with scripted_nodes(script) as (node,), open_client(node.address) as client:
        too_large = bytes(Limits().command_bytes_max + 1)
        outcomes = await client.propose_many([b"0", b"1", too_large, b"2", b"3"])
        assert outcomes[0] == Applied(1, "a")
        assert isinstance(outcomes[1], BadCommand)
        assert isinstance(outcomes[2], CommandTooLarge)
        assert outcomes[3] == Applied(3, "c")
        assert isinstance(outcomes[4], OutcomeUnknown)
        assert len(outcomes) == 5
        assert node.bodies == [b"0", b"1", b"2", b"3"]


async def test_propose_many_of_none(open_client: OpenClient) -> None:
    """No command, no outcome, and nobody is asked; one that is too large alone is told."""
    async with open_client("127.0.0.1:1") as client:
        assert await client.propose_many([]) == []
        (outcome,) = await client.propose_many([bytes(Limits().command_bytes_max + 1)])
        assert isinstance(outcome, CommandTooLarge)
        assert not client.logic.lines


async def test_propose_many_of_a_broken_list(open_client: OpenClient) -> None:
    """When the payloads cannot all be had, the call raises that, and none of them is sent."""

    def payloads() -> Iterator[bytes]:
        yield b"1"
        raise KeyError("mine")

    async with scripted_nodes(lead) as (node,), open_client(node.address) as client:
        with pytest.raises(KeyError, match="mine"):
            await client.propose_many(payloads())
        assert client.logic.unsettled_count == 0
        await client.propose(b"2")
        assert node.bodies == [b"2"]


async def test_propose_many_shares_one_deadline(open_client: OpenClient) -> None:
    """All commands of a call end at its deadline, each with what is known of it."""

    async def answer_one(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.send(done(await conversation.request(), 1))
        await conversation.until_hung_up()

    limits = Limits(client_requests_max=2)
    async with (
        scripted_nodes(answer_one) as (node,),
        open_client(node.address, limits=limits) as client,
    ):
        outcomes = await client.propose_many(map(bytes, [[1]] * 4), deadline_seconds=0.3)
    assert list(map(type, outcomes)) == [Applied, OutcomeUnknown, OutcomeUnknown, Unavailable]


async def test_propose_many_leaves_together(open_client: OpenClient) -> None:
    """More commands than fit in flight are done over one connection, in order."""
    limits = Limits(client_requests_max=64)
    async with scripted_nodes(lead) as (node,), open_client(node.address, limits=limits) as client:
        payloads = [b"%d" % number for number in range(1000)]
        outcomes = await client.propose_many(payloads)
        assert [each.result for each in outcomes if isinstance(each, Applied)] == payloads
        assert node.bodies == payloads
        assert len(node.conversations) == 1


@pytest.mark.parametrize("library", ["trio", "asyncio"])
async def test_propose_many_is_cancelled(library: str) -> None:
    """A cancelled call leaves none of its commands behind, those that had ended included."""

    async def answer_one(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.send(done(await conversation.request(), 1))
        await conversation.until_hung_up()

    limits = Limits(client_requests_max=2)
    async with scripted_nodes(answer_one) as (node,):
        async with OPENERS[library](node.address, limits=limits) as client:
            with trio.move_on_after(0.2) as scope:
                await client.propose_many([b"1", b"2", b"3", b"4"])
            assert scope.cancelled_caught
            assert client.logic.unsettled_count == client.logic.queued_count == 0
            assert client.logic.leading is not None
            assert client.logic.leading.core.open_count == 0
        assert len(node.bodies) == 3


# --- Names --------------------------------------------------------------------------------------


def redirect_name(
    monkeypatch: pytest.MonkeyPatch, name: str, answers: Callable[[], Sequence[str]]
) -> list[str]:
    """Have the system's resolver answer for a name with what ``answers`` gives at the time; the
    list grows with each question."""
    real = socket.getaddrinfo
    asked: list[str] = []

    def resolve(host: object, *args: object, **kwargs: object) -> object:
        host = host.decode() if isinstance(host, bytes) else host
        if host != name:
            return real(host, *args, **kwargs)  # type: ignore[arg-type]
        asked.append(name)
        return [each for at in answers() for each in real(at, *args, **kwargs)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


async def test_name_is_resolved_again(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a node moves, the name under which it is known leads to its new place."""
    places = ["127.0.0.1"]
    asked = redirect_name(monkeypatch, "node.test", lambda: places)
    bodies: dict[str, list[bytes]] = {}

    async def serve_once(conversation: Conversation) -> None:
        """Answer one command, then hang up, as a node does that goes elsewhere."""
        await conversation.receive()
        (place, port) = conversation.stream.socket.getsockname()
        await conversation.send(hello_of(conversation.node, f"node.test:{port}"))
        request = await conversation.request()
        bodies.setdefault(place, []).append(request.body)
        places[:] = ["127.0.0.2"]
        await conversation.send(done(request, place))

    async with scripted_nodes(serve_once) as (node,), trio.open_nursery() as nursery:
        port = int(node.address.rpartition(":")[2])
        try:
            (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.2")
        except OSError as failure:
            pytest.skip(f"this system has no second loopback address: {failure}")
        nursery.start_soon(trio.serve_listeners, node._follow, [listener])
        async with open_client(f"node.test:{port}") as client:
            assert (await client.propose(b"here")).result == "127.0.0.1"
            await until(lambda: client.logic.leading is None)
            assert (await client.propose(b"there")).result == "127.0.0.2"
        nursery.cancel_scope.cancel()
    assert bodies == {"127.0.0.1": [b"here"], "127.0.0.2": [b"there"]}
    assert len(asked) == 2


def hello_of(node: ScriptedNode, address: str) -> ServerHello:
    """The welcome of a node that leads and gives itself an address."""
    return ServerHello(1, node.cluster_id, node.node_id, node.node_id, ((node.node_id, address),))


async def test_name_that_nobody_knows(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is not known is a reason like any other, and asked for again."""

    def unknown() -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    asked = redirect_name(monkeypatch, "nowhere.test", unknown)
    async with open_client("nowhere.test:7001", deadline_seconds=0.5) as client:
        with pytest.raises(Unavailable, match=r"nowhere\.test:7001: the name is not known"):
            await client.propose(b"x")
    assert len(asked) > 1


# --- Real nodes ---------------------------------------------------------------------------------


async def test_real_cluster_by_any_of_its_nodes(open_client: OpenClient, tmp_path: Path) -> None:
    """A client that knows one node, a follower, does everything at a real cluster."""
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        follower = next(node for node in nodes.values() if node is not leader)
        address = str(follower.config.node(follower.node_id).client)
        async with open_client(address) as client:
            await client.call(Kv.put, "key", b"value")
            assert await client.call(Kv.get, "key") == b"value"
            assert client.leader_id == leader.node_id
            puts = [Kv.put.encode(f"{number:03}", b"v") for number in range(100)]
            outcomes = await client.propose_many(puts)
            assert all(isinstance(each, Applied) for each in outcomes)
            assert (await client.status(follower.node_id))["role"] == "follower"
            page = await client.dump(items_max=10, node=leader.node_id)
            assert len(page.items) == 10
            assert page.cursor is not None


# --- asyncio ------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["replog.aio", "replog.blocking"])
def test_import_loads_no_trio(module: str) -> None:
    """A program on asyncio, or on threads, loads no trio, nor the logging of a node."""
    script = f"import sys, {module}; print(sorted({{'trio', 'structlog'}} & sys.modules.keys()))"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout.strip() == "[]"


async def in_asyncio(node: ScriptedNode, main: Callable[[aio.Client], object]) -> None:
    """Run a program on asyncio, in a thread, with a client of this node."""

    async def run() -> None:
        async with aio.Client(node.address, deadline_seconds=5) as client:
            await main(client)  # type: ignore[misc]
        # asyncio cancels what it raced to connect, and does not wait for it.
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "no task stays behind"

    await trio.to_thread.run_sync(lambda: asyncio.run(run(), debug=True))


async def test_asyncio_timeout_ends_a_call() -> None:
    """``asyncio.timeout`` ends a call; its reply is ignored and the client goes on."""

    async def answer_late(conversation: Conversation) -> None:
        await conversation.welcome()
        late = await conversation.request()
        second = await conversation.request()
        await conversation.send(done(late, "late"), done(second, "second"))
        await conversation.serve()

    async def main(client: aio.Client) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.propose(b"late")
        assert client._logic.unsettled_count == 0
        assert (await client.propose(b"second")).result == "second"

    async with scripted_nodes(answer_late) as (node,):
        await in_asyncio(node, main)
        assert len(node.conversations) == 1


async def test_asyncio_task_group_that_fails() -> None:
    """When one task of a group fails, the calls of the others are cancelled and leave nothing."""

    async def main(client: aio.Client) -> None:
        async def fail() -> None:
            while len(node.bodies) < 5:
                await asyncio.sleep(0.01)
            raise KeyError("mine")

        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(client.propose(b"x"))
                group.create_task(fail())
        assert raised.group_contains(KeyError)
        assert client._logic.unsettled_count == 0

    async def silent(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.until_hung_up()

    async with scripted_nodes(silent) as (node,):
        await in_asyncio(node, main)


async def test_asyncio_close_while_connecting() -> None:
    """A client that is closed while it connects leaves no task, also when it has just begun."""

    async def mute(conversation: Conversation) -> None:
        while await conversation.receive() is not None:
            pass

    async with scripted_nodes(mute) as (node,):
        for seconds in (0, 0.05):

            async def main(client: aio.Client, seconds: float = seconds) -> None:
                call = asyncio.create_task(client.propose(b"x"))
                await asyncio.sleep(seconds)
                await client.__aexit__(None, None, None)
                with pytest.raises(Unavailable, match="closed before the command was sent"):
                    await call

            await in_asyncio(node, main)


# --- Threads ------------------------------------------------------------------------------------


def threads() -> set[str]:
    """The names of the threads that clients have."""
    return {thread.name for thread in threading.enumerate() if thread.name == "replog client"}


async def test_threads_share_one_client() -> None:
    """Calls of many threads are in flight together, over one connection; closing leaves no
    thread."""

    async def answer_when_all_are_there(conversation: Conversation) -> None:
        await conversation.welcome()
        requests = [await conversation.request() for _ in range(20)]
        await conversation.send(*(done(request, request.body) for request in requests))
        await conversation.serve()

    results: dict[bytes, object] = {}

    def work(client: blocking.Client, body: bytes) -> None:
        results[body] = client.propose(body).result

    def main() -> None:
        with blocking.Client(node.address) as client:
            workers = [
                threading.Thread(target=work, args=(client, b"%d" % number)) for number in range(20)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert threads()
        assert not threads()

    async with scripted_nodes(answer_when_all_are_there) as (node,):
        await trio.to_thread.run_sync(main)
        assert len(node.conversations) == 1
    assert results == {b"%d" % number: b"%d" % number for number in range(20)}


async def test_closing_ends_the_calls_of_other_threads() -> None:
    """A thread that waits while another one closes the client gets its outcome; nothing hangs."""

    async def silent(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.until_hung_up()

    ends: list[type[Exception]] = []

    def wait(client: blocking.Client) -> None:
        try:
            client.propose(b"x")
        except (OutcomeUnknown, Unavailable) as failure:
            ends.append(type(failure))

    async with scripted_nodes(silent) as (node,):
        client = blocking.Client(node.address)
        await trio.to_thread.run_sync(client.__enter__)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(trio.to_thread.run_sync, wait, client)
            await until(lambda: len(node.bodies) == 5)
            await trio.to_thread.run_sync(lambda: client.__exit__(None, None, None))
    assert ends == [OutcomeUnknown] * 5
    assert not threads()


def test_client_that_cannot_start() -> None:
    """An error of the block leaves it as it was, and no thread."""
    with pytest.raises(KeyError), blocking.Client("127.0.0.1:1"):
        raise KeyError("mine")
    assert not threads()


async def run_program(node: ScriptedNode, program: str) -> trio.Process:
    """Start a program that has the address of a node as its argument."""
    return await trio.lowlevel.open_process(
        [sys.executable, "-c", program, node.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def said_by(process: trio.Process) -> str:
    """What a program prints until it ends."""
    assert process.stdout is not None
    text = b"".join([part async for part in process.stdout]).decode()
    await process.wait()
    return text


async def test_interrupt_ends_a_call() -> None:
    """Ctrl-C ends the call that the main thread waits in; the next one is done."""
    program = (
        "import sys, threading\n"
        "from replog import blocking\n"
        # A name, so that a thread looks it up.
        "with blocking.Client(sys.argv[1].replace('127.0.0.1', 'localhost')) as client:\n"
        "    try:\n"
        "        client.propose(b'interrupted')\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted')\n"
        "    print(client.propose(b'next').result)\n"
        "    print(client._client._logic.unsettled_count)\n"
        "print(threading.active_count())\n"
    )

    async def answer_the_next(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.request()
        await conversation.send(done(await conversation.request(), "done"))
        await conversation.until_hung_up()

    async with scripted_nodes(answer_the_next) as (node,):
        process = await run_program(node, program)
        await until(lambda: bool(node.bodies))
        process.send_signal(signal.SIGINT)
        assert (await said_by(process)).split() == ["interrupted", "done", "0", "1"]
        assert process.returncode == 0


async def test_fork_is_refused() -> None:
    """The child of a fork is told to open a client of its own, leaves the block, and leaves the
    parent's client alone."""
    program = (
        "import os, sys\n"
        "from replog import blocking\n"
        "from replog.errors import Unavailable\n"
        "with blocking.Client(sys.argv[1]) as client:\n"
        "    client.propose(b'before')\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        try:\n"
        "            client.propose(b'child')\n"
        "        except Unavailable as failure:\n"
        "            print(failure, flush=True)\n"
        "    else:\n"
        "        os.waitpid(child, 0)\n"
        "        client.propose(b'after')\n"
    )
    async with scripted_nodes(lead) as (node,):
        process = await run_program(node, program)
        said = await said_by(process)
        assert f"was opened in process {process.pid}" in said
        assert "open a client of its own in each process" in said
        assert process.returncode == 0
        assert node.bodies == [b"before", b"after"]
        assert len(node.conversations) == 1


async def test_client_that_is_never_closed_ends_with_its_program() -> None:
    """A program that forgets to leave the block ends all the same."""
    program = (
        "import sys\n"
        "from replog import blocking\n"
        "client = blocking.Client(sys.argv[1]).__enter__()\n"
        "print(client.propose(b'x').index)\n"
    )
    async with scripted_nodes(lead) as (node,):
        process = await run_program(node, program)
        assert await said_by(process) == "1\n"
        assert process.returncode == 0
