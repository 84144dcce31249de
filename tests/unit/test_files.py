"""The file layer: the platforms it serves, and the disks it does not wait for."""

from __future__ import annotations

from pathlib import Path

import pytest

from replog.errors import PlatformError
from replog.storage.files import check_platform, write_all
from replog.testing.files import ForgetfulFiles, KeepEverything, KeepNothing


def test_check_platform_unknown():
    """A platform whose disk cannot be trusted to sync is refused; the known ones are not."""
    check_platform("linux")
    check_platform("darwin")
    with pytest.raises(PlatformError, match="win32"):
        check_platform("win32")


def test_write_all_stuck():
    """A device that takes no bytes at all is an error, not an endless loop."""
    with pytest.raises(OSError, match="no more bytes"):
        write_all(FullFiles(), 1, b"abc", 0)


@pytest.mark.parametrize("is_written_back", [False, True])
def test_write_back(is_written_back: bool) -> None:
    """What the disk has written back outlives a power cut, names in every directory included; what
    it has not is gone; and a crash tells whether there was anything to take."""
    files, folder = ForgetfulFiles(), Path("/folder")
    files.make_directory(folder)
    files.write(files.create(folder / "file"), b"abc", 0)
    assert files.holds_unsynced
    files.crash(KeepEverything())
    assert files.struck_unsynced
    assert files.read(folder / "file") == b"abc"
    if is_written_back:
        files.write_back()
    assert files.holds_unsynced is not is_written_back
    files.crash(KeepNothing())
    assert files.struck_unsynced is not is_written_back
    assert files.names(Path("/")) == ["folder"] * is_written_back
    if is_written_back:
        assert files.read(folder / "file") == b"abc"


class FullFiles(ForgetfulFiles):
    def write(self, descriptor, data, offset):
        return 0
