"""Up to where a state machine on its own disk came, as the node remembers it.  ``machine-applied``.

Such a machine reports at each start which index its files hold (:mod:`replog.machine`).  The node
cannot look into them, but it remembers the highest index that was reported, and so notices files
that were put back from an older copy, or that belong to another node: what a machine reports from
such files is no state that this log ever led to.

The file, big-endian::

    magic (8 bytes), version (u16), index (u64), CRC-32 of what is before it

It is replaced as a whole, by a rename.  The order of a start: the machine opens, the node holds
what it reports against the rule (:func:`check_reported`), then it writes that down, and only then
applies anything.  Also a 0 is written down: the machine is being filled again, and if the node
stops in the midst of that, the machine comes back with less than it once had.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

from replog.errors import MachineDamaged, StorageFailed, StorageFull, UnknownFormat
from replog.storage.files import NO_ROOM, FileLayer, publish
from replog.types import LogIndex

FILE_NAME: Final = "machine-applied"
FORMAT_VERSION: Final = 1

_MAGIC: Final = b"RPLGMAP\n"
_CONTENT: Final = struct.Struct(">8sHQ")
_CHECKSUM: Final = struct.Struct(">I")

_REFILLED: Final = "and the state machine is filled again, from the node's snapshot and log"
_REMEDY: Final = f"remove the state machine's own directory, with the node stopped, {_REFILLED}"


def read_reported(files: FileLayer, path: Path) -> LogIndex:
    """The index that was written down last in a node's directory; 0: none was.

    Raises :class:`~replog.errors.MachineDamaged`, :class:`~replog.errors.UnknownFormat` and
    :class:`~replog.errors.StorageFailed`.
    """
    file = path / FILE_NAME
    try:
        if FILE_NAME not in files.names(path):
            return 0
        data = files.read(file)
    except OSError as error:
        raise StorageFailed(f"{file} cannot be read: {error.strerror or error}") from error
    content, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
    is_short = len(data) < _CONTENT.size + _CHECKSUM.size
    if is_short or not data.startswith(_MAGIC) or checksum != _CHECKSUM.pack(zlib.crc32(content)):
        raise MachineDamaged(
            f"{file} is damaged, so nobody can tell up to where the state machine came; check the "
            "disk, then remove this file and the state machine's own directory, with the node "
            f"stopped, {_REFILLED}"
        )
    (version,) = struct.unpack_from(">H", content, len(_MAGIC))
    if version != FORMAT_VERSION:
        raise UnknownFormat(
            f"{file} is of format version {version}; this release knows version "
            f"{FORMAT_VERSION}: start this node with the release that wrote it, or a later one"
        )
    _, _, index = _CONTENT.unpack_from(content)
    assert isinstance(index, int)
    return index


def write_reported(files: FileLayer, path: Path, index: LogIndex) -> None:
    """Write down, durably on return, what the state machine reported; 0: it begins anew.

    A crash leaves the index before or this one.  Raises :class:`~replog.errors.StorageFailed`, and
    :class:`~replog.errors.StorageFull` where there is no room.
    """
    assert index >= 0
    file = path / FILE_NAME
    content = _CONTENT.pack(_MAGIC, FORMAT_VERSION, index)
    try:
        publish(files, file, content + _CHECKSUM.pack(zlib.crc32(content)))
    except OSError as error:
        sentence = f"{file} cannot be written: {error.strerror or error}"
        if error.errno in NO_ROOM:
            raise StorageFull(f"{sentence}; free some space on the disk") from error
        raise StorageFailed(sentence) from error


def check_reported(
    path: Path,
    applied: LogIndex,
    reported: LogIndex,
    last_durable_index: LogIndex,
    snapshot_index: LogIndex,
) -> None:
    """Refuse a state machine that does not fit the node's log.

    ``applied`` is what it reports now and ``reported`` what it reported before; the log is durable
    up to ``last_durable_index``, and the newest snapshot reaches to ``snapshot_index`` (0: there is
    none).  One that holds nothing always fits: it is filled from the snapshot and the log.

    A machine is given only entries that are durable *here*, so it is never ahead of both.  Raises
    :class:`~replog.errors.MachineDamaged`, which names the node's directory ``path``.
    """
    if applied == 0:
        return
    reach = max(last_durable_index, snapshot_index)
    if applied > reach:
        raise MachineDamaged(
            f"the state machine of {path} holds everything up to entry {applied}, and the node's "
            f"log and snapshot reach to entry {reach} only, so its files belong to another node, "
            f"or the log lost its end; put the right files back, or {_REMEDY}"
        )
    if applied < reported:
        raise MachineDamaged(
            f"the state machine of {path} holds everything up to entry {applied}, and held entry "
            f"{reported} before, so its files are an older copy, or lost what was durable; check "
            f"the disk and put the right files back, or {_REMEDY}"
        )
