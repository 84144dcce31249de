"""The synchronous heart of a node: one engine, one state machine, and those who wait for results.

The trio node and the test cluster both drive *this* object; it does no I/O and never blocks.  The
driver's turn is::

    step / tick / propose ...          whatever arrived
    while (ready := replica.ready()) is not None:
        send ready.messages
        start making ready durable     (later, in order: advance, then send messages_after_sync)
        replica.hear_reads(ready.reads)
        replica.apply(ready)           waiters run, and may propose more
    replica.serve_reads()              queries run, unless the machine is just being filled

The rules this module keeps: entries are applied in order, each once; a waiter gets the result only
if the entry applied at its index is the one that it proposed, judged by the body (kind, origin and
data), never by the term; every waiter is called exactly once; nothing that a state machine sees
depends on who leads or on a local clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, cast

from replog.control import (
    CLOSING,
    LEARNER,
    check_not_replaced,
    sub_kind_of,
    unpack_closing,
    unpack_learner,
    unpack_opening,
    with_learner,
)
from replog.digests import MARK_MASK, NONE_MARK, Digests, outcome_mark
from replog.engine import Engine
from replog.envelope import (
    COMMAND_HEAD,
    ENVELOPE_OPENING,
    PAYLOAD_OFFSET,
    SESSION_BLOCK,
    SESSION_OPENING,
    SESSION_PAYLOAD_OFFSET,
    SessionMark,
    marks_in,
    pack_envelopes,
    refuse_envelope,
)
from replog.errors import (
    CommandTooLarge,
    EntryReplaced,
    InvariantViolated,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    StateMachineCrashed,
    StateMachineError,
    TermChanged,
    Unavailable,
    UnknownFormat,
)
from replog.limits import Limits
from replog.logpages import read_page
from replog.machine import ApplyContext, KeepsAnswers, Machine, answer_keeper, digested
from replog.queries import Queries
from replog.sessions import Answer, SessionId, Sessions
from replog.types import (
    NO_TERM,
    ORIGIN_TERM,
    Entry,
    EntryKind,
    LogIndex,
    LogPage,
    NodeId,
    ReadIndex,
    ReadLevel,
    Ready,
    Role,
    SnapshotMeta,
    SoftState,
    Status,
    TermId,
    Voter,
    Waiter,
    pack_term,
    unpack_term,
)

_NOOP: Final = int(EntryKind.NOOP)
_COMMAND: Final = int(EntryKind.COMMAND)
_CONTROL: Final = int(EntryKind.CONTROL)
_LOST_IN_SNAPSHOT: Final = (
    "a snapshot from another node took the place of the entries among which the command may be; it "
    "may or may not be done: look, or repeat it only if repeating does no harm"
)
_unpack_head: Final = COMMAND_HEAD.unpack_from
_unpack_session = cast("Callable[[bytes, int], SessionMark]", SESSION_BLOCK.unpack_from)


class Replica:
    """One engine with the state machine that consumes its log."""

    __slots__ = (
        "_command_bytes_max",
        "_context",
        "_digested",
        "_highest",
        "_is_voter",
        "_keeper",
        "_learners_index",
        "_message_bytes_max",
        "_own",
        "_queries",
        "_waits",
        "applied_index",
        "digests",
        "engine",
        "handle_learners",
        "learners",
        "machine",
        "sessions",
    )

    def __init__(
        self,
        engine: Engine,
        machine: Machine,
        limits: Limits,
        sessions: Sessions,
        applied_index: LogIndex = 0,
        time_ms: int = 0,
        learners: tuple[Voter, ...] = (),
        own: Voter | None = None,
        is_voter: bool = True,
        learners_index: LogIndex = 0,
        highest_term: TermId = NO_TERM,
    ) -> None:
        """``sessions``, ``applied_index``, ``time_ms``, ``learners`` and ``highest_term``: what the
        machine holds already, and the clients' sessions, the replicated time, the learners and the
        highest term in an origin as of there.
        ``own``: which incarnation of which node this is (``None``: that does not matter), and
        whether it ``is_voter`` of the epoch."""
        self.engine = engine
        self.machine = machine
        self.sessions = sessions
        """Of the clients, as of ``applied_index``."""
        self.applied_index = applied_index
        """Everything up to here was applied."""
        self.learners = learners
        """Who takes part without counting in a quorum, as of ``learners_index``."""
        self.handle_learners: Callable[[], None] = _do_nothing
        """Called when ``learners`` has changed."""
        self._learners_index = learners_index
        self._own = own
        self._is_voter = is_voter
        self.digests = Digests(applied_index)
        """What the last entries came to here."""
        self._digested = digested(machine)
        self._keeper = answer_keeper(machine)
        self._context = ApplyContext(applied_index, time_ms)
        self._highest = pack_term(highest_term)
        self._command_bytes_max = limits.command_bytes_max
        self._message_bytes_max = limits.message_bytes_max
        self._queries = Queries(engine, limits)
        self._waits: deque[tuple[Entry, Waiter]] = deque()
        """What was proposed here and has no outcome yet, ascending by index."""

    @property
    def time_ms(self) -> int:
        """The replicated time: the highest that a proposer stamped on an applied command."""
        return self._context.time_ms

    @property
    def highest_term(self) -> TermId:
        """The highest term in the origin of any applied entry.  The same on every replica, which
        the terms of the entries themselves are not."""
        return unpack_term(self._highest)

    # -- what arrives --

    def step(self, message: object) -> None:
        """Take one message from a peer."""
        self.engine.step(message)

    def tick(self) -> None:
        """One unit of time has passed."""
        self.engine.tick()
        self._queries.tick()

    def campaign(self) -> None:
        """Try to become leader now."""
        self.engine.campaign()

    def transfer(self, to: NodeId) -> None:
        """Hand leadership to ``to``; raises ``NotLeader`` or ``CallerError``."""
        self.engine.transfer(to)

    def propose(self, payload: bytes, time_ms: int, waiter: Waiter) -> LogIndex:
        """Propose one command and return its index: a batch of one."""
        if len(payload) > self._command_bytes_max:
            raise CommandTooLarge(len(payload), self._command_bytes_max)
        return self.propose_batch((payload,), time_ms, (waiter,))

    def propose_batch(
        self, payloads: Sequence[bytes], time_ms: int, waiters: Sequence[Waiter]
    ) -> LogIndex:
        """Propose commands at contiguous indexes and return the first of these.

        Each waiter is called once, when the outcome of its command is known.
        ``waiter(index, result, error)``: *done* with a result, or with a declared
        :class:`~replog.errors.StateMachineError`, when ``index`` is above 0; else ``error`` says
        whether it is *definitely not done* or *unknown*.  It must not raise.

        Each payload was made by the state machine's own encoding, or passed ``check_payload``;
        none is above ``limits.command_bytes_max``.

        Raises a :class:`~replog.errors.NotDone` when nothing was proposed; no waiter is called
        then.
        """
        entries = self.engine.propose_batch(pack_envelopes(payloads, time_ms), EntryKind.COMMAND)
        first_index = entries[0].index
        assert not self._waits or self._waits[-1][0].index < first_index
        self._waits.extend(zip(entries, waiters, strict=True))
        return first_index

    def propose_control(self, data: bytes, waiter: Waiter) -> LogIndex:
        """Propose a control entry (:mod:`replog.control`) and return its index; ``waiter`` as of
        :meth:`propose_batch`, with the result None.

        Raises a :class:`~replog.errors.NotDone` when nothing was proposed.
        """
        entry = self.engine.propose(data, EntryKind.CONTROL)
        assert not self._waits or self._waits[-1][0].index < entry.index
        self._waits.append((entry, waiter))
        return entry.index

    def query(
        self,
        payload: bytes,
        level: ReadLevel,
        at_least: LogIndex,
        waiter: Waiter,
        now_ns: int | None = None,
    ) -> None:
        """Run a query on this replica's own state once that is new enough; no entry is made.

        ``at_least`` is the index that must be applied at the level ``timeline``, ``now_ns`` the
        time at the level ``lease`` (:meth:`replog.engine.Engine.read`).  The waiter is called once,
        later: with the index as of which was read and a result or a declared
        :class:`~replog.errors.StateMachineError`; or with a :class:`~replog.errors.NotDone`.

        Raises :class:`~replog.errors.Overloaded` above ``limits.reads_max``; the waiter is not
        called then.
        """
        run = partial(self.machine.answer, payload)
        self._queries.ask(run, level, at_least, waiter, now_ns)

    def read_log(self, from_index: LogIndex, level: ReadLevel, waits: bool, waiter: Waiter) -> None:
        """Read the commands in the log from ``from_index`` on, as far as they are applied here; as
        :meth:`query`, and the result is a :class:`~replog.types.LogPage`.

        ``waits``: where there is none yet, until there is one, for :data:`~replog.limits.FOLLOW_MS`
        at most.  The waiter may also be called with :class:`~replog.errors.Compacted`.
        """
        self._queries.ask(partial(self._log_page, from_index, waits), level, 0, waiter)

    def read_term(self, waiter: Waiter) -> None:
        """Ask for the term in which this replica leads, and which is the highest of any origin: the
        result is a :class:`~replog.types.TermId`; ``waiter`` as of :meth:`query`.

        A leader that has proposed nothing yet proposes a no-op first.  Until an entry of its own is
        applied, one of an earlier leader may come up as one of *its* term: who was told the later
        term must not see that happen.  Raises a :class:`~replog.errors.NotDone`.
        """
        hear = partial(self._hear_term, waiter)
        if self._leading_term() == self.highest_term:
            self._queries.ask(_do_nothing, ReadLevel.LINEARIZABLE, 0, hear)
        else:
            entry = self.engine.propose(b"", EntryKind.NOOP)
            assert not self._waits or self._waits[-1][0].index < entry.index
            self._waits.append((entry, hear))

    def _leading_term(self) -> TermId:
        soft_state, status = self.engine.soft_state, self.engine.status()
        if soft_state.role is not Role.LEADER:
            raise NotLeader(status.node_id, soft_state.leader_id)
        return TermId(status.epoch, status.term)

    def _hear_term(
        self, waiter: Waiter, index: LogIndex, _: object, error: Exception | None
    ) -> None:
        """A quorum has confirmed who leads; or not."""
        try:
            term = self._leading_term()
        except NotLeader as refusal:
            term, error = NO_TERM, error or refusal
        if error is None and term != self.highest_term:
            error = Unavailable("another node has led meanwhile; ask again")
        if isinstance(error, OutcomeUnknown | EntryReplaced):
            error = Unavailable(f"no term was confirmed ({error}); ask again")
        waiter(*((index, term, None) if error is None else (0, None, error)))

    def _log_page(self, from_index: LogIndex, waits: bool) -> LogPage:
        return read_page(
            self.engine, self.applied_index, from_index, self._message_bytes_max, waits
        )

    def install(self, meta: SnapshotMeta, sessions: Sessions) -> None:
        """The machine was filled from a snapshot, which is durable and holds ``sessions``: go on
        behind it."""
        assert meta.last.index > self.applied_index
        self.sessions = sessions
        if meta.last.index > self._learners_index:
            self._set_learners(meta.learners)
        while self._waits and self._waits[0][0].index <= meta.last.index:
            _, waiter = self._waits.popleft()
            waiter(0, None, OutcomeUnknown(_LOST_IN_SNAPSHOT))
        self.applied_index = self._context.index = meta.last.index
        self.digests.forget(meta.last.index)
        self._context.time_ms = max(self._context.time_ms, meta.time_ms)
        self._highest = max(self._highest, pack_term(meta.highest_term))
        self.engine.install(meta.last)

    # -- what is to be done --

    def ready(self) -> Ready | None:
        """The engine's next :class:`~replog.types.Ready`; ``None`` when there is nothing."""
        self._queries.begin()
        return self.engine.ready()

    def advance(self, ready: Ready) -> None:
        """The writes of ``ready``, and of every earlier one, are durable."""
        self.engine.advance(ready)

    def apply(self, ready: Ready) -> None:
        """Apply what ``ready`` committed, call the waiters, and end the waits of a lost leadership.

        Raises a :class:`~replog.errors.FatalError` when an entry cannot be applied; it is not
        skipped, and the replica must not go on.
        """
        if ready.committed:
            self._apply_entries(ready.committed)
        if ready.soft_state is not None:
            self.follow_role(ready.soft_state)

    def hear_reads(self, reads: Sequence[ReadIndex]) -> None:
        """The engine answered reads: at once, however much waits to be applied."""
        self._queries.hear(reads)

    def serve_reads(self) -> None:
        """Run the queries that may be run on what is applied, and call their waiters."""
        self._queries.serve(self.applied_index)

    def end_reads(self, error: Exception) -> None:
        """Call every query's waiter with ``error``: the node stops."""
        self._queries.end(error)

    def follow_role(self, soft_state: SoftState) -> None:
        """End the waits of a leadership that is lost: nobody here will learn how they end."""
        if soft_state.role is not Role.LEADER:
            self.end_waits(
                OutcomeUnknown(
                    "the node lost its leadership before the command was committed; it may or may "
                    "not be done: look, or repeat it only if repeating does no harm"
                )
            )

    def _apply_entries(self, entries: Sequence[Entry]) -> None:
        """Apply entries in order.  One loop: a call per entry would cost as much as its work."""
        index = _checked(self.applied_index, entries)
        apply, context, waits = self.machine.apply, self._context, self._waits
        digested, keep_mark, highest = self._digested, self.digests.marks.append, self._highest
        wait_index = waits[0][0].index if waits else 0
        for entry in entries:
            index += 1
            body = entry.body
            came_to = 0
            result: object = None
            error: StateMachineError | None = None
            answer: Answer | None = None
            if body[0] == _COMMAND:
                # open_envelope, spelled out: this is the innermost loop of every replica.
                if len(body) < PAYLOAD_OFFSET:
                    refuse_envelope(entry)
                origin, opening, time_ms = _unpack_head(body)
                if origin > highest:
                    self._highest = highest = origin
                if time_ms > context.time_ms:
                    context.time_ms = time_ms
                payload_offset, mark = PAYLOAD_OFFSET, None
                if opening != ENVELOPE_OPENING:
                    if opening == SESSION_OPENING and len(body) >= SESSION_PAYLOAD_OFFSET:
                        payload_offset = SESSION_PAYLOAD_OFFSET
                        mark = _unpack_session(body, PAYLOAD_OFFSET)
                        answer = self.sessions.begin(*mark, context.time_ms)
                    else:
                        payload_offset, mark, answer = self._begin_marked(entry)
                    context.in_session = mark is not None and answer is None
                try:
                    if answer is None:
                        context.index = index
                        try:
                            result = apply(context, body[payload_offset:])
                        except StateMachineError as declared:
                            error = declared
                            came_to = outcome_mark(None, declared)
                        else:
                            came_to = NONE_MARK if result is None else outcome_mark(result, None)
                        if digested is not None:
                            came_to += digested.state_digest
                except Exception as crash:
                    raise _crashed(crash, index) from crash
                if mark is not None and answer is None:
                    context.in_session = False
                    self.sessions.finish(mark[0], mark[1], index, result, error)
                    if self._keeper is not None:
                        self._keep_answer(self._keeper, mark[0], mark[1])
            else:
                self._highest = highest = max(highest, body[ORIGIN_TERM])
                if body[0] != _NOOP:
                    answer = self._apply_control(entry)
            try:
                keep_mark(came_to)
            except OverflowError:  # a machine's digest may be any number
                keep_mark(came_to & MARK_MASK)
            self.applied_index = index
            if wait_index == index:
                proposed, waiter = waits.popleft()
                wait_index = waits[0][0].index if waits else 0
                if proposed.body == body:
                    if answer is None:
                        waiter(index, result, error)
                    else:
                        waiter(*answer)
                else:
                    waiter(0, None, EntryReplaced(f"another entry was committed at index {index}"))
        self.digests.shorten()

    def _begin_marked(self, entry: Entry) -> tuple[int, SessionMark | None, Answer | None]:
        """Where the payload of a marked command begins, its session, and its answer where it is not
        to be applied: it was before, or is not to be in this term."""
        marks = marks_in(entry)
        answer: Answer | None = None
        if marks.session is not None:
            # First: what was done in its term has its answer in every later one, too.
            answer = self.sessions.begin(*marks.session, self._context.time_ms)
        if answer is None and marks.term is not None and marks.term != self.highest_term:
            answer = 0, None, TermChanged(marks.term, self.highest_term)
        return marks.payload_offset, marks.session, answer

    def _keep_answer(self, keeper: KeepsAnswers, session_id: SessionId, sequence: int) -> None:
        """Have the machine keep the answer of the command that it has just applied."""
        index = self._context.index
        packed = self.sessions.packed_answer(session_id, sequence)
        try:
            keeper.keep_answer(index, packed)
        except Exception as crash:
            raise _crashed(crash, index) from crash

    def _apply_control(self, entry: Entry) -> Answer:
        """Take a learner in, or begin or end a session; raises :class:`~replog.errors.Replaced`
        where the learner is this node, in another incarnation, and
        :class:`~replog.errors.UnknownFormat` for what is no control entry.

        Which learners ``learners`` count in already is read once more and changes nothing: they
        never go back, neither for who is heard nor for whether this node was replaced.
        """
        if entry.kind != _CONTROL:
            raise UnknownFormat(
                f"entry {entry.index} is of kind {entry.kind}, which this release cannot apply; "
                "upgrade this node"
            )
        sub_kind = sub_kind_of(entry)
        if sub_kind == LEARNER:
            learner = unpack_learner(entry)
            if entry.index > self._learners_index:
                self._set_learners(with_learner(self.learners, learner))
            return entry.index, None, None
        if sub_kind == CLOSING:
            self.sessions.close(unpack_closing(entry))
            return entry.index, None, None
        time_ms, terms = unpack_opening(entry)
        self._context.time_ms = max(self._context.time_ms, time_ms)
        try:
            self.sessions.open(entry.index, terms, self._context.time_ms)
        except Overloaded as refusal:
            return 0, None, refusal
        return entry.index, entry.index, None

    @property
    def learners_index(self) -> LogIndex:
        """Up to which entry ``learners`` say who was taken in: ``applied_index``, or more where a
        machine on its own disk lags behind the newest snapshot."""
        return max(self.applied_index, self._learners_index)

    def _set_learners(self, learners: tuple[Voter, ...]) -> None:
        before, self.learners = self.learners, learners
        if self._own is not None:
            check_not_replaced(self._own, self._is_voter or self._own in before, learners)
            if not self._is_voter:
                # It was made as a learner, and the entry that says so may be still to come.
                learners = with_learner(learners, self._own)
        self.engine.set_learners(learners)
        self.handle_learners()

    def end_waits(self, error: Exception) -> None:
        """Call every waiter with ``error``: the node stops, or leads no more."""
        ended = list(self._waits)
        self._waits.clear()
        for _, waiter in ended:
            waiter(0, None, error)

    @property
    def waiting_count(self) -> int:
        """How many proposals have no outcome yet."""
        return len(self._waits)

    def status(self) -> Status:
        """A read-only picture."""
        return replace(self.engine.status(), applied_index=self.applied_index)


def _checked(index: LogIndex, entries: Sequence[Entry]) -> LogIndex:
    """The index that is applied already, behind which the entries must follow."""
    if (entries[0].index, entries[-1].index) != (index + 1, index + len(entries)):
        raise InvariantViolated(
            f"entry {entries[0].index} was handed out to be applied, as the first of "
            f"{len(entries)} up to {entries[-1].index}, after {index}"
        )
    return index


def _crashed(crash: Exception, index: LogIndex) -> StateMachineCrashed:
    return StateMachineCrashed(
        f"the state machine raised {type(crash).__name__}: {crash} at entry {index}; mend it and "
        "start the node again, which applies the entry again"
    )


def _do_nothing() -> None:
    """Nobody has to know."""
