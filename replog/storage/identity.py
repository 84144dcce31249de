"""Who a node is and how its cluster was founded: two small files that people can read.

A *founding record* is made once per cluster and names the incarnation of every founding voter, so
that exactly these count, and a directory made anew under an old id never passes for the old one.
A node's *identity* is in its directory, with the founding record in it, and with the directory's
*birth*, by which one made anew from the same record is known (:mod:`replog.formation`).

Both are texts: a title line with the format's version, a JSON object, and a last line with the
CRC-32 of everything above it.  They may be read and copied, not edited: the checksum finds a slip
of the editor as well as one of the disk.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from replog.errors import DirectoryError, UnknownFormat
from replog.storage.files import FileLayer, RealFiles, publish
from replog.storage.segment import CLUSTER_ID_BYTES_MAX
from replog.types import NODE_ID_MAX, Epoch, NodeId, Voter, record

FOUNDING_VERSION: Final = 1
IDENTITY_VERSION: Final = 2
_FOUNDING_TITLE: Final = "replog founding record"
_IDENTITY_TITLE: Final = "replog identity"
_CHECKSUM_TITLE: Final = "crc32"


@record
class FoundingRecord:
    """The act that makes a cluster: its name, its first engine, and who votes."""

    version: int
    cluster_id: str
    engine: str
    storage: str
    voters: tuple[Voter, ...]
    """Sorted by node id."""
    agreed: tuple[tuple[str, int], ...] = ()
    """What the engine asked to have recorded for all nodes alike, by name, ascending (see
    :meth:`replog.engine.EnginePlugin.agreed`)."""

    @property
    def epoch(self) -> Epoch:
        """The epoch that begins with the cluster."""
        return Epoch(
            number=1,
            engine=self.engine,
            voters=self.voters,
            start_index=1,
            agreed=self.agreed,
        )

    def incarnation_of(self, node_id: NodeId) -> int | None:
        """The incarnation of a founding voter; ``None``: the node is none."""
        for voter in self.voters:
            if voter.node_id == node_id:
                return voter.incarnation
        return None

    def problem(self) -> str:
        """Why this record founds nothing, or an empty string."""
        ids = [voter.node_id for voter in self.voters]
        if self.version != FOUNDING_VERSION:
            return f"its version is {self.version}, not {FOUNDING_VERSION}"
        if not 1 <= len(self.cluster_id.encode()) <= CLUSTER_ID_BYTES_MAX:
            return f"its cluster id must have 1 to {CLUSTER_ID_BYTES_MAX} bytes"
        if not self.engine or not self.storage:
            return "it names no engine or no storage"
        if not ids:
            return "it names no voter"
        if ids != sorted(set(ids)) or not all(1 <= node_id <= NODE_ID_MAX for node_id in ids):
            return f"its node ids must differ, ascend and be 1 to {NODE_ID_MAX}"
        if not all(1 <= voter.incarnation < 1 << 63 for voter in self.voters):
            return "an incarnation in it is not a positive 63-bit number"
        if not all(name and 0 <= number < 1 << 64 for name, number in self.agreed):
            return "what is agreed on in it must have names and be numbers from 0 on"
        return ""


@record
class Identity:
    """Who the node of a directory is."""

    version: int
    cluster_id: str
    node_id: NodeId
    incarnation: int
    birth: int
    """Of this very directory: a random positive 63-bit number that is in no founding record."""
    engine: str
    storage: str
    founding: FoundingRecord
    """The record of the cluster that the node was made for."""

    @property
    def is_founding(self) -> bool:
        """Whether the node is one of the founding voters, and not one that came back as another
        incarnation."""
        return Voter(self.node_id, self.incarnation) in self.founding.voters


def new_founding(
    cluster_id: str,
    engine: str,
    storage: str,
    node_ids: Sequence[NodeId],
    agreed: Mapping[str, int],
) -> FoundingRecord:
    """A founding record with a fresh random incarnation for each voter.

    ``agreed`` is what the engine has recorded for all nodes alike.

    Raises :class:`~replog.errors.DirectoryError` when it would found nothing.
    """
    voters = tuple(Voter(node_id, draw_incarnation()) for node_id in sorted(node_ids))
    recorded = tuple(sorted(agreed.items()))
    founding = FoundingRecord(FOUNDING_VERSION, cluster_id, engine, storage, voters, recorded)
    if problem := founding.problem():
        raise DirectoryError(f"the cluster cannot be founded: {problem}")
    return founding


def draw_incarnation() -> int:
    """A random positive 63-bit number."""
    return (int.from_bytes(os.urandom(8)) >> 1) or 1


def write_founding(path: Path, founding: FoundingRecord, files: FileLayer | None = None) -> None:
    """Write a founding record to a new file, durably; ``files`` is the real disk unless given."""
    assert not founding.problem(), founding.problem()
    files = files or RealFiles()
    try:
        if path.name in files.names(path.parent):
            raise DirectoryError(
                f"{path} exists already; the incarnations in a founding record are drawn once, so "
                "use the record as it is"
            )
        publish(files, path, pack_founding(founding))
    except OSError as error:
        raise DirectoryError(f"{path} cannot be written: {error.strerror or error}") from error


def read_founding(path: Path, files: FileLayer | None = None) -> FoundingRecord:
    """Read a founding record; raises ``DirectoryError`` or ``UnknownFormat``."""
    files = files or RealFiles()
    try:
        data = files.read(path)
    except FileNotFoundError as error:
        raise DirectoryError(
            f"there is no founding record {path}; make one with `replog init`"
        ) from error
    except OSError as error:
        raise DirectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    return unpack_founding(path, data)


def pack_founding(founding: FoundingRecord) -> bytes:
    """The bytes of a founding record's file, as nodes also send them."""
    return seal(_FOUNDING_TITLE, FOUNDING_VERSION, _founding_table(founding))


