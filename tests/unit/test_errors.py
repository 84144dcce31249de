"""Errors travel: to another process of a program, and into a copy."""

from __future__ import annotations

import copy
import pickle

import pytest

from replog import errors
from replog.errors import (
    CommandFailed,
    CommandTooLarge,
    Compacted,
    ConfigError,
    DirectoryRemade,
    FellBehind,
    NodeActive,
    NotLeader,
    NotYet,
    Overloaded,
    ReplicaDiverged,
    ReplogError,
    SessionExpired,
    SnapshotMisplaced,
    StaleSequence,
    TermChanged,
)

MADE_OF_PARTS: tuple[ReplogError, ...] = (
    ConfigError("replog.toml", ["engine: missing"]),
    NotLeader(1, 2),
    Overloaded("too much is asked for", 30),
    CommandTooLarge(2000, 1000),
    NodeActive(3),
    SessionExpired(7),
    StaleSequence(7, 2, 5),
    TermChanged((1, 3), (1, 4)),
    NotYet(9, [1]),
    Compacted(100),
    FellBehind(100),
    CommandFailed("TooPoor", "there is not enough"),
    DirectoryRemade(2),
    SnapshotMisplaced("the chunk begins elsewhere", 512),
    ReplicaDiverged(2, 10, "in its state", [1, 3]),
)


def test_every_error_of_parts_is_here() -> None:
    """An error whose class is called with something else than its message is tried below."""
    found = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ReplogError) and "__init__" in vars(kind)
    }
    assert found == {type(error) for error in MADE_OF_PARTS}


@pytest.mark.parametrize("error", MADE_OF_PARTS, ids=lambda error: type(error).__name__)
def test_error_travels(error: ReplogError) -> None:
    """What comes out is of the same class, says the same, and has the same attributes."""
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)
