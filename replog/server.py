"""The port for clients: requests in, replies out, many in flight on each connection.

A connection begins with a handshake, in which the client learns who leads.  After that every
request gets exactly one reply, in whatever order they end.  Only a leader takes proposals; another
node answers "definitely not done" with its best hint.

The rules this module keeps: requests in flight and queued replies are bounded per connection,
connections per node; whatever is no correct client is refused with a sentence, counted, and logged
at a limited rate; replies of one turn leave together, or a few KiB at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import structlog
import trio

from replog.admission import RETRY_MS_MIN
from replog.cbor import strict_dumps, strict_loads
from replog.client_session import (
    CLOSE_SESSION,
    LEADING_TERM,
    OPEN_SESSION,
    PROPOSE,
    PROPOSE_IN_SESSION,
    PROPOSE_MARKED,
    QUERY,
    READ_LOG,
    SESSION_ID,
)
from replog.config import Config
from replog.envelope import SESSION_BLOCK, SessionCommand, check_size
from replog.errors import (
    BadCommand,
    CallerError,
    CommandFailed,
    Compacted,
    DumpUnavailable,
    HandshakeError,
    InvalidResult,
    NotDone,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PeerError,
    SchemaError,
    StateMachineError,
    TermChanged,
)
from replog.frames import (
    CLIENT_PROTOCOL_VERSION,
    HANDSHAKE_LIMITS,
    ClientHello,
    FrameCodec,
    FrameType,
    Outcome,
    Reply,
    Request,
    ServerHello,
    pack_more,
    pack_terms,
    refusal_of_first,
)
from replog.limits import KIB
from replog.quick_cbor import NULL
from replog.requests import learner_in, log_read_in, marked_in, query_in
from replog.storage.identity import pack_founding
from replog.storage.snapshot_writer import SnapshotInfo
from replog.transport.connection import Connection, closing, take_over
from replog.transport.listening import (
    Refusals,
    close_listeners,
    open_listeners,
    receive_first,
)
from replog.types import NO_NODE, LogIndex, LogPage, TermId, Waiter
from replog.wire import FrameReader, pack_frame

if TYPE_CHECKING:
    from replog.node import Node

_KEEPALIVE: Final = pack_frame(FrameType.KEEPALIVE, b"")
_DUMP_ITEMS_MAX: Final = 10_000
EARLY_BYTES: Final = 4 * KIB
"""As soon as so much is queued for a client it leaves, and the client begins with it while the node
is still at its turn."""

_TOO_MUCH_AT_ONCE: Final = (
    "too much was asked for at once over this connection, and has not left yet; ask again"
)


class _Caller:
    """One connected client and its requests in flight."""

    __slots__ = ("connection", "in_flight", "is_welcome")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.is_welcome = False
        """Whether the handshake is over."""
        self.in_flight: set[int] = set()
        """Request ids that have no reply yet; only ever looked up."""


class ClientServer:
    """Serves the clients of one node."""

    def __init__(
        self, node: Node, config: Config, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._node = node
        self._listen = config.node(node.node_id).client_listen
        self._listeners: list[trio.SocketListener] = []
        self._limits = config.limits
        self._cluster_id = config.cluster_id
        self._addresses = {member.id: str(member.client) for member in config.nodes}
        self._codec = FrameCodec(config.limits)
        self._callers: dict[_Caller, None] = {}
        self._replied: dict[_Caller, None] = {}
        """Who has replies that did not leave yet."""
        self._refusals = Refusals("client", config.limits, log)
        self._verbs: dict[str, Callable[[_Caller, Request], None]] = {
            PROPOSE: self._propose,
            PROPOSE_IN_SESSION: self._propose_in_session,
            PROPOSE_MARKED: self._propose_marked,
            LEADING_TERM: self._leading_term,
            OPEN_SESSION: self._open_session,
            CLOSE_SESSION: self._close_session,
            QUERY: self._query,
            READ_LOG: self._read_log,
            "status": self._status,
            "dump": self._dump,
            "snapshot": self._snapshot,
            "founding": self._founding,
            "rejoin": self._rejoin,
        }

    def flush(self) -> None:
        """Let the replies of this turn leave: one system call per client."""
        replied, self._replied = self._replied, {}
        for caller in replied:
            caller.connection.flush()

    async def open(self) -> None:
        """Listen for clients; raises :class:`~replog.errors.AddressError`."""
        self._listeners = await open_listeners(self._listen, "clients")

    def close(self) -> None:
        """Listen no more; may be called without ``run``."""
        close_listeners(self._listeners)

    async def run(self) -> None:
        """Serve clients until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_watch)
            nursery.start_soon(partial(trio.serve_listeners, self._serve, self._listeners))

    async def _run_watch(self) -> None:
        """Send keepalives, and close the connections of clients that take no replies.

        A client's own keepalives are not answered: behind a large request on a slow link they
        come too late.
        """
        idle_seconds = self._limits.connection_idle_ms / 1000
        while True:
            await trio.sleep(idle_seconds / 4)
            deadline = trio.current_time() - idle_seconds
            for caller in list(self._callers):
                connection = caller.connection
                if connection.blocked_since is not None and connection.blocked_since < deadline:
                    connection.close()
                elif caller.is_welcome:
                    connection.queue(_KEEPALIVE)
                    connection.flush()

    # -- one client --

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = take_over(stream, self._limits.client_queue_bytes_max)
        caller = _Caller(connection)
        with closing(connection):
            try:
                if len(self._callers) >= self._limits.client_connections_max:
                    raise HandshakeError(
                        f"node {self._node.node_id} serves {len(self._callers)} clients, which is "
                        "limits.client_connections_max; close some or raise it"
                    )
                self._callers[caller] = None
                reader = FrameReader(HANDSHAKE_LIMITS)
                with trio.fail_after(self._limits.handshake_ms / 1000):
                    await self._welcome(connection, reader)
                caller.is_welcome = True
                reader.accept(self._codec.limits_of(FrameType.REQUEST, FrameType.KEEPALIVE))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.run_writer)
                    try:
                        await self._receive_requests(caller, reader)
                    finally:
                        nursery.cancel_scope.cancel()
            except* (PeerError, trio.TooSlowError) as failures:
                failure: BaseException = failures
                while isinstance(failure, BaseExceptionGroup):
                    failure = failure.exceptions[0]
                await self._refusals.refuse(connection, failure)
            finally:
                self._callers.pop(caller, None)
                self._replied.pop(caller, None)

    async def _welcome(self, connection: Connection, reader: FrameReader) -> None:
        frame_type, content = await receive_first(connection, reader)
        if refusal := refusal_of_first(FrameType.CLIENT_HELLO, frame_type):
            raise HandshakeError(refusal)
        hello = self._codec.decode(frame_type, content)
        assert isinstance(hello, ClientHello)
        if not hello.version_min <= CLIENT_PROTOCOL_VERSION <= hello.version_max:
            raise HandshakeError(
                f"node {self._node.node_id} speaks version {CLIENT_PROTOCOL_VERSION} of the client "
                f"protocol, not {hello.version_min} to {hello.version_max}; upgrade the older one"
            )
        if hello.cluster_id not in ("", self._cluster_id):
            raise HandshakeError(
                f"this is cluster '{self._cluster_id}', not '{hello.cluster_id}'; check the "
                "addresses that the client was given"
            )
        answer = ServerHello(
            version=CLIENT_PROTOCOL_VERSION,
            cluster_id=self._cluster_id,
            node_id=self._node.node_id,
            leader_id=self._node.status().leader_id,
            members=tuple(sorted(self._addresses.items())),
        )
        connection.queue(self._codec.encode(answer))
        connection.flush()

    async def _receive_requests(self, caller: _Caller, reader: FrameReader) -> None:
        connection = caller.connection
        while data := await connection.receive():
            for frame_type, content in reader.feed(data):
                if frame_type == FrameType.KEEPALIVE:
                    continue
                request = self._codec.decode(frame_type, content)
                assert isinstance(request, Request)
                self._handle_request(caller, request)
            self._node.wake()

    # -- requests --

    def _handle_request(self, caller: _Caller, request: Request) -> None:
        request_id = request.request_id
        if request_id in caller.in_flight:
            raise SchemaError(f"request {request_id} was sent again before it was answered")
        caller.in_flight.add(request_id)
        try:
            handle = self._verbs.get(request.verb)
            if handle is None:
                # Perhaps of a later release; what else comes over the connection is served.
                raise BadCommand(
                    f"node {self._node.node_id} knows no request '{request.verb[:40]}'; "
                    "run the same release on it as the client's"
                )
            if len(caller.in_flight) > self._limits.client_requests_max:
                raise Overloaded(
                    f"the connection has {len(caller.in_flight)} requests in flight, above "
                    f"limits.client_requests_max = {self._limits.client_requests_max}; send fewer "
                    "at once, or raise it on every node and client",
                    RETRY_MS_MIN,
                )
            handle(caller, request)
        except CallerError as error:
            self._reply_error(caller, request_id, 0, error)

    def _propose(self, caller: _Caller, request: Request) -> None:
        self._check_takes_replies(caller)
        self._node.check_command(request.body)
        self._node.submit(request.body, self._waiter(caller, request.request_id))

    def _check_takes_replies(self, caller: _Caller) -> None:
        """Refuse a command while its answer might find no room: a full queue ends the connection,
        and with it every command that is on its way would be unknown."""
        limit_bytes = self._limits.client_queue_bytes_max
        if caller.connection.queued_bytes > limit_bytes // 2:
            raise Overloaded(
                f"{caller.connection.queued_bytes} bytes of replies have not left over the "
                f"connection, more than half of limits.client_queue_bytes_max = {limit_bytes}; "
                "read them before sending more",
                RETRY_MS_MIN,
            )

    def _propose_in_session(self, caller: _Caller, request: Request) -> None:
        self._check_takes_replies(caller)
        marked = SessionCommand(request.body)
        if len(marked) < SESSION_BLOCK.size:
            raise SchemaError(
                f"a command in a session begins with {SESSION_BLOCK.size} bytes of numbers, and "
                f"this one has {len(marked)} bytes"
            )
        self._node.check_command(marked[SESSION_BLOCK.size :])
        self._node.submit(marked, self._waiter(caller, request.request_id))

    def _propose_marked(self, caller: _Caller, request: Request) -> None:
        self._check_takes_replies(caller)
        marked = marked_in(request)
        self._node.check_command(marked.payload)
        self._node.submit(marked, self._waiter(caller, request.request_id))

    def _leading_term(self, caller: _Caller, request: Request) -> None:
        """Tell the term in which this node leads."""
        if request.body:
            raise SchemaError("a request for the leader's term has an empty body")
        reply = self._waiter(caller, request.request_id)

        def end_wait(index: LogIndex, result: object, error: Exception | None) -> None:
            reply(index, [*result] if isinstance(result, TermId) else None, error)

        self._node.submit_term_read(end_wait)

    def _open_session(self, caller: _Caller, request: Request) -> None:
        """Open a session; the reply's result is its id."""
        if request.body:
            raise SchemaError("a request for a session has an empty body")
        self._node.submit_opening(self._waiter(caller, request.request_id))

    def _close_session(self, caller: _Caller, request: Request) -> None:
        if len(request.body) != SESSION_ID.size:
            raise SchemaError(f"a session is named by {SESSION_ID.size} bytes")
        (session_id,) = SESSION_ID.unpack(request.body)
        self._node.submit_closing(session_id, self._waiter(caller, request.request_id))

    def _query(self, caller: _Caller, request: Request) -> None:
        """Run a query on this node's own state, whoever leads; the reply's index is that as of
        which was read."""
        level, at_least, payload = query_in(request)
        # Whether it is a query at all the machine says when it answers.
        check_size(payload, self._limits.command_bytes_max)
        request_id = request.request_id

        def end_wait(index: LogIndex, result: object, error: Exception | None) -> None:
            if error is not None:
                self._reply_error(caller, request_id, index, error)
            elif self._is_behind(caller):
                # Pages of changes that came due together must not fill up the queue, either.
                self._reply_error(caller, request_id, 0, Overloaded(_TOO_MUCH_AT_ONCE))
            else:
                self._reply(caller, request_id, index, result)

        self._node.submit_query(payload, level, at_least, end_wait)

    def _read_log(self, caller: _Caller, request: Request) -> None:
        """Send a page of the log, as far as it is applied on this node, whoever leads."""
        level, from_index, waits = log_read_in(request)
        if self._is_behind(caller):
            raise Overloaded("what the connection was sent has not left; read the log more slowly")

        def end_wait(index: LogIndex, result: object, error: Exception | None) -> None:
            if isinstance(error, Compacted):
                self._reply(caller, request.request_id, 0, [error.first_available, 0, []])
            elif error is not None:
                self._reply_error(caller, request.request_id, index, error)
            elif self._is_behind(caller):
                # Pages that came due together must not fill up the queue: that ends the connection.
                refusal = Overloaded(_TOO_MUCH_AT_ONCE)
                self._reply_error(caller, request.request_id, 0, refusal)
            else:
                page = cast(LogPage, result)
                entries = [[entry.index, entry.time_ms, entry.data] for entry in page.entries]
                self._reply(caller, request.request_id, index, [0, page.next_index, entries])

        self._node.submit_log_read(from_index, level, waits, end_wait)

    def _is_behind(self, caller: _Caller) -> bool:
        """Whether so much waits to be sent that pages of the log must not be added to it: a full
        queue ends the connection, and the commands on it would be unknown."""
        return caller.connection.queued_bytes > self._limits.client_queue_bytes_max // 4

    def _waiter(self, caller: _Caller, request_id: int) -> Waiter:
        def end_wait(index: LogIndex, result: object, error: Exception | None) -> None:
            if error is not None:
                self._reply_error(caller, request_id, index, error)
            else:
                self._reply(caller, request_id, index, result)

        return end_wait

    def _status(self, caller: _Caller, request: Request) -> None:
        self._reply(caller, request.request_id, 0, status_map(self._node))

    def _founding(self, caller: _Caller, request: Request) -> None:
        """Send the cluster's founding record, as it is in a file, to a node that is lost."""
        self._node.check_lost(learner_in(request))
        self._reply(caller, request.request_id, 0, pack_founding(self._node.founding))

    def _rejoin(self, caller: _Caller, request: Request) -> None:
        """Have an incarnation of a node taken in as a learner; answered when that is applied."""
        waiter = self._waiter(caller, request.request_id)
        self._node.submit_learner(learner_in(request), waiter)

    def _snapshot(self, caller: _Caller, request: Request) -> None:
        """Have the node take a snapshot; answered when it is durable."""

        def end_wait(info: SnapshotInfo | None, error: Exception | None) -> None:
            if info is None:
                assert error is not None
                self._reply_error(caller, request.request_id, 0, error)
            else:
                self._reply(caller, request.request_id, info.meta.last.index, snapshot_map(info))

        if request.body:
            raise SchemaError("a request for a snapshot has an empty body")
        self._node.submit_snapshot(end_wait)

    def _dump(self, caller: _Caller, request: Request) -> None:
        asked = strict_loads(request.body)
        if not isinstance(asked, list) or list(map(type, asked)) != [bytes, int]:
            raise SchemaError("a dump request is an array of a cursor and a count of items")
        cursor, items_max = asked
        try:
            page = self._node.dump(cursor, max(1, min(items_max, _DUMP_ITEMS_MAX)))
        except CallerError:
            raise
        except Exception as error:
            # The cursor came from outside, and a dump changes nothing: no reason to stop a node.
            raise DumpUnavailable(
                f"the state machine cannot dump from this cursor ({type(error).__name__}: {error})"
            ) from error
        value = [self._node.status().applied_index, list(page.items), page.cursor]
        self._reply(caller, request.request_id, 0, value)

    # -- replies --

    def _reply(self, caller: _Caller, request_id: int, index: LogIndex, result: object) -> None:
        try:
            value = NULL if result is None else strict_dumps(result)
            frame = self._codec.encode_done(request_id, index, value)
        except CallerError as error:
            # Done, but what it returned cannot travel: that is the result.
            self._reply_error(caller, request_id, index, InvalidResult(str(error)))
            return
        self._queue(caller, request_id, frame)

    def _reply_error(
        self, caller: _Caller, request_id: int, index: LogIndex, error: Exception
    ) -> None:
        outcome = outcome_of(error)
        leader_id = error.leader_id if isinstance(error, NotLeader) else NO_NODE
        reply = Reply(
            request_id,
            outcome,
            index,
            _more_of(error),
            error.name if isinstance(error, CommandFailed) else type(error).__name__,
            str(error),
            leader_id,
            self._addresses.get(leader_id, ""),
        )
        self._queue(caller, request_id, self._codec.encode(reply))

    def _queue(self, caller: _Caller, request_id: int, frame: bytes) -> None:
        caller.in_flight.discard(request_id)
        connection = caller.connection
        if not connection.queue(frame):
            connection.close()  # it takes no replies; what it waits for is unknown to it
            return
        self._replied[caller] = None
        if connection.queued_bytes >= EARLY_BYTES:
            connection.flush()


