"""What the entries did to one replica, a number for each, by which replicas are compared.

Every replica applies the same entries, and a state machine is deterministic, so the state and the
answers are the same everywhere; until a bug, a clock in a command or a broken memory makes them
differ.  Then every replica goes on, and nobody notices.  So each keeps a *mark* of what every entry
came to: of its outcome, and of the state behind it if the machine has a digest of that
(:class:`replog.machine.Digested`).  The marks of the last entries are kept, and
:mod:`replog.comparison` compares them.  Paxos Made Live (§6) compares checksums of the state that a
control entry asks for; marks of every entry also say *which* entry it was.

The rules of a mark:

* It is made of nothing but what was applied, so it is the same on every replica, release of Python
  and machine: no ``hash``, no order of a dict, no words of an error, which a later release may put
  better.
* A command of a session that was applied before has none: who has lost the answer, and may, answers
  otherwise (:data:`~replog.sessions.NOT_KEPT`).  Nor has what is no command.
* Two outcomes that differ have the same mark once in 2**32 times, two states as often as the
  machine's digest has it.  It finds errors, and not somebody who forges them.

Making a mark must cost next to nothing, for there is one for every entry.  So it is only kept, and
a stretch of them is hashed when it is compared.
"""

from __future__ import annotations

import sys
from array import array
from hashlib import blake2b
from typing import Final
from zlib import crc32

import cbor2

from replog.types import LogIndex

MARKS_MAX: Final = 32_768
"""So many marks are kept at least, 8 bytes each, if so many entries were applied."""

MARKS_FORM: Final = 2
"""How marks are made; nodes whose marks are of different forms are not compared."""

_TYPE_OF_64_BITS: Final = "L" if array("L").itemsize == 8 else "Q"
"""An array takes a number as "L" three times as fast as it takes one as "Q"."""

MARK_MASK: Final = (1 << 64) - 1

NONE_MARK: Final = 0x4E6F_6E65
"""Of a command that answers nothing; what is not applied has 0."""

DEPTH_MAX: Final = 100
"""What is nested deeper is not encoded: the encoder would run out of stack."""

# Where the checksum of an outcome begins, so that outcomes of two kinds hardly ever look alike.
_BYTES: Final = 1
_OTHER: Final = 2
_DECLARED: Final = 3
_UNFIT: Final = 4


class Digests:
    """The marks of the last entries that one replica has applied."""

    __slots__ = ("_first", "marks")

    def __init__(self, applied_index: LogIndex) -> None:
        """Nothing is known of the entries up to ``applied_index``."""
        self._first = applied_index
        self.marks = array(_TYPE_OF_64_BITS)
        """For each entry behind ``first``, appended by the replica as it applies: of a command
        ``outcome_mark + state_digest`` modulo 2**64, of all else 0."""

    @property
    def first(self) -> LogIndex:
        """The marks begin behind this entry."""
        return self._first

    @property
    def last(self) -> LogIndex:
        """The last entry with a mark; ``first``: there is none."""
        return self._first + len(self.marks)

    def shorten(self) -> None:
        """Drop the oldest if there are many."""
        if len(self.marks) > 2 * MARKS_MAX:
            self._first += len(self.marks) - MARKS_MAX
            del self.marks[:-MARKS_MAX]

    def forget(self, applied_index: LogIndex) -> None:
        """The state came from elsewhere: nothing is known of the entries up to here."""
        self._first = applied_index
        del self.marks[:]

    def between(self, after: LogIndex, upto: LogIndex) -> int | None:
        """The hash of the marks behind ``after``, up to ``upto``, below 2**64; ``None`` if not all
        of them are known."""
        if not self._first <= after <= upto <= self.last:
            return None
        marks = self.marks[after - self._first : upto - self._first]
        if sys.byteorder == "big":
            marks.byteswap()
        return int.from_bytes(blake2b(marks.tobytes(), digest_size=8).digest())


def outcome_mark(result: object, error: Exception | None) -> int:
    """The part of a mark that stands for the outcome."""
    if error is not None:
        return crc32(type(error).__name__.encode(), _DECLARED)
    if result is None:
        return NONE_MARK
    if type(result) is bytes:
        return crc32(result, _BYTES)
    unfit = crc32(type(result).__name__.encode(), _UNFIT)
    if not _is_shallow(result, DEPTH_MAX):
        return unfit
    try:
        # Canonical: a dict that was made in another order is the same answer.
        return crc32(cbor2.dumps(result, canonical=True), _OTHER)
    except Exception:
        return unfit  # it cannot travel either, and whoever asked is told so


def _is_shallow(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_is_shallow(each, depth - 1) for each in value.values())
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_shallow(each, depth - 1) for each in value)
    return True
