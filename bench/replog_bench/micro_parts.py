"""What a command costs in each part that it passes through, besides the engine."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Final

import cbor2

from replog import plugins
from replog.cbor import strict_dumps, strict_loads
from replog.entries import pack_entries, unpack_entries
from replog.envelope import open_envelope, pack_envelope
from replog.frames import FrameCodec, FrameType, Outcome, OwnFrame, Reply, Request
from replog.limits import KIB, Limits
from replog.machine import ApplyContext
from replog.storage.files import RealFiles
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Storage, Write
from replog.types import Entry, EntryKind, LogIndex, entry_body
from replog.wire import FrameReader
from replog_bench.cluster import STATE_MACHINE, STORAGE
from replog_bench.load import commands
from replog_bench.sampling import Measure, Samples, one_by_one, per_operation

BATCH: Final = 64
"""Entries in the batches that are packed, unpacked and written."""

VALUE_BYTES: Final = 64


def command_entries(first: LogIndex, number: int) -> list[Entry]:
    """Entries from index ``first``, each a put of its own key as far as there are keys."""
    made = commands(VALUE_BYTES)
    return [
        Entry(
            1,
            index,
            1,
            entry_body(EntryKind.COMMAND, 1, 1, index, pack_envelope(made[index % len(made)], 1)),
        )
        for index in range(first, first + number)
    ]


# -- codec --


def _make_entry(_: Path) -> Samples:
    command = commands(VALUE_BYTES)[0]
    return per_operation(
        lambda: Entry(1, 1, 1, entry_body(EntryKind.COMMAND, 1, 1, 1, pack_envelope(command, 1)))
    )


def _open_envelope(_: Path) -> Samples:
    entry = command_entries(1, BATCH)[0]
    return per_operation(lambda: open_envelope(entry))


def _pack_entries(_: Path) -> Samples:
    entries = command_entries(1, BATCH)
    return per_operation(lambda: pack_entries(entries), divide=BATCH)


def _unpack_entries(_: Path) -> Samples:
    data = pack_entries(command_entries(1, BATCH))
    return per_operation(lambda: unpack_entries(data), divide=BATCH)


def _cbor_dumps(_: Path) -> Samples:
    command = cbor2.loads(commands(VALUE_BYTES)[0])
    return per_operation(lambda: cbor2.dumps(command))


def _cbor_loads(_: Path) -> Samples:
    command = commands(VALUE_BYTES)[0]
    return per_operation(lambda: cbor2.loads(command))


def _strict_loads(_: Path) -> Samples:
    command = commands(VALUE_BYTES)[0]
    return per_operation(lambda: strict_loads(command))


def _crc32(_: Path) -> Samples:
    data = bytes(64 * KIB)
    return per_operation(lambda: zlib.crc32(data))


# -- log --


def _open_log(directory: Path) -> Storage:
    plugin = plugins.find_storage(STORAGE)
    home = StorageHome(RealFiles(), directory, "bench", node_id=1, incarnation=1)
    plugin.found(home)
    storage = plugin.open(home)
    storage.recover()
    return storage


def _encode_group(directory: Path) -> Samples:
    storage = _open_log(directory)
    writes = [Write(None, None, command_entries(1, BATCH))]
    # Not more often than can be kept: what is encoded is held until it is persisted.
    samples = [each / BATCH for each in one_by_one(lambda: storage.encode(writes), 300)]
    storage.close()
    return samples


def _persist_group(directory: Path) -> Samples:
    storage = _open_log(directory)
    writes = [Write(None, None, command_entries(1, BATCH))]
    samples = []
    for _ in range(200):
        group = storage.encode(writes)
        start = perf_counter()
        storage.persist(group)
        samples.append((perf_counter() - start) * 1e6)
    storage.close()
    return samples


# -- state machine --


def _apply_commands(_: Path) -> Samples:
    machine = plugins.find_state_machine(STATE_MACHINE)()
    payloads = commands(VALUE_BYTES)
    indexes = count(1)

    def apply_all() -> None:
        for payload in payloads:
            machine.apply(ApplyContext(next(indexes), 1), payload)

    return [took / len(payloads) for took in one_by_one(apply_all, samples=15)]


# -- clients --


def _frames_read(frames: list[OwnFrame], frame_type: FrameType) -> Samples:
    """Cut and decode what one read brings."""
    codec = FrameCodec(Limits())
    data = b"".join(map(codec.encode, frames))
    reader = FrameReader(codec.limits_of(frame_type))

    def read() -> None:
        for number, content in reader.feed(data):
            codec.decode(number, content)

    return per_operation(read, divide=len(frames))


def _requests() -> list[OwnFrame]:
    return [
        Request(number, "propose", command)
        for number, command in enumerate(commands(VALUE_BYTES)[:BATCH])
    ]


def _reply(number: int) -> Reply:
    return Reply(number, Outcome.DONE, 1000, strict_dumps(None), "", "", 0, "")


def _request_encoded(_: Path) -> Samples:
    codec, request = FrameCodec(Limits()), _requests()[-1]
    return per_operation(lambda: codec.encode(request))


def _reply_encoded(_: Path) -> Samples:
    codec = FrameCodec(Limits())
    return per_operation(lambda: codec.encode(_reply(1000)))


PART_MEASURES: Final[Mapping[str, Measure]] = {
    "entry made": Measure("envelope, body and record of one 64-byte command", _make_entry),
    "envelope opened": Measure("time and payload of one entry", _open_envelope),
    "entry packed": Measure(f"per entry, in runs of {BATCH}", _pack_entries),
    "entry unpacked": Measure(f"per entry, in runs of {BATCH}", _unpack_entries),
    "command encoded": Measure("cbor2.dumps of a 64-byte put", _cbor_dumps),
    "command decoded": Measure("cbor2.loads of a 64-byte put", _cbor_loads),
    "command decoded strictly": Measure("replog.cbor.strict_loads of the same", _strict_loads),
    "crc32 of 64 KiB": Measure("zlib", _crc32),
    "log group encoded": Measure(f"per entry, in groups of {BATCH}", _encode_group),
    "log group persisted": Measure(f"per group of {BATCH}: write and sync", _persist_group),
    "command applied": Measure("strict decoding and a put", _apply_commands),
    "request encoded": Measure("by a client", _request_encoded),
    "request read": Measure(
        f"by a node, per request, {BATCH} at once",
        lambda _: _frames_read(_requests(), FrameType.REQUEST),
    ),
    "reply encoded": Measure("by a node", _reply_encoded),
    "reply read": Measure(
        f"by a client, per reply, {BATCH} at once",
        lambda _: _frames_read([_reply(number) for number in range(BATCH)], FrameType.REPLY),
    ),
}
