"""The resident memory of a process, and by how much it grew at most since a mark.

The kernel keeps the peak, so nothing that comes and goes between two looks is missed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from replog.errors import ReplogError
from replog.limits import KIB

_STATUS: Final = Path("/proc/self/status")
_FORGET: Final = Path("/proc/self/clear_refs")
_FORGET_PEAK: Final = "5"
"""What the kernel takes for "the peak begins anew at what is resident now"."""


class MemoryUnknown(ReplogError):
    """This platform does not say how much memory is resident."""


class MemoryMark:
    """What was resident when this was made."""

    def __init__(self) -> None:
        """Raises :class:`MemoryUnknown`."""
        try:
            _FORGET.write_text(_FORGET_PEAK, encoding="ascii")
        except OSError as error:
            raise MemoryUnknown(
                f"{_FORGET} cannot be written ({error.strerror}), so no peak of memory is known; "
                "measure this on Linux"
            ) from error
        self._marked_bytes = _status_bytes("VmRSS")

    @property
    def grown_bytes(self) -> int:
        """By how much more was resident since then, at most."""
        return _status_bytes("VmHWM") - self._marked_bytes


def _status_bytes(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * KIB
    raise MemoryUnknown(f"{_STATUS} has no {name}, so no peak of memory is known")
