"""Backups and restores at real nodes, each a process of its own on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli_real import ServedCluster, make_cluster, replog

from replog.config import Config, local_config
from replog.config_text import config_toml
from replog.plugins import engine_names

pytestmark = pytest.mark.net

ENGINES = engine_names()


def restored(folder: Path, config: Config, backup: Path) -> ServedCluster:
    """A new cluster that was made from a backup and runs."""
    path = folder / "new.toml"
    path.write_text(config_toml(config))
    document = json.loads(replog("restore", backup, "--config", path, "--json"))
    assert [made["node"] for made in document["made"]] == [node.id for node in config.nodes]
    cluster = ServedCluster(config, path)
    for node in config.nodes:
        cluster.serve(node.id)
    cluster.wait_leader()
    return cluster


# The other way round is no other code here: a snapshot does not know its engine.
@pytest.mark.parametrize(("engine", "new_engine"), [(ENGINES[0], ENGINES[-1])])
def test_backup_becomes_a_new_cluster(tmp_path: Path, engine: str, new_engine: str) -> None:
    """What three nodes acknowledged is in the backup of any of them, taken while they go on; the
    cluster that is made from it, of the other engine, holds all of it, takes writes, counts on
    behind it, and holds everything again after a restart."""
    for cluster in make_cluster(tmp_path, local_config(tmp_path / "data", engine=engine)):
        for node in cluster.config.nodes:
            cluster.serve(node.id)
        cluster.wait_leader()
        for number in range(2):
            replog("kv", "put", f"key-{number}", f"value-{number}", "--config", cluster.path)
        document = json.loads(replog("snapshot", "take", "--config", cluster.path, "--json"))
        taken = [each["snapshot"] for each in document["snapshots"]]
        assert len({snapshot["machine"] for snapshot in taken}) == 1
        status = json.loads(replog("status", "--config", cluster.path, "--json"))
        leader = str(status["leader"])
        for node, snapshot in zip(status["nodes"], taken, strict=True):
            assert node["snapshot_index"] == snapshot["index"]
            assert node["snapshot_problem"] is None
        replog("kv", "put", "last", "before the backup", "--config", cluster.path)
        backup = tmp_path / "b.backup"
        words = ("backup", "--config", cluster.path, "--node", leader)
        made = json.loads(replog(*words, backup, "--json"))
        assert made["running"]
        assert "exists already" in replog(*words, backup, code=2)
        replog("kv", "put", "last", "after the backup", "--config", cluster.path)
        assert "give it another one" in replog("restore", backup, "--config", cluster.path, code=2)

    config = local_config(tmp_path / "new", engine=new_engine, cluster_id="new")
    new = restored(tmp_path, config, backup)
    try:
        where = ("--config", new.path)
        assert replog("kv", "get", "last", *where) == "before the backup\n"
        put = json.loads(replog("kv", "put", "first", "new", "--json", *where))
        assert put["index"] > made["index"]
        new.stop()
        for node in config.nodes:
            new.serve(node.id)
        new.wait_leader()
        items = json.loads(replog("kv", "range", "--json", *where))["items"]
        assert {item["key"]: item["value"] for item in items} == {
            "first": "new",
            "last": "before the backup",
            **{f"key-{number}": f"value-{number}" for number in range(2)},
        }
    finally:
        new.stop()


def test_backup_of_a_node_that_does_not_run(tmp_path: Path) -> None:
    """A node that does not run has its newest snapshot backed up, which is said; at a node that
    never took one, and in another process's place, there is a sentence."""
    for cluster in make_cluster(tmp_path, local_config(tmp_path / "data", nodes=1)):
        words = ("backup", "--config", cluster.path, "--node", "1")
        assert "holds no snapshot" in replog(*words, tmp_path / "none", code=2)
        take = ("snapshot", "take", "--config", cluster.path)
        assert "node 1 (127.0.0.1:" in replog(*take, code=1)
        cluster.serve(1)
        cluster.wait_leader()
        replog("kv", "put", "key", "value", "--config", cluster.path)
        address = str(cluster.config.nodes[0].client)
        assert "kv" in replog("snapshot", "take", "--connect", address, "--node", "1")
        assert "has no node 2" in replog(
            "snapshot", "take", "--connect", address, "--node", "2", code=2
        )
        assert "there is no node 2" in replog(*take, "--node", "2", code=2)
        cluster.stop()
        made = json.loads(replog(*words, tmp_path / "b", "--json"))
        assert made["running"] is False
        assert made["machine"] == "kv"
