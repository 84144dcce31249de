"""Backups: copied whole or not at all, refused when they are wrong, and what is made from them."""

from __future__ import annotations

import errno
import os
import stat
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

import replog.backup as backups
from replog.backup import (
    find_backup,
    init_from_backup,
    join_restored,
    read_backup,
    restore_backup,
    write_backup,
)
from replog.config import Config, local_config
from replog.errors import (
    BackupError,
    DirectoryError,
    ReplogError,
    SnapshotDamaged,
    SnapshotFailed,
    StorageFailed,
    UnknownFormat,
)
from replog.plugins import engine_names, find_storage
from replog.storage.directory import IDENTITY_NAME, init_directory, open_directory, read_identity
from replog.storage.files import Descriptor, FileLayer, RealFiles
from replog.storage.identity import FOUNDING_VERSION, FoundingRecord
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore, snapshot_name
from replog.testing.files import (
    Crashed,
    ForgetfulFiles,
    Keep,
    KeepEverything,
    KeepNothing,
    KeepSectors,
)
from replog.types import EntryId, SnapshotMeta, Voter

ENGINE = engine_names()[0]
FOUNDING = FoundingRecord(FOUNDING_VERSION, "old", ENGINE, "wal", (Voter(1, 71), Voter(2, 72)))
STATE = bytes(range(256)) * 20


def snapshot(
    directory: Path,
    index: int,
    files: FileLayer | None = None,
    founding: FoundingRecord = FOUNDING,
    sections: Sequence[tuple[str, bool]] = (("machine", True),),
) -> SnapshotInfo:
    """Publish a snapshot in a node's directory."""
    store = SnapshotStore(files or RealFiles(), directory, founding.cluster_id)
    store.recover()
    meta = SnapshotMeta(EntryId(1, 7, index), founding.epoch, 1000 * index, "kv")
    with store.begin(meta) as writer:
        for name, mandatory in sections:
            writer.section(name, mandatory=mandatory)
            writer.write(STATE)
        return writer.publish()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The directory of a node with one snapshot."""
    path = tmp_path / "node"
    init_directory(RealFiles(), path, FOUNDING, 1)
    snapshot(path, 40)
    return path


@pytest.fixture
def backup(node: Path, tmp_path: Path) -> Path:
    """A backup of it."""
    return write_backup(node, tmp_path / "b.backup").info.path


def tree(path: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    return {
        str(at.relative_to(path)): None if at.is_dir() else at.read_bytes()
        for at in sorted(path.rglob("*"))
    }


# --- Writing ------------------------------------------------------------------------------------


def test_backup_is_the_newest_snapshot(node: Path, tmp_path: Path) -> None:
    """A backup has the bytes of the newest snapshot, for nobody else to read, and nothing is left
    beside it."""
    newest = snapshot(node, 50)
    folder = tmp_path / "backups"
    folder.mkdir()
    made = write_backup(node, folder / "b.backup")
    assert (folder / "b.backup").read_bytes() == newest.path.read_bytes()
    assert [at.name for at in folder.iterdir()] == ["b.backup"]
    assert stat.S_IMODE((folder / "b.backup").stat().st_mode) == 0o600
    assert made == read_backup(folder / "b.backup")
    assert (made.cluster_id, made.info.meta.last.index) == ("old", 50)


def test_backup_replaces_no_file(node: Path, tmp_path: Path) -> None:
    """A file that exists is refused, and so is one that another backup is writing."""
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "theirs.tmp").write_text("half")
    before = tree(tmp_path)
    with pytest.raises(BackupError, match="mine exists already, and a backup never replaces"):
        write_backup(node, tmp_path / "mine")
    with pytest.raises(BackupError, match=r"theirs.tmp exists already: another backup"):
        write_backup(node, tmp_path / "theirs")
    assert tree(tmp_path) == before


def test_backup_replaces_no_file_that_appears_meanwhile(node: Path, tmp_path: Path) -> None:
    """A file that somebody else makes while the backup is copied stays."""

    class Racing(RealFiles):
        def sync(self, descriptor: Descriptor) -> None:
            super().sync(descriptor)
            (tmp_path / "b").write_text("precious")

    with pytest.raises(BackupError, match="exists already"):
        write_backup(node, tmp_path / "b", files=Racing())
    assert (tmp_path / "b").read_text() == "precious"
    assert not (tmp_path / "b.tmp").exists()


def test_backup_into_wrong_place_refused(node: Path, tmp_path: Path) -> None:
    """A folder that does not exist, a file for a folder, and the node's directory are refused."""
    (tmp_path / "text").write_text("x")
    for file, sentence in (
        (tmp_path / "none" / "b", "there is no directory"),
        (tmp_path / "text" / "b", "Not a directory"),
        (node / "b", "would stand in the directory of a node"),
    ):
        before = tree(tmp_path)
        with pytest.raises(BackupError, match=sentence):
            write_backup(node, file)
        assert tree(tmp_path) == before


