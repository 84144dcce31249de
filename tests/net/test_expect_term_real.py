"""Commands for one term only, at scripted and at real nodes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scripted import Conversation, done, not_done, scripted_nodes

from replog import Client, TermChanged, TermId
from replog.client_logic import ClientLogic
from replog.client_session import LEADING_TERM, OPEN_SESSION, PROPOSE_MARKED
from replog.config import local_config
from replog.errors import BadCommand, NotLeader, OutcomeUnknown
from replog.frames import Request, pack_terms
from replog.plugins import engine_names
from replog.types import Applied
from replog_kv import Kv

from libraries import LIBRARIES, OPENERS, OpenClient
from running import leading_of, running_cluster, until

pytestmark = pytest.mark.net

THREE = TermId(1, 3)


@pytest.fixture(params=LIBRARIES)
def open_client(request: pytest.FixtureRequest) -> OpenClient:
    """Opens a client of one of the libraries."""
    return OPENERS[request.param]


@pytest.mark.parametrize("engine", engine_names())
async def test_term_at_real_nodes(open_client: OpenClient, tmp_path: Path, engine: str) -> None:
    """What is proposed in the leader's term is done, also together and in a session; when somebody
    else has led it is refused, with both terms, and the answers of before stay."""
    config = local_config(tmp_path, nodes=3, engine=engine)
    async with running_cluster(tmp_path, config=config) as nodes, open_client(config) as client:
        term = await client.leading_term()
        assert term == await (await leading_of(nodes)).leading_term()
        await client.propose(Kv.put.encode("a", b"1"), expect_term=term)
        many = [Kv.put.encode(f"{number}", b"1") for number in range(20)]
        assert all(
            type(each) is Applied for each in await client.propose_many(many, expect_term=term)
        )
        session = await client.open_session()
        await session.propose(Kv.put.encode("b", b"1"), expect_term=term)

        leader = await leading_of(nodes)
        heir = next(node for node in nodes.values() if node is not leader)
        leader.transfer(heir.node_id)
        await until(lambda: heir.status().leader_id == heir.node_id)
        later = await client.leading_term()
        assert later > term
        for proposer in (client, session):
            with pytest.raises(TermChanged, match=f"in term {term.term} of epoch 1") as caught:
                await proposer.propose(Kv.put.encode("a", b"2"), expect_term=term)
            assert (caught.value.expected, caught.value.found) == (term, later)
            assert caught.value.is_final
        refusals = await client.propose_many(many, expect_term=term)
        assert {type(each) for each in refusals} == {TermChanged}
        assert await client.call(Kv.get, "a") == b"1"
        await client.propose(Kv.put.encode("a", b"3"), expect_term=later)
        assert await client.call(Kv.get, "a") == b"3"


async def test_wrong_term_hurts_nobody_else(open_client: OpenClient, tmp_path: Path) -> None:
    """What is no term is refused at the call, and the client goes on."""
    async with running_cluster(tmp_path, nodes=1) as nodes, open_client(nodes[1].config) as client:
        await client.leading_term()
        for wrong in (5, TermId(1, -1)):
            with pytest.raises(BadCommand, match="expect_term is an epoch and a term"):
                await client.propose(Kv.put.encode("a", b"1"), expect_term=wrong)  # type: ignore[arg-type]
            with pytest.raises(BadCommand):
                await client.propose_many([b"x"], expect_term=wrong)  # type: ignore[arg-type]
            with pytest.raises(BadCommand):
                await nodes[1].propose(Kv.put.encode("a", b"1"), expect_term=wrong)  # type: ignore[arg-type]
        await client.propose(Kv.put.encode("a", b"1"))


@pytest.mark.parametrize("engine", engine_names())
async def test_snapshot_holds_the_highest_term(tmp_path: Path, engine: str) -> None:
    """A snapshot says which term was the highest, and a node that begins with it knows."""
    config = local_config(tmp_path, nodes=1, engine=engine)
    async with running_cluster(tmp_path, config=config) as nodes:
        await leading_of(nodes)
        term = await nodes[1].leading_term()
        info = await nodes[1].take_snapshot()
        assert info.meta.highest_term == term
    async with running_cluster(tmp_path, config=config) as nodes:
        assert nodes[1]._replica.highest_term >= term
        await leading_of(nodes)
        with pytest.raises(TermChanged):
            await nodes[1].propose(Kv.put.encode("a", b"1"), expect_term=term)


@pytest.mark.parametrize("engine", engine_names())
async def test_term_at_a_node(tmp_path: Path, engine: str) -> None:
    """An embedding program asks its own node: the leader tells its term and takes commands for it,
    and another node says that it does not lead."""
    config = local_config(tmp_path, nodes=3, engine=engine)
    async with running_cluster(tmp_path, config=config) as nodes:
        leader = await leading_of(nodes)
        term = await leader.leading_term()
        assert term.term == leader.status().term
        await leader.propose(Kv.put.encode("a", b"1"), expect_term=term)
        with pytest.raises(TermChanged) as caught:
            await leader.propose(Kv.put.encode("a", b"2"), expect_term=TermId(1, term.term + 1))
        assert not caught.value.is_final
        for node in nodes.values():
            if node is not leader:
                with pytest.raises(NotLeader):
                    await node.leading_term()


async def test_final_refusal_is_of_all_copies(open_client: OpenClient) -> None:
    """In a session a command is sent again when the connection broke; that its term is over says of
    the first copy, too, that it was not done, and that it is still to come does not."""
    asked = 0

    async def serve(conversation: Conversation) -> None:
        nonlocal asked
        await conversation.welcome()
        while (request := await conversation.receive()) is not None:
            assert isinstance(request, Request)
            if request.verb == OPEN_SESSION:
                await conversation.send(done(request, 7))
                continue
            assert (request.verb, request.body[0]) == (PROPOSE_MARKED, 3)
            asked += 1
            if asked % 2:
                return
            found = TermId(1, 5 if asked == 2 else 2)
            refusal = not_done(request, "TermChanged")
            await conversation.send(replace(refusal, value=pack_terms(THREE, found)))

    async with scripted_nodes(serve) as (node,), open_client(node.address) as client:
        session = await client.open_session()
        with pytest.raises(TermChanged) as caught:
            await session.propose(b"once", expect_term=THREE)
        assert (caught.value.expected, caught.value.found) == (THREE, (1, 5))
        with pytest.raises(OutcomeUnknown, match="in vain"):
            await session.propose(b"twice", expect_term=THREE)


@pytest.mark.parametrize(
    ("verb", "body", "sentence"),
    [
        (PROPOSE_MARKED, b"\x02" + bytes(11), "12 bytes of numbers"),
        (PROPOSE_MARKED, b"\x03" + bytes(35), "36 bytes of numbers"),
        (LEADING_TERM, b"x", "an empty body"),
    ],
)
async def test_malformed_request_is_refused(
    tmp_path: Path, verb: str, body: bytes, sentence: str
) -> None:
    """A node ends the conversation with whoever sends what no client sends, and says why."""
    async with running_cluster(tmp_path, nodes=1) as nodes, Client(nodes[1].config) as client:
        await leading_of(nodes)
        failure = (await client._order(partial(_ask_raw, verb=verb, body=body), 0.5)).failure
        assert sentence in str(failure)


@pytest.mark.parametrize("features", [b"", b"\x00", b"\x04", b"\xff"])
async def test_unknown_features_are_refused(tmp_path: Path, features: bytes) -> None:
    """A command with features of a later release is definitely not done, and others go on."""
    async with running_cluster(tmp_path, nodes=1) as nodes, Client(nodes[1].config) as client:
        await leading_of(nodes)
        ask = partial(_ask_raw, verb=PROPOSE_MARKED, body=features + bytes(50))
        failure = (await client._order(ask, 5.0)).failure
        assert isinstance(failure, BadCommand)
        assert "run the same release" in str(failure)
        await client.propose(Kv.put.encode("a", b"1"))


def _ask_raw(
    logic: ClientLogic[Any], now: float, seconds: float, waiter: object, verb: str, body: bytes
) -> Any:
    return logic._order(now, verb, body, seconds, waiter)
