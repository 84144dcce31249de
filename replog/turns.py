"""The turn of a node: everything that its one loop does, without a clock, a socket or a thread.

A *turn* carries out what the replica is ready for, after something arrived:

1. the writes go on their way to disk, and the messages leave, beside each other;
2. what is committed is applied, and those who wait for it get their results (and may propose
   more, so the turn goes on until the replica is ready for nothing);
3. queries are run for which enough is applied;
4. what was queued for clients leaves.

When a group has become durable (:meth:`Turns.handle_synced`) its Readys are advanced, the messages
that waited for it leave, and a turn follows; and likewise when a job has run that reads or writes a
snapshot (:meth:`Turns.handle_job`).

So a batch costs one turn, one write, one sync and one frame per peer, and it grows by itself with
the load: what is submitted until the next turn is proposed as one batch, and what comes up while a
group is on its way to disk makes the next group.

**A full disk** stops no node.  While it has no room for more entries, the node proposes nothing,
and drops what brings entries, as a lossy network would: whoever sent it sends it again.  All else
goes on: it votes, promises, answers heartbeats, sends its own, applies what is committed, and is
given snapshots.  A leader hands over after a second, to the furthest voter; if it leads on, or
leads again, to the next one after two more, then four, up to a minute.  That is as safe as any
transfer, for an order to begin an election wins none.  It gets rarer because a leader cannot know
who has room: where nobody has, each election writes a little to disks that have kept little.

A full node may win an election: who may lead is the engine's affair, and one whose time stood still
would not vote either, for it would go on hearing a leader that is gone.  What the engine then
writes of its own (a no-op, open slots that are proposed again) goes to the disk, which has kept
room, or refuses the group until it has some; and the new leader hands over like any other.

The trio node (:mod:`replog.node`) and the simulator both drive *this* object, each with
:class:`Surroundings` of its own: what the simulator finds in it is found in every node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, cast

from replog.admission import RETRY_MS_MIN, Admission
from replog.comparison import Comparison
from replog.comparison_messages import DigestCompare
from replog.control import pack_closing, pack_learner, pack_opening
from replog.engine import MessageSpec, entries_fields
from replog.envelope import check_size
from replog.errors import (
    DiskFull,
    NodeActive,
    NotDone,
    NotLeader,
    Overloaded,
    Unavailable,
)
from replog.formation import apart_sentence
from replog.handing_over import HAND_OVER_MS, HandingOver
from replog.limits import Limits
from replog.machine import MachineKind, machine_kind
from replog.replica import Replica
from replog.sessions import SessionId, SessionTerms
from replog.snapshots import Snapshots
from replog.storage.protocol import Write
from replog.transfer_messages import TRANSFER_TYPES, TransferMessage
from replog.transfer_outlet import Job
from replog.types import (
    Entry,
    LogIndex,
    NodeId,
    ReadLevel,
    Ready,
    Role,
    SoftState,
    Voter,
    Waiter,
    record,
)

_SET_APART: Final = TRANSFER_TYPES | {DigestCompare}


@record
class Surroundings:
    """What a turn acts on.  None of these may call back into the turns before it returns."""

    send: Callable[[object], None]
    """Put a message on its way to the peer that it names."""
    flush: Callable[[], None]
    """Let the messages leave that were put on their way."""
    write: Callable[[list[Write]], None]
    """Start making one group durable; when it is, ``handle_synced`` is called."""
    wake: Callable[[], None]
    """Have another turn taken soon."""
    answer: Callable[[], None]
    """Let leave what was queued for clients."""
    report_role: Callable[[SoftState], None]
    """The role or the known leader changed."""
    time_ms: Callable[[], int]
    """The local time that is stamped on proposals."""
    clock_ns: Callable[[], int]
    """What leases run by; see :meth:`replog.engine.Engine.observe_time`."""
    is_full: Callable[[], bool]
    """Whether the disk has no room for more entries; asked once in a turn."""
    report_full: Callable[[bool], None]
    """The disk is full, or has room again."""


class Turns:
    """Takes the turns of one replica; see the module."""

    __slots__ = (
        "_admission",
        "_command_bytes_max",
        "_entries_fields",
        "_groups",
        "_groups_max",
        "_handing_over",
        "_is_full",
        "_is_sync_first",
        "_is_timed",
        "_is_turning",
        "_limits",
        "_node_id",
        "_payloads",
        "_set_apart",
        "_submitted_bytes",
        "_submitted_bytes_max",
        "_submitted_count_max",
        "_surroundings",
        "_told",
        "_unapplied",
        "_unsynced",
        "_unwritten",
        "_waiters",
        "_waits_for",
        "comparison",
        "replica",
        "snapshots",
    )

    def __init__(
        self,
        node_id: NodeId,
        replica: Replica,
        limits: Limits,
        surroundings: Surroundings,
        snapshots: Snapshots,
        messages: Sequence[MessageSpec],
        groups_max: int = 1,
    ) -> None:
        self.replica = replica
        self.snapshots = snapshots
        self.comparison = Comparison(node_id, snapshots.epoch, replica, limits, surroundings.send)
        self._waits_for: Sequence[NodeId] = ()
        self._is_sync_first = machine_kind(replica.machine) is MachineKind.DURABLE
        """Whether an entry is applied only when it is durable here, or a machine on its own disk
        might hold what this node's log does not."""
        self._is_timed = replica.engine.is_timed
        self._node_id = node_id
        self._limits = limits
        self._surroundings = surroundings
        self._groups_max = groups_max
        """How many groups may be on their way to disk at a time."""
        self._groups: deque[int] = deque()
        """How many writes each group on its way holds, oldest first."""
        self._unwritten: list[Write] = []
        """Writes that wait for a group to end."""
        self._unsynced: deque[Ready] = deque()
        """Readys that were not advanced yet, oldest first."""
        self._unapplied: deque[Ready] = deque()
        """Readys whose entries are committed and not applied yet."""
        self._payloads: list[bytes] = []
        """What was submitted since the last proposal, and beside it who waits for each."""
        self._waiters: list[Waiter] = []
        self._submitted_bytes = 0
        self._is_turning = False
        self._entries_fields = entries_fields(messages)
        self._is_full = False
        """What the disk said of itself at the last turn; with it change the next two, so that a
        node with room asks nothing more than before."""
        self._submitted_bytes_max = limits.uncommitted_bytes_max
        """What may be submitted between two turns; below 0 while nothing is taken, as the node has
        no part yet, the disk is full, or the machine cannot follow.  So each command is held
        against this number and ..."""
        self._submitted_count_max = limits.unapplied_entries_max
        """... this one, beside ..."""
        self._command_bytes_max = limits.command_bytes_max
        """... its own bound."""
        self._told: tuple[str, int] | None = None
        """What those are told who are refused until the next turn, if anybody was."""
        self._admission = Admission(node_id, limits)
        self._set_apart = _SET_APART
        """The messages that do not simply go to the replica."""
        self._handing_over = HandingOver(replica, limits.tick_ms)

    # -- what arrives --

    @property
    def waits_for(self) -> Sequence[NodeId]:
        """The nodes of which the owner must hear before this one may take part; it sets this."""
        return self._waits_for

    @waits_for.setter
    def waits_for(self, nodes: Sequence[NodeId]) -> None:
        self._waits_for = nodes
        self._limit_submitted()

    @property
    def takes_part(self) -> bool:
        """Whether the node is one of the cluster: until then it hears nothing, answers nothing, and
        knows no time (:mod:`replog.formation`)."""
        return not self._waits_for

    def step(self, message: object) -> None:
        """Take one message from a peer; a turn must follow."""
        kind = type(message)
        if self._waits_for:
            return
        self._observe_time()
        if kind not in self._set_apart:
            self.replica.step(message)
        elif kind in TRANSFER_TYPES:
            self.snapshots.transfer.step(cast(TransferMessage, message))
        elif kind is DigestCompare:
            self.comparison.step(cast(DigestCompare, message))
        elif not getattr(message, self._entries_fields[kind]):
            self.replica.step(message)
        # Else it brings entries to a full disk: as if it had been lost on the way.

    def tick(self) -> None:
        """One unit of time has passed; a turn must follow."""
        if self._waits_for:
            return
        self._observe_time()
        self.replica.tick()
        self._admission.tick(self.replica.applied_index)
        self.snapshots.tick()
        self.comparison.tick()
        if self._is_full:
            self._handing_over.tick()

    def campaign(self) -> None:
        """Have the node try to become leader; a turn must follow."""
        self._observe_time()
        self.replica.campaign()

    def _observe_time(self) -> None:
        if self._is_timed:
            self.replica.engine.observe_time(self._surroundings.clock_ns())

    def submit(self, payload: bytes, waiter: Waiter) -> None:
        """Have a command proposed, together with all that come up until the next turn.

        See :meth:`replog.node.Node.submit`.
        """
        size_bytes = len(payload)
        self._submitted_bytes += size_bytes
        payloads = self._payloads
        if (
            self._submitted_bytes > self._submitted_bytes_max
            or len(payloads) >= self._submitted_count_max
            or size_bytes > self._command_bytes_max
        ):
            self._maybe_refuse(payload)
        payloads.append(payload)
        self._waiters.append(waiter)
        if not self._is_turning:
            self._surroundings.wake()

    def query(self, payload: bytes, level: ReadLevel, at_least: LogIndex, waiter: Waiter) -> None:
        """Have a query run on what this node has applied, once that is new enough; see
        :meth:`replog.replica.Replica.query`."""
        if self._waits_for:
            self._check_takes_part()
        now_ns = self._surroundings.clock_ns() if level is ReadLevel.LEASE else None
        self.replica.query(payload, level, at_least, waiter, now_ns)
        self._surroundings.wake()

    def read_log(self, from_index: LogIndex, level: ReadLevel, waits: bool, waiter: Waiter) -> None:
        """Have the log read from an index on; see :meth:`replog.replica.Replica.read_log`."""
        self._check_takes_part()
        self.replica.read_log(from_index, level, waits, waiter)
        self._surroundings.wake()

    def read_term(self, waiter: Waiter) -> None:
        """Have the term asked for in which this node leads; see
        :meth:`replog.replica.Replica.read_term`."""
        self._check_leads_with_room()
        self.replica.read_term(waiter)
        self._surroundings.wake()

    def admit(self, learner: Voter, waiter: Waiter) -> None:
        """Have an incarnation of a node taken in as a learner, in the place of the one that takes
        part now; a turn must follow.  Who was taken in already is so again.

        ``waiter`` as of :meth:`submit`, with the result None.  Raises a
        :class:`~replog.errors.NotDone` when nothing was proposed.
        """
        self._check_takes_part()
        replica = self.replica
        soft_state = replica.engine.soft_state
        if soft_state.role is not Role.LEADER:
            raise NotLeader(self._node_id, soft_state.leader_id)
        if learner in replica.learners:
            waiter(replica.applied_index, None, None)
            return
        if learner.node_id == self._node_id:
            raise NodeActive(learner.node_id)
        if self._is_full:
            raise self._refusal_of_full()
        self._propose_control(pack_learner(learner), waiter)

    def open_session(self, waiter: Waiter) -> None:
        """Have a session opened, as this node's limits have it; a turn must follow.

        ``waiter`` as of :meth:`submit`, with the session's id as the result.  Raises a
        :class:`~replog.errors.NotDone` when nothing was proposed.
        """
        self._check_leads_with_room()
        limits = self._limits
        terms = SessionTerms(
            limits.session_idle_ms_max,
            limits.session_answers_max,
            limits.session_answer_bytes_max,
            limits.sessions_max,
            limits.sessions_bytes_max,
        )
        data = pack_opening(terms, self._surroundings.time_ms())
        self._propose_control(data, waiter)

    def close_session(self, session_id: SessionId, waiter: Waiter) -> None:
        """Have a session closed; as :meth:`open_session`, with the result None."""
        self._check_leads_with_room()
        self._propose_control(pack_closing(session_id), waiter)

    def _propose_control(self, data: bytes, waiter: Waiter) -> None:
        try:
            self.replica.propose_control(data, waiter)
        except Overloaded as refusal:
            self._say_when(refusal)
            raise

    def _check_takes_part(self) -> None:
        if self._waits_for:
            raise Unavailable(apart_sentence(self._node_id, self._waits_for))

    def _check_leads_with_room(self) -> None:
        """Raise why a session is neither opened nor closed here."""
        self._check_takes_part()
        if refusal := self._refusal_of_all():
            raise refusal

    def handle_synced(self) -> None:
        """The oldest group on its way is durable; a turn must follow."""
        left = self._groups.popleft()
        unsynced = self._unsynced
        # What writes nothing only had to wait for what is before it.
        while unsynced and (left or not unsynced[0].writes):
            left -= unsynced[0].writes
            self._advance()
        self._start_group()
        self._surroundings.flush()
        if self._unapplied:
            self._apply_next()

    def handle_job(self, job: Job) -> None:
        """A job that the snapshots have asked for has run; a turn must follow."""
        job.done()
        if self._unapplied:
            self._apply_next()

    def end(self, of_proposed: Exception, of_submitted: Exception) -> None:
        """The node stops: answer everybody who waits."""
        self.replica.end_waits(of_proposed)
        self.replica.end_reads(of_submitted)
        self.snapshots.end(of_submitted)
        waiters = self._waiters
        self._payloads, self._waiters, self._submitted_bytes = [], [], 0
        for waiter in waiters:
            waiter(0, None, of_submitted)

    # -- the turn --

    def turn(self) -> None:
        """Carry out everything that the replica is ready for; raises ``FatalError``."""
        if self.comparison.diverged is not None:
            raise self.comparison.diverged
        self._is_turning = True
        if self._surroundings.is_full() is not self._is_full:
            self._handle_fullness(not self._is_full)
        waiting = len(self._unapplied)
        if waiting > 1 or (waiting and (self._is_sync_first or not self._groups)):
            self._apply_next()  # a backlog that had to wait, for the disk or for a snapshot
        self._propose_submitted()
        while (ready := self.replica.ready()) is not None:
            self._carry_out(ready)
            self._propose_submitted()
            if len(ready.committed) >= self._limits.apply_entries_max:
                # There may be a long backlog: heartbeats go out and come in between.
                self._surroundings.wake()
                break
        self._limit_submitted()
        self._is_turning = False
        if not self.snapshots.is_installing:
            self.replica.serve_reads()
        # Not every message comes with a Ready: a snapshot is asked for, and sent, without one.
        self._surroundings.flush()
        self._surroundings.answer()

    def _propose_submitted(self) -> None:
        """Propose everything that was submitted, as one batch."""
        if not self._payloads:
            return
        payloads, waiters, size_bytes = self._payloads, self._waiters, self._submitted_bytes
        self._payloads, self._waiters, self._submitted_bytes = [], [], 0
        try:
            if refusal := self._refusal_of_all():
                raise refusal
            first_index = self.replica.propose_batch(
                payloads, self._surroundings.time_ms(), waiters
            )
            self._admission.note_proposed(first_index + len(payloads) - 1, size_bytes)
        except NotDone as refusal:
            if isinstance(refusal, Overloaded):
                self._say_when(refusal)
            for waiter in waiters:
                waiter(0, None, refusal)
            # Who submits again at once is heard in another turn, or this one might never end.
            self._surroundings.wake()

    def _carry_out(self, ready: Ready) -> None:
        """One Ready.  The disk first: it starts while the sends are in the kernel."""
        surroundings = self._surroundings
        self._start_writing(ready)
        for message in ready.messages:
            surroundings.send(message)
        surroundings.flush()
        if ready.reads:
            self.replica.hear_reads(ready.reads)
        if ready.committed and not self._is_sync_first:
            self._unapplied.append(ready)
        # A sync thread that was just started needs the interpreter; unless somebody waits for
        # results, applying now would only hold up the acknowledgement.
        if self._unapplied and (self.replica.waiting_count or not self._groups):
            self._apply_next()
        if ready.soft_state is not None:
            # Now, and not when its turn to be applied comes: a backlog may last into a later
            # leadership, whose waits are none of this change's business.
            self.replica.follow_role(ready.soft_state)
            if ready.soft_state.role is not Role.LEADER:
                self._admission.forget()
            if self._unapplied and self._unapplied[-1] is ready:
                self._unapplied[-1] = replace(ready, soft_state=None)
            surroundings.report_role(ready.soft_state)

    def _apply_next(self) -> None:
        """Apply what the oldest of the waiting Readys has committed; a turn for each of them."""
        snapshots, replica = self.snapshots, self.replica
        if snapshots.is_installing:
            return
        ready = self._unapplied.popleft()
        if ready.committed and ready.committed[0].index <= replica.applied_index:
            # A snapshot was installed since it was handed out.
            ready = replace(ready, committed=_behind(ready.committed, replica.applied_index))
        replica.apply(ready)
        snapshots.note_applied()
        if self._unapplied:
            self._surroundings.wake()

    # -- overload --

    @property
    def _gap(self) -> int:
        """How many entries are committed and not applied."""
        return self.replica.engine.commit_index - self.replica.applied_index

    def _is_behind(self) -> bool:
        """Whether this node leads and is too far behind to take anything."""
        is_behind = self._admission.is_behind(self._gap, self.replica.waiting_count)
        return is_behind and self.replica.engine.soft_state.role is Role.LEADER

    def _limit_submitted(self) -> None:
        """Say what may be submitted until this is called again, at the end of the next turn."""
        replica, admission = self.replica, self._admission
        self._told = None
        self._submitted_count_max = admission.room_count(replica.waiting_count)
        if self._waits_for or self._is_full or self._is_behind():
            self._submitted_bytes_max = -1
        else:
            room_bytes = admission.room_bytes(replica.applied_index)
            self._submitted_bytes_max = min(self._limits.uncommitted_bytes_max, room_bytes)

    def _refusal_of_all(self) -> NotDone | None:
        """Why this node takes no command now; ``None``: it may do."""
        if self._is_full:
            return self._refusal_of_full()
        return self._overloaded() if self._is_behind() else None

    def _overloaded(self) -> Overloaded:
        """The word of a leader that is behind.  A sentence costs more than a command should that is
        not done: so it is made once a turn."""
        if self._told is None:
            gap, waiting_count = self._gap, self.replica.waiting_count + len(self._payloads)
            sentence = self._admission.sentence(gap, waiting_count)
            self._told = sentence, self._admission.retry_after_ms(max(gap, waiting_count))
        return Overloaded(*self._told)

    def _say_when(self, refusal: Overloaded) -> None:
        """Add when to come back, unless that is said: an engine knows its limits and no pace."""
        if not refusal.retry_after_ms:
            waiting_count = self.replica.waiting_count
            refusal.retry_after_ms = self._admission.retry_after_ms(waiting_count)

    def _maybe_refuse(self, payload: bytes) -> None:
        """Refuse what was counted as submitted and is too much, unless there is room by now: the
        machine may have caught up since the turn.  What is refused counts no more."""
        size_bytes = len(payload)
        self._submitted_bytes -= size_bytes
        if self._waits_for:
            raise Unavailable(apart_sentence(self._node_id, self._waits_for))
        check_size(payload, self._command_bytes_max)
        if refusal := self._refusal_of_all():
            raise refusal
        count, replica = len(self._payloads), self.replica
        soft_state = replica.engine.soft_state
        if soft_state.role is not Role.LEADER:
            raise NotLeader(self._node_id, soft_state.leader_id)
        room_bytes = self._admission.room_bytes(replica.applied_index) - self._submitted_bytes
        room_count = self._admission.room_count(replica.waiting_count) - count
        if size_bytes > room_bytes or room_count < 1:
            raise self._overloaded()
        self._limit_submitted()
        if self._submitted_bytes + size_bytes > self._submitted_bytes_max:
            raise Overloaded(
                f"node {self._node_id} holds {self._submitted_bytes} bytes of commands that were "
                "submitted and not proposed yet, and limits.uncommitted_bytes_max = "
                f"{self._submitted_bytes_max} has no room for {size_bytes} more; try again a "
                "little later",
                RETRY_MS_MIN,
            )
        self._submitted_bytes += size_bytes

    # -- a full disk --

    def _handle_fullness(self, is_full: bool) -> None:
        """The disk is full, or has room again."""
        self._is_full = is_full
        self._handing_over.begin()
        self._limit_submitted()
        self._set_apart = _SET_APART.union(self._entries_fields if is_full else ())
        self._surroundings.report_full(is_full)

    def _refusal_of_full(self) -> NotDone:
        """Why nothing is proposed: another node leads, or there is no room for it here."""
        soft_state = self.replica.engine.soft_state
        if soft_state.role is not Role.LEADER:
            return NotLeader(self._node_id, soft_state.leader_id)
        return DiskFull(
            f"node {self._node_id} leads and its disk is full, so nothing was proposed; free some "
            "space on the disk of its directory, or try again when a node with room leads",
            # It looks for room, and first hands over, after about so long.
            HAND_OVER_MS,
        )

    # -- the disk --

    def _start_writing(self, ready: Ready) -> None:
        """Send a Ready's writes on their way to disk, or let it pass if nothing is before it."""
        self._unsynced.append(ready)
        if ready.writes:
            self._unwritten.append(
                Write(ready.hard_state, ready.truncate_from, ready.entries, ready.base)
            )
            self._start_group()
        elif len(self._unsynced) == 1:
            self._advance()

    def _start_group(self) -> None:
        """Hand over everything that waits, as one group, unless enough are on their way."""
        if self._unwritten and len(self._groups) < self._groups_max:
            writes, self._unwritten = self._unwritten, []
            self._groups.append(len(writes))
            self._surroundings.write(writes)

    def _advance(self) -> None:
        """The oldest Ready is durable: advance it, let its answers leave."""
        ready = self._unsynced.popleft()
        self.replica.advance(ready)
        for message in ready.messages_after_sync:
            self._surroundings.send(message)
        if ready.committed and self._is_sync_first:
            self._unapplied.append(replace(ready, soft_state=None))


def _behind(entries: Sequence[Entry], index: LogIndex) -> Sequence[Entry]:
    """Those of some entries at contiguous indexes that are behind ``index``."""
    return entries[max(0, index + 1 - entries[0].index) :]
