"""Sessions of the client libraries, at scripted and at real nodes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from scripted import Conversation, done, scripted_nodes

from replog import Client
from replog.client_logic import ClientLogic
from replog.client_session import CLOSE_SESSION, OPEN_SESSION, PROPOSE_IN_SESSION
from replog.client_surface import result_of
from replog.config import local_config
from replog.envelope import SESSION_BLOCK
from replog.errors import (
    CommandFailed,
    OutcomeUnknown,
    Overloaded,
    SessionExpired,
    SessionFull,
    Unavailable,
)
from replog.frames import Request
from replog.limits import Limits
from replog.plugins import engine_names
from replog.types import Applied
from replog_kv import Kv

from libraries import LIBRARIES, OPENERS, OpenClient
from running import leader_of, running_cluster

pytestmark = pytest.mark.net


@pytest.fixture(params=LIBRARIES)
def open_client(request: pytest.FixtureRequest) -> OpenClient:
    """Opens a client of one of the libraries."""
    return OPENERS[request.param]


async def test_command_is_sent_again_after_the_connection_broke(open_client: OpenClient) -> None:
    """The node takes the command and hangs up: over the next connection it comes again, with the
    same numbers, and the answer is the caller's."""
    heard: list[tuple[int, ...]] = []

    async def serve(conversation: Conversation) -> None:
        await conversation.welcome()
        while (request := await conversation.receive()) is not None:
            assert isinstance(request, Request)
            if request.verb == OPEN_SESSION:
                await conversation.send(done(request, 7))
                continue
            assert request.verb == PROPOSE_IN_SESSION
            heard.append(SESSION_BLOCK.unpack_from(request.body))
            if len(heard) == 1:
                return
            await conversation.send(done(request, request.body[SESSION_BLOCK.size :], index=9))

    async with scripted_nodes(serve) as (node,), open_client(node.address) as client:
        session = await client.open_session()
        assert session.client.session_id == 7
        assert await session.propose(b"once") == Applied(9, b"once")
        assert session.client.repeated_count == 1
    assert heard == [(7, 1, 1), (7, 1, 1)]


@pytest.mark.parametrize("engine", engine_names())
async def test_session_at_real_nodes(open_client: OpenClient, tmp_path: Path, engine: str) -> None:
    """Commands in a session do what commands do, and a closed one is gone."""
    config = local_config(tmp_path, nodes=3, engine=engine)
    async with running_cluster(tmp_path, config=config), open_client(config) as client:
        session = await client.open_session()
        other = await client.open_session()
        assert session.client.session_id != other.client.session_id
        assert await session.call(Kv.compare_and_set, "key", None, b"1") is True
        many = [Kv.compare_and_set.encode(f"{number}", None, b"x") for number in range(50)]
        outcomes = await session.propose_many(many)
        assert [outcome.result for outcome in outcomes if isinstance(outcome, Applied)] == [
            True
        ] * 50
        with pytest.raises(CommandFailed) as failed:
            await session.call(Kv.put, "", b"")
        assert failed.value.name == "KvError"
        await session.close()
        await session.close()
        with pytest.raises(SessionExpired, match="open another session"):
            await session.call(Kv.put, "key", b"2")
        assert await other.call(Kv.get, "key") == b"1"


async def test_calls_go_on_over_transfers(open_client: OpenClient, tmp_path: Path) -> None:
    """While leadership is handed over, every command in a session ends done, each once."""
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        async with open_client(leader.config) as client:
            session = await client.open_session()
            results: dict[str, bool] = {}

            async def work(worker: int) -> None:
                for number in range(30):
                    key = f"{worker}/{number}"
                    results[key] = await session.call(Kv.compare_and_set, key, None, b"x")

            async with trio.open_nursery() as nursery:
                for worker in range(8):
                    nursery.start_soon(work, worker)
                for _ in range(3):
                    leader = await leader_of(nodes)
                    leader.transfer(next(each for each in nodes if each != leader.node_id))
                    await trio.sleep(0.1)
    assert list(results.values()) == [True] * 240, "a second copy would have found the key"


async def test_too_many_sessions(tmp_path: Path) -> None:
    """The cluster's bound is told to whoever opens one more, until its deadline."""
    config = local_config(tmp_path, nodes=1, limits=Limits(sessions_max=1))
    async with running_cluster(tmp_path, config=config), Client(config) as client:
        session = await client.open_session()
        with pytest.raises(Overloaded, match=r"limits\.sessions_max"):
            await client.open_session(deadline_seconds=0.3)
        await session.close()
        await client.open_session()


