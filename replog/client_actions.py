"""What goes in and out of the logic of a client: commands that it was asked for, and its actions.

:mod:`replog.client_logic` decides, a driver carries out.  Between them stand these records:

===================  =============================================================================
action               what the driver does
===================  =============================================================================
:class:`Connect`     opens a connection to a host and a port, looking the name up anew
:class:`Send`        hands bytes to the connection of a line, with one system call if it can
:class:`Close`       ends a line: its connection, or the attempt to open one
:class:`Command`     wakes whoever waits for it: its outcome is known
===================  =============================================================================

A :class:`Command` is its own action, so that its end costs no object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, TypeAlias, TypeVar

from replog.client_core import ClientCore
from replog.client_session import (
    CLOSE_SESSION,
    LEADING_TERM,
    OPEN_SESSION,
    QUERY,
    READ_LOG,
    ClientSession,
)
from replog.envelope import SESSION_BLOCK, MarkedCommand, mark_command
from replog.frames import ServerHello
from replog.types import Applied, NodeId, TermId, record

W = TypeVar("W")

NEVER: Final = float("inf")
"""A time that does not come."""


_QUERIES: Final = frozenset({LEADING_TERM, QUERY, READ_LOG})
_HARMLESS: Final = frozenset({OPEN_SESSION, CLOSE_SESSION, *_QUERIES})


class Route(Generic[W]):
    """The way of a question to single nodes, over lines of its own."""

    __slots__ = ("addresses", "line", "node_id", "reasons")

    def __init__(self, addresses: Sequence[str], node_id: NodeId | None) -> None:
        self.addresses = list(addresses)
        """Where it can still be asked, the next one first."""
        self.node_id = node_id
        """The node that is to answer, whose address has to be learned first; ``None``: any."""
        self.reasons: list[str] = []
        """Why it was not answered so far, with the addresses."""
        self.line: Line[W] | None = None
        """The line that is opened or used for it now."""


class Command(Generic[W]):
    """Something that was asked for and ends exactly once; ``W`` is who waits for it.

    With a :attr:`route` it is a question to single nodes, which changes nothing; without one it
    goes to the leader.
    """

    __slots__ = (
        "applied",
        "backoff_seconds",
        "body",
        "deadline",
        "failure",
        "left_as_lowest",
        "line",
        "may_be_done",
        "request_id",
        "route",
        "seconds",
        "sequence",
        "session",
        "term",
        "verb",
        "waiter",
    )

    def __init__(self, verb: str, body: bytes, now: float, seconds: float, waiter: W) -> None:
        self.verb = verb
        self.body = body
        self.seconds = seconds
        """How long it may take."""
        self.deadline = now + seconds
        self.waiter = waiter
        self.line: Line[W] | None = None
        """Where it is in flight; ``None`` while it only waits: nothing of it has left."""
        self.request_id = 0
        """What it is called there."""
        self.backoff_seconds = 0.0
        """How long it paused last, because the leader was too busy for it."""
        self.route: Route[W] | None = None
        self.session: ClientSession | None = None
        """In which it is applied once, however often it is sent; ``None``: in none."""
        self.sequence = 0
        """Its number there."""
        self.left_as_lowest = False
        """Whether it was the lowest there when it left last; told where the session is narrow."""
        self.term: TermId | None = None
        """In which alone it is to be done; ``None``: in any."""
        self.may_be_done = False
        """Whether it was sent before, and what came of that is not known."""
        self.applied: Applied | None = None
        """What came of it; ``None`` unless it is done."""
        self.failure: Exception | None = None
        """Why it is not done, or not known to be; with neither this nor a result, it goes on.
        While it waits for a busy leader: what that one said."""

    def note_unanswered(self) -> None:
        """It was sent, may have arrived, and will be sent again."""
        if self.session is not None:
            self.may_be_done = True
            self.session.repeated_count += 1

    @property
    def is_repeatable(self) -> bool:
        """Whether it does no harm to send it again when it may have arrived.  (A session that was
        opened and that nobody knows of is gone when it was idle for long enough.)"""
        return self.session is not None or self.is_harmless

    @property
    def is_harmless(self) -> bool:
        """Whether nobody need know whether it was done when it was not answered: a query, and the
        opening or the closing of a session."""
        return self.verb in _HARMLESS

    @property
    def is_query(self) -> bool:
        """Whether it changes nothing."""
        return self.verb in _QUERIES

    @property
    def request_body(self) -> bytes:
        """What a request carries now: in a session also what the client awaits at this moment."""
        session = self.session
        if self.term is not None:
            mark = None
            if session is not None:
                mark = session.session_id, self.sequence, session.lowest
            marked = mark_command(self.body, mark, self.term)
            assert isinstance(marked, MarkedCommand)
            return bytes((marked.features,)) + marked
        if session is None:
            return self.body
        return SESSION_BLOCK.pack(session.session_id, self.sequence, session.lowest) + self.body


class Line(Generic[W]):
    """A connection to one node, from the attempt to open it until the driver says that it ended."""

    __slots__ = (
        "address",
        "answered_count",
        "core",
        "deadline",
        "end_reason",
        "hello",
        "is_closing",
        "is_refusal",
        "is_retired",
        "keepalive_at",
        "question",
        "reply_look_at",
        "reply_looks",
        "silent_looks",
        "unsent_bytes",
    )

    def __init__(
        self,
        address: str,
        core: ClientCore[Command[W]],
        deadline: float,
        question: Command[W] | None,
    ) -> None:
        self.address = address
        self.core = core
        self.question = question
        """The only request that it is for; ``None``: it leads to the leader, and takes commands."""
        self.hello: ServerHello | None = None
        """``None`` until the node has welcomed the client."""
        self.is_closing = False
        """The driver was told to close it: what still arrives is not looked at."""
        self.is_retired = False
        """The node has said that it does not lead, or another one that it does: nothing new is
        sent, and the line ends when nobody waits for it any more."""
        self.is_refusal = False
        """It ended because of what the node is: trying again would bring nothing else."""
        self.end_reason = ""
        """Why it is to end, or was; empty: nothing is known but that it ended."""
        self.deadline = deadline
        """When it is closed: a handshake, or the draining of a retired line, takes only so long."""
        self.unsent_bytes = 0
        """What of the bytes for it the driver has not handed to the kernel, as far as is known."""
        self.keepalive_at = NEVER
        """When it is looked at next whether anything has arrived."""
        self.silent_looks = 0
        """How often it was looked at since bytes last arrived."""
        self.reply_look_at = NEVER
        """When it is looked at next whether replies have come."""
        self.reply_looks = 0
        """How often replies were owed and none had come, one look after the other."""
        self.answered_count = 0
        """The replies that had come at the last look."""

    @property
    def name(self) -> str:
        """The node, for sentences."""
        return f"node {self.hello.node_id} ({self.address})" if self.hello else self.address


@record
class Connect(Generic[W]):
    """Open a connection; report ``connected`` or ``failed``."""

    line: Line[W]
    host: str
    """A name or an IP address."""
    port: int


@record
class Send(Generic[W]):
    """Send bytes; report ``wrote`` when it is known how many of them the kernel took."""

    line: Line[W]
    data: bytes


@record
class Close(Generic[W]):
    """Close the connection, or give up the attempt; report ``ended``."""

    line: Line[W]


Action: TypeAlias = Connect[W] | Send[W] | Close[W] | Command[W]
