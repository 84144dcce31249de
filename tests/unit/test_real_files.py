"""The real disk is asked to sync: by the right call, the right file, after the right write.

No test can see whether a disk kept its word; these see that it was given one.  Files are known by
device and inode, so a call on a descriptor of another file does not pass.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from replog.storage import files as files_module
from replog.storage.files import RealFiles
from replog.storage.hard_state import FILE_NAME as SECOND_COPY_NAME
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.wal import Wal, found_log
from replog.types import Entry, EntryKind, entry_body

F_FULLFSYNC = 51


def identity(status):
    return (status.st_dev, status.st_ino)


class Spy:
    """Notes each call that writes or syncs, with the identity of its file, and passes it on."""

    def __init__(self, monkeypatch):
        self.calls = []
        self._monkeypatch = monkeypatch
        for name in ("fdatasync", "fsync", "pwrite"):
            # macOS has no fdatasync; there the other call stands in for it.
            real = getattr(os, name, os.fsync)
            monkeypatch.setattr(os, name, self._noting(name, real), raising=False)

    def _noting(self, name, real):
        def call(descriptor, *rest):
            self.calls.append((name, identity(os.fstat(descriptor))))
            return real(descriptor, *rest)

        return call

    def pretend(self, platform):
        """Have the file layer believe that it runs on ``platform``."""
        self._monkeypatch.setattr(files_module, "sys", SimpleNamespace(platform=platform))

        def control(descriptor, command):
            assert command == F_FULLFSYNC
            self.calls.append(("F_FULLFSYNC", identity(os.fstat(descriptor))))

        fake = SimpleNamespace(F_FULLFSYNC=F_FULLFSYNC, fcntl=control)
        self._monkeypatch.setattr(files_module, "fcntl", fake)

    def take(self):
        """The calls since the last take."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def spy(monkeypatch):
    return Spy(monkeypatch)


def spied_sync(spy):
    """What a sync of a file is called on the platform of this test."""
    if sys.platform == "darwin":
        spy.pretend("darwin")
        return "F_FULLFSYNC"
    return "fdatasync"


def open_descriptors():
    """How many descriptors the process has open, and one for the counting."""
    return len(os.listdir("/dev/fd"))


@pytest.mark.parametrize(("platform", "call"), [("linux", "fdatasync"), ("darwin", "F_FULLFSYNC")])
def test_sync_reaches_the_file(spy, tmp_path, platform, call):
    """A sync is the one call that reaches the platter on this platform, on this very file."""
    spy.pretend(platform)
    files = RealFiles()
    paths = [tmp_path / "one", tmp_path / "two"]
    descriptors = [files.create(path) for path in paths]
    for path, descriptor in zip(paths, descriptors, strict=True):
        files.sync(descriptor)
        assert spy.take() == [(call, identity(path.stat()))]
        files.close(descriptor)


@pytest.mark.parametrize(("platform", "call"), [("linux", "fsync"), ("darwin", "F_FULLFSYNC")])
def test_sync_directory_reaches_the_directory(spy, tmp_path, platform, call):
    """A sync of a directory is one such call on the directory itself, and leaves nothing open."""
    spy.pretend(platform)
    files = RealFiles()
    before = open_descriptors()
    files.sync_directory(tmp_path)
    assert spy.take() == [(call, identity(tmp_path.stat()))]
    assert open_descriptors() == before


@pytest.mark.parametrize(("platform", "call"), [("linux", "fdatasync"), ("darwin", "F_FULLFSYNC")])
def test_sync_passes_failure_on(monkeypatch, spy, tmp_path, platform, call):
    """A sync that fails is an error to the caller: neither dropped nor tried again."""
    spy.pretend(platform)
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    monkeypatch.setattr(files_module.fcntl, "fcntl", fail)
    files = RealFiles()
    descriptor = files.create(tmp_path / "file")
    with pytest.raises(OSError, match="Input/output error"):
        files.sync(descriptor)
    files.close(descriptor)
    assert len(calls) == 1


def test_persist_syncs_each_group(spy, tmp_path):
    """Each group is one write to the log and then one sync of it, on the real disk."""
    home = StorageHome(RealFiles(), tmp_path, "demo", 1, 77)
    found_log(home)
    wal = Wal(home, extend_bytes=64 * 1024, reserve_bytes=512)
    wal.recover()
    log = identity(wal.path.stat())
    sync = spied_sync(spy)
    for index in range(1, 6):
        body = entry_body(EntryKind.COMMAND, 1, 1, index, b"x")
        group = wal.encode([Write(None, None, [Entry(1, index, 1, body)])])
        spy.take()
        wal.persist(group)
        calls = spy.take()
        if index == 1:
            calls = calls[-2:]  # what makes room in the file comes before
        assert calls == [("pwrite", log), (sync, log)]
    wal.close()


def test_recover_syncs_before_it_reports(spy, tmp_path):
    """Recovery on the real disk ends with syncs of all that it reports: of the log, its name, and
    the second copy of the hard state."""
    home = StorageHome(RealFiles(), tmp_path, "demo", 1, 77)
    found_log(home)
    sync = spied_sync(spy)
    wal = Wal(home)
    spy.take()
    wal.recover()
    log, copy = identity(wal.path.stat()), identity((tmp_path / SECOND_COPY_NAME).stat())
    folder = identity(tmp_path.stat())
    calls = spy.take()
    assert calls[:2] == [("pwrite", log), (sync, log)]
    assert calls[2][1] == folder
    assert calls[3:] == [("pwrite", copy), (sync, copy)]
    wal.close()
