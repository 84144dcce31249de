"""The client's end of a session (:mod:`replog.sessions`): numbers, and which of them are open.

A command gets its number when it is asked for, and keeps it however often it is sent.  The *lowest*
number that is still open travels with every command: the replicas forget the answers below it, and
refuse a late copy of what is below it.  So a command that its caller gave up cannot be done any
more once one is done that was sent afterwards, when nothing earlier was open.
"""

from __future__ import annotations

import struct
from typing import Final

from replog.errors import SessionFull
from replog.sessions import SessionId

PROPOSE: Final = "propose"
"""The verb that replicates a command."""

QUERY: Final = "query"
"""The verb that runs a query on the state of the node that is asked: a level, an index that must be
applied there, and the payload, as CBOR."""

READ_LOG: Final = "read_log"
"""The verb that reads the log as a log: a level, an index, and whether to wait where there is
nothing yet, as CBOR.  Its result is the first index that is still there if that is above the one
that was asked for, else 0; where to go on; and the commands, each with its index and its time."""

OPEN_SESSION: Final = "open_session"
"""The verb that opens a session; its result is the session's id."""

CLOSE_SESSION: Final = "close_session"
"""The verb that closes one; its body is the id (:data:`SESSION_ID`)."""

SESSION_ID: Final = struct.Struct(">Q")

PROPOSE_IN_SESSION: Final = "propose_in_session"
"""The verb that replicates a command in a session; in front of the payload stands
:data:`~replog.envelope.SESSION_BLOCK`."""


PROPOSE_MARKED: Final = "propose_marked"
"""The verb that replicates a command with any features: these (u8), then their blocks and the
payload (:mod:`replog.envelope`)."""

LEADING_TERM: Final = "leading_term"
"""The verb that asks the leader for its term; the result is an epoch and a term."""


WIDENED_AFTER: Final = 8
"""After so many commands that were done one more may leave beside the lowest, where there was no
room."""


class ClientSession:
    """One session, as its client sees it."""

    __slots__ = (
        "_done_count",
        "_last",
        "_open",
        "lowest",
        "refusal",
        "repeated_count",
        "session_id",
    )

    def __init__(self, session_id: SessionId) -> None:
        self.session_id = session_id
        self.repeated_count = 0
        """How often a command was sent again although it may have been done."""
        self._last = 0
        """The number that was given last."""
        self._open: set[int] = set()
        """Those whose outcome somebody waits for; only ever looked up."""
        self.lowest = 1
        """The lowest number that is open; the next one, when there is none."""
        self.refusal: SessionFull | None = None
        """What the cluster said when it had no room for more answers, the last time; ``None``: it
        always had.  The session is narrow from then on, but ever less so."""
        self._done_count = 0
        """How many commands were done since then."""

    @property
    def window(self) -> int:
        """How many numbers may be in flight, from the lowest on, where the session is narrow."""
        return 1 + self._done_count // WIDENED_AFTER

    def narrow(self, refusal: SessionFull) -> None:
        """The cluster keeps as many answers as it may: it does the lowest command and no other."""
        self.refusal, self._done_count = refusal, 0

    def take(self) -> int:
        """The number of a new command."""
        self._last += 1
        self._open.add(self._last)
        return self._last

    def settle(self, sequence: int, *, is_done: bool = False) -> None:
        """Nobody waits for this command any more: it is done, or its outcome is known, or it was
        given up."""
        still_open, last = self._open, self._last
        still_open.remove(sequence)
        if is_done:
            self._done_count += 1
        if sequence == self.lowest:
            sequence += 1
            while sequence <= last and sequence not in still_open:
                sequence += 1
            self.lowest = sequence