def unpack_founding(path: Path, data: bytes) -> FoundingRecord:
    """The record in the bytes of the file ``path``, or of whatever sentences should name; raises
    ``DirectoryError`` or ``UnknownFormat``."""
    table = Table(path, unseal(path, _FOUNDING_TITLE, FOUNDING_VERSION, data))
    return _read_founding_table(table, FOUNDING_VERSION)


def pack_identity(identity: Identity) -> bytes:
    """The bytes of an identity file."""
    table: dict[str, object] = {
        "cluster_id": identity.cluster_id,
        "node_id": identity.node_id,
        "incarnation": identity.incarnation,
        "birth": identity.birth,
        "engine": identity.engine,
        "storage": identity.storage,
        "founding": {
            "version": identity.founding.version,
            **_founding_table(identity.founding),
        },
    }
    return seal(_IDENTITY_TITLE, IDENTITY_VERSION, table)


def unpack_identity(path: Path, data: bytes) -> Identity:
    """The identity in the bytes of the file ``path``."""
    try:
        content = unseal(path, _IDENTITY_TITLE, IDENTITY_VERSION, data)
    except UnknownFormat as error:
        if data.startswith(f"{_IDENTITY_TITLE} 1\n".encode()):
            raise UnknownFormat(
                f"{path} is of version 1, from before directories had births, so nobody could tell "
                "it from one made anew; found the cluster anew with `replog init`"
            ) from error
        raise
    table = Table(path, content)
    founding = table.table("founding")
    return Identity(
        version=IDENTITY_VERSION,
        cluster_id=table.text("cluster_id"),
        node_id=table.integer("node_id"),
        incarnation=table.integer("incarnation"),
        birth=table.integer("birth"),
        engine=table.text("engine"),
        storage=table.text("storage"),
        founding=_read_founding_table(founding, founding.integer("version")),
    )