def _more_of(error: Exception) -> bytes:
    """What an error says beside its name and its sentence."""
    if isinstance(error, Overloaded):
        return pack_more(error.retry_after_ms)
    if isinstance(error, TermChanged):
        return pack_terms(error.expected, error.found)
    return b""


def outcome_of(error: Exception) -> Outcome:
    """Which of the outcomes an error stands for."""
    if isinstance(error, StateMachineError):
        return Outcome.FAILED
    if isinstance(error, OutcomeUnknown):
        return Outcome.UNKNOWN
    assert isinstance(error, CallerError | NotDone)
    return Outcome.NOT_DONE


def snapshot_map(info: SnapshotInfo) -> dict[str, object]:
    """A snapshot as it is told to a client and as ``--json`` prints it."""
    last = info.meta.last
    return {
        "file": info.path.name,
        "bytes": info.size_bytes,
        "checksum": f"{info.checksum:08x}",
        "index": last.index,
        "term": last.term,
        "time_ms": info.meta.time_ms,
        "machine": info.meta.machine,
    }


def status_map(node: Node) -> dict[str, object]:
    """A node's status as it travels and as ``replog status --json`` prints it."""
    status, snapshots = node.status(), node.snapshots()
    arriving, leaving = snapshots.transfer.arriving, snapshots.transfer.leaving
    return {
        "node": status.node_id,
        "engine": status.engine,
        "role": status.role.value,
        "leader": status.leader_id or None,
        "epoch": status.epoch,
        "term": status.term,
        "last_index": status.last_index,
        "durable_index": status.durable_index,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "commit_quorum": status.commit_quorum,
        "election_quorum": status.election_quorum,
        "durable": node.is_durable,
        "base_index": status.base_index,
        "snapshot_index": snapshots.newest_index,
        "snapshot_arriving": None
        if arriving is None
        else {
            "index": arriving.last_index,
            "bytes": arriving.offset,
            "size_bytes": arriving.size_bytes,
            "source": arriving.source or None,
        },
        "snapshots_leaving": [
            {
                "node": sent.to,
                "index": sent.last_index,
                "bytes": sent.offset,
                "size_bytes": sent.size_bytes,
            }
            for sent in leaving
        ],
        "snapshot_problem": snapshots.problem or None,
        "differs_from": [
            {"node": peer, "index": found.index, "first": found.is_first}
            for peer, found in sorted(node.differences.items())
        ],
        "disk_full": node.is_disk_full,
        "waits_for": list(node.waits_for),
        "voter": node.is_voter,
        "learners": [
            {"node": learner.node_id, "incarnation": learner.incarnation}
            for learner in node.learners
        ],
        "peers": [
            {
                "node": peer.node_id,
                "state": peer.state.value,
                "match_index": peer.match_index,
                "next_index": peer.next_index,
                "in_flight_messages": peer.in_flight_messages,
                "recently_active": peer.recently_active,
            }
            for peer in status.peers
        ],
    }
