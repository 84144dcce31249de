"""Records as a stream of chunks, for the snapshots of state machines, and back.  Pure.

A snapshot is given to ``restore`` cut anywhere (:mod:`replog.machine`), so a machine that yields
one thing per chunk would not find them again.  :func:`pack_chunks` frames records, and
:func:`unpack_chunks` gives them back, one by one, in the memory that one needs.  In short,
big-endian::

    stream  form, records, end
    record  length of content (u32), content, checksum (u32); the form is the first one
    end     ff ff ff ff, checksum

The rules:

* **One running checksum**, CRC-32: each goes on from the one before, so a record that is swapped,
  missing or doubled does not fit.  A record is handed out after its checksum fitted, so whoever
  reads meets no bytes that nobody wrote; that the stream is *whole* is known when the records end.
  Build the new state beside the old one, and swap at the end.
* **A form**: a short text that says what the records mean, and in which version.  A stream of
  another form is refused before its first record.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from replog.errors import SnapshotDamaged, UnknownFormat
from replog.limits import KIB

CHUNK_BYTES: Final = 256 * KIB
"""How much a machine with many small items puts into one record, about."""

RECORD_BYTES_MAX: Final = (1 << 32) - 2
"""The longest record."""

FORM_BYTES_MAX: Final = 64
"""The longest form, as UTF-8."""

_LENGTH: Final = struct.Struct(">I")
_CHECKSUM: Final = struct.Struct(">I")
_END: Final = b"\xff\xff\xff\xff"
"""Stands where a length would."""

_REMEDY: Final = "the state was not replaced; take the snapshot of another node, or make a new one"


def pack_chunks(form: str, records: Iterable[bytes]) -> Iterator[bytes]:
    """A chunk for each record, between one for the form and one for the end."""
    name = form.encode()
    assert 0 < len(name) <= FORM_BYTES_MAX, form
    checksum = 0
    for content in _with_first(name, records):
        assert len(content) <= RECORD_BYTES_MAX
        head = _LENGTH.pack(len(content))
        checksum = zlib.crc32(content, zlib.crc32(head, checksum))
        yield b"".join((head, content, _CHECKSUM.pack(checksum)))
    yield _END + _CHECKSUM.pack(zlib.crc32(_END, checksum))


def unpack_chunks(
    form: str, chunks: Iterable[bytes], record_bytes_max: int = RECORD_BYTES_MAX
) -> Iterator[bytes]:
    """The records of a stream, however it is cut; holds one of them, and one chunk.

    Raises :class:`~replog.errors.SnapshotDamaged` for what :func:`pack_chunks` did not make, for a
    record beyond ``record_bytes_max``, and for a stream that ends early or goes on behind its end;
    :class:`~replog.errors.UnknownFormat` for an intact one of another form.
    """
    _, records = unpack_forms((form,), chunks, record_bytes_max)
    yield from records


def unpack_forms(
    forms: Sequence[str], chunks: Iterable[bytes], record_bytes_max: int = RECORD_BYTES_MAX
) -> tuple[str, Iterator[bytes]]:
    """The form of a stream, which is one of ``forms``, and its records: for whoever still reads
    what earlier releases wrote.  As :func:`unpack_chunks`; the present form is the last."""
    source = _Source(forms[-1], chunks)
    checksum, found = _read_form(source)
    for form in forms:
        if found == form.encode():
            return form, _read_records(source, checksum, record_bytes_max)
    raise UnknownFormat(
        f"the snapshot holds a state of the form {found.decode(errors='replace')!a}, and this "
        f"state machine reads {' and '.join(map(repr, forms))}; use the release that wrote it, or "
        "a later one"
    )


def _read_records(source: _Source, checksum: int, record_bytes_max: int) -> Iterator[bytes]:
    """The records behind the form, up to the end."""
    while (head := source.take(_LENGTH.size)) != _END:
        (length,) = _LENGTH.unpack(head)
        if length > record_bytes_max:
            raise source.damaged(f"a record of {length} bytes stands in it")
        checksum, content = _read_content(source, checksum, head)
        yield content
    if _CHECKSUM.unpack(source.take(_CHECKSUM.size)) != (zlib.crc32(_END, checksum),):
        raise source.damaged("its end does not fit what is before it")
    if source.has_more():
        raise source.damaged("something follows its end")


class _Source:
    """The bytes of the chunks, taken in pieces of any size."""

    __slots__ = ("_buffer", "_chunks", "_form", "_offset")

    def __init__(self, form: str, chunks: Iterable[bytes]) -> None:
        self._form = form
        self._chunks = iter(chunks)
        self._buffer = b""
        self._offset = 0
        """Up to where the buffer is taken."""

    def take(self, size_bytes: int) -> bytes:
        """The next bytes."""
        parts: list[bytes] = []
        while True:
            piece = self._buffer[self._offset : self._offset + size_bytes]
            self._offset += len(piece)
            size_bytes -= len(piece)
            if not size_bytes and not parts:
                return piece
            parts.append(piece)
            if not size_bytes:
                return b"".join(parts)
            if not self.has_more():
                raise self.damaged("it ends too early")

    def has_more(self) -> bool:
        """Whether there is another byte."""
        while self._offset == len(self._buffer):
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._buffer, self._offset = chunk, 0
        return True

    def damaged(self, what: str) -> SnapshotDamaged:
        return SnapshotDamaged(
            f"a snapshot of the form {self._form!r} is damaged: {what}; {_REMEDY}"
        )


def _read_form(source: _Source) -> tuple[int, bytes]:
    """The checksum behind the first record, and that record."""
    head = source.take(_LENGTH.size)
    (length,) = _LENGTH.unpack(head)
    if length > FORM_BYTES_MAX:
        raise source.damaged("it does not begin as one")
    return _read_content(source, 0, head)


def _read_content(source: _Source, checksum: int, head: bytes) -> tuple[int, bytes]:
    """The new checksum, and the content behind the head of a record, which is intact."""
    (length,) = _LENGTH.unpack(head)
    content = source.take(length)
    checksum = zlib.crc32(content, zlib.crc32(head, checksum))
    if _CHECKSUM.unpack(source.take(_CHECKSUM.size)) != (checksum,):
        raise source.damaged("a checksum does not fit")
    return checksum, content


def _with_first(first: bytes, records: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from records
