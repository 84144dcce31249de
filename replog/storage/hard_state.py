"""The second copy of the hard state: what the log must not be older than.  File ``hard-state``.

A log that lost its end looks like one that was never written further, when the end looks torn or
the last segment is gone; and one that lost its oldest segments looks as if they had been removed.
A node that goes on from there may vote a second time, or lack what it acknowledged.  So what must
never be forgotten is kept once more: the term, the vote, and the numbers of the oldest and the
newest segment.

Two slots of a sector each are written in turn, so that one is intact whatever a crash tears:
``docs/log-format.md`` has the bytes.  A slot is written *after* the group that says the same is
durable, and before the node says anything of it, or removes a segment.  So the hard state in the
log is as new as the newest slot, or newer; if it is older, the log lost something.

Both slots have their place since the file was founded, and are overwritten there: a vote needs no
room on the disk.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

from replog.errors import REJOIN_REMEDY, LogDamaged, UnknownFormat
from replog.storage.files import Descriptor, FileLayer, write_all
from replog.storage.segment import DAMAGE_REMEDY, SECTOR_BYTES
from replog.types import EpochNumber, HardState, NodeId, Term, record

FILE_NAME: Final = "hard-state"
SLOTS: Final = 2
FORMAT_VERSION: Final = 1

_MAGIC: Final = b"RPLGHST\n"
_SLOT: Final = struct.Struct(">8sHHQQIQHQQ")
_CHECKSUM: Final = struct.Struct(">I")
_CHECKSUM_OFFSET: Final = SECTOR_BYTES - _CHECKSUM.size


@record
class Vouched:
    """What was durable when a slot was written."""

    epoch: EpochNumber
    term: Term
    voted_for: NodeId
    segment: int
    """The number of the newest segment."""
    oldest_segment: int
    """That of the oldest one; those before it were removed, or are about to be."""

    def problem(self, hard_state: HardState | None, oldest: int, newest: int) -> str:
        """What is wrong with a log of the segments ``oldest`` to ``newest`` that comes to this hard
        state; empty: nothing, for it is as new as this, or newer."""
        if newest < self.segment:
            return (
                f"the log ends with segment {newest}, and had {self.segment} already: the last "
                "ones are missing"
            )
        if oldest > self.oldest_segment:
            return (
                f"the log begins with segment {oldest}, and only those before "
                f"{self.oldest_segment} were removed: the others are missing"
            )
        if hard_state is None:
            found, vote = (0, 0), 0
        else:
            found, vote = (hard_state.epoch, hard_state.term), hard_state.voted_for
        if found < (self.epoch, self.term):
            return (
                f"the log ends in term {found[1]}, and was in term {self.term} already: its end "
                "is lost"
            )
        if found == (self.epoch, self.term) and self.voted_for not in (0, vote):
            return (
                f"the log says nothing of the vote for node {self.voted_for} in term {self.term}: "
                "its end is lost"
            )
        return ""


class SecondCopy:
    """The file with the two slots."""

    __slots__ = ("_file", "_files", "_incarnation", "_node_id", "_number", "path")

    def __init__(self, files: FileLayer, folder: Path, node_id: NodeId, incarnation: int) -> None:
        self._files = files
        self.path = folder / FILE_NAME
        self._node_id = node_id
        self._incarnation = incarnation
        self._number = 0
        """Of the slot that was written last, counted from 1 through all runs."""
        self._file: Descriptor | None = None

    def found(self, vouched: Vouched) -> None:
        """Make the file anew, durable on return but for its name."""
        if self.path.name in self._files.names(self.path.parent):
            self._files.remove(self.path)
        self._file = self._files.create(self.path)
        try:
            write_all(self._files, self._file, bytes(SLOTS * SECTOR_BYTES), 0)
            self.write(vouched)
        finally:
            self.close()

    def is_written(self) -> bool:
        """Whether there is a file, and a slot in it that says more than a founding does, whosever
        it is."""
        if self.path.name not in self._files.names(self.path.parent):
            return False
        data = self._files.read(self.path)
        numbers = [
            _SLOT.unpack_from(data, at)[4]
            for at in range(0, len(data) - SECTOR_BYTES + 1, SECTOR_BYTES)
        ]
        return max(numbers, default=0) > 1

    def recover(self) -> Vouched:
        """What the newest intact slot says.  Raises :class:`~replog.errors.LogDamaged` when the
        file is missing, or holds none that is intact and of this node."""
        if self.path.name not in self._files.names(self.path.parent):
            raise LogDamaged(
                f"{self.path} is missing, although every log has it since its founding; put it "
                "back if it was moved (not an older copy of it); if it is lost, nobody can tell "
                f"whether the log forgot a vote: {REJOIN_REMEDY}"
            )
        data = self._files.read(self.path)
        if not data:
            raise LogDamaged(
                f"{self.path} is empty, although it has two copies of the hard state since its "
                f"founding; {DAMAGE_REMEDY}"
            )
        found: list[tuple[int, Vouched]] = []
        for at in range(0, SLOTS * SECTOR_BYTES, SECTOR_BYTES):
            slot = self._unpack(data[at : at + SECTOR_BYTES])
            if slot is not None:
                found.append(slot)
        if not found:
            raise LogDamaged(
                f"{self.path}: neither of its two copies of the hard state is intact; "
                f"{DAMAGE_REMEDY}"
            )
        self._number, vouched = max(found, key=_number_of)
        return vouched

    def _unpack(self, block: bytes) -> tuple[int, Vouched] | None:
        if len(block) < SECTOR_BYTES or not block.startswith(_MAGIC):
            return None
        (checksum,) = _CHECKSUM.unpack_from(block, _CHECKSUM_OFFSET)
        if checksum != zlib.crc32(block[:_CHECKSUM_OFFSET]):
            return None
        _, version, node_id, incarnation, number, *vouched = _SLOT.unpack_from(block)
        if version != FORMAT_VERSION:
            raise UnknownFormat(
                f"{self.path} is of format version {version}; this release knows version "
                f"{FORMAT_VERSION}: start this node with the release that wrote it, or a later one"
            )
        if (node_id, incarnation) != (self._node_id, self._incarnation):
            return None
        return number, Vouched(*vouched)

    def write(self, vouched: Vouched) -> None:
        """Overwrite the older slot, and sync."""
        if self._file is None:
            self._file = self._files.open(self.path)
        number = self._number + 1
        fields = _SLOT.pack(
            _MAGIC,
            FORMAT_VERSION,
            self._node_id,
            self._incarnation,
            number,
            vouched.epoch,
            vouched.term,
            vouched.voted_for,
            vouched.segment,
            vouched.oldest_segment,
        )
        block = fields.ljust(_CHECKSUM_OFFSET, b"\0")
        block += _CHECKSUM.pack(zlib.crc32(block))
        write_all(self._files, self._file, block, number % SLOTS * SECTOR_BYTES)
        self._files.sync(self._file)
        self._number = number

    def close(self) -> None:
        """Release the file; may be called again."""
        if self._file is not None:
            self._files.close(self._file)
            self._file = None


def _number_of(slot: tuple[int, Vouched]) -> int:
    return slot[0]
