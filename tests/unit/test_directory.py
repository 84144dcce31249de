"""A node's directory: how it is made, and everything for which it is refused."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import zlib
from copy import deepcopy
from pathlib import Path

import pytest

from replog.errors import DirectoryError, LogDamaged, PluginError, UnknownFormat
from replog.storage.directory import (
    IDENTITY_NAME,
    LOCK_NAME,
    STORAGES,
    init_directory,
    open_directory,
)
from replog.storage.files import RealFiles
from replog.storage.hard_state import FILE_NAME as SECOND_COPY_NAME
from replog.storage.identity import (
    FoundingRecord,
    new_founding,
    read_founding,
    unpack_identity,
    write_founding,
)
from replog.storage.protocol import Write
from replog.storage.segment import segment_name
from replog.stored_log import all_entries
from replog.testing.files import (
    Crashed,
    ForgetfulFiles,
    KeepEverything,
    KeepNothing,
    KeepSectors,
)
from replog.types import HardState, Voter

NODE = Path("/data/node")
FOUNDING = FoundingRecord(1, "demo", "raft", "wal", (Voter(1, 71), Voter(2, 72), Voter(3, 73)))
IN_MEMORY = FoundingRecord(1, "demo", "raft", "memory", (Voter(1, 71),))
RIGHT = {"cluster_id": "demo", "node_id": 1, "engine": "raft", "storage": "wal"}


def initialised(founding=FOUNDING):
    files = ForgetfulFiles()
    init_directory(files, NODE, founding, 1)
    return files


def opened(files, path=NODE, **changed):
    return open_directory(path, **{**RIGHT, **changed}, files=files)


def refused(files, path=NODE, **changed):
    with pytest.raises(DirectoryError) as caught:
        opened(files, path, **changed)
    sentence = str(caught.value)
    assert str(path) in sentence
    return sentence


def init_refused(files, path=NODE, founding=FOUNDING, node_id=1):
    with pytest.raises(DirectoryError) as caught:
        init_directory(files, path, founding, node_id)
    return str(caught.value)


# Made


@pytest.mark.parametrize("keep", [KeepNothing(), *map(KeepSectors, range(5))], ids=str)
def test_init_durable(keep):
    """When init has returned, the directory survives the loss of everything unsynced."""
    files = initialised()
    files.crash(keep)
    with opened(files) as directory:
        assert directory.identity.founding == FOUNDING
        assert directory.identity.incarnation == 71
        recovered = directory.open_storage().recover()
    assert recovered.hard_state is None
    assert all_entries(recovered.log) == ()


def test_init_durable_unsynced():
    """The same check fails on a disk that syncs no directory: it does see what is not synced."""

    class UnsyncingFiles(ForgetfulFiles):
        def sync_directory(self, path):
            pass

    files = UnsyncingFiles()
    init_directory(files, NODE, FOUNDING, 1)
    files.crash(KeepNothing())
    assert "does not exist" in refused(files)


KEEPS = [KeepNothing(), KeepEverything(), *map(KeepSectors, range(12))]


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_init_crashed(keep):
    """After a crash at any operation the directory is whole or uninitialised, and init mends it."""
    counting = ForgetfulFiles()
    init_directory(counting, NODE, FOUNDING, 1)
    for operation_number in range(1, counting.operations_count + 1):
        files = ForgetfulFiles()

        def fault(number, name, path, last=operation_number):
            if number >= last:
                raise Crashed

        files.fault = fault
        with pytest.raises(Crashed):
            init_directory(files, NODE, FOUNDING, 1)
        files.crash(keep)
        try:
            opened(files).close()
        except DirectoryError as error:
            assert "does not exist" in str(error) or "never initialised" in str(error)  # noqa: PT017
            init_directory(files, NODE, FOUNDING, 1)
        files.crash(KeepNothing())
        with opened(files) as directory:
            assert all_entries(directory.open_storage().recover().log) == ()


def test_init_real_disk(tmp_path):
    """On the real disk what init makes is 0700, its files 0600; a wider mode is tightened."""
    made, existing = tmp_path / "a" / "b", tmp_path / "c"
    existing.mkdir(mode=0o755)
    for path in (made, existing):
        identity = init_directory(RealFiles(), path, FOUNDING, 2)
        assert (identity.node_id, identity.incarnation) == (2, 72)
        assert path.stat().st_mode & 0o777 == 0o700
        assert sorted(os.listdir(path)) == [
            SECOND_COPY_NAME,
            IDENTITY_NAME,
            LOCK_NAME,
            segment_name(1),
        ]
        assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}
        opened(None, path, node_id=2).close()
    assert made.parent.stat().st_mode & 0o777 == 0o700


# Init refused


def test_init_twice():
    """A directory that is a node's already is refused, and the sentence says whose it is."""
    files = initialised()
    assert "already the directory of node 1 of cluster 'demo'" in init_refused(files)
    assert "already the directory" in init_refused(files, founding=IN_MEMORY)
    opened(files).close()


