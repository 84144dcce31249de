"""A node that lost its directory comes back as a learner: real nodes, and the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from test_cli_real import ServedCluster, make_cluster, replog

import replog.rejoin as rejoining
from replog.backup import write_backup
from replog.config import Config, local_config
from replog.errors import (
    BackupError,
    DirectoryError,
    NodeActive,
    NotDone,
    OutcomeUnknown,
    Unavailable,
)
from replog.founding import join_founding
from replog.frames import Outcome, Reply
from replog.limits import Limits
from replog.node import Node
from replog.plugins import engine_names
from replog.rejoin import admit_learner, coming_back, fetch_founding, make_learner
from replog.running import open_node
from replog.types import NodeId, Voter
from replog_kv import Kv
from replog_sqlite_kv import SqliteKv

from running import leading_of, running_cluster, until

pytestmark = pytest.mark.net

Nodes = dict[NodeId, Node]


async def rejoin(config: Config, node_id: NodeId, backup: Path | None = None) -> Voter:
    """What the command does; the learner that was taken in."""
    learner = coming_back(config, node_id, backup)
    founding = await fetch_founding(config, learner, 10)
    made = make_learner(config, learner, founding, backup)
    assert made.learner == learner
    await admit_learner(config, learner, 10)
    return learner


@asynccontextmanager
async def left_behind(config: Config, *node_ids: NodeId) -> AsyncIterator[Nodes]:
    """Those nodes of a cluster that worked once with all of them; for 30 s at most."""
    async with running_cluster(Path(), config=config) as nodes:
        leader = await leading_of(nodes)
        for number in range(20):
            await leader.call(Kv.put, f"key-{number}", b"1")
        for node in nodes.values():
            await node.wait_formed()
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:
            opened = {}
            for node_id in node_ids:
                opened[node_id] = await stack.enter_async_context(open_node(config, node_id))
            yield opened


@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize("way", ["log", "snapshot", "backup"])
async def test_lost_node_comes_back(tmp_path: Path, engine: str, way: str) -> None:
    """A node whose directory is gone comes back under another incarnation and gets everything, by
    the log, by a snapshot or behind a backup, also over a restart; it counts in no quorum."""
    limits = Limits() if way == "log" else Limits(trim_margin_entries=1)
    config = local_config(tmp_path, engine=engine, limits=limits)
    async with left_behind(config, 1, 2) as nodes:
        leader = await leading_of(nodes)
        await leader.call(Kv.put, "early", b"1")
        backup: Path | None = None
        if way != "log":
            index = (await leader.take_snapshot()).meta.last.index
            for node in nodes.values():
                await until(lambda node=node: node.status().applied_index >= index)
                await node.take_snapshot()
            await until(lambda: min(each.status().base_index for each in nodes.values()) > 10)
        if way == "backup":
            backup = tmp_path / "b"
            write_backup(config.node(leader.node_id).directory, backup, index)
        shutil.rmtree(config.node(3).directory)
        learner = await rejoin(config, 3, backup)
        await leader.call(Kv.put, "late", b"2")
        for _ in range(2):
            async with open_node(config, 3) as third:
                assert third.is_voter is False
                assert third.waits_for == ()
                await until(lambda: third.status().applied_index >= leader.status().applied_index)
                assert third.dump(b"", 100) == leader.dump(b"", 100)
                assert [*third.learners] == [*leader.learners] == [learner]
                if way == "backup":
                    assert third.snapshots().transfer.received_bytes == 0
                if way == "snapshot":
                    assert third.status().base_index > 10
                third.campaign()  # it has no vote, its own included
                await leader.call(Kv.put, "later", b"3")


@pytest.mark.parametrize("engine", engine_names())
async def test_learner_makes_no_quorum(tmp_path: Path, engine: str) -> None:
    """With one voter lost the other two are needed: one of them and the learner commit nothing."""
    config = local_config(tmp_path, engine=engine)
    async with left_behind(config, 1, 2) as nodes:
        await leading_of(nodes)
        shutil.rmtree(config.node(3).directory)
        await rejoin(config, 3)
        async with open_node(config, 3) as third:
            leader = await leading_of(nodes)
            await until(lambda: third.status().applied_index >= leader.status().applied_index)
    with trio.fail_after(20):
        async with open_node(config, 1) as first, open_node(config, 3) as third:
            await trio.sleep(2.5)  # some elections
            assert first.status().leader_id == third.status().leader_id == 0
            with pytest.raises(NotDone):
                await first.call(Kv.put, "x", b"1")
            async with open_node(config, 2) as second:
                leader = await leading_of({1: first, 2: second})
                await leader.call(Kv.put, "x", b"2")
                await until(lambda: third.status().applied_index >= leader.status().applied_index)


@pytest.mark.parametrize("engine", engine_names())
async def test_replaced_node_is_not_heard(tmp_path: Path, engine: str) -> None:
    """The directory that was thought lost is of no use any more: the others refuse it, so that it
    neither leads nor follows; and a node that comes back twice is known by its last incarnation."""
    config = local_config(tmp_path, engine=engine)
    directory = config.node(3).directory
    async with left_behind(config, 1, 2) as nodes:
        leader = await leading_of(nodes)
        directory.rename(tmp_path / "found again")
        await rejoin(config, 3)
        shutil.rmtree(directory)
        learner = await rejoin(config, 3)
        assert [*leader.learners] == [learner]
        with capture_logs() as logged:
            directory.rename(tmp_path / "aside")
            (tmp_path / "found again").rename(directory)
            async with open_node(config, 3) as third:
                await trio.sleep(1.5)
                third.campaign()
                await leader.call(Kv.put, "late", b"2")
                assert third.status().applied_index < leader.status().applied_index
                assert leader.status().leader_id == leader.node_id
            refused = [line for line in logged if line["event"] == "connection_refused"]
            assert {line["node"] for line in refused} == {1, 2}
        directory.rename(tmp_path / "founded")
        (tmp_path / "aside").rename(directory)
        async with open_node(config, 3) as third:
            await until(lambda: third.status().applied_index >= leader.status().applied_index)


async def test_rejoin_is_resumed(tmp_path: Path) -> None:
    """What was interrupted behind the directory goes on with the same incarnation; what was done
    is done again without an entry."""
    config = local_config(tmp_path)
    async with left_behind(config, 1, 2) as nodes:
        leader = await leading_of(nodes)
        shutil.rmtree(config.node(3).directory)
        learner = coming_back(config, 3)
        made = make_learner(config, learner, await fetch_founding(config, learner, 10))
        assert (made.is_new, made.learner) == (True, learner)
        assert await rejoin(config, 3) == learner
        last_index = leader.status().last_index
        assert await rejoin(config, 3) == learner
        assert leader.status().last_index == last_index


async def test_rejoin_refused(tmp_path: Path) -> None:
    """A node that has its directory, one that is still there, and one that the cluster does not
    have are not taken in, and nothing is made or proposed."""
    config = local_config(tmp_path)
    async with left_behind(config, 1, 2, 3) as nodes:
        leader = await leading_of(nodes)
        await leader.call(Kv.put, "x", b"1")
        last_index = leader.status().last_index
        with pytest.raises(DirectoryError, match="the node is not lost: start it"):
            coming_back(config, 3)
        other = next(each for each in (1, 2, 3) if each != leader.node_id)
        await until(lambda: leader._transport.is_called_by(other))
        with pytest.raises(NodeActive, match=f"node {other} was heard a moment ago"):
            await fetch_founding(config, Voter(other, 7), 2.0)
        with pytest.raises(OutcomeUnknown, match=f"node {other} was heard a moment ago"):
            await admit_learner(config, Voter(other, 7), 2.0)
        with pytest.raises(NotDone, match=f"node {leader.node_id} was heard a moment ago"):
            leader.submit_learner(Voter(leader.node_id, 7), lambda *_: None)
        with pytest.raises(NotDone, match="there is no node 9"):
            await admit_learner(config, Voter(9, 7), 5.0)
        with pytest.raises(NotDone, match="is a founding voter"):
            leader.submit_learner(leader.founding.voters[2], lambda *_: None)
        assert leader.status().last_index == last_index


async def test_rejoin_without_quorum(tmp_path: Path) -> None:
    """One voter of three cannot take anybody in; nobody at all is named as such."""
    config = local_config(tmp_path)
    async with left_behind(config, 1) as nodes:
        shutil.rmtree(config.node(3).directory)
        learner = coming_back(config, 3)
        make_learner(config, learner, await fetch_founding(config, learner, 10))
        with pytest.raises(OutcomeUnknown, match="its directory is made, so run the same again"):
            await admit_learner(config, learner, 1.0)
        assert nodes[1].learners == ()
    with pytest.raises(Unavailable, match="no other node of cluster 'local' answered"):
        await fetch_founding(config, learner, 1.0)


async def test_remade_directory_is_no_learner(tmp_path: Path) -> None:
    """Who used the founding record again instead is told to remove that directory."""
    config = local_config(tmp_path)
    async with left_behind(config, 1, 2):
        shutil.rmtree(config.node(3).directory)
        join_founding(config, tmp_path / "local.founding", 3)
        with pytest.raises(DirectoryError, match="made anew from the founding record, remove it"):
            coming_back(config, 3)


async def test_backup_is_not_added_to_who_was_taken_in(tmp_path: Path) -> None:
    """A directory that the cluster has taken in gets no backup any more, which may be newer than
    the entry that says so."""
    config = local_config(tmp_path)
    async with left_behind(config, 1, 2) as nodes:
        leader = await leading_of(nodes)
        shutil.rmtree(config.node(3).directory)
        await rejoin(config, 3)
        await leader.call(Kv.put, "later", b"1")
        await leader.take_snapshot()
        backup = tmp_path / "b"
        write_backup(config.node(leader.node_id).directory, backup)
        with pytest.raises(BackupError, match="no backup is added later"):
            await rejoin(config, 3, backup)
        assert not list(config.node(3).directory.glob("*.snap"))


@pytest.mark.parametrize("engine", engine_names())
async def test_learner_that_was_lost_twice_starts_behind_its_own_snapshot(
    tmp_path: Path, engine: str
) -> None:
    """A machine on its own disk may lag behind the node's newest snapshot, and then what is applied
    again names an earlier incarnation of the very node, which goes on all the same."""
    config = local_config(tmp_path, engine=engine, state_machine="sqlite-kv")
    async with left_behind(config, 1, 2) as nodes:
        leader = await leading_of(nodes)
        for _ in range(2):
            shutil.rmtree(config.node(3).directory)
            learner = await rejoin(config, 3)
            async with open_node(config, 3) as third:
                await until(lambda: third.status().applied_index >= leader.status().applied_index)
                await third.take_snapshot()
        async with open_node(config, 3) as third:
            await leader.call(SqliteKv.put, "later", b"1")
            await until(lambda: third.status().applied_index >= leader.status().applied_index)
            assert [*third.learners] == [learner]


@pytest.mark.parametrize("code", ["DiskFull", "EntryReplaced", "NotLeader"])
async def test_refusal_that_passes_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """What a node refuses for now it may grant a little later, or another node may."""
    replies = [
        Reply(1, Outcome.NOT_DONE, 0, b"", code, "not now", 0, ""),
        Reply(1, Outcome.DONE, 9, b"", "", "", 0, ""),
    ]

    async def ask(*_: object) -> tuple[Reply, object]:
        await trio.lowlevel.checkpoint()
        return replies.pop(0), None

    monkeypatch.setattr(rejoining, "_ask", ask)
    assert await admit_learner(local_config(tmp_path), Voter(3, 77), 5.0) == 9


async def test_node_that_was_heard_once_is_not_blamed_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """When the node that is to come back is heard no more, and nobody answers, that is what is
    said."""
    replies = [Reply(1, Outcome.NOT_DONE, 0, b"", "NodeActive", "heard", 0, "")]

    async def ask(*_: object) -> tuple[Reply, object]:
        await trio.lowlevel.checkpoint()
        if not replies:
            raise OSError("nobody there")
        return replies.pop(), None

    monkeypatch.setattr(rejoining, "_ask", ask)
    with pytest.raises(Unavailable, match="nobody there"):
        await fetch_founding(local_config(tmp_path), Voter(3, 77), 2.0)


async def test_deadline_amid_a_question_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """That the node was heard is still known when the time ends while somebody is asked again."""
    replies = [Reply(1, Outcome.NOT_DONE, 0, b"", "NodeActive", "heard", 0, "")]

    async def ask(*_: object) -> tuple[Reply, object]:
        if not replies:
            await trio.sleep_forever()
        return replies.pop(), None

    monkeypatch.setattr(rejoining, "_ask", ask)
    with pytest.raises(NodeActive, match="node 3"):
        await fetch_founding(local_config(tmp_path), Voter(3, 77), 2.0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ServedCluster]:
    """A cluster that was initialised."""
    yield from make_cluster(tmp_path)


def test_rejoin_at_the_command_line(tmp_path: Path, cluster: ServedCluster) -> None:
    """A node that was killed and whose directory is gone is back with two commands; the status says
    that a voter is lost, and nothing that was acknowledged is."""
    served = {node.id: cluster.serve(node.id) for node in cluster.config.nodes}
    cluster.wait_leader()
    where = ("--config", cluster.path)
    replog("kv", "put", "before", "1", *where)
    cluster.wait(lambda: "node_formed" in cluster.log(3))
    refused = replog("rejoin", *where, "--node", "3", code=2)
    assert "the node is not lost: start it" in refused
    served[3].kill()
    served[3].wait(10)
    directory = cluster.config.node(3).directory
    shutil.rmtree(directory)
    assert "there is no node 4" in replog("rejoin", *where, "--node", "4", code=2)
    missing = tmp_path / "missing"
    words = ("rejoin", *where, "--node", "3")
    assert "there is no file" in replog(*words, "--from-backup", missing, code=2)
    assert not directory.exists()
    document = json.loads(replog(*words, "--json"))
    assert document["made"]
    assert "taken node 3 in as a learner" in replog(*words)
    cluster.serve(3)
    learner = {"node": 3, "incarnation": document["incarnation"]}
    cluster.wait(lambda: is_level(cluster))
    nodes = json.loads(replog("status", *where, "--json"))["nodes"]
    assert [node["voter"] for node in nodes] == [True, True, False]
    assert [node["learners"] for node in nodes] == [[learner]] * 3
    assert replog("kv", "get", "before", *where) == "1\n"


def is_level(cluster: ServedCluster) -> bool:
    """Whether every node has applied as much."""
    nodes = json.loads(replog("status", "--config", cluster.path, "--json"))["nodes"]
    return len({node["applied_index"] for node in nodes}) == 1
