"""The storage in memory keeps the contract of a storage, and promises nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from replog.storage.memory import MEMORY, MemoryStorage
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.stored_log import all_entries
from replog.testing.files import ForgetfulFiles
from replog.types import Entry, EntryKind, HardState, entry_body


def entry(index, term=1):
    return Entry(1, index, term, entry_body(EntryKind.COMMAND, 1, term, index, b"x"))


def persist(storage, *writes):
    storage.persist(storage.encode(writes))


def test_recover_new():
    """A new storage holds nothing."""
    recovered = MemoryStorage().recover()
    assert recovered.hard_state is None
    assert all_entries(recovered.log) == ()


def test_recover_persisted():
    """Within the object's life what was persisted comes back, by the rules of the real log."""
    storage = MemoryStorage()
    storage.recover()
    persist(storage, Write(HardState(1, 1, 2), None, [entry(1), entry(2), entry(3)]))
    persist(storage, Write(HardState(1, 2, 0), 2, [entry(2, 2)]), Write(None, None, [entry(9, 2)]))
    recovered = storage.recover()
    assert recovered.hard_state == HardState(1, 2, 0)
    assert all_entries(recovered.log) == (entry(1), entry(2, 2), entry(9, 2))


def test_recover_encoded_only():
    """What was encoded and not persisted is not recovered, and the storage goes on."""
    storage = MemoryStorage()
    storage.recover()
    persist(storage, Write(None, None, [entry(1)]))
    storage.encode([Write(None, None, [entry(2)])])
    assert all_entries(storage.recover().log) == (entry(1),)
    persist(storage, Write(None, None, [entry(3)]))
    assert all_entries(storage.recover().log) == (entry(1), entry(3))


def test_read_encoded():
    """What was encoded can be read before it is persisted."""
    storage = MemoryStorage()
    log = storage.recover().log
    storage.encode([Write(None, None, [entry(1), entry(2)]), Write(None, 2, ())])
    assert all_entries(log) == (entry(1),)


def test_persist_out_of_order():
    """Groups are persisted in the order in which they were encoded; a refused one changes
    nothing."""
    storage = MemoryStorage()
    first = storage.encode([Write(None, None, [entry(1)])])
    second = storage.encode([Write(None, None, [entry(2)])])
    with pytest.raises(AssertionError, match="in the order"):
        storage.persist(second)
    storage.persist(first)
    storage.persist(second)
    assert all_entries(storage.recover().log) == (entry(1), entry(2))


def test_durable_never():
    """It says of itself, before and after it is opened, that it is not durable."""
    files = ForgetfulFiles()
    storage = MEMORY.open(StorageHome(files, Path("/node"), "demo", 1, 7))
    assert not MEMORY.durable
    assert not storage.durable
    assert "not durable" in MEMORY.title
