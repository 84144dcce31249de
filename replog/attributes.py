"""The attributes of a state machine as a snapshot, where its class says nothing better.

Good for small machines: the attributes are checked and encoded while nothing is applied.  Each is
a record of :mod:`replog.chunks`: the length of the name (u16), the name, the value in CBOR.

**What is restored must go on exactly as what was snapshotted**, on every replica, so a value is
only taken if CBOR gives it back as the very same: None, bool, int (64 bits), float, str, bytes,
list, and dict with str keys, in any nesting.  A tuple would come back as a list, a defaultdict as a
dict, two names of one list as two lists; each would behave differently some commands later.  They
are refused with the attribute's name, and never approximated.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from replog.cbor import DEPTH_MAX, INT_MAX, INT_MIN, strict_dumps, strict_loads
from replog.chunks import pack_chunks, unpack_chunks
from replog.errors import BadCommand, SchemaError, SnapshotDamaged, SnapshotUnavailable

FORM: Final = "attributes 1"
CONTEXT_NAME: Final = "context"
"""Belongs to the replica, and so is neither snapshotted nor restored."""

_NAME_LENGTH: Final = struct.Struct(">H")
_IMMUTABLE: Final = frozenset((type(None), bool, float, str, bytes))


def pack_attributes(machine: object) -> Iterator[bytes]:
    """The chunks of all attributes, in the order of their names.

    Raises :class:`~replog.errors.SnapshotUnavailable` before the first chunk, or for a text that is
    not Unicode at its place.
    """
    cls = type(machine)
    slots = [name for owner in cls.__mro__ for name in _slots_of(owner)]
    if slots:
        raise _refusal(cls, slots[0], "it stands in __slots__, which are not looked at")
    attributes = {name: vars(machine)[name] for name in sorted(vars(machine))}
    attributes.pop(CONTEXT_NAME, None)
    seen: set[int] = set()
    for name, value in attributes.items():
        problem = _problem(value, DEPTH_MAX, seen)
        if problem:
            raise _refusal(cls, name, problem)
    return pack_chunks(FORM, _records(cls, attributes))


def unpack_attributes(chunks: Iterable[bytes]) -> dict[str, object]:
    """The attributes by name.

    Raises :class:`~replog.errors.SnapshotDamaged` and :class:`~replog.errors.UnknownFormat`.
    """
    attributes: dict[str, object] = {}
    for content in unpack_chunks(FORM, chunks):
        try:
            (length,) = _NAME_LENGTH.unpack_from(content)
            end = _NAME_LENGTH.size + length
            name = content[_NAME_LENGTH.size : end].decode()
            value = strict_loads(content[end:])
        except (struct.error, UnicodeDecodeError, SchemaError) as error:
            raise _foreign(f"an attribute cannot be read ({error})") from None
        if name in attributes or name == CONTEXT_NAME:
            raise _foreign(f"the attribute {name!a} has no place in it")
        attributes[name] = value
    return attributes


def _records(cls: type, attributes: Mapping[str, object]) -> Iterator[bytes]:
    for name, value in attributes.items():
        encoded = name.encode()
        try:
            yield _NAME_LENGTH.pack(len(encoded)) + encoded + strict_dumps(value)
        except BadCommand as error:
            raise _refusal(cls, name, str(error)) from None


def _problem(value: object, depth: int, seen: set[int]) -> str:
    """Why CBOR would not give back the very same value; empty: it would.

    ``seen`` holds the identities of all lists and dicts so far, in all attributes.
    """
    kind = type(value)
    if kind in _IMMUTABLE:
        return ""
    if kind is int:
        assert isinstance(value, int)
        return "" if INT_MIN <= value <= INT_MAX else "it holds an int beyond 64 bits"
    if kind is not list and kind is not dict:
        return f"it holds a {kind.__qualname__}, which would not come back as one"
    if id(value) in seen:
        return f"it holds a {kind.__qualname__} that the machine holds twice, and would get two"
    if depth == 0:
        return f"it nests its lists and dicts deeper than {DEPTH_MAX}"
    seen.add(id(value))
    items: Iterable[object] = ()
    if isinstance(value, list):
        items = value
    elif isinstance(value, dict):
        odd = next((key for key in value if type(key) is not str), None)
        if odd is not None or None in value:
            return f"it holds a dict with a key of type {type(odd).__qualname__}"
        items = value.values()
    return next((found for item in items if (found := _problem(item, depth - 1, seen))), "")


def _slots_of(owner: type) -> tuple[str, ...]:
    declared = vars(owner).get("__slots__", ())
    names = (declared,) if isinstance(declared, str) else tuple(declared)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _refusal(cls: type, name: str, reason: str) -> SnapshotUnavailable:
    return SnapshotUnavailable(
        f"the attribute {name!r} of {cls.__name__} cannot be in a snapshot ({reason}); give the "
        "class a snapshot() and a restore() of its own"
    )


def _foreign(what: str) -> SnapshotDamaged:
    return SnapshotDamaged(
        f"a snapshot of the form {FORM!r} makes no sense: {what}, and its checksum is right, so a "
        "broken or foreign program wrote it; take the snapshot of another node"
    )
