"""What the arguments of a command may be: annotations compiled into checks, once per class.

A *kind* is an exact type that an argument may have, with what is to be checked inside its value
(nothing, for most).  :mod:`replog.statemachine` describes the rules for authors.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from types import NoneType, UnionType
from typing import Any, Final, NewType, TypeAlias, Union, get_args, get_origin

SHAPES_MAX: Final = 64
"""Above so many combinations of argument types, a call's arguments are checked one by one."""

Fit: TypeAlias = "Callable[[object], object]"
"""Checks a value to the bottom and returns it, or raises :class:`MisfitError`."""

PlainRun: TypeAlias = "Callable[[object, list[object]], object]"
"""Runs a decoded request on a machine, or answers ``UNFIT``."""

UNFIT: Final = object()
Kinds: TypeAlias = "Mapping[type, Fit | None]"
"""The exact types that a place accepts; ``None``: the type alone is enough."""


class MisfitError(Exception):
    """A value is not of a declared type; the text says what it is and what was wanted."""


def _float_fit(value: object) -> object:
    assert type(value) is int
    return float(value)


_ANYTHING: Final[Kinds] = dict.fromkeys((NoneType, bool, int, float, str, bytes, list, dict))
_NAMED_KINDS: Final[Mapping[object, Kinds]] = {
    **{kind: {kind: None} for kind in (NoneType, bool, int, str, bytes, list, dict)},
    None: {NoneType: None},
    float: {float: None, int: _float_fit},
    object: _ANYTHING,
    Any: _ANYTHING,
}


def parameter_kinds(function: Callable[..., object], parameter: inspect.Parameter) -> Kinds:
    """What one parameter accepts; its default must be acceptable too."""
    where = f"{function.__qualname__}: the parameter {parameter.name!r}"
    annotation: object = parameter.annotation
    if annotation is inspect.Parameter.empty:
        raise TypeError(f"{where} has no type; annotate it, with object to check it yourself")
    if isinstance(annotation, str):
        # Parameters are resolved one by one: a result's type may be known to the checker alone.
        try:
            annotation = eval(annotation, inspect.unwrap(function).__globals__)
        except Exception as error:
            raise TypeError(
                f"{where} is annotated {annotation!r}, which is not known in the module ({error}); "
                "import or define it at the top level"
            ) from error
    try:
        kinds = _annotation_kinds(annotation)
        if parameter.default is not inspect.Parameter.empty:
            fit_value(kinds, parameter.default)
    except MisfitError as misfit:
        raise TypeError(f"{where} has {misfit}") from None
    return kinds


def _annotation_kinds(annotation: object) -> Kinds:
    """Compile one annotation; raises :class:`MisfitError` for what cannot be checked or sent."""
    if isinstance(annotation, NewType):
        return _annotation_kinds(annotation.__supertype__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Union or origin is UnionType:
        return _union_kinds([_annotation_kinds(member) for member in arguments])
    if origin is list:
        items = _annotation_kinds(arguments[0])
        return {list: None if items is _ANYTHING else _list_fit(items)}
    if origin is dict:
        if arguments[0] is not str:
            raise MisfitError(f"the type {annotation!r}, but the keys of a dict travel as str only")
        items = _annotation_kinds(arguments[1])
        return {dict: None if items is _ANYTHING else _dict_fit(items)}
    # An annotation need not be hashable, so the table is searched by identity.
    for known, kinds in _NAMED_KINDS.items():
        if annotation is known:
            return kinds
    raise MisfitError(
        f"the type {annotation!r}, which CBOR cannot carry; use None, bool, int, float, str, "
        "bytes, list, dict or a union of them, or object to check it yourself"
    )


def _union_kinds(members: Sequence[Kinds]) -> Kinds:
    merged: dict[type, Fit | None] = {}
    for member in members:
        for kind, fit in member.items():
            if kind in merged and kind in (list, dict) and (fit or merged[kind]):
                raise MisfitError(f"a union of two kinds of {kind.__name__}; declare one")
            # An int that is declared itself stays an int, also beside a float.
            merged[kind] = fit if kind not in merged else None
    return merged


def _list_fit(items: Kinds) -> Fit:
    def fit_list(value: object) -> object:
        assert type(value) is list
        return [fit_value(items, item) for item in value]

    return fit_list


def _dict_fit(items: Kinds) -> Fit:
    def fit_dict(value: object) -> object:
        assert type(value) is dict
        # The keys need no look: no other keys than str are ever read or sent.
        return {key: fit_value(items, item) for key, item in value.items()}

    return fit_dict


def fit_value(kinds: Kinds, value: object) -> object:
    """The value, of an accepted type to the bottom; raises :class:`MisfitError`."""
    kind = type(value)
    if kind not in kinds:
        wanted = " or ".join(_kind_name(accepted) for accepted in kinds)
        raise MisfitError(f"{_kind_name(kind)} where {wanted} is declared")
    fit = kinds[kind]
    return value if fit is None else fit(value)


def _kind_name(kind: type) -> str:
    return "None" if kind is NoneType else kind.__name__


def plain_kinds(kinds: Kinds) -> frozenset[type]:
    """The types of an argument that need no look inside the value."""
    return frozenset(kind for kind, fit in kinds.items() if fit is None)


def plain_run_of_one(function: Callable[..., object], kinds: frozenset[type]) -> PlainRun:
    def run(machine: object, request: list[object]) -> object:
        if type(request) is list and len(request) == 2:
            _, first = request
            if type(first) in kinds:
                return function(machine, first)
        return UNFIT

    return run


def plain_run_of_two(
    function: Callable[..., object], first_kinds: frozenset[type], second_kinds: frozenset[type]
) -> PlainRun:
    def run(machine: object, request: list[object]) -> object:
        if type(request) is list and len(request) == 3:
            _, first, second = request
            if type(first) in first_kinds and type(second) in second_kinds:
                return function(machine, first, second)
        return UNFIT

    return run


def plain_shapes(kinds: Sequence[Kinds]) -> list[tuple[type, ...]]:
    """Every combination of argument types that needs no look inside a value.

    One lookup of ``tuple(map(type, arguments))`` then checks a whole call, number of arguments
    included; what is not found here is checked one by one.
    """
    plain = [list(plain_kinds(place)) for place in kinds]
    if math.prod(map(len, plain)) > SHAPES_MAX:
        return []
    return list(product(*plain))