def test_init_foreign_file(tmp_path):
    """A directory with anything foreign in it is refused by the file's name, and left alone."""
    (tmp_path / "notes.txt").write_text("mine")
    assert "it holds 'notes.txt'" in init_refused(RealFiles(), tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_init_used_log():
    """A log that was written to is never replaced, even where the identity is gone."""
    files = initialised()
    with opened(files) as directory:
        storage = directory.open_storage()
        storage.recover()
        storage.persist(storage.encode([Write(HardState(1, 1, 1), None, [])]))
    files.remove(NODE / IDENTITY_NAME)
    assert "would forget what it voted" in init_refused(files)
    assert "holds 'hard-state' but no identity" in refused(files)


def test_init_no_voter():
    """A node that the founding record does not name cannot be founded."""
    assert "names 1, 2, 3" in init_refused(ForgetfulFiles(), node_id=4)


def test_init_in_a_file(tmp_path):
    """A path on which no directory can be made is refused with the system's reason."""
    (tmp_path / "file").write_text("")
    sentence = init_refused(RealFiles(), tmp_path / "file" / "node")
    assert "Not a directory" in sentence


def test_init_overtaken():
    """An init that another one overtakes, between its first look and the lock, is refused under
    the lock, and the other's directory stays as it is."""
    others = FoundingRecord(1, "demo", "raft", "wal", (Voter(1, 81), Voter(2, 82), Voter(3, 83)))

    class OvertakingFiles(ForgetfulFiles):
        is_overtaken = False

        def lock(self, path, holder):
            if not self.is_overtaken:
                self.is_overtaken = True
                init_directory(self, NODE, others, 1)
            return super().lock(path, holder)

    files = OvertakingFiles()
    sentence = init_refused(files)
    assert files.is_overtaken
    assert "is already the directory of node 1 of cluster 'demo'" in sentence
    with opened(files) as directory:
        assert directory.identity.founding == others
        directory.open_storage().recover()


def test_init_unknown_storage():
    """A storage that is not built in must be handed in."""
    founding = FoundingRecord(1, "demo", "raft", "tape", (Voter(1, 71),))
    with pytest.raises(PluginError, match="'tape', only memory, wal"):
        init_directory(ForgetfulFiles(), NODE, founding, 1)


# Open refused


def test_open_missing():
    """A directory that does not exist never starts a node."""
    files = ForgetfulFiles()
    assert "does not exist" in refused(files)
    assert files.names(Path("/")) == []


def test_open_uninitialised(tmp_path):
    """A directory without an identity never starts a node, and nothing is written in it."""
    assert "is empty: it was never initialised" in refused(None, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"cluster_id": "other"}, "belongs to cluster 'demo', not 'other'"),
        ({"node_id": 2}, "belongs to node 1, not node 2"),
        (
            {"engine": "multipaxos"},
            "was written by engine 'raft' and cannot be read by 'multipaxos', because",
        ),
        ({"storage": "memory"}, "was made for storage 'wal', not 'memory'"),
    ],
)
def test_open_foreign(changed, sentence):
    """The directory of another cluster, node, engine or storage is refused by name."""
    files = initialised()
    assert sentence in refused(files, **changed)
    opened(files).close()


def test_open_wide(tmp_path):
    """A directory that others may enter is refused with the command that mends it."""
    path = tmp_path / "node"
    init_directory(RealFiles(), path, FOUNDING, 1)
    path.chmod(0o750)
    assert "(mode 0750)" in refused(None, path)
    assert f"chmod 700 {path}" in refused(None, path)


def test_open_twice():
    """A directory in use is refused until it is closed, and the sentence names the process."""
    files = initialised()
    directory = opened(files)
    assert f"in use by process {os.getpid()}" in refused(files)
    directory.close()
    directory.close()
    opened(files).close()


def test_open_two_processes(tmp_path):
    """A second process is refused while the first one lives, and not after its end."""
    path = tmp_path / "node"
    init_directory(RealFiles(), path, FOUNDING, 1)
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from replog.storage.directory import open_directory\n"
        f"d = open_directory(Path(sys.argv[1]), **{RIGHT!r})\n"
        "print('open', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"open\n"
        assert f"in use by process {other.pid};" in refused(None, path)
        other.kill()
        other.wait(10)
    opened(None, path).close()


def test_open_memory_twice():
    """The directory of a storage that forgets serves for one run, which a start that failed is not;
    the second start is refused."""
    files = initialised(IN_MEMORY)
    opened(files, storage="memory").close()
    with opened(files, storage="memory") as directory:
        assert not directory.open_storage().durable
    with opened(files, storage="memory") as directory:
        directory.mark_started()
    files.crash(KeepNothing())
    for _ in range(2):
        sentence = refused(files, storage="memory")
    assert "its log was lost with the process" in sentence
    assert "`replog init`" in sentence


def test_open_lost_log():
    """An initialised directory whose log is gone opens, and its storage refuses to recover."""
    files = initialised()
    files.remove(NODE / segment_name(1))
    with opened(files) as directory, pytest.raises(LogDamaged, match="must not vote"):
        directory.open_storage().recover()


def test_open_failing():
    """An error of the system is passed on with its reason."""
    files = initialised()

    def fault(number, name, path):
        raise OSError(errno.EACCES, "Permission denied")

    files.fault = fault
    assert "Permission denied" in refused(files)