def test_backup_needs_a_snapshot(node: Path, tmp_path: Path) -> None:
    """Without a snapshot, or one that reaches as far as the node's word, there is no backup."""
    with pytest.raises(BackupError, match="holds no snapshot that reaches entry 41"):
        write_backup(node, tmp_path / "b", index_min=41)
    next(node.glob("*.snap")).unlink()
    with pytest.raises(BackupError, match="holds no snapshot, and a backup is a copy of one"):
        write_backup(node, tmp_path / "b")
    with pytest.raises(DirectoryError, match="does not exist"):
        write_backup(tmp_path / "none", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_backup_of_snapshot_that_is_removed_meanwhile(node: Path, tmp_path: Path, nth: int) -> None:
    """When the node removes a snapshot for a newer one at any moment, one of the two is copied
    whole."""

    class Busy(RealFiles):
        opened = 0

        def open_to_read(self, path: Path) -> Descriptor:
            self.opened += 1
            if self.opened == nth:
                older = list(node.glob("*.snap"))
                snapshot(node, 60)
                for at in older:
                    at.unlink()
            return super().open_to_read(path)

    made = write_backup(node, tmp_path / "b", files=Busy())
    assert made.info.meta.last.index == (60 if nth < 4 else 40)
    assert read_backup(tmp_path / "b") == made


def test_backup_of_damaged_snapshot_refused(node: Path, tmp_path: Path) -> None:
    """Damage anywhere in the node's snapshot is said with its name, and no backup is left."""
    (path,) = node.glob("*.snap")
    intact = path.read_bytes()
    for at in (3, 520, 2000, len(intact) - 3):
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 1]) + intact[at + 1 :])
        with pytest.raises(SnapshotDamaged, match=path.name):
            write_backup(node, tmp_path / "b")
        assert [at.name for at in tmp_path.iterdir()] == ["node"]


