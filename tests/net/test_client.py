"""The client: the three outcomes, the search and its manners, at scripted and at real nodes.

Every test that takes ``open_client`` is run for each of the three client libraries.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from scripted import Conversation, done, lead, not_done, scripted_nodes

from replog import Client, aio, client_lines
from replog.client_async import TURN_COMMANDS_MAX
from replog.config import local_config
from replog.errors import (
    AddressError,
    BadCommand,
    CommandFailed,
    CommandTooLarge,
    ConfigError,
    DiskFull,
    DumpUnavailable,
    NotDone,
    OutcomeUnknown,
    Overloaded,
    Refused,
    Unavailable,
)
from replog.frames import Outcome, Refusal, Reply, Request
from replog.limits import Limits
from replog.transport.connection import Connection
from replog.types import Applied
from replog_kv import Kv

from libraries import CLASSES, LIBRARIES, OPENERS, OpenClient
from running import leader_of, running_cluster, until

pytestmark = pytest.mark.net


@pytest.fixture(params=LIBRARIES)
def open_client(request: pytest.FixtureRequest) -> OpenClient:
    """Opens a client of one of the libraries."""
    return OPENERS[request.param]


@pytest.fixture(params=[library for library in LIBRARIES if library != "blocking"])
def open_cancellable(request: pytest.FixtureRequest) -> OpenClient:
    """Opens a client of one of the libraries whose calls can be cancelled from outside."""
    return OPENERS[request.param]


def free_address() -> str:
    """An address at which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


async def silent(conversation: Conversation) -> None:
    """The script of a leader that takes everything and answers nothing."""
    await conversation.welcome()
    await conversation.until_hung_up()


# --- Done ---------------------------------------------------------------------------------------