def _founding_table(founding: FoundingRecord) -> dict[str, object]:
    table: dict[str, object] = {
        "cluster_id": founding.cluster_id,
        "engine": founding.engine,
        "storage": founding.storage,
        "voters": [
            {"node_id": voter.node_id, "incarnation": voter.incarnation}
            for voter in founding.voters
        ],
    }
    if founding.agreed:
        table["agreed"] = dict(founding.agreed)
    return table


def _read_founding_table(table: Table, version: int) -> FoundingRecord:
    founding = FoundingRecord(
        version=version,
        cluster_id=table.text("cluster_id"),
        engine=table.text("engine"),
        storage=table.text("storage"),
        voters=tuple(
            Voter(voter.integer("node_id"), voter.integer("incarnation"))
            for voter in table.tables("voters")
        ),
        agreed=table.numbers("agreed"),
    )
    if problem := founding.problem():
        raise DirectoryError(f"{table.path} founds no cluster: {problem}")
    return founding


class Table:
    """A JSON object, read strictly; every fault names the file and the key.

    Whatever is missing or of another kind raises :class:`~replog.errors.DirectoryError`.
    """

    def __init__(self, path: Path, content: Mapping[str, object]) -> None:
        self.path = path
        self._content = content

    def text(self, key: str) -> str:
        """The text at a key."""
        value = self._content.get(key)
        return value if isinstance(value, str) else self._refuse(key, "a text")

    def integer(self, key: str) -> int:
        """The number at a key."""
        value = self._content.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        return self._refuse(key, "a number")

    def table(self, key: str) -> Table:
        """The object at a key."""
        value = self._content.get(key)
        return Table(self.path, value) if isinstance(value, dict) else self._refuse(key, "a table")

    def tables(self, key: str) -> list[Table]:
        """The objects in the list at a key."""
        value = self._content.get(key)
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return [Table(self.path, item) for item in value]
        return self._refuse(key, "a list of tables")

    def numbers(self, key: str) -> tuple[tuple[str, int], ...]:
        """The numbers of a table by name, ascending; none if there is no such table."""
        if key not in self._content:
            return ()
        numbers = self.table(key)
        return tuple((name, numbers.integer(name)) for name in sorted(numbers._content))

    def _refuse(self, key: str, expected: str) -> NoReturn:
        raise DirectoryError(
            f"{self.path}: {key} is not {expected}; a broken or foreign program wrote this file"
        )


def seal(title: str, version: int, table: Mapping[str, object]) -> bytes:
    """A table as a text with a title and a checksum."""
    text = f"{title} {version}\n{json.dumps(table, indent=2)}\n".encode()
    return text + f"{_CHECKSUM_TITLE} {zlib.crc32(text):08x}\n".encode()


def unseal(path: Path, title: str, version: int, data: bytes) -> Mapping[str, object]:
    """The table in a sealed text; the checksum is verified before anything is believed.

    Raises :class:`~replog.errors.DirectoryError` and :class:`~replog.errors.UnknownFormat`.
    """
    head, _, _ = data.partition(b"\n")
    if not head.startswith(f"{title} ".encode()):
        raise DirectoryError(f"{path} is not a {title}: its first line says something else")
    text, mark, _ = data.rpartition(f"{_CHECKSUM_TITLE} ".encode())
    if not mark or data != text + f"{_CHECKSUM_TITLE} {zlib.crc32(text):08x}\n".encode():
        raise DirectoryError(
            f"{path} was edited or is damaged: its checksum does not fit its content; put the "
            "original back"
        )
    if head != f"{title} {version}".encode():
        raise UnknownFormat(
            f"{path} is of a format that this release does not know ({head.decode()!r}); use the "
            "release that wrote it, or a later one"
        )
    table = json.loads(text[len(head) :])
    if not isinstance(table, dict):
        raise DirectoryError(f"{path} holds no table; a broken or foreign program wrote this file")
    return table
