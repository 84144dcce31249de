"""What travels between processes: frames, and the messages between nodes in them.

A **frame** is a header of 12 bytes, big-endian, and a content:

=========  =====  ==========================================================================
part       bytes  what it holds
=========  =====  ==========================================================================
magic      2      ``RL``
version    1      the version of this layout
type       1      1 to 63: a message of the engine; 64 and above: replog's own, of which 80 to 95
                  are messages between nodes
length     4      the bytes of the content
checksum   4      CRC-32 of the eight bytes above, then of the content
=========  =====  ==========================================================================

The rules this module keeps: every type has a limit, and a length is checked against it before
anything of the content is kept; what arrives is either exactly of the shape that its type promises
or a :class:`~replog.errors.PeerError` with a sentence; no engine is named, for an engine plugin
brings its message records with their schemas (:class:`~replog.engine.MessageSpec`).

A **message** is the length of its CBOR part (u16), the CBOR array of its scalar fields in the order
of the record, and then its entries as :mod:`replog.entries` lays them out, its ranges of indexes,
each as two numbers of eight bytes, or its bytes as they are.  Each scalar
is written in the full width of its kind, which CBOR allows: so the whole array is one ``struct``
call in either direction, and its shape is checked by comparing a few constants.

replog's own messages between nodes (:mod:`replog.transfer_messages`) travel in the same way; its
other frames (the handshake, requests and replies) are in :mod:`replog.frames`.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from operator import attrgetter
from typing import Any, Final
from zlib import crc32

from replog.engine import FieldKind, MessageSpec
from replog.entries import pack_entries, unpack_batch
from replog.errors import FrameError, PluginError, SchemaError
from replog.limits import Limits
from replog.types import Entry, LogIndex

MAGIC: Final = b"RL"
FRAME_VERSION: Final = 1
ENGINE_TYPES: Final = range(1, 64)
"""The frame types of an engine's messages."""

OWN_MESSAGE_TYPES: Final = range(80, 96)
"""The frame types of replog's own messages between nodes."""

_HEADER: Final = struct.Struct(">3sBII")
"""Magic and version as one, type, length, checksum."""

HEADER_BYTES: Final = _HEADER.size
_OPENING: Final = MAGIC + bytes((FRAME_VERSION,))
_CHECKED: Final = struct.Struct(">3sBI")
"""The part of the header that the checksum covers."""

_CHECKED_BYTES: Final = _CHECKED.size


# --- Frames -------------------------------------------------------------------------------------


def pack_frame(frame_type: int, content: bytes) -> bytes:
    """One frame."""
    checked = _CHECKED.pack(_OPENING, frame_type, len(content))
    return checked + crc32(content, crc32(checked)).to_bytes(4, "big") + content


