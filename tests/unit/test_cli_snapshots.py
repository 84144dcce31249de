"""``replog snapshot``, ``backup`` and ``restore`` without a cluster, and what ``status`` shows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from test_backup import tree
from test_cli import complaint, documented

from replog.cli import asking, main
from replog.cli.asking import ClusterAnswer, NodeAnswer
from replog.config import Config, load_config, local_config
from replog.config_text import config_toml
from replog.errors import SnapshotUnavailable
from replog.founding import found_cluster, founding_path
from replog.node import Node
from replog.server import snapshot_map, status_map
from replog.snapshots import SnapshotsPicture
from replog.storage.directory import read_identity
from replog.storage.files import RealFiles
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore
from replog.transfer_outlet import Arriving, Leaving, TransferPicture
from replog.types import EntryId, Role, SnapshotMeta, Status


def written(path: Path, cluster_id: str) -> Config:
    """A configuration file of one node on which nobody listens."""
    config = local_config(
        path.parent / path.stem, nodes=1, cluster_id=cluster_id, first_port=29_100
    )
    path.write_text(config_toml(config))
    return load_config(path)


def snapshot(directory: Path, index: int) -> SnapshotInfo:
    """Publish a snapshot in a node's directory."""
    founding = read_identity(RealFiles(), directory).founding
    store = SnapshotStore(RealFiles(), directory, founding.cluster_id)
    store.recover()
    meta = SnapshotMeta(EntryId(1, 2, index), founding.epoch, 5000, "kv")
    with store.begin(meta) as writer:
        writer.section("machine", mandatory=True)
        writer.write(bytes(3000))
        return writer.publish()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The configuration of a cluster of one node, which has a snapshot and does not run."""
    path = tmp_path / "old.toml"
    config = written(path, "old")
    found_cluster(config, founding_path(config, path))
    snapshot(config.nodes[0].directory, 40)
    return path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The configuration of a cluster that does not exist yet."""
    written(tmp_path / "new.toml", "new")
    return tmp_path / "new.toml"


