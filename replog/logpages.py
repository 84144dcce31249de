"""The log as a log: its commands in order, a page at a time, whatever state machine there is.

Whoever follows the log says from which index on, and gets what is applied here from there, a page
full; then it asks again from the page's ``next_index``.  So nothing is held for it in between, one
that is slow holds up nobody, and it goes on where it was at this node or any other.  What is
committed is the same everywhere, so no entry is missed and none comes twice.

What a snapshot stands for may be gone from the log: then :class:`~replog.errors.Compacted` says
from where on there is something.
"""

from __future__ import annotations

from typing import Final

from replog.engine import Engine
from replog.envelope import open_envelope
from replog.errors import NotYet
from replog.types import EntryKind, LogEntry, LogIndex, LogPage

PAGE_BYTES: Final = 64 * 1024
"""So much of the log is read for a page at most (or ``limits.message_bytes_max``), but one entry at
least.

It is read and unpacked in less than a millisecond, for which the node does nothing else.
"""


def read_page(
    engine: Engine, applied_index: LogIndex, from_index: LogIndex, bytes_max: int, waits: bool
) -> LogPage:
    """The commands from ``from_index`` on, of which everything up to ``applied_index`` is applied.

    What is no command has an index, too, and is passed over, so a page may be empty and yet lead
    further.  Where nothing more is applied: raises :class:`~replog.errors.NotYet` with the empty
    page if it ``waits``, and returns that otherwise.  Raises :class:`~replog.errors.Compacted`.
    """
    found: list[LogEntry] = []
    next_index = max(1, from_index)
    if next_index <= applied_index:
        entries = engine.entries(next_index, applied_index, min(PAGE_BYTES, bytes_max))
        for entry in entries:
            if entry.kind == EntryKind.COMMAND:
                time_ms, data = open_envelope(entry)
                found.append(LogEntry(entry.index, time_ms, data))
        next_index = entries[-1].index + 1
    page = LogPage(tuple(found), next_index)
    if waits and not found and next_index > applied_index:
        raise NotYet(next_index, page)
    return page
