"""The one message by which replicas are compared.  It belongs to no engine.

See :mod:`replog.comparison`, which sends and takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from replog.engine import FieldKind, MessageSpec
from replog.types import EpochNumber, LogIndex, NodeId, Term, record


@record
class DigestCompare:
    """What the sender says some entries came to; who finds something else asks on."""

    epoch: EpochNumber
    term: Term
    """Always 0: whoever is in which term, applied is applied."""
    sender: NodeId
    to: NodeId
    after_index: LogIndex
    """The entries behind this one, ..."""
    upto_index: LogIndex
    """... up to this one; at least one."""
    digest: int
    """The hash of the marks that the sender has of them (:mod:`replog.digests`)."""
    form: int
    """How the sender makes its marks; only equal forms are compared."""
    differs_upto: LogIndex
    """Some two nodes are known to differ behind ``after_index`` up to here, of which this is the
    front; 0: nothing is known."""
    unknown_upto: LogIndex
    """What came of the entries up to here nobody has compared: marks begin behind it; 0: all in
    front of ``after_index`` was the same."""
    is_answer: bool
    """Whether it is sent because the receiver asked, and asks nothing itself."""


_FIELDS: Final[Mapping[str, FieldKind]] = {
    "epoch": FieldKind.U32,
    "term": FieldKind.U64,
    "sender": FieldKind.U16,
    "to": FieldKind.U16,
    "after_index": FieldKind.U64,
    "upto_index": FieldKind.U64,
    "digest": FieldKind.U64,
    "form": FieldKind.U32,
    "differs_upto": FieldKind.U64,
    "unknown_upto": FieldKind.U64,
    "is_answer": FieldKind.BOOL,
}

COMPARISON_SPECS: Final = (
    MessageSpec(number=85, record=DigestCompare, fields=_FIELDS, bytes_max=256),
)