def test_snapshot_list(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The snapshots of a node are listed, by its directory or by the configuration; nothing is
    changed."""
    directory = load_config(old).nodes[0].directory
    infos = [SnapshotStore(RealFiles(), directory, "old").list()[0], snapshot(directory, 50)]
    before = tree(old.parent)
    assert main(["snapshot", "list", str(directory)]) == 0
    assert "  40   3" in (text := capsys.readouterr().out)
    assert text.count("intact") == 2
    assert main(["snapshot", "list", "--config", str(old), "--node", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == documented("replog snapshot list")
    assert document["snapshots"] == [{**snapshot_map(info), "damage": None} for info in infos]
    assert tree(old.parent) == before


def test_snapshot_list_damaged(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first damage of each snapshot is said, and the others are listed as what they are."""
    directory = load_config(old).nodes[0].directory
    for index, at in ((50, 900), (60, 5)):
        path = snapshot(directory, index).path
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
    assert main(["snapshot", "list", str(directory), "--json"]) == 1
    captured = capsys.readouterr()
    first, second, third = json.loads(captured.out)["snapshots"]
    assert first["damage"] is None
    assert (second["index"], second["machine"]) == (50, "kv")
    assert "the checksum of a record does not fit" in second["damage"]
    assert (third["index"], third["bytes"]) == (None, None)
    assert "the header is damaged" in third["damage"]
    assert captured.err.count("replog: ") == 2
    assert main(["snapshot", "list", str(directory)]) == 1
    assert capsys.readouterr().out.count("DAMAGED") == 2


def test_snapshot_list_refused(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No directory, two, one that is nobody's, and a node that is not named are bad input."""
    listed = ("snapshot", "list")
    assert "no directory is named" in complaint(capsys, *listed)
    assert "no directory is named" in complaint(capsys, *listed, "x", "--node", "1")
    assert "two directories" in complaint(capsys, *listed, "x", "--config", old)
    assert "with --node ID" in complaint(capsys, *listed, "--config", old)
    assert "there is no node 7" in complaint(capsys, *listed, "--config", old, "--node", "7")
    assert "never initialised" in complaint(capsys, *listed, tmp_path)


def test_snapshot_list_empty(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A node without a snapshot is no fault."""
    directory = load_config(old).nodes[0].directory
    next(directory.glob("*.snap")).unlink()
    assert main(["snapshot", "list", str(directory)]) == 0
    assert "holds no snapshot" in capsys.readouterr().out


def test_snapshot_take_json(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a node took, and that one refused, is told with the documented keys; a refusal is exit
    code 1."""
    info = SnapshotStore(RealFiles(), load_config(old).nodes[0].directory, "old").list()[0]
    refusal = SnapshotUnavailable("it offers none")

    async def ask(address: str, seconds: float, cluster_id: str, node_id: int) -> NodeAnswer:
        return answers.pop()

    monkeypatch.setattr(asking, "ask_snapshot", ask)
    answers = [NodeAnswer("a", 1, snapshot_map(info), None, None)]
    assert main(["snapshot", "take", "--config", str(old), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (taken,) = document["snapshots"]
    assert {*document, *taken, *taken["snapshot"]} <= documented("replog snapshot take") | {
        "snapshots", *snapshot_map(info)
    }  # fmt: skip
    assert {"node", "address", "problem", "snapshot"} == documented("replog snapshot take")
    answers = [NodeAnswer("a", 1, None, str(refusal), None, refusal)]
    said = complaint(capsys, "snapshot", "take", "--config", old, code=1)
    assert said == "replog: node 1 (a) took no snapshot: it offers none\n"


def test_backup_and_restore_json(
    old: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backup of a node that does not run, and what is made from it, print the documented keys."""
    file = str(tmp_path / "b.backup")
    assert main(["backup", "--config", str(old), "--node", "1", file, "--json"]) == 0
    captured = capsys.readouterr()
    assert "node 1 does not run, as it seems" in captured.err
    document = json.loads(captured.out)
    assert set(document) == documented("replog backup")
    assert (document["index"], document["backup_of"], document["running"]) == (40, "old", False)
    assert main(["restore", file, "--config", str(new), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {*document, "node", "directory"} == documented("replog restore") | {"node", "directory"}
    assert Path(document["founding"]).exists()
    assert (document["cluster_id"], document["backup_of"]) == ("new", "old")


def test_restore_on_several_machines(
    old: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One node is restored with the record, another from the record; both say what they made."""
    file = tmp_path / "b.backup"
    assert main(["backup", "--config", str(old), "--node", "1", str(file)]) == 0
    config = local_config(tmp_path / "new", nodes=2, cluster_id="new", first_port=29_200)
    new.write_text(config_toml(config))
    assert main(["restore", str(file), "--config", str(new), "--node", "1"]) == 0
    assert "made the directory of node 1" in capsys.readouterr().out
    assert not config.nodes[1].directory.exists()
    record = tmp_path / "new.founding"
    words = ("restore", file, "--config", new, "--founding", record)
    assert "--founding needs --node" in complaint(capsys, *words)
    assert "exists already" in complaint(capsys, *words[:4], "--node", "2")
    assert main([*map(str, words), "--node", "2"]) == 0
    assert "made the directory of node 2" in capsys.readouterr().out
    firsts = {next(node.directory.glob("*.snap")).read_bytes() for node in config.nodes}
    assert len(firsts) == 1


@pytest.mark.parametrize(
    ("content", "code", "sentence"),
    [
        (None, 2, "there is no file"),
        (b"a text\n", 2, "is no backup: it does not begin as one does"),
        (b"RPLGSNP\n and no more", 1, "the backup is damaged and nothing was made from it"),
    ],
    ids=["missing", "text", "damaged"],
)
def test_restore_of_wrong_file_refused(
    new: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    code: int,
    sentence: str,
) -> None:
    """What is no backup is bad input, and a damaged one is exit code 1; nothing is made."""
    file = tmp_path / "b.backup"
    if content is not None:
        file.write_bytes(content)
    before = tree(tmp_path)
    said = complaint(capsys, "restore", file, "--config", new, code=code)
    assert sentence in said
    assert said.count("\n") == 1
    assert tree(tmp_path) == before


def test_backup_refused(
    old: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that exists, a directory of another cluster, and a node that is not there are refused
    before any node is asked."""
    words = ("backup", "--config", old, "--node")
    assert "exists already" in complaint(capsys, *words, "1", old)
    assert "there is no directory" in complaint(capsys, *words, "1", tmp_path / "x" / "b")
    assert "there is no node 2" in complaint(capsys, *words, "2", tmp_path / "b")
    config = load_config(old)
    other = local_config(tmp_path / "old", nodes=1, cluster_id="other", first_port=29_100)
    assert other.nodes[0].directory == config.nodes[0].directory
    new.write_text(config_toml(other))
    said = complaint(capsys, "backup", "--config", new, "--node", "1", tmp_path / "b")
    assert "belongs to node 1 of cluster 'old', not to node 1 of cluster 'other'" in said


def test_status_shows_snapshots(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base, the newest snapshot, those on their way and what is wrong with them are shown."""
    status = Status(1, "fake", Role.FOLLOWER, 2, 1, 7, 90, 90, 90, 90, (), base_index=61)
    picture = SnapshotsPicture(
        80,
        "there is no room",
        TransferPicture(Arriving(95, 1000, 4000, 2), (Leaving(3, 80, 10, 20),), 0, 0, ""),
    )
    node = SimpleNamespace(
        status=lambda: status,
        snapshots=lambda: picture,
        is_durable=True,
        is_disk_full=False,
        waits_for=(),
        differences={},
        is_voter=True,
        learners=(),
    )
    told = status_map(cast(Node, node))
    answer = NodeAnswer("127.0.0.1:1", 1, told, None, None)

    async def ask_cluster(addresses: object, seconds: float) -> ClusterAnswer:
        return ClusterAnswer("a", 2, [answer])

    monkeypatch.setattr(asking, "ask_cluster", ask_cluster)
    assert main(["status", "--connect", "127.0.0.1:1"]) == 0
    captured = capsys.readouterr()
    assert "BASE  SNAPSHOT  DURABLE" in captured.out
    assert "61        80  yes" in captured.out
    assert (
        "node 1 fetches the snapshot of entry 95: 1000 of 4000 bytes from node 2\n"
        "node 1 sends the snapshot of entry 80: 10 of 20 bytes to node 3\n"
    ) in captured.out
    assert "node 1 (127.0.0.1:1) has a problem with its snapshots: there is no room" in captured.err
    assert main(["status", "--connect", "127.0.0.1:1", "--json"]) == 0
    (node,) = json.loads(capsys.readouterr().out)["nodes"]
    assert node["snapshot_arriving"] == {
        "index": 95, "bytes": 1000, "size_bytes": 4000, "source": 2
    }  # fmt: skip
    assert node["snapshots_leaving"] == [{"node": 3, "index": 80, "bytes": 10, "size_bytes": 20}]
    assert (node["base_index"], node["snapshot_index"]) == (61, 80)
    assert node["snapshot_problem"] == "there is no room"
