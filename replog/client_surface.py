"""What the three client libraries share where they meet their callers and the system.

What they are given and give back, and why an address did not answer in few words.  What a client
decides is in :mod:`replog.client_logic`; each library adds its own way to wait, to connect and to
tell the time.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

from replog.cbor import strict_dumps
from replog.changes import ChangeCursor, ChangesPage
from replog.client_actions import Command
from replog.client_logic import ClientLogic
from replog.client_search import LeaderSearch, parse_addresses
from replog.client_session import ClientSession
from replog.config import Config
from replog.envelope import check_term
from replog.errors import (
    BadCommand,
    CommandTooLarge,
    Compacted,
    ConfigError,
    ReplogError,
    SchemaError,
)
from replog.limits import Limits
from replog.pages import ItemsPage, PageCursor
from replog.statemachine import Call
from replog.types import Applied, LogEntry, LogIndex, LogPage, NodeId, ReadLevel, TermId, record

W = TypeVar("W")

DEADLINE_SECONDS: Final = 10.0
"""How long a call may take where the caller says nothing else."""

CommandOutcome: TypeAlias = Applied | ReplogError
"""How one command of ``propose_many`` ended: done, or the error that ``propose`` would raise."""


@record
class NodeDump:
    """A page of the state of one node's state machine."""

    applied_index: LogIndex
    """What the node had applied when it made the page; of two nodes, compare equal ones only."""
    items: Sequence[object]
    cursor: bytes | None
    """Where the next page starts; ``None``: this page is the last."""


def make_logic(
    nodes: Config | str | Iterable[str], cluster_id: str, limits: Limits | None
) -> tuple[ClientLogic[W], Limits]:
    """The logic of a client that was given these nodes, and the limits under which it works.

    Raises :class:`~replog.errors.AddressError` and :class:`~replog.errors.ConfigError`.
    """
    members: dict[NodeId, str] = {}
    if isinstance(nodes, Config):
        members = {node.id: str(node.client) for node in nodes.nodes}
        cluster_id = cluster_id or nodes.cluster_id
        limits = limits or nodes.limits
        nodes = members.values()
    limits = limits or Limits()
    if problems := limits.problems():
        raise ConfigError("limits", problems)
    search = LeaderSearch(parse_addresses(nodes), members, cluster_id)
    return ClientLogic(search, limits, random.random), limits


# --- Commands -----------------------------------------------------------------------------------


def check_size(payload: bytes, limits: Limits) -> None:
    """Raises :class:`~replog.errors.CommandTooLarge`; such a command never leaves."""
    assert isinstance(payload, bytes), "a command is bytes"
    if len(payload) > limits.command_bytes_max:
        raise CommandTooLarge(len(payload), limits.command_bytes_max)


def propose_all(
    logic: ClientLogic[W],
    limits: Limits,
    now: float,
    payloads: Iterable[bytes],
    seconds: float,
    waiter: W,
    session: ClientSession | None,
    term: TermId | None,
) -> list[Command[W] | CommandTooLarge]:
    """Propose commands with one waiter; for one that is not even sent, why.

    All are looked at before the first is proposed, so an error in ``payloads`` leaves none behind.
    """
    check_term(term)
    checked = [(payload, _too_large(payload, limits)) for payload in payloads]
    return [
        failure or logic.propose(now, payload, seconds, waiter, session, term)
        for payload, failure in checked
    ]


def _too_large(payload: bytes, limits: Limits) -> CommandTooLarge | None:
    try:
        check_size(payload, limits)
    except CommandTooLarge as failure:
        return failure
    return None


def outcome_of(command: Command[W]) -> CommandOutcome:
    """How a command ended that has ended."""
    if command.applied is not None:
        return command.applied
    assert isinstance(command.failure, ReplogError), "a command ends with a result or an error"
    return command.failure


def session_of(command: Command[W]) -> ClientSession:
    """The session that a command has opened, or its error, raised."""
    session_id = result_of(command).result
    if not isinstance(session_id, int):
        raise SchemaError("a session has no number; run the same release on both sides")
    return ClientSession(session_id)


def term_in(value: object) -> TermId:
    """A leader's term; raises :class:`~replog.errors.SchemaError`."""
    match value:
        case [int(epoch), int(term)]:
            return TermId(epoch, term)
    raise SchemaError("a leader's term is no pair of numbers; run the same release on both sides")


def result_of(command: Command[W]) -> Applied:
    """What came of a command that has ended, or its error, raised."""
    if command.failure is not None:
        raise command.failure
    assert command.applied is not None, "a command ends with a result or an error"
    return command.applied


# --- Questions ----------------------------------------------------------------------------------


def status_in(value: object) -> Mapping[str, object]:
    """What a node says of itself; raises :class:`~replog.errors.SchemaError`."""
    if not isinstance(value, dict):
        raise SchemaError("a node's status is not a map; run the same release on both sides")
    return value


