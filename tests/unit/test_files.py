"""The file layer: the platforms it serves, and the disks it does not wait for."""

from __future__ import annotations

import pytest

from replog.errors import PlatformError
from replog.storage.files import check_platform, write_all
from replog.testing.files import ForgetfulFiles


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


class FullFiles(ForgetfulFiles):
    def write(self, descriptor, data, offset):
        return 0
