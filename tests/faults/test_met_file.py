"""The durable record of whom a directory has met, on a disk that forgets what was not synced."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from replog.errors import DirectoryError, StorageFailed, StorageFull, UnknownFormat
from replog.formation import NOBODY_MET, MetRecord
from replog.storage.directory import init_directory, open_directory
from replog.storage.identity import FoundingRecord, seal, unpack_identity
from replog.storage.met import FILE_NAME, MetFile
from replog.testing.files import (
    Crashed,
    ForgetfulFiles,
    KeepEverything,
    KeepNothing,
    KeepSectors,
)
from replog.types import Voter

NODE = Path("/data/node")
PATH = NODE / FILE_NAME
FIRST = MetRecord(met=((2, 1 << 62),))
SECOND = MetRecord(met=((2, 1 << 62), (3, 5)), known_by=(2, 3))


def made_files() -> ForgetfulFiles:
    files = ForgetfulFiles()
    for path in (NODE.parent, NODE):
        files.make_directory(path)
        files.sync_directory(path.parent)
    return files


def met_on(files: ForgetfulFiles, node_id: int = 1, birth: int = 7) -> MetFile:
    return MetFile(files, NODE, node_id, birth)


def test_missing_file_is_nobody_met() -> None:
    """A directory without the file has met nobody."""
    assert met_on(made_files()).load() == NOBODY_MET


@pytest.mark.parametrize("recorded", [NOBODY_MET, FIRST, SECOND], ids=str)
def test_saved_is_loaded_after_a_power_cut(recorded: MetRecord) -> None:
    """What was saved is there after everything unsynced is lost."""
    files = made_files()
    met_on(files).save(recorded)
    files.crash(KeepNothing())
    assert met_on(files).load() == recorded


@pytest.mark.parametrize(
    "keep", [KeepNothing(), KeepEverything(), *map(KeepSectors, range(6))], ids=str
)
def test_save_crashed_leaves_one_of_the_two(keep: object) -> None:
    """A crash at any operation of a save leaves the record before or the new one; what was loaded
    then is there after the next power cut too."""
    counting = made_files()
    met_on(counting).save(FIRST)
    before = counting.operations_count
    met_on(counting).save(SECOND)
    for at in range(before + 1, counting.operations_count + 1):
        files = made_files()
        met_on(files).save(FIRST)

        def fault(number: int, name: str, path: Path, last: int = at) -> None:
            if number >= last:
                raise Crashed

        files.fault = fault
        with pytest.raises(Crashed):
            met_on(files).save(SECOND)
        files.crash(keep)  # type: ignore[arg-type]
        files.fault = None
        found = met_on(files).load()
        assert found in (FIRST, SECOND)
        files.crash(KeepNothing())
        assert met_on(files).load() == found
        met_on(files).save(SECOND)
        assert met_on(files).load() == SECOND


def test_damage_refused() -> None:
    """Whichever byte of the file is altered, the node does not start with it."""
    files = made_files()
    met_on(files).save(SECOND)
    data = files.read(PATH)
    for at in range(len(data)):
        files.corrupt(PATH, at, bytes([data[at] ^ 1]))
        with pytest.raises(DirectoryError, match=r"damaged|first line"):
            met_on(files).load()
        files.corrupt(PATH, at, data[at : at + 1])
    assert met_on(files).load() == SECOND


@pytest.mark.parametrize("changed", [{"node_id": 2}, {"birth": 8}], ids=str)
def test_record_of_another_directory_refused(changed: dict[str, int]) -> None:
    """A record that was copied from another directory is refused."""
    files = made_files()
    met_on(files).save(SECOND)
    with pytest.raises(DirectoryError, match="record of another directory"):
        met_on(files, **changed).load()


@pytest.mark.parametrize(
    ("met", "known_by"),
    [
        ([(3, 1), (2, 1)], []),
        ([(2, 1), (2, 2)], []),
        ([(0, 1)], []),
        ([(65_536, 1)], []),
        ([(2, 0)], []),
        ([(2, 1 << 63)], []),
        ([(2, 1)], [3]),
        ([(2, 1)], [2, 2]),
    ],
)
def test_impossible_record_refused(met: list[tuple[int, int]], known_by: list[int]) -> None:
    """A record that no node writes is refused although its checksum fits."""
    files = made_files()
    content = {
        "node_id": 1,
        "birth": 7,
        "met": [{"node_id": node_id, "birth": birth} for node_id, birth in met],
        "known_by": [{"node_id": node_id} for node_id in known_by],
    }
    write(files, seal("replog met record", 1, content))
    with pytest.raises(DirectoryError, match="names nodes that cannot be"):
        met_on(files).load()


def test_later_version_refused() -> None:
    """A record of a version that is not known here is refused by name."""
    files = made_files()
    write(files, seal("replog met record", 2, {}))
    with pytest.raises(UnknownFormat, match="does not know"):
        met_on(files).load()


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, StorageFull), (errno.EIO, StorageFailed)]
)
@pytest.mark.parametrize("operation", ["create", "write", "sync"])
def test_save_failed(number: int, expected: type[Exception], operation: str) -> None:
    """A save without room may be tried again and leaves the record before; any other failure says
    that the disk is not to be trusted."""
    files = made_files()
    met_on(files).save(FIRST)

    def fault(count: int, name: str, path: Path) -> None:
        if name == operation:
            raise OSError(number, errno.errorcode[number], str(path))

    files.fault = fault
    with pytest.raises(expected):
        met_on(files).save(SECOND)
    files.fault = None
    assert met_on(files).load() == FIRST
    met_on(files).save(SECOND)
    assert met_on(files).load() == SECOND


def write(files: ForgetfulFiles, data: bytes) -> None:
    descriptor = files.create(PATH)
    files.write(descriptor, data, 0)
    files.close(descriptor)


# -- births --

FOUNDING = FoundingRecord(1, "demo", "raft", "wal", (Voter(1, 71), Voter(2, 72)))


def test_each_directory_has_its_own_birth() -> None:
    """Two directories made from one record have one incarnation and two births."""
    identities = []
    for _ in range(2):
        files = ForgetfulFiles()
        made = init_directory(files, NODE, FOUNDING, 1)
        assert unpack_identity(NODE, files.read(NODE / "identity")) == made
        identities.append(made)
    assert {identity.incarnation for identity in identities} == {71}
    assert len({identity.birth for identity in identities}) == 2
    assert all(0 < identity.birth < 1 << 63 for identity in identities)


def test_directory_without_birth_refused() -> None:
    """An identity of version 1 has no birth, and is refused with what to do."""
    data = seal("replog identity", 1, {"cluster_id": "demo", "node_id": 1})
    with pytest.raises(UnknownFormat, match="found the cluster anew"):
        unpack_identity(NODE / "identity", data)


def test_directory_opens_its_record() -> None:
    """An open directory gives the record that fits its own birth, and keeps it from run to run."""
    files = ForgetfulFiles()
    init_directory(files, NODE, FOUNDING, 1)
    for expected in (NOBODY_MET, FIRST):
        with open_directory(
            NODE, cluster_id="demo", node_id=1, engine="raft", storage="wal", files=files
        ) as directory:
            assert directory.open_met().load() == expected
            directory.open_met().save(FIRST)
