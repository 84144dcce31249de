"""The calls that are made all the time, read and run without the library.

The payload of a call is a list of its name and its arguments, and most arguments are one or two
texts or byte strings.  The library makes that list first, of which each item must then be looked
at: to decode and check a get takes more than twice the time of running it.  So for each method with
such a signature there is a function here that takes the arguments out of the payload head by head
(RFC 8949, section 3), and calls the method.

What it takes is one strict value, as :mod:`replog.cbor` has it, of exactly the declared types.  On
anything else, longer arguments among it, it answers ``UNFIT`` and does nothing: then the library
reads the payload, or somebody says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from replog.argument_kinds import UNFIT
from replog.quick_cbor import BYTES, TEXT, call_head

QuickRun: TypeAlias = "Callable[[object, bytes], object]"
"""Runs a payload on a machine, or answers ``UNFIT``."""

NAME_END: Final = TEXT - 2
"""The head of a call with a short name ends where its second byte says, less this."""

_ONE_BYTE: Final = 24
"""What is left of a head without its major type, below this, is a length; this says that the length
stands in the next byte.  Of a head of another major type more is left than of any of this one."""

_MAJORS: Final[Mapping[frozenset[type], int]] = {frozenset({str}): TEXT, frozenset({bytes}): BYTES}


def head_of(payload: bytes) -> bytes:
    """How a payload begins, if it is a call with a short name."""
    return payload[: payload[1] - NAME_END] if len(payload) > 1 else b""


def quick_run(
    name: str, function: Callable[..., object], kinds: Sequence[frozenset[type]]
) -> tuple[bytes, QuickRun] | None:
    """How the payloads of a call begin, and what runs them; ``None`` for a call with another
    signature.  ``kinds``: of each argument, the types that need no look inside the value."""
    majors = [_MAJORS[kind] for kind in kinds if kind in _MAJORS]
    if len(majors) != len(kinds) or len(name.encode()) >= _ONE_BYTE:
        return None
    head = call_head(name, len(majors))
    if len(majors) == 1:
        return head, _run_of_one(function, len(head), majors[0])
    if len(majors) == 2:
        return head, _run_of_two(function, len(head), *majors)
    return None


def _run_of_one(function: Callable[..., object], start: int, major: int) -> QuickRun:
    is_text = major == TEXT

    def run(machine: object, payload: bytes) -> object:
        try:
            length = payload[start] ^ major
            at = start + 1
            if length >= _ONE_BYTE:
                if length != _ONE_BYTE:
                    return UNFIT
                length = payload[at]
                at += 1
            data = payload[at:]
            if len(data) != length:
                return UNFIT
            argument = data.decode() if is_text else data
        except (IndexError, UnicodeDecodeError):
            return UNFIT
        return function(machine, argument)

    return run


def _run_of_two(
    function: Callable[..., object], start: int, first_major: int, second_major: int
) -> QuickRun:
    first_is_text, second_is_text = first_major == TEXT, second_major == TEXT

    # The same twice, spelled out: a call for each argument would cost two thirds of what is won.
    def run(machine: object, payload: bytes) -> object:
        try:
            length = payload[start] ^ first_major
            at = start + 1
            if length >= _ONE_BYTE:
                if length != _ONE_BYTE:
                    return UNFIT
                length = payload[at]
                at += 1
            end = at + length
            first_data = payload[at:end]
            length = payload[end] ^ second_major
            at = end + 1
            if length >= _ONE_BYTE:
                if length != _ONE_BYTE:
                    return UNFIT
                length = payload[at]
                at += 1
            second_data = payload[at:]
            if len(second_data) != length:
                return UNFIT
            first = first_data.decode() if first_is_text else first_data
            second = second_data.decode() if second_is_text else second_data
        except (IndexError, UnicodeDecodeError):
            return UNFIT
        return function(machine, first, second)

    return run
