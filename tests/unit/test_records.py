"""Records are truly frozen while tests run."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import field

import pytest

from replog.testing import freeze_records, thaw_records
from replog.types import RECORDS, EntryId, Ready, record


@pytest.fixture
def late() -> Iterator[type]:
    """A record class that was made after the session's records were frozen."""

    @record
    class Late:
        """Made late."""

        number: int

    yield Late
    thaw_records()
    RECORDS.remove(Late)
    freeze_records()


def test_change_record_refused() -> None:
    """A field of a record cannot be set a second time in the tests."""
    entry_id = EntryId(1, 2, 3)
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"EntryId\.term is set already"):
        entry_id.term = 5  # type: ignore[misc]
    assert entry_id == EntryId(1, 2, 3)


def test_delete_field_refused() -> None:
    """A field of a record cannot be deleted in the tests."""
    entry_id = EntryId(1, 2, 3)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot be deleted"):
        del entry_id.term
    assert entry_id.term == 2


def test_set_unknown_name_refused() -> None:
    """A record takes no attribute that it does not declare."""
    with pytest.raises(AttributeError):
        EntryId(1, 2, 3).remark = "new"  # type: ignore[attr-defined]


def test_replace_and_copy_work() -> None:
    """dataclasses.replace and copy still make new records, which are frozen as well."""
    for made in (dataclasses.replace(EntryId(1, 2, 3), term=9), copy.copy(EntryId(1, 9, 3))):
        assert made == EntryId(1, 9, 3)
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.term = 4  # type: ignore[misc]


def test_freeze_keeps_construction() -> None:
    """A frozen class is made as before: by position or keyword, with defaults and afterthoughts."""

    @record
    class Shape:
        """Has every kind of field that a record may have."""

        width: int
        height: int = 2
        tags: list[str] = field(default_factory=list)
        area: int = field(init=False)

        def __post_init__(self) -> None:
            self.area = self.width * self.height  # type: ignore[misc]

    try:
        plain = [Shape(3), Shape(3, 4), Shape(width=3, tags=["a"])]
        freeze_records()
        frozen = [Shape(3), Shape(3, 4), Shape(width=3, tags=["a"])]
        assert frozen == plain
        assert [shape.area for shape in frozen] == [6, 12, 6]
        assert frozen[0].tags is not frozen[1].tags
        with pytest.raises(dataclasses.FrozenInstanceError):
            frozen[0].area = 7  # type: ignore[misc]
        with pytest.raises(TypeError, match="width"):
            Shape()  # type: ignore[call-arg]
    finally:
        thaw_records()
        RECORDS.remove(Shape)
        freeze_records()


def test_freeze_late_record(late: type) -> None:
    """A record class that is made later is frozen by the next call, its instances included."""
    instance = late(1)
    instance.number = 2
    freeze_records()
    with pytest.raises(dataclasses.FrozenInstanceError):
        instance.number = 3
    assert instance.number == 2


def test_thaw_restores_plain_records() -> None:
    """Thawing leaves the classes as they are in production, and freezing twice is harmless."""
    thaw_records()
    try:
        assert "__setattr__" not in vars(Ready)
        entry_id = EntryId(1, 2, 3)
        entry_id.term = 5  # type: ignore[misc]
        assert entry_id.term == 5
    finally:
        freeze_records()
        freeze_records()
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry_id.term = 6  # type: ignore[misc]