async def test_too_many_answers(tmp_path: Path) -> None:
    """Where all sessions keep as many answers as they may, a command is refused that is not the
    lowest one of its session, and was not done; one at a time goes on."""
    config = local_config(tmp_path, nodes=1, limits=Limits(sessions_bytes_max=1))
    async with running_cluster(tmp_path, config=config), Client(config) as client:
        session, other = await client.open_session(), await client.open_session()
        await session.call(Kv.put, "key", b"1")
        for value in (b"2", b"3"):
            await other.call(Kv.put, "key", value)
        # As of a client whose earlier command is still on its way.
        sequence = other._session.take()
        with pytest.raises(SessionFull, match=r"limits\.sessions_bytes_max"):
            await other.propose(Kv.put.encode("key", b"4"), deadline_seconds=0.3)
        assert await client.call(Kv.get, "key") == b"3"
        other._session.settle(sequence)
        await other.call(Kv.put, "key", b"5")


async def test_client_with_larger_limits_than_the_cluster(tmp_path: Path) -> None:
    """A client that has more commands in flight than the cluster keeps answers gets each done once,
    and few of them are in the log in vain."""
    config = local_config(tmp_path, nodes=1, limits=Limits(session_answers_max=4))
    applied: list[Applied] = []
    async with (
        running_cluster(tmp_path, config=config) as nodes,
        Client(replace(config, limits=Limits())) as client,
    ):
        session = await client.open_session()

        async def put(number: int) -> None:
            applied.append(await session.propose(Kv.put.encode(f"key-{number}", b"1")))

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(put, number)
        first = min(each.index for each in applied)
        applied_index = nodes[1].status().applied_index
        assert len({each.index for each in applied}) == 200
        # The first ones all leave together; after that it is one of eight.
        assert applied_index - first <= 200 + 200 + 200 // 8


@pytest.mark.parametrize(
    ("verb", "body", "sentence"),
    [
        (PROPOSE_IN_SESSION, bytes(23), "24 bytes of numbers"),
        (OPEN_SESSION, b"x", "an empty body"),
        (CLOSE_SESSION, b"x", "named by 8 bytes"),
    ],
)
async def test_malformed_request_is_refused(
    tmp_path: Path, verb: str, body: bytes, sentence: str
) -> None:
    """A node ends the conversation with whoever sends what no client sends, and says why."""
    async with running_cluster(tmp_path, nodes=1) as nodes, Client(nodes[1].config) as client:
        await leader_of(nodes)
        ask = partial(_ask_raw, verb=verb, body=body)
        command = await client._order(ask, 0.5)
        unanswered = OutcomeUnknown if verb == PROPOSE_IN_SESSION else Unavailable
        assert isinstance(command.failure, unanswered)
        assert sentence in str(command.failure)


async def test_copy_of_a_failed_command_fails_alike(tmp_path: Path) -> None:
    """The answer of the first time is a declared error: the second copy gets its name, too."""
    async with running_cluster(tmp_path, nodes=1) as nodes, Client(nodes[1].config) as client:
        session = await client.open_session()
        body = SESSION_BLOCK.pack(session.session_id, 1, 1) + Kv.put.encode("", b"")
        ask = partial(_ask_raw, verb=PROPOSE_IN_SESSION, body=body)
        failures = [(await client._order(ask, 5.0)).failure for _ in range(2)]
    assert [failure.name for failure in failures if isinstance(failure, CommandFailed)] == [
        "KvError",
        "KvError",
    ]
    assert str(failures[0]) == str(failures[1])


@pytest.mark.parametrize("state_machine", ["kv", "sqlite-kv"])
async def test_copy_is_answered_alike_after_a_restart(tmp_path: Path, state_machine: str) -> None:
    """A node that stopped and started again answers a copy as it did the first time, be its machine
    in memory or on a disk of its own, which is not given the command again."""
    config = local_config(tmp_path, nodes=1, state_machine=state_machine)
    answers: list[Applied] = []
    session_id = 0
    for _ in range(2):
        async with running_cluster(tmp_path, config=config), Client(config) as client:
            session_id = session_id or (await client.open_session()).session_id
            for sequence, expected in ((1, None), (2, b"other")):
                body = SESSION_BLOCK.pack(session_id, sequence, 1)
                body += Kv.compare_and_set.encode("key", expected, b"1")
                ask = partial(_ask_raw, verb=PROPOSE_IN_SESSION, body=body)
                answers.append(result_of(await client._order(ask, 5.0)))
    assert answers[:2] == answers[2:]
    assert [answer.result for answer in answers] == [True, False] * 2


def _ask_raw(
    logic: ClientLogic[Any], now: float, seconds: float, waiter: object, verb: str, body: bytes
) -> Any:
    return logic._order(now, verb, body, seconds, waiter)