def changed_identity(change, files=None):
    files = deepcopy(files) if files else initialised()
    path = NODE / IDENTITY_NAME
    data = change(files.read(path))
    files.cut(path, 0)
    files.corrupt(path, 0, data)
    return files


def test_open_edited_identity():
    """An identity that was edited, or damaged anywhere, is refused."""
    assert "was edited" in refused(changed_identity(lambda data: data.replace(b"raft", b"rift")))
    files = initialised()
    for at in range(len(files.read(NODE / IDENTITY_NAME))):

        def flip(data, at=at):
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

        refused(changed_identity(flip, files))
        refused(changed_identity(lambda data, at=at: data[:at], files))


# The founding record


def test_founding_round_trip(tmp_path):
    """A founding record is read back as it was written, and its incarnations are its own."""
    founding = new_founding("demo", "raft", "wal", [3, 1, 2], {"write_quorum": 2, "read_quorum": 3})
    assert [voter.node_id for voter in founding.voters] == [1, 2, 3]
    assert len({voter.incarnation for voter in founding.voters}) == 3
    path = tmp_path / "founding"
    write_founding(path, founding)
    assert read_founding(path) == founding
    assert '"cluster_id": "demo"' in path.read_text()
    assert founding.agreed == (("read_quorum", 3), ("write_quorum", 2))


def test_founding_without_agreed(tmp_path):
    """Where an engine has nothing recorded, the record says nothing of it."""
    path = tmp_path / "founding"
    write_founding(path, FOUNDING)
    assert "agreed" not in path.read_text()
    assert read_founding(path).agreed == ()


def test_identity_holds_agreed():
    """What was agreed on at the founding is in the identity of every node."""
    founding = new_founding("demo", "raft", "wal", [1], {"write_quorum": 1})
    files = ForgetfulFiles()
    init_directory(files, NODE, founding, 1)
    identity = unpack_identity(NODE / IDENTITY_NAME, files.read(NODE / IDENTITY_NAME))
    assert identity.founding == founding


def test_write_founding_twice(tmp_path):
    """A founding record is never overwritten."""
    path = tmp_path / "founding"
    write_founding(path, FOUNDING)
    with pytest.raises(DirectoryError, match="exists already"):
        write_founding(path, new_founding("demo", "raft", "wal", [1], {}))
    assert read_founding(path) == FOUNDING


def test_read_founding_missing(tmp_path):
    """A missing record is named with the remedy."""
    with pytest.raises(DirectoryError, match="replog init"):
        read_founding(tmp_path / "founding")


def test_read_founding_foreign(tmp_path):
    """A file that is something else is refused as such."""
    path = tmp_path / "founding"
    path.write_text("[cluster]\n")
    with pytest.raises(DirectoryError, match="is not a replog founding record"):
        read_founding(path)


def test_read_founding_later_version(tmp_path):
    """A record of a later version is named as such, and is not called damaged."""
    path = tmp_path / "founding"
    text = b"replog founding record 2\n{}\n"
    path.write_bytes(text + b"crc32 %08x\n" % zlib.crc32(text))
    with pytest.raises(UnknownFormat, match="later"):
        read_founding(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"[]", "holds no table"),
        (b"{}", "cluster_id"),
        (b'{"cluster_id": 5}', "cluster_id"),
        (b'{"cluster_id": "a", "engine": "r", "storage": "w", "voters": [7]}', "voters"),
        (b'{"cluster_id": "a", "engine": "r", "storage": "w", "voters": []}', "no voter"),
        (
            b'{"cluster_id": "a", "engine": "r", "storage": "w", "agreed": {"q": "2"}, "voters": '
            b'[{"node_id": 1, "incarnation": 7}]}',
            "q is not a number",
        ),
    ],
)
def test_read_founding_senseless(tmp_path, text, named):
    """A record of the wrong shape is refused by the name of what is wrong."""
    path = tmp_path / "founding"
    text = b"replog founding record 1\n" + text + b"\n"
    path.write_bytes(text + b"crc32 %08x\n" % zlib.crc32(text))
    with pytest.raises(DirectoryError, match=named):
        read_founding(path)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"cluster_id": ""}, "cluster id"),
        ({"cluster_id": "é" * 128}, "cluster id"),
        ({"engine": ""}, "no engine"),
        ({"node_ids": []}, "no voter"),
        ({"node_ids": [1, 1]}, "differ"),
        ({"node_ids": [0, 1]}, "65535"),
        ({"agreed": {"quorum": -1}}, "numbers from 0 on"),
    ],
)
def test_new_founding_senseless(changed, problem):
    """A cluster that cannot be is not founded."""
    right = {
        "cluster_id": "demo",
        "engine": "raft",
        "storage": "wal",
        "node_ids": [1, 2],
        "agreed": {},
    }
    with pytest.raises(DirectoryError, match=problem):
        new_founding(**{**right, **changed})


def test_storages_named():
    """The built-in storages stand under their own names."""
    assert {name: plugin.name for name, plugin in STORAGES.items()} == {
        "wal": "wal",
        "memory": "memory",
    }
