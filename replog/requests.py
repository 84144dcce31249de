"""What the requests of clients ask for, taken from their bodies.

Nothing here trusts what it is given: a body that does not say what its verb needs is refused with
:class:`~replog.errors.SchemaError`, which ends the connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from replog.cbor import strict_loads
from replog.envelope import MARKED, MarkedCommand
from replog.errors import BadCommand, SchemaError
from replog.frames import Request
from replog.quick_cbor import unpack_query
from replog.types import NODE_ID_MAX, LogIndex, ReadLevel, Voter

_LEVELS: Final = {level.value: level for level in ReadLevel}


def marked_in(request: Request) -> MarkedCommand:
    """A command with its blocks.  Raises :class:`~replog.errors.BadCommand` for features that this
    release does not know, and :class:`~replog.errors.SchemaError`."""
    features = request.body[:1]
    kind = MARKED.get(features[0]) if features else None
    if kind is None:
        raise BadCommand(
            f"the command has the features {features.hex() or 'none'}, which this node does not "
            "know; run the same release on it as the client's"
        )
    marked = kind(request.body[1:])
    if len(marked) < kind.blocks_bytes:
        raise SchemaError(
            f"a command with these features begins with {kind.blocks_bytes} bytes of numbers, and "
            f"this one has {len(marked)} bytes"
        )
    return marked


def query_in(request: Request) -> tuple[ReadLevel, LogIndex, bytes]:
    """How new the state must be, and what is asked.  Raises :class:`~replog.errors.SchemaError`."""
    quick = unpack_query(request.body)
    name, at_least, payload = _query_strictly(request.body) if quick is None else quick
    level = _LEVELS.get(name)
    if level is None or not 0 <= at_least < 1 << 64:
        raise SchemaError(f"a query has a level ({', '.join(_LEVELS)}) and an index of 64 bits")
    return level, at_least, payload


def _query_strictly(body: bytes) -> Sequence[Any]:
    asked = strict_loads(body)
    if not isinstance(asked, list) or list(map(type, asked)) != [str, int, bytes]:
        raise SchemaError("a query is an array of a level, an index and a payload")
    return asked


def log_read_in(request: Request) -> tuple[ReadLevel, LogIndex, bool]:
    """From where on the log is read, and how.  Raises :class:`~replog.errors.SchemaError`."""
    asked = strict_loads(request.body)
    if not isinstance(asked, list) or list(map(type, asked)) != [str, int, bool]:
        raise SchemaError("to read the log needs an array of a level, an index and true or false")
    name, from_index, waits = asked
    level = _LEVELS.get(name)
    if level is None or not 0 <= from_index < 1 << 64:
        raise SchemaError(f"the log is read at a level ({', '.join(_LEVELS)}) from a 64-bit index")
    return level, from_index, waits


def learner_in(request: Request) -> Voter:
    """Who is to come back.  Raises :class:`~replog.errors.SchemaError`."""
    asked = strict_loads(request.body)
    if not isinstance(asked, list) or list(map(type, asked)) != [int, int]:
        raise SchemaError(f"a request {request.verb!r} is an array of a node id and an incarnation")
    node_id, incarnation = asked
    if not (1 <= node_id <= NODE_ID_MAX and 1 <= incarnation < 1 << 63):
        raise SchemaError(f"a request {request.verb!r} came with numbers out of range")
    return Voter(node_id, incarnation)