def dump_body(cursor: bytes, items_max: int) -> bytes:
    """The body of the question for a page."""
    return strict_dumps([cursor, items_max])


def page_in(value: object) -> NodeDump:
    """A page of a node's state; raises :class:`~replog.errors.SchemaError`."""
    match value:
        case [int(applied_index), list(items), bytes() | None as cursor]:
            return NodeDump(applied_index, items, cursor)
    raise SchemaError("a node's dump is no page; run the same release on both sides")


# --- The log -----------------------------------------------------------------------------------


class LogCursor:
    """Where somebody stands who reads the log, a page at a time."""

    __slots__ = ("_end", "_follows", "_is_any_node", "_was_empty", "is_at_end", "next_index")

    def __init__(self, from_index: LogIndex, follows: bool, is_any_node: bool) -> None:
        """``follows``: also what comes later; else up to what is committed at the first page.
        ``is_any_node``: whoever leads is asked, and not a node of the caller's choice.

        Raises :class:`~replog.errors.BadCommand` for an index below 0.
        """
        if from_index < 0:
            raise BadCommand(f"an index is not below 0, as {from_index} is")
        self.next_index = max(1, from_index)
        self.is_at_end = False
        self._follows = follows
        self._is_any_node = is_any_node
        self._was_empty = False
        self._end: LogIndex | None = None

    @property
    def level(self) -> ReadLevel:
        """How new the state must be for the next page."""
        is_first = not self._follows and self._end is None
        # A node that leads no more and is cut off has nothing to tell, for ever: it must not pass
        # for one that leads where nothing is appended.
        is_in_doubt = self._was_empty and self._is_any_node
        return ReadLevel.LINEARIZABLE if is_first or is_in_doubt else ReadLevel.STALE

    @property
    def waits(self) -> bool:
        """Whether a page is waited for until there is something on it: a node may be behind the one
        that was asked first."""
        return self._follows or self._end is not None

    @property
    def body(self) -> bytes:
        """Of the request for the next page."""
        return strict_dumps([self.level.value, self.next_index, self.waits])

    def take(self, page: LogPage, applied_index: LogIndex) -> tuple[LogEntry, ...]:
        """A page has come; the entries that are new.  ``applied_index``: as of which it is."""
        if self._end is None:
            self._end = applied_index
        self._was_empty = page.next_index <= self.next_index
        self.next_index = max(self.next_index, page.next_index)
        if self._follows:
            return page.entries
        self.is_at_end = self.next_index > self._end
        return tuple(entry for entry in page.entries if entry.index <= self._end)


def log_page_in(value: object) -> LogPage:
    """A page of the log; raises :class:`~replog.errors.Compacted` and
    :class:`~replog.errors.SchemaError`."""
    match value:
        case [int(first_available), int(), []] if first_available:
            raise Compacted(first_available)
        case [0, int(next_index), list(entries)]:
            if all(map(_is_entry, entries)):
                return LogPage(tuple(LogEntry(*entry) for entry in entries), next_index)
    raise SchemaError("a page of the log is none; run the same release on both sides")


def _is_entry(value: object) -> bool:
    match value:
        case [int(), int(), bytes()]:
            return True
    return False


# --- Items -------------------------------------------------------------------------------------


def page_cursor(call: Call[..., ItemsPage], args: Sequence[object]) -> PageCursor:
    """Where somebody stands who begins to read items; raises
    :class:`~replog.errors.BadCommand`."""
    if not call.is_query:
        raise BadCommand(f"{call.name} is a command, and items are what a query gives out")
    call.encode(None, *args)  # what does not fit is said at once
    return PageCursor(lambda following: call.encode(following, *args))


# --- Changes ------------------------------------------------------------------------------------


def watch_cursor(
    call: Call[..., ChangesPage],
    args: Sequence[object],
    after: LogIndex | None,
    node: NodeId | str | None,
) -> ChangeCursor:
    """Where somebody stands who begins to watch; raises :class:`~replog.errors.BadCommand`."""
    if not call.is_query:
        raise BadCommand(f"{call.name} is a command, and what is watched is a query")
    call.encode(after, *args)  # what does not fit is said at once
    return ChangeCursor(lambda index: call.encode(index, *args), after, is_any_node=node is None)


# --- Failures -----------------------------------------------------------------------------------


def reason_of(failure: BaseException) -> str:
    """Why an address did not answer, in few words."""
    # Behind "all attempts failed" stands the failure of each address that a name has.
    while failure.__cause__ is not None:
        failure = failure.__cause__
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if isinstance(failure, socket.gaierror):
        return "the name is not known"
    if isinstance(failure, OSError) and failure.errno:
        return os.strerror(failure.errno).lower()
    return str(failure)