class FrameReader:
    """Cuts the bytes of one connection into frames.

    Between two calls it keeps less than one frame, whose length was checked against the limit of
    its type as soon as its header was there: memory stays below the largest limit, plus what one
    ``feed`` brings.
    """

    __slots__ = ("_buffer", "_failure", "_limits_by_type", "_needed_bytes")

    def __init__(self, limits_by_type: Mapping[int, int]) -> None:
        """Accept exactly the types in ``limits_by_type``, each up to so many bytes of content."""
        self._limits_by_type = limits_by_type
        self._buffer = bytearray()
        self._needed_bytes = 0
        """How long the buffer must be before it can hold a whole frame."""
        self._failure: FrameError | None = None

    def accept(self, limits_by_type: Mapping[int, int]) -> None:
        """From the next ``feed`` on, accept these types: the handshake is over."""
        self._limits_by_type = limits_by_type

    @property
    def buffered_bytes(self) -> int:
        """The bytes of the frame that has not yet arrived whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Every frame that ``data`` completes, as (type, content).

        Raises :class:`~replog.errors.FrameError`, from then on always; whole frames that came in
        the same call before the damage are lost with the connection.
        """
        if self._failure is not None:
            raise self._failure
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed_bytes:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        frames: list[tuple[int, bytes]] = []
        try:
            end = self._cut(data, frames)
        except FrameError as failure:
            self._failure = failure
            raise
        if end < len(data):
            self._buffer += data[end:] if end else data
        return frames

    def _cut(self, data: bytes, frames: list[tuple[int, bytes]]) -> int:
        """Append the whole frames in ``data`` to ``frames``; where the rest begins."""
        limits_by_type = self._limits_by_type
        unpack_from = _HEADER.unpack_from
        size = len(data)
        start = 0
        while (content_start := start + HEADER_BYTES) <= size:
            opening, frame_type, length, checksum = unpack_from(data, start)
            limit = limits_by_type.get(frame_type, -1)
            if opening != _OPENING or length > limit:
                raise FrameError(_refusal_of_header(data[start : start + 16], limit))
            end = content_start + length
            if end > size:
                self._needed_bytes = end - start
                return start
            content = data[content_start:end]
            if crc32(content, crc32(data[start : start + _CHECKED_BYTES])) != checksum:
                raise FrameError(
                    f"the checksum of a frame of type {frame_type} is wrong: its {length} bytes "
                    "were changed on their way"
                )
            frames.append((frame_type, content))
            start = end
        self._needed_bytes = HEADER_BYTES
        if start < size and not _OPENING.startswith(data[start : start + len(_OPENING)]):
            raise FrameError(_refusal_of_header(data[start:], -1))
        return start