def test_backup_that_the_disk_alters_refused(node: Path, tmp_path: Path) -> None:
    """A copy that is not what was written is found before it gets its name."""

    class Lying(RealFiles):
        def write(self, descriptor: Descriptor, data: bytes | memoryview, offset: int) -> int:
            return super().write(descriptor, bytes(data[:-1]) + b"?", offset)

    with pytest.raises(StorageFailed, match=r"is not what was copied to it"):
        write_backup(node, tmp_path / "b", files=Lying())
    assert [at.name for at in tmp_path.iterdir()] == ["node"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename", "sync_directory"])
def test_backup_that_fails_leaves_nothing(
    node: Path, tmp_path: Path, operation: str, number: int
) -> None:
    """Whatever operation finds no room, or fails, a sentence says so and nothing is left."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    files = RealFiles()
    setattr(files, operation, fail)
    kind: type[ReplogError] = SnapshotFailed if number == errno.ENOSPC else StorageFailed
    with pytest.raises((kind, BackupError)) as caught:
        write_backup(node, tmp_path / "b", files=files)
    assert os.strerror(number) in str(caught.value)
    assert isinstance(caught.value, kind) or operation == "create"
    assert [at.name for at in tmp_path.iterdir()] == ["node"]


@pytest.mark.parametrize("keep", [KeepNothing(), KeepEverything(), *map(KeepSectors, range(4))])
def test_crash_while_backing_up(keep: KeepNothing | KeepEverything | KeepSectors) -> None:
    """After a crash at any operation, whatever has the backup's name is whole; and what was
    returned survives a power cut."""
    whole = 0
    for number in range(1, 80):
        files = ForgetfulFiles(2000)
        init_directory(files, Path("/node"), FOUNDING, 1)
        snapshot(Path("/node"), 40, files)
        files.make_directory(Path("/b"))
        files.sync_directory(Path("/"))
        last = files.operations_count + number

        def crash(count: int, operation: str, path: Path, last: int = last) -> None:
            if count >= last:
                raise Crashed(operation)

        files.fault = crash
        is_crashed = False
        try:
            write_backup(Path("/node"), Path("/b/b"), files=files)
        except Crashed:
            is_crashed = True
        files.fault = None
        files.crash(keep)
        if "b" in files.names(Path("/b")):
            assert read_backup(Path("/b/b"), files).info.meta.last.index == 40
            whole += 1
        else:
            assert is_crashed, "what was returned is durable"
        if not is_crashed:
            break
    assert number > 15
    assert whole


# --- Reading ------------------------------------------------------------------------------------


def test_wrong_file_refused(backup: Path, tmp_path: Path) -> None:
    """What is no backup is told from a damaged one and from one of a later release, each in one
    sentence that names the file."""
    data = backup.read_bytes()
    later = bytearray(data[:512])
    later[9] = 2
    later[508:] = zlib.crc32(later[:508]).to_bytes(4, "big")
    for content, kind, sentence in (
        (b"", BackupError, "is no backup: it does not begin as one does"),
        (b"just a text, and longer than a header" * 50, BackupError, "is no backup"),
        (data[:100], SnapshotDamaged, "the header is damaged, at offset 0: the backup is damaged"),
        (data[:600], SnapshotDamaged, "the backup is damaged and nothing was made"),
        (data[:-1], SnapshotDamaged, "the backup is damaged and nothing was made"),
        (data + b"x", SnapshotDamaged, "something follows the end mark"),
        (data[:900] + b"x" + data[901:], SnapshotDamaged, "the checksum of a record does not fit"),
        (bytes(later) + data[512:], UnknownFormat, "format version 2; this release knows version"),
    ):
        wrong = tmp_path / "wrong"
        wrong.write_bytes(content)
        with pytest.raises(kind, match=sentence) as caught:
            read_backup(wrong)
        assert str(wrong) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(BackupError, match="there is no file"):
        read_backup(tmp_path / "none")
    with pytest.raises(BackupError, match="Is a directory"):
        read_backup(tmp_path)


def test_backup_of_later_release_refused(node: Path, tmp_path: Path) -> None:
    """A section that must be known and is not is refused before anything is made."""
    snapshot(node, 50, sections=[("machine", True), ("epochs", True)])
    write_backup(node, tmp_path / "b")
    with pytest.raises(UnknownFormat, match="the section 'epochs'"):
        read_backup(tmp_path / "b")


# --- Restoring ----------------------------------------------------------------------------------


def new_config(tmp_path: Path, engine: str = ENGINE, storage: str = "wal") -> Config:
    """A new cluster of three nodes in folders that do not exist."""
    return local_config(
        tmp_path / "new" / "data",
        engine=engine,
        storage=storage,
        cluster_id="new",
        first_port=29_000,
    )


def sections_of(path: Path, cluster_id: str) -> dict[str, tuple[bool, bytes]]:
    """The sections of a snapshot, each with whether it is mandatory."""
    store = SnapshotStore(RealFiles(), path.parent, cluster_id)
    with store.open(store.info(path)) as reader:
        return {
            name: (reader.is_mandatory, b"".join(chunks)) for name, chunks in reader.sections(None)
        }


@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize("storage", ["wal", "sqlite", "memory"])
def test_restore_founds_a_cluster(node: Path, tmp_path: Path, engine: str, storage: str) -> None:
    """Every node of the new cluster begins with the same snapshot: the data of the backup, the
    cluster's own record, and an entry of term 0; its log is empty."""
    made = snapshot(node, 50, sections=[("machine", True), ("notes", False)])
    write_backup(node, tmp_path / "b")
    config = new_config(tmp_path, engine, storage)
    record = tmp_path / "new" / "new.founding"
    restored, directories = restore_backup(tmp_path / "b", config, record)
    assert restored.info.meta == made.meta
    assert [node_id for node_id, _ in directories] == [1, 2, 3]
    contents = set()
    for node_id, path in directories:
        identity = read_identity(RealFiles(), path)
        assert (identity.cluster_id, identity.node_id) == ("new", node_id)
        (first,) = SnapshotStore(RealFiles(), path, "new").list()
        assert first.meta == replace(
            made.meta, last=EntryId(1, 0, 50), epoch=identity.founding.epoch
        )
        assert sections_of(first.path, "new") == {"machine": (True, STATE), "notes": (False, STATE)}
        contents.add(first.path.read_bytes())
        with open_directory(
            path,
            cluster_id="new",
            node_id=node_id,
            engine=engine,
            storage=storage,
            plugin=find_storage(storage),
        ) as opened:
            log = opened.open_storage()
            assert not log.recover().log.runs.last_index
            log.close()
    assert len(contents) == 1, "so any node can send it to any other"


def test_restore_refused(backup: Path, tmp_path: Path) -> None:
    """The same cluster id, another state machine, a record or a directory that exists: each is
    refused with a sentence, and nothing is made."""
    config = new_config(tmp_path)
    record = tmp_path / "new.founding"
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thing").write_text("x")
    (tmp_path / "made.founding").write_text("x")
    used = replace(config.nodes[2], directory=tmp_path / "used")
    for wrong, at, sentence in (
        (replace(config, cluster_id="old"), record, "would take each other's messages for their"),
        (replace(config, state_machine="sqlite-kv"), record, "state machine 'kv', and .* names"),
        (config, tmp_path / "made.founding", "exists already"),
        (replace(config, nodes=(*config.nodes[:2], used)), record, "is not empty"),
    ):
        before = tree(tmp_path)
        with pytest.raises((BackupError, DirectoryError), match=sentence):
            restore_backup(backup, wrong, at)
        assert tree(tmp_path) == before


@pytest.mark.parametrize("step", ["draft_directory", "rewrite_snapshot", "write_founding"])
def test_restore_is_all_or_nothing(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What fails before the first identity is written, at the last node too, leaves nothing, not
    even a folder."""
    real: Callable[..., object] = getattr(backups, step)
    left = [1 if step == "write_founding" else 3]

    def failing(*given: object) -> object:
        left[0] -= 1
        if not left[0] and step == "draft_directory":
            raise SnapshotFailed("no room")
        made = real(*given)
        if not left[0]:
            raise SnapshotFailed("no room")
        return made

    monkeypatch.setattr(backups, step, failing)
    before = tree(tmp_path)
    with pytest.raises(SnapshotFailed):
        restore_backup(backup, new_config(tmp_path), tmp_path / "new.founding")
    assert tree(tmp_path) == before
    monkeypatch.undo()
    restore_backup(backup, new_config(tmp_path), tmp_path / "new.founding")


def test_restore_without_room(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up in the middle of a snapshot is said in one sentence, and leaves
    nothing."""
    real = RealFiles.write
    monkeypatch.setattr("replog.storage.snapshot_format.BLOCK_BYTES_MAX", 1000)

    def write(self: RealFiles, descriptor: Descriptor, data: bytes, offset: int) -> int:
        if data[:8] == b"RPLGSNP\n":
            count.append(1)
        if len(count) == 2 and 512 < offset < 4096:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, descriptor, data, offset)

    count: list[int] = []
    monkeypatch.setattr(RealFiles, "write", write)
    before = tree(tmp_path)
    with pytest.raises(SnapshotFailed, match=r"there is no room for .*node-2.* \(No space") as full:
        restore_backup(backup, new_config(tmp_path), tmp_path / "new.founding")
    assert "the node goes on" not in str(full.value)
    assert tree(tmp_path) == before


def test_restore_that_fails_late_can_be_completed(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When an identity is written and the next one fails, what was made stays, and the sentence
    says how to make the rest."""
    real = backups.DirectoryDraft.finish

    def finish(draft: backups.DirectoryDraft) -> object:
        if draft.identity.node_id == 2:
            raise DirectoryError("the disk is broken")
        return real(draft)

    config, record = new_config(tmp_path), tmp_path / "new.founding"
    monkeypatch.setattr(backups.DirectoryDraft, "finish", finish)
    with pytest.raises(
        DirectoryError, match=r"broken; what was made stays .* of node 1\).*--node ID"
    ):
        restore_backup(backup, config, record)
    monkeypatch.undo()
    for node_id in (2, 3):
        join_restored(backup, config, record, node_id)
    firsts = {next(node.directory.glob("*.snap")).read_bytes() for node in config.nodes}
    assert len(firsts) == 1
    with pytest.raises(DirectoryError, match="is already the directory of node 2"):
        join_restored(backup, config, record, 2)


def test_restore_after_a_killed_one(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a restore leaves that was killed before any identity was written, the next one
    replaces; a plain init refuses it."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    config, record = new_config(tmp_path), tmp_path / "new.founding"
    monkeypatch.setattr(backups, "write_founding", killed)
    monkeypatch.setattr(backups._Restore, "_undo", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        restore_backup(backup, config, record)
    monkeypatch.undo()
    # As if it had been killed in the middle of a snapshot.
    (whole,) = config.nodes[0].directory.glob("*.snap")
    whole.rename(f"{whole}.tmp")
    assert not any((node.directory / IDENTITY_NAME).exists() for node in config.nodes)
    with pytest.raises(DirectoryError, match="is not empty: it holds 'snapshot-"):
        backups.check_foundable(config, record, None)
    restore_backup(backup, config, record)
    assert all((node.directory / IDENTITY_NAME).exists() for node in config.nodes)


def test_restore_and_backup_take_little_memory(tmp_path: Path) -> None:
    """Twenty times as much data as a block are copied, verified and written again in a few MiB."""
    node = tmp_path / "node"
    init_directory(RealFiles(), node, FOUNDING, 1)
    store = SnapshotStore(RealFiles(), node, "old")
    store.recover()
    meta = SnapshotMeta(EntryId(1, 7, 40), FOUNDING.epoch, 5, "kv")
    with store.begin(meta) as writer:
        writer.section("machine", mandatory=True)
        for _ in range(20):
            writer.write(bytes(1 << 20))
        writer.publish()
    config = local_config(tmp_path / "new", nodes=1, cluster_id="new", first_port=29_000)
    tracemalloc.start()
    try:
        write_backup(node, tmp_path / "b")
        restore_backup(tmp_path / "b", config, tmp_path / "new.founding")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 << 20


# --- A node that comes back -----------------------------------------------------------------------


LEARNER = Voter(2, 99)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """Where the directory of the other node is to be, which comes back."""
    return tmp_path / "fresh"


def test_directory_begins_with_a_backup(backup: Path, fresh: Path) -> None:
    """A backup is the first snapshot of a node that comes back, byte for byte, and is found by
    whoever goes on; nobody else may have a second try."""
    name = snapshot_name(EntryId(1, 7, 40))
    info = init_from_backup(backup, fresh, FOUNDING, LEARNER)
    assert info.path == fresh / name
    assert info.path.read_bytes() == backup.read_bytes()
    assert SnapshotStore(RealFiles(), fresh, "old").newest() == info
    assert find_backup(backup, fresh) == info
    assert read_identity(RealFiles(), fresh).incarnation == 99
    with pytest.raises(DirectoryError, match="is already the directory of node 2"):
        init_from_backup(backup, fresh, FOUNDING, LEARNER)


def crash_at(nth: int) -> Callable[[int, str, Path], None]:
    """A fault that ends the program at the ``nth`` operation on the files."""

    def crash(operations: int, operation: str, _: Path) -> None:
        if operations >= nth:
            raise Crashed(operation)

    return crash


@pytest.mark.parametrize("keep", [KeepEverything(), KeepNothing(), KeepSectors(3)])
def test_backup_is_there_before_the_identity(backup: Path, keep: Keep) -> None:
    """After a crash at any operation there is no identity, and the same call makes it again, or
    there is one and the backup is whole."""
    data = backup.read_bytes()
    struck = 0
    for at in count(1):
        files = ForgetfulFiles()
        files.make_directory(Path("/x"))
        descriptor = files.create(Path("/x/b"))
        files.write(descriptor, data, 0)
        files.sync(descriptor)
        files.sync_directory(Path("/x"))
        files.sync_directory(Path("/"))
        files.fault = crash_at(files.operations_count + at)
        try:
            init_from_backup(Path("/x/b"), Path("/n/2"), FOUNDING, LEARNER, files)
        except Crashed:
            struck += 1
        else:
            break
        files.crash(keep)
        files.fault = None
        try:
            read_identity(files, Path("/n/2"))
        except DirectoryError:
            init_from_backup(Path("/x/b"), Path("/n/2"), FOUNDING, LEARNER, files)
        assert find_backup(Path("/x/b"), Path("/n/2"), files).meta.last.index == 40
    assert struck > 20


def test_backup_that_finds_no_room_leaves_nothing(backup: Path, fresh: Path) -> None:
    """What fails before there is an identity is undone."""

    class Full(RealFiles):
        def write(self, descriptor: Descriptor, data: bytes | memoryview, offset: int) -> int:
            if offset:
                return super().write(descriptor, data, offset)
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ReplogError):
        init_from_backup(backup, fresh, FOUNDING, LEARNER, Full())
    assert list(fresh.iterdir()) == []


def test_backup_is_not_added_later(backup: Path, node: Path, fresh: Path) -> None:
    """A directory that was made without this very backup does not get it: its entry may be in
    front of it, and then nobody knows as of which term the backup is."""
    init_directory(RealFiles(), fresh, FOUNDING, 2, incarnation=99)
    with pytest.raises(BackupError, match="no backup is added later"):
        find_backup(backup, fresh)
    snapshot(fresh, 40, sections=[("machine", True), ("notes", False)])
    with pytest.raises(BackupError, match="no backup is added later"):
        find_backup(backup, fresh)


@pytest.mark.parametrize("name", ["machine", "machine-applied", "started", "x.part"])
def test_backup_beside_anything_refused(backup: Path, fresh: Path, name: str) -> None:
    """A directory that holds anything is no place for a node that comes back."""
    fresh.mkdir()
    (fresh / name).write_bytes(b"")
    with pytest.raises(DirectoryError, match=f"it holds '{name}'"):
        init_from_backup(backup, fresh, FOUNDING, LEARNER)
    assert [each.name for each in fresh.iterdir()] == [name]


def test_backup_of_another_cluster_refused(backup: Path, fresh: Path) -> None:
    """A backup of another cluster, or of one of the same id with another record, is refused, and
    nothing is made."""
    for founding, sentence in (
        (replace(FOUNDING, cluster_id="other"), "belongs to cluster 'other'"),
        (replace(FOUNDING, voters=(Voter(1, 71), Voter(2, 99))), "with another founding record"),
    ):
        with pytest.raises(BackupError, match=sentence):
            init_from_backup(backup, fresh, founding, Voter(2, 98))
        assert not fresh.exists()
