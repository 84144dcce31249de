"""``replog inspect`` tells healthy, empty and damaged directories apart, and changes nothing."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from replog.cli import main
from replog.storage.directory import init_directory
from replog.storage.files import RealFiles
from replog.storage.hard_state import FILE_NAME as SECOND_COPY_NAME
from replog.storage.identity import FOUNDING_VERSION, FoundingRecord
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.segment import segment_name
from replog.storage.snapshots import SnapshotStore
from replog.storage.wal import Wal
from replog.types import (
    Entry,
    EntryId,
    EntryKind,
    Epoch,
    HardState,
    SnapshotMeta,
    Voter,
    entry_body,
)

VOTERS = (Voter(1, 71),)


def founded(path: Path, storage: str = "wal") -> StorageHome:
    """The directory of a node that was never started."""
    record = FoundingRecord(FOUNDING_VERSION, "demo", "raft", storage, VOTERS)
    init_directory(RealFiles(), path, record, 1)
    return StorageHome(RealFiles(), path, "demo", 1, 71)


def filled(path: Path, count: int = 40) -> StorageHome:
    """A directory whose log has several segments."""
    home = founded(path)
    wal = Wal(home, segment_bytes=4096, extend_bytes=4096, reserve_bytes=512)
    wal.recover()
    wal.persist(wal.encode([Write(HardState(1, 3, 1), None, ())]))
    for index in range(1, count + 1):
        body = entry_body(EntryKind.COMMAND, 1, 3, index, bytes(100))
        wal.persist(wal.encode([Write(None, None, [Entry(1, index, 3, body)])]))
    wal.close()
    return home


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    """The exit code and the document."""
    code = main(["inspect", str(path), "--json"])
    return code, json.loads(capsys.readouterr().out)


def picture(path: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and the time of its last change."""
    return {each.name: (each.read_bytes(), each.stat().st_mtime_ns) for each in path.iterdir()}


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Damage a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def end_of(path: Path) -> int:
    """Behind the last byte that is not zero."""
    return len(path.read_bytes().rstrip(b"\0"))


def test_healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that a log holds is counted, and nothing in the directory changes."""
    filled(tmp_path)
    before = picture(tmp_path)
    code, document = inspected(tmp_path, capsys)
    assert (code, document["state"], document["damage"]) == (0, "healthy", [])
    assert (document["cluster_id"], document["node_id"], document["engine"]) == ("demo", 1, "raft")
    assert document["entries"] == 40
    assert document["last_runs"] == [{"first": 1, "last": 40, "epoch": 1, "term": 3}]
    assert document["hard_state"] == {"epoch": 1, "term": 3, "voted_for": 1, "commit_hint": 0}
    segments = document["segments"]
    assert isinstance(segments, list)
    assert len(segments) > 1
    assert document["second_copy"] == {
        "epoch": 1,
        "term": 3,
        "voted_for": 1,
        "segment": len(segments),
        "oldest_segment": 1,
    }
    assert sum(segment["records"].get("put", 0) for segment in segments) == 40
    assert segments[0]["records"]["hard_state"] == 2
    assert [segment["first_sequence"] for segment in segments[1:]] == [
        segment["last_sequence"] + 1 for segment in segments[:-1]
    ]
    assert picture(tmp_path) == before


def test_opens_nothing_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is opened to be read alone, so a running node has nothing to fear."""
    filled(tmp_path)
    flags: list[int] = []
    right = os.open

    def watched(path: str, flag: int, *more: int) -> int:
        flags.append(flag)
        return right(path, flag, *more)

    monkeypatch.setattr(os, "open", watched)
    assert main(["inspect", str(tmp_path)]) == 0
    assert not any(flag & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) for flag in flags)


def test_table_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """People get the verdict first, then the hard state, the segments and the runs."""
    filled(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}: node 1 of cluster demo, engine raft: healthy"
    assert lines[1].startswith("hard state: epoch 1, term 3, voted for 1")
    assert lines[3] == "log: 40 entries in 1 runs, behind entry 0"
    assert any(line.startswith(segment_name(2)) for line in lines)


