"""Freezing records in tests: one that is changed after it was made fails a test.

A record (:func:`replog.types.record`) is frozen for the type checker and free at run time, because
truly frozen ones cost three times as much to make; the tests pay that price, so that a changed
record does not make two replicas differ.  Call :func:`freeze_records` from a ``conftest.py``,
before anything else and again before each test.

Only records freeze.  The mutable parts that an engine or a replica owns (its log view, its progress
per peer, its sessions) are ordinary objects with one owner, and stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, make_dataclass
from typing import Final

from replog.types import RECORDS

_FROZEN: Final[dict[type, Callable[..., None]]] = {}
"""The classes that are frozen at the moment, each with its ``__init__`` for production."""


def freeze_records() -> None:
    """Make every record class that exists by now refuse changes to its instances.

    A field can be set once, which is what ``__init__``, ``dataclasses.replace`` and ``copy`` do;
    setting it again or deleting it raises :class:`dataclasses.FrozenInstanceError`.  Instances
    made earlier are frozen too.  Classes that were made since the last call are added; a call that
    finds none costs next to nothing.
    """
    if len(_FROZEN) == len(RECORDS):
        return
    for cls in RECORDS:
        if cls not in _FROZEN:
            _FROZEN[cls] = vars(cls)["__init__"]
            type.__setattr__(cls, "__init__", _frozen_init(cls))
            type.__setattr__(cls, "__setattr__", _set_once)
            type.__setattr__(cls, "__delattr__", _refuse_delete)


def thaw_records() -> None:
    """Undo :func:`freeze_records`, for a test of the freezing itself or of speed."""
    for cls, init in _FROZEN.items():
        type.__setattr__(cls, "__init__", init)
        type.__delattr__(cls, "__setattr__")
        type.__delattr__(cls, "__delattr__")
    _FROZEN.clear()


def _frozen_init(cls: type) -> Callable[..., None]:
    """The ``__init__`` of a truly frozen twin of ``cls``, which sets fields past ``__setattr__``.

    With ``_set_once`` called for every field it would take about ten times as long to make a record
    as in production, instead of three, and a simulation makes millions.
    """
    names = ("__post_init__",) if hasattr(cls, "__post_init__") else ()
    twin = make_dataclass(
        cls.__name__,
        [(field.name, object, copy.copy(field)) for field in fields(cls)],
        namespace={name: getattr(cls, name) for name in names},
        frozen=True,
    )
    init: Callable[..., None] = vars(twin)["__init__"]
    return init


def _set_once(record: object, name: str, value: object) -> None:
    if hasattr(record, name):
        raise FrozenInstanceError(
            f"{type(record).__name__}.{name} is set already, and records never change; "
            "make a new one with dataclasses.replace"
        )
    object.__setattr__(record, name, value)


def _refuse_delete(record: object, name: str) -> None:
    raise FrozenInstanceError(
        f"{type(record).__name__}.{name} cannot be deleted: records are whole"
    )
