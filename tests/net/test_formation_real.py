"""The rule of formation with real nodes: a cluster takes up its work when all have met, and what is
made anew from the old founding record stays out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from test_cli_real import ServedCluster, make_cluster, replog

from replog import node as node_module
from replog.config import local_config
from replog.errors import DirectoryError, Unavailable
from replog.founding import founding_path
from replog.running import open_node
from replog.storage.met import FILE_NAME
from replog.transport import tcp
from replog.types import Role
from replog_kv import Kv

from running import leader_of, running_cluster, until

pytestmark = pytest.mark.net


async def test_waits_for_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three nodes do nothing before the third was there once, and say whom they wait for;
    then all are formed within a moment."""
    monkeypatch.setattr(node_module, "WAITING_SECONDS_MIN", 0.05)
    # Whoever is called calls back at once, or nobody would for a minute.
    monkeypatch.setattr(tcp, "_BACKOFF_SECONDS_MIN", 120.0)
    monkeypatch.setattr(tcp, "_BACKOFF_SECONDS_MAX", 120.0)
    config = local_config(tmp_path, nodes=3)
    with capture_logs() as logged, trio.fail_after(20):
        async with (
            open_node(config, 1, bootstrap=True) as one,
            open_node(config, 2) as two,
        ):
            await until(lambda: one.waits_for == (3,) and two.waits_for == (3,))
            with pytest.raises(Unavailable, match="has not heard from node 3"):
                await one.call(Kv.put, "key", b"value")
            with pytest.raises(Unavailable, match="has not heard from node 3"):
                one.campaign()
            with pytest.raises(Unavailable, match="has not heard from node 3"):
                one.transfer(2)
            await trio.sleep(0.5)  # longer than any election takes
            assert [each.status().term for each in (one, two)] == [0, 0]
            began = trio.current_time()
            async with open_node(config, 3) as three:
                for each in (one, two, three):
                    await each.wait_formed()
                assert trio.current_time() - began < 2
                nodes = {each.node_id: each for each in (one, two, three)}
                leader = await leader_of(nodes)
                await leader.call(Kv.put, "key", b"value")
    events = [line["event"] for line in logged]
    assert events.count("node_formed") == 3
    waiting = [line for line in logged if line["event"] == "waiting_for"]
    assert {line["node"] for line in waiting} >= {1, 2}
    assert [3] in [line["nodes"] for line in waiting]


async def test_formed_once_formed_for_ever(tmp_path: Path) -> None:
    """Nodes that have met work at once after a restart, though one of them is gone."""
    config = local_config(tmp_path, nodes=3)
    async with running_cluster(tmp_path, config=config) as nodes:
        await (await leader_of(nodes)).call(Kv.put, "key", b"value")
        assert all(node.waits_for == () for node in nodes.values())
    with capture_logs() as logged, trio.fail_after(20):
        async with open_node(config, 1) as one, open_node(config, 2) as two:
            assert one.waits_for == two.waits_for == ()
            leader = await leader_of({1: one, 2: two})
            await leader.call(Kv.put, "key", b"other")
    assert "node_formed" not in [line["event"] for line in logged]


async def test_lost_record_is_formed_again(tmp_path: Path) -> None:
    """A node whose record of meetings was lost, and whose directory was not, forms again."""
    config = local_config(tmp_path, nodes=3)
    async with running_cluster(tmp_path, config=config) as nodes:
        await leader_of(nodes)
        for node in nodes.values():
            await node.wait_formed()
    (config.node(2).directory / FILE_NAME).unlink()
    with capture_logs() as logged:
        async with running_cluster(tmp_path, config=config) as nodes:
            await nodes[2].wait_formed()
            await leader_of(nodes)
    assert [line["node"] for line in logged if line["event"] == "node_formed"] == [2]


async def test_damaged_record_is_refused(tmp_path: Path) -> None:
    """A node whose record of meetings is damaged does not start, and says which file it is."""
    config = local_config(tmp_path, nodes=3)
    async with running_cluster(tmp_path, config=config) as nodes:
        for node in nodes.values():
            await node.wait_formed()
    record = config.node(2).directory / FILE_NAME
    record.write_bytes(record.read_bytes().replace(b"known_by", b"known_bi"))
    with pytest.raises(DirectoryError, match=r"met was edited or is damaged"):
        async with open_node(config, 2):
            raise AssertionError("it must not start")


async def test_one_node_needs_nobody(tmp_path: Path) -> None:
    """A cluster of one is formed from the start, and keeps no record of meetings."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        assert nodes[1].waits_for == ()
        await nodes[1].wait_formed()
        await until(lambda: nodes[1].status().role is Role.LEADER)
        assert not (nodes[1].config.node(1).directory / FILE_NAME).exists()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedCluster]:
    """Three nodes, each a process."""
    for made in make_cluster(tmp_path):
        for node in made.config.nodes:
            made.serve(node.id)
        made.wait_leader()
        yield made


def test_wiped_node_stays_out(served: ServedCluster) -> None:
    """A node that is wiped and made anew from the founding record is refused with a sentence, and
    waits, as its status shows; the other two go on, and nothing acknowledged is lost."""
    where = ("--config", served.path)
    replog("kv", "put", "before", "1", *where)
    process = served._served[2]
    process.kill()
    process.wait(10)
    assert "node_formed" in served.log(3)
    directory = served.config.node(3).directory
    shutil.rmtree(directory)
    record = founding_path(served.config, served.path)
    replog("init", *where, "--founding", record, "--node", "3")
    process = served.serve(3)
    sentence = "node 3's directory was made anew: it has forgotten what it voted"
    served.wait(lambda: served.log(3).count(sentence) >= 2)  # by each of the others
    served.wait(lambda: sentence in served.log(1) and sentence in served.log(2))
    served.wait_leader()
    replog("kv", "put", "after", "2", *where)
    assert replog("kv", "get", "before", *where) == "1\n"
    nodes = json.loads(replog("status", *where, "--json"))["nodes"]
    assert [node["waits_for"] for node in nodes] == [[], [], [1, 2]]
    assert nodes[2]["applied_index"] == 0
    assert "forming" in replog("status", *where).splitlines()[4]
    assert process.poll() is None