async def test_propose_returns_index_and_result(open_client: OpenClient) -> None:
    """A command that is done gives its index and its result."""

    async def script(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.send(done(await conversation.request(), {"a": 1}, index=7))
        await conversation.serve()

    async with scripted_nodes(script) as (node,), open_client(node.address) as client:
        assert await client.propose(b"x") == Applied(7, {"a": 1})
        assert client.leader_id == 1


async def test_call_sends_the_encoded_call(open_client: OpenClient) -> None:
    """A typed call travels as its encoding and gives the result of the command."""

    async def script(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.send(done(await conversation.request(), True))
        await conversation.serve()

    async with scripted_nodes(script) as (node,), open_client([node.address]) as client:
        assert await client.call(Kv.delete, "key") is True
        assert node.bodies == [Kv.delete.encode("key")]


async def test_call_raises_a_declared_error(open_client: OpenClient) -> None:
    """A declared error of the state machine comes back with its name."""

    async def script(conversation: Conversation) -> None:
        await conversation.welcome()
        request = await conversation.request()
        await conversation.send(
            Reply(request.request_id, Outcome.FAILED, 3, b"", "KvError", "no such thing", 0, "")
        )
        await conversation.serve()

    async with scripted_nodes(script) as (node,), open_client(node.address) as client:
        with pytest.raises(CommandFailed, match="no such thing") as failed:
            await client.propose(b"x")
        assert failed.value.name == "KvError"


async def test_many_in_flight_with_replies_in_reverse(open_client: OpenClient) -> None:
    """Hundreds of requests share a connection, and each caller gets its own reply."""

    async def script(conversation: Conversation) -> None:
        await conversation.welcome()
        requests = [await conversation.request() for _ in range(256)]
        await conversation.send(*(done(request, request.body) for request in reversed(requests)))
        await conversation.serve()

    results: dict[bytes, object] = {}
    async with scripted_nodes(script) as (node,), open_client(node.address) as client:

        async def ask(body: bytes) -> None:
            results[body] = (await client.propose(body)).result

        async with trio.open_nursery() as nursery:
            for number in range(256):
                nursery.start_soon(ask, b"%d" % number)
        assert len(node.conversations) == 1
    assert len(results) == 256
    assert all(body == result for body, result in results.items())


@pytest.mark.parametrize("library", ["trio", "asyncio"])
async def test_requests_of_one_turn_leave_together(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that are started together cost a system call for many of them, not one each; and the
    first ones leave before the last ones are made, so that a node begins."""
    carrier, name = (Connection, "_send_queue") if library == "trio" else (aio._Carrier, "send")
    sends: list[int] = []
    real = getattr(carrier, name)

    def count(sender: object, *args: object) -> None:
        sends.append(1)
        real(sender, *args)

    async with scripted_nodes(lead) as (node,), OPENERS[library](node.address) as client:
        await client.propose(b"first, to be connected")
        monkeypatch.setattr(carrier, name, count)
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(client.propose, b"x")
        assert len(node.requests) == 201
    # Through another thread they come a few at a time.
    least = 200 // TURN_COMMANDS_MAX
    assert least <= len(sends) <= (least + 3 if library == "trio" else 100)


async def test_in_flight_is_bounded(open_client: OpenClient) -> None:
    """More callers than the limit wait for room; the connection never has more in flight."""
    most = 0

    async def script(conversation: Conversation) -> None:
        nonlocal most
        await conversation.welcome()
        for _ in range(10):
            requests = [await conversation.request() for _ in range(4)]
            with trio.move_on_after(0.01):
                requests.append(await conversation.request())
            most = max(most, len(requests))
            await conversation.send(*(done(request) for request in requests))
        await conversation.serve()

    limits = Limits(client_requests_max=4)
    async with (
        scripted_nodes(script) as (node,),
        open_client(node.address, limits=limits) as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(40):
            nursery.start_soon(client.propose, b"x")
    assert most == 4


# --- The search ---------------------------------------------------------------------------------


async def test_search_follows_the_hello_of_a_follower(open_client: OpenClient) -> None:
    """A client that knows one follower finds the leader by the follower's hint."""

    async def follow(conversation: Conversation) -> None:
        await conversation.welcome(leader_id=2)
        await conversation.until_hung_up()

    async with scripted_nodes(follow, lead) as (follower, leader):
        async with open_client(follower.address) as client:
            assert (await client.propose(b"x")).result == b"x"
            assert client.leader_id == 2
        assert (follower.bodies, leader.bodies) == ([], [b"x"])


async def test_not_leader_is_sent_to_the_leader(open_client: OpenClient) -> None:
    """Commands that a deposed leader refuses are sent to the one that it names, in one go."""

    async def depose(conversation: Conversation) -> None:
        await conversation.welcome()
        requests = [await conversation.request() for _ in range(3)]
        await conversation.send(
            *(not_done(request, "NotLeader", conversation.node.cluster[1]) for request in requests)
        )
        await conversation.until_hung_up()

    async with scripted_nodes(depose, lead) as (deposed, leader):
        async with open_client(deposed.address) as client, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client.propose, b"x")
        assert (deposed.bodies, leader.bodies) == ([b"x"] * 3, [b"x"] * 3)


async def test_not_leader_waits_for_what_is_in_flight(open_client: OpenClient) -> None:
    """When a node stops leading, what it still owes an answer is not given up."""

    async def depose(conversation: Conversation) -> None:
        await conversation.welcome()
        first, second = await conversation.request(), await conversation.request()
        await conversation.send(not_done(second, "NotLeader", conversation.node.cluster[1]))
        await trio.sleep(0.05)
        await conversation.send(done(first, "by the old leader"))
        await conversation.until_hung_up()

    results: list[object] = []
    async with scripted_nodes(depose, lead) as nodes, open_client(nodes[0].address) as client:

        async def ask() -> None:
            results.append((await client.propose(b"x")).result)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert results == ["by the old leader", b"x"]


async def test_not_leader_waits_only_so_long(open_client: OpenClient) -> None:
    """A deposed leader that goes on owing a reply does not keep the client from the next one."""

    async def depose(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.request()
        second = await conversation.request()
        await conversation.send(not_done(second, "NotLeader", conversation.node.cluster[1]))
        await conversation.until_hung_up()

    async with scripted_nodes(depose, lead) as nodes, open_client(nodes[0].address) as client:

        async def be_lost() -> None:
            with pytest.raises(OutcomeUnknown, match="node 1 does not lead any more"):
                await client.propose(b"lost")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_lost)
            await until(lambda: bool(nodes[0].bodies))
            assert (await client.propose(b"next")).result == b"next"


async def test_two_nodes_that_name_each_other_are_not_hammered(open_client: OpenClient) -> None:
    """Each says that the other leads: the client pauses between its rounds."""

    async def pretend(conversation: Conversation) -> None:
        await conversation.welcome()
        other = conversation.node.cluster[2 - conversation.node.node_id]
        while (request := await conversation.receive()) is not None:
            await conversation.send(not_done(request, "NotLeader", other))  # type: ignore[arg-type]

    async with scripted_nodes(pretend, pretend) as nodes:
        async with open_client(nodes[0].address, deadline_seconds=0.5) as client:
            with pytest.raises(Unavailable, match="does not lead"):
                await client.propose(b"x")
        assert 2 <= sum(len(node.conversations) for node in nodes) <= 14


async def test_search_waits_for_an_election(open_client: OpenClient) -> None:
    """Nodes that know no leader are asked again until one does."""
    elected = False

    async def elect(conversation: Conversation) -> None:
        nonlocal elected
        await conversation.welcome(leader_id=None if elected else 0)
        elected = elected or conversation.number == 3
        await conversation.serve()

    async with scripted_nodes(elect) as (node,), open_client(node.address) as client:
        await client.propose(b"x")
        assert len(node.conversations) == 5


async def test_search_passes_over_a_dead_address(open_client: OpenClient) -> None:
    """An address at which nothing listens does not keep the client from the others."""
    async with (
        scripted_nodes(lead) as (node,),
        open_client([free_address(), node.address]) as client,
    ):
        await client.propose(b"x")


async def test_reconnect_after_the_leader_hung_up(open_client: OpenClient) -> None:
    """A connection that ends while nothing is in flight costs no command anything."""

    async def hang_up(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.send(done(await conversation.request()))

    async with scripted_nodes(hang_up) as (node,), open_client(node.address) as client:
        for _ in range(3):
            await client.propose(b"x")
            await node.conversations[-1].stream.aclose()
            await until(lambda: client.logic.leading is None)
        assert len(node.conversations) == 3


# --- Definitely not done ------------------------------------------------------------------------


async def test_nobody_listens(open_client: OpenClient) -> None:
    """When no node answers within the deadline, the error names every address and its reason."""
    addresses = [free_address(), free_address()]
    async with open_client(addresses, deadline_seconds=0.6) as client:
        with pytest.raises(Unavailable) as failed:
            await client.propose(b"x")
    for address in addresses:
        assert f"{address}: connection refused" in str(failed.value)
    assert "within 0.6 s" in str(failed.value)


@pytest.mark.parametrize("code", ["Overloaded", "DiskFull"])
async def test_overloaded_is_tried_again(open_client: OpenClient, code: str) -> None:
    """A command that the leader was too busy for, or had no room for, is sent again a little
    later."""

    async def be_busy(conversation: Conversation) -> None:
        await conversation.welcome()
        for _ in range(2):
            await conversation.send(not_done(await conversation.request(), code))
        await conversation.serve()

    async with scripted_nodes(be_busy) as (node,), open_client(node.address) as client:
        assert (await client.propose(b"x")).result == b"x"
        assert (node.bodies, len(node.conversations)) == ([b"x"] * 3, 1)


@pytest.mark.parametrize("made", [Overloaded, DiskFull])
async def test_overloaded_until_the_deadline(open_client: OpenClient, made: type[NotDone]) -> None:
    """A leader that stays busy, or full, gives that very error when the deadline passes, and not
    much later."""

    async def be_busy(conversation: Conversation) -> None:
        await conversation.welcome()
        while (request := await conversation.receive()) is not None:
            await conversation.send(not_done(request, made.__name__))  # type: ignore[arg-type]

    async with scripted_nodes(be_busy) as (node,), open_client(node.address) as client:
        started = trio.current_time()
        with pytest.raises(made):
            await client.propose(b"x", deadline_seconds=0.8)
        assert 0.5 < trio.current_time() - started < 5


@pytest.mark.parametrize(
    ("code", "made"),
    [("BadCommand", BadCommand), ("CommandTooLarge", CommandTooLarge), ("NewCode", NotDone)],
)
async def test_other_refusals_are_raised_at_once(
    open_client: OpenClient, code: str, made: type[NotDone]
) -> None:
    """What no other node would do better is not tried again."""

    async def refuse(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.send(not_done(await conversation.request(), code))
        await conversation.serve()

    async with scripted_nodes(refuse) as (node,), open_client(node.address) as client:
        with pytest.raises(made, match=f"because of {code}"):
            await client.propose(b"x")
        assert node.bodies == [b"x"]


async def test_command_too_large_is_not_sent(open_client: OpenClient) -> None:
    """A command above the limit never leaves."""
    async with scripted_nodes(lead) as (node,), open_client(node.address) as client:
        with pytest.raises(CommandTooLarge):
            await client.propose(bytes(Limits().command_bytes_max + 1))
        assert node.conversations == []


@pytest.mark.parametrize(
    "sentence", ["this port is for the nodes of the cluster", "this is cluster 'a', not 'b'"]
)
async def test_refusal_of_every_node_is_told_at_once(
    open_client: OpenClient, sentence: str
) -> None:
    """When every address refuses, the caller gets their sentence without waiting."""

    async def refuse(conversation: Conversation) -> None:
        await conversation.receive()
        await conversation.send(Refusal(sentence))

    async with scripted_nodes(refuse) as (node,), open_client(node.address) as client:
        started = trio.current_time()
        with pytest.raises(Refused, match=f"{node.address}: {sentence}"):
            await client.propose(b"x")
        assert trio.current_time() - started < 2


async def test_another_cluster_is_refused(open_client: OpenClient) -> None:
    """A node that turns out to be of another cluster gets no command."""
    async with scripted_nodes(lead) as (node,):
        async with open_client(node.address, cluster_id="mine") as client:
            with pytest.raises(Unavailable, match="this is cluster 'scripted', not 'mine'"):
                await client.propose(b"x")
        assert node.bodies == []


async def test_cluster_is_remembered(open_client: OpenClient) -> None:
    """A client that was given no cluster stays with the one that it met first."""

    async def once(conversation: Conversation) -> None:
        await conversation.welcome()
        conversation.node.cluster_id = "another"
        if (request := await conversation.receive()) is not None:
            assert isinstance(request, Request)
            conversation.node.requests.append(request)
            await conversation.send(done(request))
        await conversation.stream.aclose()

    async with scripted_nodes(once) as (node,), open_client(node.address) as client:
        await client.propose(b"x")
        await until(lambda: client.logic.leading is None)
        with pytest.raises(Unavailable, match="this is cluster 'another', not 'scripted'"):
            await client.propose(b"y")
        assert node.bodies == [b"x"]


async def test_garbage_instead_of_a_hello(open_client: OpenClient) -> None:
    """What is no node at all is called so."""

    async def babble(conversation: Conversation) -> None:
        await conversation.send(b"220 mail.example ESMTP\r\n")
        await conversation.stream.receive_some()

    async with scripted_nodes(babble) as (node,), open_client(node.address) as client:
        with pytest.raises(Unavailable, match="no client port of a node answers there"):
            await client.propose(b"x")


@pytest.mark.parametrize("nodes", ["", [], "localhost", "localhost:0", ["a:1", "b"], "::1:7000"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_malformed_address(library: str, nodes: str | list[str]) -> None:
    """An address that does not parse is refused when the client is made."""
    with pytest.raises(AddressError, match=r"host.*:port|no port"):
        CLASSES[library](nodes)


@pytest.mark.parametrize("library", LIBRARIES)
def test_malformed_limits(library: str) -> None:
    """Limits that contradict each other are refused when the client is made."""
    with pytest.raises(ConfigError, match="frame_bytes_max"):
        CLASSES[library]("a:1", limits=Limits(frame_bytes_max=1))


@pytest.mark.parametrize("library", LIBRARIES)
async def test_call_outside_the_block(library: str) -> None:
    """A client that is not open, or not any more, does nothing."""
    fresh = CLASSES[library]("127.0.0.1:1")
    async with OPENERS[library]("127.0.0.1:1") as closed:
        pass
    for client in (fresh, closed.client):
        for ask in (client.propose, client.status, client.propose_many):
            with pytest.raises(Unavailable, match=r"inside its '.*with' block"):
                # Refused before anything is awaited, so the loop of the library is not needed.
                await ask(b"x")


# --- Unknown ------------------------------------------------------------------------------------


async def break_off(conversation: Conversation) -> None:
    """Hang up in the middle of a frame."""
    await conversation.send(b"RL\x01")
    await conversation.stream.aclose()


async def send_garbage(conversation: Conversation) -> None:
    """Send what is no frame."""
    await conversation.send(b"garbage in plenty")
    await conversation.until_hung_up()


async def send_a_stray_reply(conversation: Conversation) -> None:
    """Answer what was not asked."""
    await conversation.send(Reply(99, Outcome.DONE, 1, b"\xf6", "", "", 0, ""))
    await conversation.until_hung_up()


async def send_a_refusal(conversation: Conversation) -> None:
    """Refuse the connection after the fact."""
    await conversation.send(Refusal("out of order"))


@pytest.mark.parametrize("end", [break_off, send_garbage, send_a_stray_reply, send_a_refusal])
async def test_lost_after_sending_is_unknown(
    open_client: OpenClient,
    end: Callable[[Conversation], Awaitable[None]],
) -> None:
    """A command that was sent and not answered is unknown, is never sent again, and does not keep
    the client from going on."""

    async def script(conversation: Conversation) -> None:
        await conversation.welcome()
        if conversation.number == 0:
            await conversation.request()
            await end(conversation)
            return
        await conversation.serve()

    async with scripted_nodes(script) as (node,), open_client(node.address) as client:
        with pytest.raises(OutcomeUnknown, match="may or may not be done"):
            await client.propose(b"once")
        await client.propose(b"next")
        assert node.bodies == [b"once", b"next"]


async def test_unknown_reply_is_not_tried_again(open_client: OpenClient) -> None:
    """A leader that lost its leadership says unknown, and that is what the caller gets."""

    async def depose(conversation: Conversation) -> None:
        await conversation.welcome()
        request = await conversation.request()
        await conversation.send(
            Reply(request.request_id, Outcome.UNKNOWN, 0, b"", "OutcomeUnknown", "lost it", 0, "")
        )
        await conversation.serve()

    async with scripted_nodes(depose) as (node,), open_client(node.address) as client:
        with pytest.raises(OutcomeUnknown, match="lost it"):
            await client.propose(b"once")
        await client.propose(b"next")
        assert node.bodies == [b"once", b"next"]


async def test_deadline_after_sending_is_unknown(open_client: OpenClient) -> None:
    """A command that was sent and not answered in time is unknown; others go on beside it."""

    async def answer_the_others(conversation: Conversation) -> None:
        await conversation.welcome()
        while (request := await conversation.receive()) is not None:
            assert isinstance(request, Request)
            if request.body != b"lost":
                await conversation.send(done(request))

    async with scripted_nodes(answer_the_others) as (node,), open_client(node.address) as client:
        await client.propose(b"first, to be connected")
        with pytest.raises(OutcomeUnknown, match=r"did not answer within 0\.1 s"):
            await client.propose(b"lost", deadline_seconds=0.1)
        await client.propose(b"next")
        assert len(node.conversations) == 1


async def test_only_what_left_is_unknown(open_client: OpenClient) -> None:
    """When the connection breaks, a command that still waited for room is sent over the next."""

    async def script(conversation: Conversation) -> None:
        await conversation.welcome()
        if conversation.number == 0:
            await conversation.request()
            await conversation.stream.aclose()
            return
        await conversation.serve()

    unknown: list[bytes] = []
    async with scripted_nodes(script) as (node,):
        async with open_client(node.address, limits=Limits(client_requests_max=1)) as client:

            async def ask(body: bytes) -> None:
                try:
                    await client.propose(body)
                except OutcomeUnknown:
                    unknown.append(body)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, b"a")
                nursery.start_soon(ask, b"b")
        assert len(unknown) == 1
        assert sorted(node.bodies) == [b"a", b"b"], "neither was sent twice"
        assert unknown == node.bodies[:1]


async def test_what_the_kernel_did_not_take_is_sent_again(open_client: OpenClient) -> None:
    """Commands that never left a full connection are done over the next one, the others never."""
    unknown: list[int] = []

    async def script(conversation: Conversation) -> None:
        await conversation.welcome()
        if conversation.number == 0:
            # Read nothing: the kernel's buffers fill up, the rest stays in the client.
            await trio.sleep(0.1)
            await conversation.stream.aclose()
            return
        while (request := await conversation.receive()) is not None:
            assert isinstance(request, Request)
            conversation.node.requests.append(request)
            await conversation.send(done(request))

    async with scripted_nodes(script) as (node,), open_client(node.address) as client:

        async def ask(number: int) -> None:
            try:
                await client.propose(bytes((number,)) * (1 << 20))
            except OutcomeUnknown:
                unknown.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(14):
                nursery.start_soon(ask, number)
        again = [body[0] for body in node.bodies]
        assert sorted(again + unknown) == list(range(14))
        assert again, "something was left in the queue"


async def test_silent_connection_is_given_up(open_client: OpenClient) -> None:
    """A connection on which not even keepalives come is closed long before the deadline."""
    limits = Limits(connection_idle_ms=200)
    async with (
        scripted_nodes(silent) as (node,),
        open_client(node.address, limits=limits) as client,
    ):
        with pytest.raises(OutcomeUnknown, match=r"nothing was heard for 0\.2 s"):
            await client.propose(b"x")
        assert node.conversations[0].keepalive_count


async def test_slow_leader_is_not_given_up(open_client: OpenClient) -> None:
    """A leader that sends keepalives, without answering any, may take as long as the deadline
    allows."""

    async def be_slow(conversation: Conversation) -> None:
        await conversation.welcome()
        request = await conversation.request()
        await conversation.only_live(0.5)
        await conversation.send(done(request))
        await conversation.serve()

    limits = Limits(connection_idle_ms=100)
    async with (
        scripted_nodes(be_slow) as (node,),
        open_client(node.address, limits=limits) as client,
    ):
        await client.propose(b"x")
        assert len(node.conversations) == 1


async def test_large_request_over_a_slow_link(open_client: OpenClient) -> None:
    """A large request that leaves slowly is not given up before its deadline, although neither the
    client's keepalives get through behind it nor is anything answered."""

    async def read_late(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.only_live(0.3)
        assert client.logic.leading is not None
        queued_bytes = client.logic.leading.unsent_bytes
        assert queued_bytes > 0, "some of it waits in the client"
        await conversation.only_live(0.9)
        assert client.logic.leading.unsent_bytes <= queued_bytes, "no keepalive behind it"
        await conversation.send(done(await conversation.request()))
        await conversation.serve()

    limits = Limits(connection_idle_ms=500, command_bytes_max=12 << 20, frame_bytes_max=14 << 20)
    async with scripted_nodes(read_late) as (node,):
        async with open_client(node.address, limits=limits) as client:
            await client.propose(bytes(12 << 20))
        assert len(node.conversations) == 1


# --- A leader that answers nothing --------------------------------------------------------------


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply counts as missing after a tenth of a second."""
    monkeypatch.setattr(client_lines, "REPLY_SECONDS_MAX", 0.1)


async def freeze(conversation: Conversation) -> None:
    """The script of a leader that is frozen: the kernel accepts connections, nobody is there."""
    if conversation.number == 0:
        await silent(conversation)
    await trio.sleep_forever()


async def follow_first(conversation: Conversation) -> None:
    """The script of a node that takes node 1 for the leader."""
    await conversation.welcome(leader_id=1)
    await conversation.until_hung_up()


@pytest.mark.usefixtures("short_patience")
async def test_frozen_leader_is_succeeded(open_client: OpenClient) -> None:
    """When a leader falls silent and another node leads, new commands go there; what was sent stays
    where it is, is unknown at its deadline, and is never sent again."""
    async with (
        scripted_nodes(freeze, lead) as (frozen, leader),
        open_client(frozen.address) as client,
        trio.open_nursery() as nursery,
    ):
        started = trio.current_time()

        async def be_lost() -> None:
            with pytest.raises(OutcomeUnknown, match=r"node 1 .* did not answer within 1 s"):
                await client.propose(b"lost", deadline_seconds=1)

        nursery.start_soon(be_lost)
        await until(lambda: client.leader_id == 2)
        assert (await client.propose(b"next")).result == b"next"
        assert trio.current_time() - started < 0.9, "the silence was not waited out"
        assert client.logic.draining is not None
        await until(lambda: client.logic.draining is None)
        assert trio.current_time() - started > 0.9, "the deadline was"
        assert (await client.propose(b"last")).result == b"last"
        assert frozen.bodies == [b"lost"]
        assert leader.bodies == [b"next", b"last"]
        assert len(leader.conversations) == 1


@pytest.mark.usefixtures("short_patience")
async def test_frozen_leader_that_thaws(open_client: OpenClient) -> None:
    """What a silent leader answers at last counts, and a command that it did not take is sent to
    its successor."""
    thaw = trio.Event()

    async def thaw_late(conversation: Conversation) -> None:
        await conversation.welcome()
        first, second = await conversation.request(), await conversation.request()
        await thaw.wait()
        await conversation.send(done(first, "late"), not_done(second, "NotLeader"))
        await conversation.until_hung_up()

    results: list[object] = []
    async with scripted_nodes(thaw_late, lead) as (frozen, leader):
        async with open_client(frozen.address) as client, trio.open_nursery() as nursery:

            async def ask() -> None:
                results.append((await client.propose(b"x")).result)

            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await until(lambda: client.logic.draining is not None)
            thaw.set()
            await until(lambda: client.logic.draining is None)
        assert sorted(map(str, results)) == ["b'x'", "late"]
        assert (len(frozen.bodies), leader.bodies) == (2, [b"x"])


@pytest.mark.usefixtures("short_patience")
async def test_frozen_leader_hangs_up(open_client: OpenClient) -> None:
    """When the connection to a succeeded leader ends, what was sent there is unknown at once, and
    the connection to its successor is used on."""

    async def hang_up(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.request()
        await until(lambda: client.logic.draining is not None)
        await conversation.stream.aclose()

    async with scripted_nodes(hang_up, lead) as (frozen, leader):
        async with open_client(frozen.address) as client:
            with pytest.raises(OutcomeUnknown, match=r"connection to node 1 .* was lost"):
                await client.propose(b"lost")
            await client.propose(b"next")
        assert (frozen.bodies, leader.bodies) == ([b"lost"], [b"next"])
        assert len(leader.conversations) == 1


@pytest.mark.usefixtures("short_patience")
async def test_slow_leader_is_not_left(open_client: OpenClient) -> None:
    """While the other nodes name no other leader, the silent one keeps its connection and its
    commands."""

    async def be_slow(conversation: Conversation) -> None:
        await conversation.welcome()
        request = await conversation.request()
        await conversation.only_live(0.6)
        await conversation.send(done(request))
        await conversation.serve()

    async with scripted_nodes(be_slow, follow_first) as (leader, follower):
        async with open_client(leader.address) as client:
            await client.propose(b"x")
            await client.propose(b"y")
        assert (leader.bodies, follower.bodies) == ([b"x", b"y"], [])
        assert len(leader.conversations) == 1
        assert 1 <= len(follower.conversations) <= 6, "asked, but not hammered"


@pytest.mark.usefixtures("short_patience")
async def test_slow_leader_under_another_address(open_client: OpenClient) -> None:
    """A second address of the silent leader is no other leader: its commands stay together."""

    async def be_slow(conversation: Conversation) -> None:
        await conversation.welcome()
        request = await conversation.request()
        await conversation.only_live(0.4)
        assert client.logic.draining is None
        await conversation.send(done(request))
        await conversation.until_hung_up()

    async with scripted_nodes(be_slow, silent) as (first, second):
        second.node_id = first.node_id
        async with open_client([first.address, second.address]) as client:
            await client.propose(b"x")
        assert second.conversations, "it was asked"
        assert second.bodies == []
        assert len(first.conversations) == 1


@pytest.mark.usefixtures("short_patience")
async def test_idle_or_answering_leader_is_not_doubted(open_cancellable: OpenClient) -> None:
    """No other node is asked while nothing is owed, nor while replies come to other commands."""

    async def forget_one(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.request()
        await conversation.serve()

    async with scripted_nodes(forget_one, follow_first) as (leader, follower):
        async with open_cancellable(leader.address) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.propose, b"forgotten")
            await until(lambda: bool(leader.bodies))
            for _ in range(30):
                await client.propose(b"x")
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert follower.conversations == []
    async with scripted_nodes(lead, follow_first) as (leader, follower):
        async with open_cancellable(leader.address) as client:
            await client.propose(b"x")
            await trio.sleep(0.3)
        assert follower.conversations == []


@pytest.mark.usefixtures("short_patience")
async def test_one_connection_drains_at_a_time(open_client: OpenClient) -> None:
    """A successor that falls silent too is kept until the one before it has drained."""

    async def ask(body: bytes, seconds: float) -> None:
        with pytest.raises(OutcomeUnknown, match="did not answer within"):
            await client.propose(body, deadline_seconds=seconds)

    async def lead_later(conversation: Conversation) -> None:
        await conversation.welcome(leader_id=None if is_third_leading else 0)
        await conversation.serve()

    is_third_leading = False
    async with scripted_nodes(freeze, freeze, lead_later) as (first, second, third):
        async with open_client(third.address) as client, trio.open_nursery() as nursery:
            nursery.start_soon(ask, b"a", 1.0)
            await until(lambda: client.leader_id == 2)
            is_third_leading = True
            nursery.start_soon(ask, b"b", 2.0)
            await trio.sleep(0.4)
            assert third.bodies == []
            assert client.logic.leading is not None
            assert client.logic.leading.hello.node_id == 2, "though it is silent, too"
            await until(lambda: client.leader_id == 3)
            assert (await client.propose(b"c")).result == b"c"
        assert (first.bodies, second.bodies, third.bodies) == ([b"a"], [b"b"], [b"c"])


@pytest.mark.usefixtures("short_patience")
async def test_close_while_a_connection_drains(open_client: OpenClient) -> None:
    """Closing the client ends the waits on both connections and closes them."""
    async with scripted_nodes(freeze, silent) as (frozen, leader):
        ends: list[type[Exception]] = []

        async def ask() -> None:
            try:
                await client.propose(b"x")
            except OutcomeUnknown as failure:
                ends.append(type(failure))

        async with trio.open_nursery() as nursery, open_client(frozen.address) as client:
            nursery.start_soon(ask)
            await until(lambda: client.logic.draining is not None)
            nursery.start_soon(ask)
            await until(lambda: bool(leader.bodies))
            assert len(client.logic.lines) == 2
        assert ends == [OutcomeUnknown] * 2
        assert not client.logic.lines


# --- Cancelling and closing ---------------------------------------------------------------------


async def test_cancel_leaves_nothing_behind(open_cancellable: OpenClient) -> None:
    """A cancelled command leaves no entry, its late reply is ignored, the connection goes on."""
    release = trio.Event()

    async def answer_late(conversation: Conversation) -> None:
        await conversation.welcome()
        late = await conversation.request()
        await release.wait()
        await conversation.send(done(late))
        await conversation.serve()

    async with scripted_nodes(answer_late) as (node,), open_cancellable(node.address) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.propose, b"x")
            await until(lambda: bool(node.requests))
            nursery.cancel_scope.cancel()
        assert client.logic.unsettled_count == 0
        assert client.logic.queued_count == 0
        assert client.logic.leading is not None
        assert client.logic.leading.core.open_count == 0
        release.set()
        assert (await client.propose(b"y")).result == b"y"
        assert len(node.conversations) == 1


async def test_cancel_before_sending(open_cancellable: OpenClient) -> None:
    """A command that is cancelled while it only waits is never sent."""
    async with scripted_nodes(silent) as (node,):
        async with open_cancellable(node.address, limits=Limits(client_requests_max=1)) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.propose, b"a")
                nursery.start_soon(client.propose, b"b")
                await until(lambda: bool(node.requests))
                assert client.logic.queued_count == 1
                nursery.cancel_scope.cancel()
            assert client.logic.queued_count == 0
            await trio.sleep(0.02)
        assert len(node.bodies) == 1


async def test_close_ends_every_wait(open_client: OpenClient) -> None:
    """Closing the client tells those who wait what is known: unknown if sent, else not done."""
    ends: dict[bytes, type[Exception]] = {}
    limits = Limits(client_requests_max=1)
    async with (
        scripted_nodes(silent) as (node,),
        trio.open_nursery() as nursery,
        open_client(node.address, limits=limits) as client,
    ):

        async def ask(body: bytes) -> None:
            try:
                await client.propose(body)
            except (OutcomeUnknown, Unavailable) as failure:
                ends[body] = type(failure)

        nursery.start_soon(ask, b"a")
        nursery.start_soon(ask, b"b")
        await until(lambda: bool(node.bodies))
    sent = node.bodies[0]
    assert ends.pop(sent) is OutcomeUnknown
    assert list(ends.values()) == [Unavailable]


async def test_error_of_the_block_is_not_wrapped() -> None:
    """What the block raises comes out as it was, with its cause, although there is a nursery."""
    cause = ValueError("cause")
    with pytest.raises(KeyError) as raised:
        async with Client("127.0.0.1:1"):
            raise KeyError("mine") from cause
    assert raised.value.__cause__ is cause


# --- Questions to a node ------------------------------------------------------------------------


async def test_status_of_each_node(open_client: OpenClient) -> None:
    """Any node is asked by id or by address, and without either the first that answers."""

    async def answer(conversation: Conversation) -> None:
        await conversation.welcome(leader_id=0)
        request = await conversation.receive()
        if request is None:
            return  # Its welcome was all that was needed of it.
        assert isinstance(request, Request)
        assert request.verb == "status"
        await conversation.send(done(request, {"node": conversation.node.node_id}))
        await conversation.until_hung_up()

    async with (
        scripted_nodes(answer, answer) as (first, second),
        open_client([free_address(), first.address], deadline_seconds=2) as client,
    ):
        assert await client.status() == {"node": 1}
        assert await client.status(2) == {"node": 2}
        assert await client.status(second.address) == {"node": 2}
        with pytest.raises(AddressError, match="no node 7; its nodes are 1, 2"):
            await client.status(7)
        dead = free_address()
        with pytest.raises(Unavailable, match=f"{dead}: connection refused"):
            await client.status(dead)


async def test_dump_of_a_node(open_client: OpenClient) -> None:
    """A page comes with the applied index and the cursor of the next one; a refusal is raised."""

    async def answer(conversation: Conversation) -> None:
        await conversation.welcome()
        request = await conversation.request()
        if conversation.number == 0:
            await conversation.send(done(request, [9, [["k", b"v"]], b"next"]))
        else:
            await conversation.send(not_done(request, "DumpUnavailable"))
        await conversation.until_hung_up()

    async with scripted_nodes(answer) as (node,), open_client(node.address) as client:
        page = await client.dump(b"", 10)
        assert (page.applied_index, page.items, page.cursor) == (9, [["k", b"v"]], b"next")
        with pytest.raises(DumpUnavailable):
            await client.dump(b"next", 10)


async def test_configuration_gives_addresses_and_cluster(
    open_client: OpenClient, tmp_path: Path
) -> None:
    """A client of a configuration knows every node and refuses other clusters."""
    config = local_config(tmp_path, nodes=3)
    async with open_client(replace(config, cluster_id="mine")) as client:
        search = client.logic.search
        assert dict(search.members) == {node.id: str(node.client) for node in config.nodes}
        assert search.cluster_id == "mine"


# --- Real nodes ---------------------------------------------------------------------------------


async def test_calls_go_on_over_a_transfer(open_client: OpenClient, tmp_path: Path) -> None:
    """While the leadership moves, each call is done once or says that it is not known."""
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        config = leader.config
        counts = {"done": 0, "unknown": 0}
        async with open_client(config) as client:

            async def work(worker: int) -> None:
                for number in range(30):
                    key = f"{worker}-{number}"
                    try:
                        # Not there yet: a command that was done twice would answer False.
                        assert await client.call(Kv.compare_and_set, key, None, b"v")
                        counts["done"] += 1
                    except OutcomeUnknown:
                        counts["unknown"] += 1

            async with trio.open_nursery() as nursery:
                for worker in range(8):
                    nursery.start_soon(work, worker)
                await until(lambda: counts["done"] > 40)
                successor = next(node for node in nodes.values() if node is not leader)
                leader.transfer(successor.node_id)
            assert counts["done"] + counts["unknown"] == 240
            assert counts["done"] > 100
            assert client.leader_id == successor.node_id
            assert (await client.status())["role"] == "leader"
            assert (await client.status(leader.node_id))["role"] == "follower"
            page = await client.dump(items_max=1000)
            assert counts["done"] <= len(page.items) <= 240


async def test_peer_port_is_told_apart(open_client: OpenClient, tmp_path: Path) -> None:
    """A client that is given a peer address learns at once that it is one."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        await leader_of(nodes)
        peer = str(nodes[1].config.node(1).peer)
        async with open_client(peer) as client:
            with pytest.raises(Refused, match="port is for the nodes of the cluster"):
                await client.call(Kv.get, "key")


async def test_client_of_another_cluster(open_client: OpenClient, tmp_path: Path) -> None:
    """A client that means another cluster is told so by the node."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        address = str(nodes[1].config.node(1).client)
        async with open_client(address, cluster_id="elsewhere") as client:
            with pytest.raises(Unavailable, match="not 'elsewhere'"):
                await client.call(Kv.get, "key")


async def test_large_and_bad_commands_at_a_node(open_client: OpenClient, tmp_path: Path) -> None:
    """A node's own refusals arrive as what they are."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        address = str(nodes[1].config.node(1).client)
        async with open_client(address, limits=Limits(command_bytes_max=2 << 20)) as client:
            with pytest.raises(CommandTooLarge, match=r"limits\.command_bytes_max = 1048576"):
                await client.propose(bytes(1 << 21))
            with pytest.raises((BadCommand, CommandFailed)):
                await client.propose(b"no command")
            with pytest.raises(CommandFailed) as failed:
                await client.call(Kv.range, "", None, 0)
            assert failed.value.name == "KvError"
