"""Everything that a client decides, without any I/O: three libraries drive this one object.

:class:`ClientLogic` has no socket, no task, no clock and no dice.  Events go in, with the time; a
list of actions comes out (:mod:`replog.client_actions`).  So a test drives it through any order of
events, and trio, asyncio and threads get the same client.

The order in which it works: a command is *queued*; when nothing leads to the leader, addresses are
tried one after the other; over the line to the leader everything that is queued leaves together, in
one *turn*; a reply ends the command, or queues it again if it was certainly not taken.  The rules
this module keeps:

* **Every command ends exactly once**: by its reply, its deadline, the end of its line, a
  cancellation, or the closing of the client.
* **Unknown only if it may have arrived.**  A line says at its end how many of its bytes never left;
  a command that ended within those is queued again, every other one is unknown
  (:meth:`ClientLogic._lose`).  One whose deadline passes in flight is unknown.
* **Never sent again after it may have arrived**, unless it is in a session, which applies it once.
  It is queued a second time only when the node has said that it did not take it, or when it never
  left.  In a session it is sent until its answer comes; where the deadline comes first, it is
  unknown as soon as any of its copies is (:attr:`~replog.client_actions.Command.may_be_done`).
* **Nothing waits behind its deadline**, whatever else is going on: back-off, search and busy
  leaders all end there.
* **Nothing is sent before its time**: what a leader had no room for, and what it would have none
  for by its own word, waits as long as it said (:mod:`replog.client_pauses`).
* **Bounded.**  There is one line to the leader, one attempt to find one, one line that drains, and
  one for each question; requests in flight and bytes on their way have their limits.

**A silent leader.**  A leader that owes replies and sends none for about a second may be frozen or
cut off, so the other nodes are asked.  When one says that it leads, new commands go there.  What
was sent stays where it is until its reply, its deadline or the end of that line, which only drains.

What a driver owes the logic: each :class:`~replog.client_actions.Connect` is answered by
``connected`` or ``failed``; each line that was connected ends with one ``ended``, whose count of
unsent bytes is never too high; after any event it takes the actions, gives a ``turn`` soon if
:attr:`~ClientLogic.is_turn_due`, and calls ``time_passed`` at :meth:`~ClientLogic.next_time`.
Events of a line that has ended are ignored, so a driver need not unravel what crossed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from replog.client_actions import NEVER, Action, Command, Line
from replog.client_core import REQUEST_OVERHEAD_BYTES, Answered, Welcomed, failure_of
from replog.client_lines import Lines
from replog.client_outcomes import is_final, of_closing, of_deadline, of_loss, of_vain_copies
from replog.client_pauses import Pauses
from replog.client_questions import Questions
from replog.client_queue import GRAIN_SECONDS, CommandQueue
from replog.client_search import LeaderSearch
from replog.client_session import (
    CLOSE_SESSION,
    OPEN_SESSION,
    PROPOSE,
    PROPOSE_IN_SESSION,
    PROPOSE_MARKED,
    QUERY,
    SESSION_ID,
    ClientSession,
)
from replog.envelope import check_term
from replog.errors import (
    EntryReplaced,
    NotDone,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Refused,
    SessionExpired,
    SessionFull,
    Unavailable,
)
from replog.frames import Outcome, Reply, ServerHello
from replog.limits import Limits
from replog.quick_cbor import pack_query
from replog.types import Applied, LogIndex, NodeId, ReadLevel, TermId

W = TypeVar("W")

_DRAIN_SECONDS: Final = 1.0
"""How long a node that lost its leadership may take to answer what is still in flight there."""

_ENDED: Final = "the connection ended"
_ENDED_EARLY: Final = "the connection ended before the answer"


class ClientLogic(Generic[W]):
    """A client of one cluster as a value; ``W`` is whatever stands for a caller that waits."""

    def __init__(self, search: LeaderSearch, limits: Limits, dice: Callable[[], float]) -> None:
        """``dice`` gives a number from 0 to 1 each time: clients that lost a leader together should
        not come back together."""
        self.search = search
        self.is_open = False
        self.is_turn_due = False
        """Whether there may be something that a turn would send, or look for."""
        self.seen_index: LogIndex = 0
        """The highest index of any answer: what a read at the level ``timeline`` must not be older
        than."""
        self._limits = limits
        self._pauses = Pauses[W](dice)
        self._lines = Lines[W](limits)
        self._actions = self._lines.actions
        self._questions = Questions(self._lines, search, self._end)
        self._waiting: dict[Command[W], None] = {}
        """Every command and question whose outcome is not known yet."""
        self._queue = CommandQueue[W](limits.session_answers_max)
        """The commands that have not left."""
        self._leading: Line[W] | None = None
        """The line to the leader, over which commands are sent."""
        self._draining: Line[W] | None = None
        """The line to a leader that fell silent and was succeeded, while it owes replies."""
        self._attempt: Line[W] | None = None
        """The line that may turn out to lead to the leader."""
        self._doubted: Line[W] | None = None
        """The leading line, while the other nodes are asked whether it still is that."""
        self._fruitless_count = 0
        """Rounds of the search since the last command that a leader took."""
        self._search_at = 0.0
        """Before that time, no address is tried."""
        self._deadline_at = NEVER
        """When deadlines are looked at next."""
        self._looked_at = -NEVER
        """When deadlines were last looked at."""

    # -- what a driver asks --

    @property
    def unsettled_count(self) -> int:
        """Commands and questions whose outcome is not known yet."""
        return len(self._waiting)

    @property
    def queued_count(self) -> int:
        """Those of them that wait to be sent."""
        return self._queue.count

    @property
    def lines(self) -> Sequence[Line[W]]:
        """Every line that has not ended."""
        return tuple(self._lines)

    @property
    def leading(self) -> Line[W] | None:
        """The line over which commands are sent, if there is one."""
        return self._leading

    @property
    def draining(self) -> Line[W] | None:
        """The line to a leader that fell silent and was succeeded, while it owes replies."""
        return self._draining

    def take_actions(self) -> list[Action[W]]:
        """What is to be done, in this order; each action is given out once."""
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    def next_time(self) -> float:
        """When ``time_passed`` is to be called, at the latest; ``NEVER``: not before other events.

        In the clock of the events; it may have gone by.
        """
        earliest = self._lines.next_time()
        if self._waiting:
            earliest = min(earliest, self._deadline_at, self._queue.resume_at)
        if self._queue and self._leading is None and self._attempt is None:
            earliest = min(earliest, self._search_at)
        return earliest

    # -- events: what callers want --

    def open(self) -> None:
        """From now on, commands are taken; nothing is connected until there is one."""
        self.is_open = True

    def propose(
        self,
        now: float,
        payload: bytes,
        seconds: float,
        waiter: W,
        session: ClientSession | None = None,
        term: TermId | None = None,
    ) -> Command[W]:
        """A command is to be replicated within ``seconds``; in a session once, however often it is
        sent, and in this term only, if one is given."""
        verb, term = PROPOSE if session is None else PROPOSE_IN_SESSION, check_term(term)
        command = self._order(
            now, verb if term is None else PROPOSE_MARKED, payload, seconds, waiter
        )
        command.term = term
        if session is not None:
            command.session, command.sequence = session, session.take()
        return command

    def query(
        self,
        now: float,
        payload: bytes,
        level: ReadLevel,
        at_least: LogIndex | None,
        node: NodeId | str | None,
        seconds: float,
        waiter: W,
    ) -> Command[W]:
        """A query is to be run on the state of a node (``None``: of the leader) within ``seconds``.

        ``at_least`` of ``None``: what this client has seen.  Raises
        :class:`~replog.errors.AddressError`.
        """
        if at_least is None:
            at_least = self.seen_index if level is ReadLevel.TIMELINE else 0
        body = pack_query(level._value_, at_least, payload)  # ``value`` is a slow property
        return self.read(now, QUERY, body, node, seconds, waiter)

    def read(
        self,
        now: float,
        verb: str,
        body: bytes,
        node: NodeId | str | None,
        seconds: float,
        waiter: W,
    ) -> Command[W]:
        """As :meth:`query`, of whatever verb: a node is asked, and nothing is changed."""
        if node is not None:
            return self.ask_node(now, verb, body, node, seconds, waiter)
        return self._order(now, verb, body, seconds, waiter)

    def open_session(self, now: float, seconds: float, waiter: W) -> Command[W]:
        """A session is to be opened; its id is the result."""
        return self._order(now, OPEN_SESSION, b"", seconds, waiter)

    def close_session(
        self, now: float, seconds: float, waiter: W, session: ClientSession
    ) -> Command[W]:
        """The cluster is to forget a session."""
        body = SESSION_ID.pack(session.session_id)
        return self._order(now, CLOSE_SESSION, body, seconds, waiter)

    def _order(self, now: float, verb: str, body: bytes, seconds: float, waiter: W) -> Command[W]:
        """The leader is to do something within ``seconds``."""
        command = Command(verb, body, now, seconds, waiter)
        self._admit(command)
        self._queue.add(command)
        self.is_turn_due = True
        return command

    def ask_node(
        self,
        now: float,
        verb: str,
        body: bytes,
        node: NodeId | str | None,
        seconds: float,
        waiter: W,
    ) -> Command[W]:
        """A node is to be asked, over a line of its own, so that any can be, also a lost one.

        ``node`` is an id or an address; ``None`` is whichever answers first, the leader by
        preference.  Raises :class:`~replog.errors.AddressError`.
        """
        question = Command(verb, body, now, seconds, waiter)
        question.route = self._questions.route_to(node)
        self._admit(question)
        self._questions.go_on(now, question, question.route)
        return question

    def _admit(self, command: Command[W]) -> None:
        assert self.is_open, "a client that is not open takes no command"
        self._waiting[command] = None
        if command.deadline < self._deadline_at:
            self._deadline_at = max(command.deadline, self._looked_at + GRAIN_SECONDS)

    def cancel(self, command: Command[W]) -> None:
        """Nobody waits for it any more: it is not sent, or its reply is ignored."""
        if command in self._waiting:
            self._withdraw(command)
            self._forget(command)

    def close(self) -> None:
        """End every wait with what is known, and every line; what is in flight ends with its line,
        which knows what has left."""
        self.is_open = False
        for command in [command for command in self._waiting if command.line is None]:
            self._withdraw(command)
            self._end(command, of_closing(command, may_have_arrived=False))
        for line in self._lines:
            self._lines.close(line, "the client was closed")

    # -- events: lines --

    def connected(self, line: Line[W]) -> None:
        """There is a connection; nothing was sent over it yet."""
        if line in self._lines and not line.is_closing:
            self._lines.send(line, line.core.hello())

    def failed(self, now: float, line: Line[W], reason: str) -> None:
        """No connection came about, for this reason in few words."""
        line.end_reason = line.end_reason or reason
        self.ended(now, line, 0)

    def wrote(self, line: Line[W], unsent_bytes: int) -> None:
        """The driver still has so many bytes that are to be sent over this line."""
        if unsent_bytes < line.unsent_bytes and self._queue and line is self._leading:
            self.is_turn_due = True
        line.unsent_bytes = unsent_bytes

    def received(self, now: float, line: Line[W], data: bytes) -> None:
        """Bytes have arrived; all replies in them are given out together."""
        if line.is_closing or line not in self._lines:
            return
        line.silent_looks = 0
        for event in line.core.receive(data):
            if isinstance(event, Answered):
                self._handle_reply(now, line, event.waiter, event.reply, event.value)
            elif isinstance(event, Welcomed):
                self._handle_welcome(now, line, event.hello)
            else:
                line.is_refusal = True
                self._lines.close(line, str(event.failure))
        self._lines.close_if_drained(line)
        if self._queue:
            self.is_turn_due = True  # Replies have made room for more.

    def ended(self, now: float, line: Line[W], unsent_bytes: int) -> None:
        """The connection has ended, and so many of its bytes never left."""
        if not self._lines.remove(line):
            return
        reason = line.end_reason or (_ENDED if line.hello else _ENDED_EARLY)
        if line.question is not None:
            self._end_question_line(now, line, line.question)
            return
        if line.hello is None:
            self.search.note_failed(line.address, reason, is_refusal=line.is_refusal)
        if line is self._draining:
            self._draining = None
        if line is self._leading:
            self._leading = self._doubted = None
            self.search.begin_round()
            self.search.note_failed(line.address, reason)
            if self._fruitless_count:
                self._pause_search(now)
        if line is self._attempt:
            self._attempt = None
        for command, may_have_arrived in line.core.end(unsent_bytes):
            self._lose(command, line, reason, may_have_arrived=may_have_arrived)
        self._look_further(now)

    def _lose(
        self, command: Command[W], line: Line[W], reason: str, *, may_have_arrived: bool
    ) -> None:
        """What the end of its line means to a command that was in flight there."""
        if not self.is_open:
            self._end(command, of_closing(command, may_have_arrived=may_have_arrived))
        elif not may_have_arrived or command.is_repeatable:
            if may_have_arrived:
                command.note_unanswered()
            self._requeue(command)
        else:
            self._end(command, of_loss(line, reason))

    def _end_question_line(self, now: float, line: Line[W], question: Command[W]) -> None:
        if question not in self._waiting:
            return
        if self.is_open:
            self._questions.handle_end(now, line, question, line.end_reason or _ENDED_EARLY)
        else:
            self._end(question, of_closing(question, may_have_arrived=True))

    # -- events: turns and time --

    def turn(self, now: float) -> None:
        """Let everything that is queued leave together, or look for the leader."""
        self.is_turn_due = False
        if self._leading is None:
            self._look_further(now)
        elif not self._leading.is_retired and not self._leading.is_closing:
            self._send_queued(now, self._leading)

    def time_passed(self, now: float) -> None:
        """Do what is due at this time."""
        self._lines.look_for_life(now)
        if self._leading is not None and self._lines.is_reply_missing(now, self._leading):
            self._maybe_doubt(now, self._leading)
        if self._deadline_at <= now:
            self._end_late(now)
        if self._queue.resume_at <= now:
            self._queue.resume(now)
            self.is_turn_due = True
        if self._leading is None:
            self._look_further(now)

    def _end_late(self, now: float) -> None:
        """End the waits whose time is over."""
        for command in [command for command in self._waiting if command.deadline <= now]:
            failure = of_deadline(command, self._leading, self.search.reasons())
            self._withdraw(command)
            self._end(command, failure)
        earliest = min((command.deadline for command in self._waiting), default=NEVER)
        self._looked_at = now
        self._deadline_at = max(earliest, now + GRAIN_SECONDS)

    # -- commands --

    def _end(self, command: Command[W], failure: Exception | None) -> None:
        """The outcome of a command that is neither queued nor in flight any more is known."""
        self._forget(command)
        command.line = None
        if command.may_be_done and isinstance(failure, NotDone) and not is_final(failure):
            failure = of_vain_copies(failure)
        command.failure = failure
        self._actions.append(command)

    def _forget(self, command: Command[W]) -> None:
        del self._waiting[command]
        session = command.session
        if session is not None:
            session.settle(command.sequence, is_done=command.applied is not None)
            if self._queue.note_settled(session):
                self.is_turn_due = True

    def _requeue(self, command: Command[W]) -> None:
        """A command that was certainly not taken waits to be sent again."""
        command.line = None
        self._queue.add(command)
        self.is_turn_due = True

    def _withdraw(self, command: Command[W]) -> None:
        """Take a command out of wherever it is."""
        line = command.line
        if line is not None:
            line.core.forget(command.request_id)
            self._lines.close_if_drained(line)
        else:
            self._queue.remove(command)
        if command.route is not None:
            self._questions.withdraw(command, command.route)

    def _pause(self, now: float, command: Command[W], failure: NotDone) -> None:
        """The leader is too busy for a command, or has no room: it is sent again a little later, or
        after those in front of it."""
        command.line = None
        if isinstance(failure, SessionFull) and self._queue.wait_for_others(command, failure):
            self.is_turn_due = True
            return
        self._queue.pause(now, command, self._pauses.after_refusal(now, command, failure))

    def _send_queued(self, now: float, line: Line[W]) -> None:
        """Let everything that is queued leave together, within the limits; commands for which the
        leader has no room wait as those do that it has refused."""
        core = line.core
        frames: list[bytes] = []
        room_bytes = self._limits.client_queue_bytes_max - line.unsent_bytes
        room = core.room
        while len(frames) < room and (command := self._queue.first()) is not None:
            if seconds := self._pauses.before_room(now, command):
                self._queue.remove(command)
                self._queue.pause(now, command, seconds)
                continue
            body = command.request_body
            room_bytes -= len(body) + REQUEST_OVERHEAD_BYTES
            if room_bytes < 0:
                break  # Goes on when the driver has written more, or replies have come.
            self._queue.take(command)
            command.request_id, frame = core.request(command.verb, body, command)
            command.line = line
            frames.append(frame)
        if frames:
            self._lines.send(line, frames[0] if len(frames) == 1 else b"".join(frames))

    def _handle_reply(
        self, now: float, line: Line[W], command: Command[W], reply: Reply, value: object
    ) -> None:
        if reply.index > self.seen_index:  # a declared error has one, too
            self.seen_index = reply.index
        if line.question is not None:
            self._questions.handle_reply(line, command, reply, value)
        elif reply.outcome is Outcome.DONE:
            command.applied = Applied(reply.index, value)
            self._fruitless_count = 0
            self._end(command, None)
        else:
            self._handle_failure(now, line, command, reply)

    def _handle_failure(self, now: float, line: Line[W], command: Command[W], reply: Reply) -> None:
        assert line.hello is not None, "a node welcomes a client before it answers"
        failure = failure_of(reply, line.hello.node_id, len(command.body))
        if command.session is not None and reply.code == SessionExpired.__name__:
            failure = SessionExpired(command.session.session_id)
        if isinstance(failure, NotLeader):
            if not line.is_retired:
                self._lines.retire(line)
                line.end_reason = f"node {line.hello.node_id} does not lead any more"
                line.deadline = now + _DRAIN_SECONDS
                self.search.note_hint(reply.leader_id, reply.leader_address)
            self._requeue(command)
            return
        self._fruitless_count = 0
        if isinstance(failure, Overloaded):
            self._pause(now, command, failure)
        elif command.is_query and isinstance(failure, Unavailable):
            # It may only be behind; or it has lost the leader, or the leadership.
            self._pause(now, command, failure)
            if line is self._leading:
                self._maybe_doubt(now, line)
        elif command.is_repeatable and isinstance(failure, OutcomeUnknown | EntryReplaced):
            if isinstance(failure, OutcomeUnknown):
                command.note_unanswered()
            self._requeue(command)
        else:
            self._end(command, failure)

    # -- the search for the leader --

    def _handle_welcome(self, now: float, line: Line[W], hello: ServerHello) -> None:
        line.hello = hello
        line.deadline = NEVER
        if line.question is not None:
            self._questions.handle_welcome(now, line, line.question, hello)
        elif not self.search.note_hello(line.address, hello):
            self._lines.close(line, "it does not lead")
        elif self._doubted and self._doubted.hello and self._doubted.hello.node_id == hello.node_id:
            # The same node under another address: slow, but it lives and leads.
            self._doubted = None
            self._lines.close(line, "it is known under another address")
        else:
            self._succeed(now, line)

    def _succeed(self, now: float, line: Line[W]) -> None:
        """From now on, commands are sent over this line; the one before it drains."""
        doubted, self._doubted = self._doubted, None
        if doubted is not None:
            self._lines.retire(doubted)
            self._draining = doubted
            for command in doubted.core.waiters():
                if command.is_repeatable:
                    doubted.core.forget(command.request_id)
                    command.note_unanswered()
                    self._requeue(command)
            self._lines.close_if_drained(doubted)
        self._attempt, self._leading = None, line
        if line.hello is not None and self._pauses.is_new_leader(line.hello.node_id):
            self._queue.resume_all(now)
        self._fruitless_count += 1  # until a reply shows that the way was not in vain
        self._lines.begin_leading(now, line)
        self.is_turn_due = True

    def _maybe_doubt(self, now: float, line: Line[W]) -> None:
        """Ask every other node once whether it leads, unless that or a draining is going on."""
        if self._draining is None and self._doubted is None and self._attempt is None:
            line.reply_looks = 0
            self._doubted = line
            self.search.begin_round()
            self.search.note_failed(line.address, "it does not answer")
            self._look_further(now)

    def _look_further(self, now: float) -> None:
        """Try the next address, if the leader is looked for and nothing else is tried."""
        if self._attempt is not None or not self.is_open:
            return
        if self._doubted is not None:
            if not self._try_next(now):
                self._doubted = None  # Nobody else leads; it is asked again if it stays silent.
            return
        if self._leading is not None or now < self._search_at:
            return
        while self._queue:
            if self._try_next(now):
                return
            if self.search.is_hopeless:
                self._give_up()
            self.search.begin_round()
            if self._queue:
                self._pause_search(now)
                return

    def _try_next(self, now: float) -> bool:
        """Begin to connect to the next address; False: this round is over."""
        while (address := self.search.next_address()) is not None:
            self._attempt = self._lines.connect(now, address, self.search.cluster_id, None)
            if self._attempt is not None:
                return True
            self.search.note_failed(address, "it is no address", is_refusal=True)
        return False

    def _pause_search(self, now: float) -> None:
        self._fruitless_count += 1
        self._search_at = now + self._pauses.after_round(self._fruitless_count)

    def _give_up(self) -> None:
        """No address will ever do: tell so at once, not when the deadline has passed."""
        reasons = self.search.reasons()
        for command in [command for command in self._queue if not command.may_be_done]:
            self._withdraw(command)
            self._end(command, Refused(f"no address leads to the cluster ({reasons})"))