def test_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory that was founded and never written is empty, which is no damage."""
    founded(tmp_path)
    code, document = inspected(tmp_path, capsys)
    assert (code, document["state"], document["entries"]) == (0, "empty", 0)


def test_torn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A torn end that nobody acknowledged is shown, and is no damage; it is still there after."""
    filled(tmp_path)
    last = max(tmp_path.glob("*.seg"))
    write_at(last, end_of(last), b"RGRP\0\0")
    before = picture(tmp_path)
    code, document = inspected(tmp_path, capsys)
    assert (code, document["state"]) == (0, "healthy")
    segments = document["segments"]
    assert isinstance(segments, list)
    assert [segment["torn_bytes"] for segment in segments] == [0] * (len(segments) - 1) + [4]
    assert picture(tmp_path) == before


def test_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first damage is named with file and offset; what stands before it is shown."""
    filled(tmp_path)
    write_at(tmp_path / segment_name(2), 1000, b"\xff")
    code, document = inspected(tmp_path, capsys)
    assert (code, document["state"]) == (1, "damaged")
    (sentence,) = document["damage"]  # type: ignore[misc]
    assert f"{segment_name(2)}: group " in sentence
    assert " at offset " in sentence
    segments = document["segments"]
    assert isinstance(segments, list)
    assert [segment["file"] for segment in segments] == [segment_name(1)]
    assert main(["inspect", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "damaged" in shown.out.splitlines()[0]
    assert sentence in shown.err


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (segment_name(1), "nothing says that a snapshot stands for them"),
        (segment_name(2), f"{segment_name(2)} is missing"),
        (SECOND_COPY_NAME, f"{SECOND_COPY_NAME} is missing"),
    ],
)
def test_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, sentence: str
) -> None:
    """A file that is gone is damage, and the sentence says which."""
    filled(tmp_path)
    (tmp_path / name).unlink()
    code, document = inspected(tmp_path, capsys)
    assert (code, document["state"]) == (1, "damaged")
    (found,) = document["damage"]  # type: ignore[misc]
    assert sentence in found


def test_snapshots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Snapshots are listed and read to their ends; a base that none of them reaches is damage."""
    home = filled(tmp_path)
    epoch = Epoch(1, "raft", VOTERS, 1)
    store = SnapshotStore(home.files, home.path, home.cluster_id)
    store.recover()
    with store.begin(SnapshotMeta(EntryId(1, 3, 30), epoch, 5, "kv")) as writer:
        writer.section("machine", mandatory=True)
        writer.write(bytes(5000))
        info = writer.publish()
    wal = Wal(home, segment_bytes=4096, extend_bytes=4096, reserve_bytes=512)
    wal.recover()
    wal.persist(wal.encode([Write(None, None, (), EntryId(1, 3, 20))]))
    wal.close()
    code, document = inspected(tmp_path, capsys)
    assert (code, document["state"], document["base"]) == (0, "healthy", {"index": 20, "term": 3})
    (snapshot,) = document["snapshots"]  # type: ignore[misc]
    assert snapshot == {
        "file": info.path.name,
        "bytes": info.size_bytes,
        "index": 30,
        "term": 3,
        "machine": "kv",
        "checksum": f"{info.checksum:08x}",
    }
    write_at(info.path, 2000, b"\xff")
    code, document = inspected(tmp_path, capsys)
    assert code == 1
    assert info.path.name in str(document["damage"])
    info.path.unlink()
    code, document = inspected(tmp_path, capsys)
    assert code == 1
    assert "begins behind entry 20, and no snapshot reaches further than 0" in str(
        document["damage"]
    )


def test_not_a_directory_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing directory, a stranger's, and another storage's end with a sentence and code 2."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    founded(tmp_path / "memory", "memory")
    for name, sentence in (
        ("none", "does not exist"),
        ("other", "holds 'notes.txt' but no identity"),
        ("memory", "was made for storage 'memory'"),
    ):
        assert main(["inspect", str(tmp_path / name)]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory that nobody may write in can be inspected."""
    filled(tmp_path)
    for file in tmp_path.iterdir():
        file.chmod(stat.S_IRUSR)
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert inspected(tmp_path, capsys)[0] == 0
    finally:
        tmp_path.chmod(stat.S_IRWXU)