_STRANGERS: Final = (
    ((b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE", b"PRI "), "HTTP"),
    ((b"\x16\x03",), "TLS, so TLS is perhaps configured on one side only"),
    ((b"SSH-",), "SSH"),
)
"""What else is known to knock at a port, by its first bytes."""


def _refusal_of_header(came: bytes, limit: int) -> str:
    """The sentence about a header that is refused; ``limit`` is -1 for an unknown type."""
    if not came.startswith(MAGIC[: len(came)]):
        for openings, name in _STRANGERS:
            if came.startswith(openings):
                return f"this port speaks replog, but {came[:8]!r} came, which looks like {name}"
        return f"this port speaks replog, but {came[:8]!r} came, which begins no frame"
    if not came.startswith(_OPENING[: len(came)]):
        return (
            f"a frame of version {came[2]} came, but this release speaks version {FRAME_VERSION}; "
            "run the same release on both sides"
        )
    _, frame_type, length, _ = _HEADER.unpack_from(came)
    if limit < 0:
        return f"a frame of type {frame_type} came, which is not expected on this connection now"
    return (
        f"a frame of type {frame_type} announces {length} bytes, above its limit of {limit}; "
        "give limits.frame_bytes_max the same value on both sides"
    )


# --- Messages between nodes ---------------------------------------------------------------------

_SCALARS: Final[Mapping[FieldKind, tuple[bytes, str]]] = {
    FieldKind.BOOL: (b"", "B"),
    FieldKind.U16: (b"\x19", "H"),
    FieldKind.U32: (b"\x1a", "I"),
    FieldKind.U64: (b"\x1b", "Q"),
}
"""The CBOR head and the struct code of each kind; a boolean is a head with nothing behind it."""

_TAILS: Final = (FieldKind.ENTRIES, FieldKind.RANGES, FieldKind.BYTES)
"""What stands behind the scalars; at most one of them."""

_RANGE: Final = struct.Struct(">QQ")

_CBOR_FALSE: Final = 0xF4
_CBOR_TRUE: Final = 0xF5
_MESSAGE_FIELDS: Final = ("epoch", "term", "sender", "to")
_SCALARS_MAX: Final = 23
"""As many items as a CBOR array can have with a head of one byte."""


class _MessageLayout:
    """How one message travels, worked out once from its spec.

    A message is a row of pairs for ``struct``: constant bytes, then the value of a field.  The
    first constant also holds the length of the CBOR part and the head of the array.
    """

    def __init__(self, spec: MessageSpec, limits: Limits, numbers: range) -> None:
        check_spec(spec, numbers)
        frame_bytes_max = limits.frame_bytes_max
        self.number = spec.number
        self._name = spec.record.__name__
        self._record: Callable[..., object] = spec.record
        self.bytes_max = min(spec.bytes_max or frame_bytes_max, frame_bytes_max)
        names = list(spec.fields)
        kinds = list(spec.fields.values())
        self._tail_at: int | None = None
        self._has_entries = FieldKind.ENTRIES in kinds
        self._has_ranges = FieldKind.RANGES in kinds
        for tail in _TAILS:
            if tail in kinds:
                # Moved to the end: the scalars stand together, the rest behind them.
                self._tail_at = kinds.index(tail)
                names.append(names.pop(self._tail_at))
                kinds.pop(self._tail_at)
        self._fields: Callable[[object], tuple[Any, ...]] = attrgetter(*names)
        self._booleans = tuple(at for at, kind in enumerate(kinds) if kind is FieldKind.BOOL)
        heads = [_SCALARS[kind][0] for kind in kinds]
        codes = [_SCALARS[kind][1] for kind in kinds]
        cbor_bytes = 1 + sum(map(len, heads)) + struct.calcsize(">" + "".join(codes))
        heads[0] = cbor_bytes.to_bytes(2, "big") + bytes((0x80 | len(kinds),)) + heads[0]
        self._constants = tuple(heads)
        self._pairs: list[object] = [part for head in heads for part in (head, 0)]
        self._struct = struct.Struct(
            ">" + "".join(f"{len(head)}s{code}" for head, code in zip(heads, codes, strict=True))
        )

    def pack(self, message: object) -> tuple[bytes, Sequence[Entry]]:
        """The packed scalars with the ranges or bytes, and the entries."""
        values = self._fields(message)
        entries: Sequence[Entry] = ()
        tail = b""
        if self._tail_at is not None:
            if self._has_entries:
                entries = values[-1]
            elif self._has_ranges:
                tail = pack_ranges(values[-1])
            else:
                tail = values[-1]
            values = values[:-1]
        pairs = self._pairs[:]
        pairs[1::2] = values
        for at in self._booleans:
            pairs[2 * at + 1] = _CBOR_TRUE if values[at] else _CBOR_FALSE
        return self._struct.pack(*pairs) + tail, entries

    def unpack(self, content: bytes) -> object:
        """The message; raises :class:`~replog.errors.SchemaError`."""
        scalars_bytes = self._struct.size
        if len(content) < scalars_bytes:
            raise self._misfit(content)
        pairs = self._struct.unpack_from(content)
        if pairs[::2] != self._constants:
            raise self._misfit(content)
        values = list(pairs[1::2])
        for at in self._booleans:
            value = values[at]
            if value != _CBOR_TRUE and value != _CBOR_FALSE:
                raise self._misfit(content)
            values[at] = value == _CBOR_TRUE
        if self._tail_at is not None:
            tail: object
            if self._has_entries:
                tail = unpack_batch(content, scalars_bytes)
            elif self._has_ranges:
                tail = tuple(unpack_ranges(content, scalars_bytes))
            else:
                tail = content[scalars_bytes:]
            values.insert(self._tail_at, tail)
        elif len(content) != scalars_bytes:
            raise self._misfit(content)
        return self._record(*values)

    def _misfit(self, content: bytes) -> SchemaError:
        wanted, name = self._struct.size, self._name
        if len(content) != wanted and (self._tail_at is None or len(content) < wanted):
            return SchemaError(f"a message {name} of {len(content)} bytes came; it has {wanted}")
        return SchemaError(
            f"a message {name} came whose fields are not an array of "
            f"{len(self._constants)} in their kinds and full widths: {content[:wanted].hex()}"
        )


def pack_ranges(ranges: Sequence[tuple[LogIndex, LogIndex]]) -> bytes:
    """The bytes of ranges of indexes."""
    if len(ranges) == 1:
        return _RANGE.pack(*ranges[0])
    return struct.pack(f">{2 * len(ranges)}Q", *itertools.chain.from_iterable(ranges))


def unpack_ranges(data: bytes, start: int) -> list[tuple[LogIndex, LogIndex]]:
    """The ranges in ``data`` from ``start`` to its end.

    Raises :class:`~replog.errors.SchemaError` unless they ascend, with a gap between each two.
    """
    if (len(data) - start) % _RANGE.size:
        raise SchemaError("a range of indexes is cut off")
    ranges: list[tuple[LogIndex, LogIndex]] = []
    before = -1
    for first, last in _RANGE.iter_unpack(memoryview(data)[start:]):
        if not before + 1 < first <= last:
            raise SchemaError(f"a range of indexes {first} to {last} comes behind {before}")
        ranges.append((first, last))
        before = last
    return ranges


class MessageCodec:
    """The messages between nodes, an engine's and replog's own, as frames and back."""

    __slots__ = ("_by_number", "_by_record", "frame_limits")

    def __init__(
        self,
        specs: Sequence[MessageSpec],
        limits: Limits,
        own_specs: Sequence[MessageSpec] = (),
    ) -> None:
        """``specs`` are those of an engine; ``own_specs`` those of replog that travel beside them.

        Raises :class:`~replog.errors.PluginError` for specs that contradict their records.
        """
        self._by_number: dict[int, _MessageLayout] = {}
        self._by_record: dict[type, _MessageLayout] = {}
        for spec, numbers in (
            *((spec, ENGINE_TYPES) for spec in specs),
            *((spec, OWN_MESSAGE_TYPES) for spec in own_specs),
        ):
            if spec.number in self._by_number or spec.record in self._by_record:
                raise PluginError(
                    f"the engine has two messages of number {spec.number} or two specs of "
                    f"{spec.record.__name__}; give each message a number of its own"
                )
            layout = _MessageLayout(spec, limits, numbers)
            self._by_number[spec.number] = self._by_record[spec.record] = layout
        self.frame_limits: Mapping[int, int] = {
            number: layout.bytes_max for number, layout in self._by_number.items()
        }
        """The largest content of each frame type, for :class:`FrameReader`."""

    def encode(self, message: object) -> bytes:
        """The whole frame of a message."""
        layout = self._by_record[type(message)]
        content, entries = layout.pack(message)
        if entries:
            content += pack_entries(entries)
        assert len(content) <= layout.bytes_max, (
            f"{message.__class__.__name__} has {len(content)} bytes, "
            f"above its limit of {layout.bytes_max}"
        )
        return pack_frame(layout.number, content)

    def decode(self, frame_type: int, content: bytes) -> object:
        """The message; raises :class:`~replog.errors.SchemaError`."""
        layout = self._by_number.get(frame_type)
        if layout is None:
            raise SchemaError(f"there is no message of number {frame_type} between these nodes")
        return layout.unpack(content)


def check_spec(spec: MessageSpec, numbers: range = ENGINE_TYPES) -> None:
    """Raise :class:`~replog.errors.PluginError` unless the spec fits its record and the wire, and
    its number is one of ``numbers``."""
    name = spec.record.__name__
    kinds = list(spec.fields.values())
    scalars = len(kinds) - sum(map(kinds.count, _TAILS))
    if spec.number not in numbers:
        problem = f"has number {spec.number}; numbers are {numbers[0]} to {numbers[-1]}"
    elif not is_dataclass(spec.record):
        problem = "is not a record"
    elif (declared := [field.name for field in dataclass_fields(spec.record)]) != list(spec.fields):
        problem = f"has the fields {declared}, but its spec lists {list(spec.fields)}"
    elif missing := [field for field in _MESSAGE_FIELDS if field not in spec.fields]:
        problem = f"lacks {missing}; every message has the fields {list(_MESSAGE_FIELDS)}"
    elif len(kinds) - scalars > 1:
        problem = "has more than one field of entries, ranges or bytes"
    elif scalars > _SCALARS_MAX:
        problem = f"has {scalars} scalar fields; {_SCALARS_MAX} fit"
    elif spec.bytes_max is not None and spec.bytes_max < 1:
        problem = f"has a limit of {spec.bytes_max} bytes"
    else:
        return
    raise PluginError(f"the engine's message {name} {problem}")
