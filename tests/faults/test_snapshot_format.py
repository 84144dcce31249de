"""The bytes of a snapshot: what one release wrote, every later one reads."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from replog.cbor import strict_dumps, strict_loads
from replog.errors import DirectoryError, SnapshotDamaged, UnknownFormat
from replog.storage.snapshot_format import (
    BLOCK_BYTES_MAX,
    RECORD_BLOCK,
    RECORD_END,
    RECORD_META,
    RECORD_SECTION,
    SNAPSHOT_BYTES_MIN,
    meta_problem,
    pack_end,
    pack_header,
    pack_meta,
    pack_record,
    pack_section,
    record_checksum,
    unpack_meta,
)
from replog.storage.snapshot_reader import SnapshotReader
from replog.testing.files import ForgetfulFiles
from replog.types import EntryId, Epoch, SnapshotMeta, TermId, Voter

PATH = Path("/node/some.snap")
EPOCH = Epoch(2, "fast", (Voter(1, 17), Voter(3, (1 << 63) - 1)), 9, (("q1", 2), ("q2", 2)))
META = SnapshotMeta(EntryId(1, 7, 40), EPOCH, 1_700_000_000_123, "kv", highest_term=TermId(1, 6))


def packed(*records: tuple[int, bytes], cluster_id: str = "demo") -> bytes:
    """A header and these records, with right checksums."""
    data, chain = pack_header(cluster_id)
    for kind, content in records:
        data += pack_record(kind, content, chain)
        chain = record_checksum(data)
    return data


def ended(*records: tuple[int, bytes], sections: int = 1) -> bytes:
    """A whole file of these records, with an end mark that fits."""
    data = packed(*records)
    size_bytes = len(data) + SNAPSHOT_BYTES_MIN - len(packed((RECORD_META, b"")))
    return packed(*records, (RECORD_END, pack_end(sections, size_bytes)))


def read(data: bytes, known: tuple[str, ...] | None = None) -> dict[str, bytes]:
    """The sections of a file."""
    files = ForgetfulFiles()
    files.make_directory(PATH.parent)
    files.create(PATH)
    files.corrupt(PATH, 0, data)
    with SnapshotReader(files, PATH, "demo") as reader:
        return {name: b"".join(chunks) for name, chunks in reader.sections(known)}


META_RECORD = (RECORD_META, pack_meta(META))
MACHINE = (RECORD_SECTION, pack_section("machine", True))


def test_format_frozen() -> None:
    """The bytes of a snapshot are those of docs/snapshot-format.md, for ever."""
    meta = SnapshotMeta(EntryId(1, 2, 7), Epoch(1, "e", (Voter(1, 5),), 1), 9, "kv")
    meta = replace(meta, highest_term=TermId(1, 3))
    data = ended((RECORD_META, pack_meta(meta)), MACHINE, (RECORD_BLOCK, b"state"))
    assert data[:16].hex() == "52504c47534e500a0001000464656d6f"
    assert data[16:508] == bytes(492)
    chain = zlib.crc32(data[:508])
    assert data[508:512] == chain.to_bytes(4)
    content = (
        "a6" "646c617374" "83010207"  # a map of 6: last: [1, 2, 7]
        "6565706f6368" "a5"  # epoch: a map of 5
        "666e756d626572" "01" "66656e67696e65" "6165"  # number: 1, engine: "e"
        "66766f74657273" "81820105" "6b73746172745f696e646578" "01"  # voters: [[1, 5]], start_index
        "66616772656564" "80"  # agreed: []
        "6774696d655f6d73" "09" "676d616368696e65" "626b76"  # time_ms: 9, machine: "kv"
        "686c6561726e657273" "80"  # learners: []
        "6c686967686573745f7465726d" "820103"  # highest_term: [1, 3]
    )  # fmt: skip
    at = 512
    for head, body in (
        ("01" "00000070", content),
        ("02" "00000008", "01" + b"machine".hex()),  # flags, name
        ("03" "00000005", b"state".hex()),
        ("04" "0000000c", "00000001" "00000000000002ad"),  # sections, size of the file
    ):  # fmt: skip
        expected = bytes.fromhex(head + body)
        assert data[at : at + len(expected)].hex() == expected.hex()
        at += len(expected)
        chain = zlib.crc32(expected, chain)
        assert data[at : at + 4] == chain.to_bytes(4)
        at += 4
    assert at == len(data) == 0x2AD


def test_meta_round_trip() -> None:
    """What is packed of a meta is unpacked again."""
    assert unpack_meta(PATH, 512, pack_meta(META)) == META


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"last": EntryId(1, 7, 0)}, "last entry"),
        ({"last": EntryId(3, 7, 40)}, "not in force"),
        ({"highest_term": TermId(1, 1 << 64)}, "highest term"),
        ({"highest_term": TermId(-1, 0)}, "highest term"),
        ({"last": EntryId(1, 1 << 64, 40)}, "last entry"),
        ({"time_ms": -1}, "milliseconds"),
        ({"machine": ""}, "state machine"),
        ({"machine": "x" * 256}, "state machine"),
        ({"epoch": replace(EPOCH, start_index=42)}, "not in force"),
        ({"epoch": replace(EPOCH, voters=())}, "no voter"),
        ({"epoch": replace(EPOCH, engine="")}, "no engine"),
        ({"epoch": replace(EPOCH, voters=(Voter(3, 1), Voter(1, 1)))}, "ascend"),
        ({"epoch": replace(EPOCH, voters=(Voter(0, 1),))}, "1 to 65535"),
        ({"epoch": replace(EPOCH, voters=(Voter(1, 0),))}, "incarnation"),
        ({"learners": (Voter(3, 1), Voter(1, 1))}, "ascend"),
        ({"learners": (Voter(1, 1 << 63),)}, "incarnation"),
        ({"epoch": replace(EPOCH, agreed=(("b", 1), ("a", 1)))}, "agreed"),
        ({"epoch": replace(EPOCH, agreed=(("a", -1),))}, "agreed"),
    ],
)
def test_meta_that_cannot_be_refused(change: dict[str, object], problem: str) -> None:
    """A meta that no snapshot can have is not written, and named when it is met."""
    meta = replace(META, **change)  # type: ignore[arg-type]
    assert problem in meta_problem(meta)
    with pytest.raises(AssertionError):
        pack_meta(meta)


def test_meta_of_wrong_shape_refused() -> None:
    """Whatever CBOR stands in the place of the meta, the answer is the typed error."""
    random = Random(1)
    plain = strict_loads(pack_meta(META))
    assert isinstance(plain, dict)
    strange = [None, True, -1, 1 << 63, 0.5, "x", b"x", [], [1], [[1]], {}, {"a": 1}, [True] * 3]
    for key in (*plain, *plain["epoch"]):
        for value in strange:
            table = {**plain, "epoch": dict(plain["epoch"])}
            (table if key in table else table["epoch"])[key] = value
            right = (("agreed", []), ("machine", "x"), ("engine", "x"), ("learners", []))
            if (key, value) in right:
                continue  # these are right
            with pytest.raises((SnapshotDamaged, UnknownFormat), match=r"/node/some.snap: the "):
                unpack_meta(PATH, 512, strict_dumps(table))
    for _ in range(500):
        data = random.randbytes(random.randint(0, 40))
        with pytest.raises(SnapshotDamaged, match="the meta makes no sense"):
            unpack_meta(PATH, 512, data)


def test_meta_key_missing_or_new() -> None:
    """A key that is missing is a broken writer; one too many is a later release."""
    table = strict_loads(pack_meta(META))
    assert isinstance(table, dict)
    with pytest.raises(UnknownFormat, match="the meta holds 'sessions', which this release"):
        unpack_meta(PATH, 512, strict_dumps({**table, "sessions": []}))
    del table["machine"]
    with pytest.raises(SnapshotDamaged, match="the meta has no machine"):
        unpack_meta(PATH, 512, strict_dumps(table))


def test_unknown_section() -> None:
    """An unknown optional section is passed over; a mandatory one is refused by name."""
    for mandatory in (False, True):
        data = ended(
            META_RECORD,
            (RECORD_SECTION, pack_section("sessions", mandatory)),
            (RECORD_BLOCK, b"s"),
            MACHINE,
            (RECORD_BLOCK, b"m"),
            sections=2,
        )
        assert read(data, None) == {"sessions": b"s", "machine": b"m"}
        if mandatory:
            with pytest.raises(UnknownFormat, match="'sessions' at offset 666 is mandatory, and"):
                read(data, ("machine",))
        else:
            assert read(data, ("machine",)) == {"machine": b"m"}


def test_later_formats_refused() -> None:
    """An intact file of a later release is no damage, and the remedy is the release."""
    later = bytearray(ended(META_RECORD))
    later[9] = 2
    later[508:512] = zlib.crc32(later[:508]).to_bytes(4)
    for data, sentence in (
        (bytes(later), "of format version 2; this release knows version 1: use the release"),
        (ended(META_RECORD, (9, b"")), "a record of type 9 at offset"),
        (ended(META_RECORD, (RECORD_SECTION, b"\x03x")), r"flags that this .* know \(0x03\)"),
    ):
        with pytest.raises(UnknownFormat, match=sentence):
            read(data)


def test_broken_writer_noticed() -> None:
    """What has right checksums and makes no sense was written so, and is refused."""
    block = (RECORD_BLOCK, b"x")
    for data in (
        ended(MACHINE),
        ended(META_RECORD, block),
        ended(META_RECORD, META_RECORD),
        ended(META_RECORD, MACHINE, MACHINE, sections=2),
        ended(META_RECORD, MACHINE, sections=2),
        ended(META_RECORD, MACHINE, (RECORD_END, pack_end(1, 1)), sections=1),
        ended(META_RECORD, MACHINE, (RECORD_END, b"")),
        ended(META_RECORD, (RECORD_SECTION, b"\x01")),
    ):
        with pytest.raises(SnapshotDamaged, match="so a broken or foreign program wrote it, at"):
            read(data)
    with pytest.raises(SnapshotDamaged, match="claims to have 1048577 bytes, at offset 666"):
        read(ended(META_RECORD, (RECORD_BLOCK, bytes(BLOCK_BYTES_MAX + 1))))
    with pytest.raises(SnapshotDamaged, match="something follows the end mark"):
        read(ended(META_RECORD, MACHINE) + b"\0")


def test_hostile_records_refused() -> None:
    """Any records with right checksums are read, or refused with a typed error; nothing else."""
    random = Random(2)
    contents = [pack_section("machine", True), pack_section("x", False), META_RECORD[1], b"", b"\1"]
    outcomes = set()
    for _ in range(2000):
        records = [META_RECORD] * (random.random() < 0.9)
        for _ in range(random.randint(0, 4)):
            content = random.choice([*contents, random.randbytes(random.randint(0, 20))])
            records.append((random.choice((1, 2, 2, 3, 3, 3, 4, 5)), content))
        data = ended(*records, sections=random.randint(0, 2))
        data = random.choice((data, data, data[: random.randint(512, len(data))], data + b"\0"))
        try:
            outcomes.add(type(read(data, ("machine",))))
        except (SnapshotDamaged, UnknownFormat) as error:
            outcomes.add(type(error))
    assert outcomes == {dict, SnapshotDamaged, UnknownFormat}


def test_foreign_cluster_refused() -> None:
    """The snapshot of another cluster is intact, and refused by name."""
    with pytest.raises(DirectoryError, match="of cluster 'other', and this node belongs to"):
        read(packed(META_RECORD, cluster_id="other"))


def test_moved_blocks_noticed() -> None:
    """Blocks that are swapped, missing, doubled or of another snapshot do not fit."""
    blocks = [(RECORD_BLOCK, bytes([at]) * 50) for at in range(4)]
    data = ended(META_RECORD, MACHINE, *blocks)
    start = len(packed(META_RECORD, MACHINE))
    other = ended(META_RECORD, (RECORD_SECTION, pack_section("machinf", True)), *blocks)
    step = 50 + 9
    pieces = [data[start + at * step :][:step] for at in range(4)]
    end = data[start + 4 * step :]

    def with_pieces(*which: int) -> bytes:
        return data[:start] + b"".join(pieces[at] for at in which) + end

    assert read(with_pieces(0, 1, 2, 3)) == read(data)
    strangers = [data[:start] + other[start:], data[: start + step] + other[start + step :]]
    orders = ((1, 0, 2, 3), (0, 1, 3, 2), (0, 2, 3), (1, 2, 3), (0, 1, 2), (0, 0, 1, 2, 3))
    for moved in (*strangers, *(with_pieces(*order) for order in orders)):
        with pytest.raises(SnapshotDamaged, match=rf"{PATH}: the checksum of a record does not"):
            read(moved)


def test_every_byte_counts() -> None:
    """A flipped byte at any offset is found, and so is a cut at any length: there is no byte in a
    snapshot whose change is harmless."""
    data = ended(META_RECORD, MACHINE, (RECORD_BLOCK, b"x" * 30), (RECORD_BLOCK, b""))
    assert read(data) == {"machine": b"x" * 30}
    for at in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            flipped = bytearray(data)
            flipped[at] ^= flip
            with pytest.raises(SnapshotDamaged, match=r"/node/some.snap: .*, at offset \d+; no"):
                read(bytes(flipped))
        with pytest.raises(SnapshotDamaged, match=r"/node/some.snap: .*, at offset \d+; no"):
            read(data[:at])
