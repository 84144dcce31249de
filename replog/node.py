"""A node: the tasks around the one loop that carries out what its replica is ready for.

Synchronous code decides, asynchronous code carries.  What arrives goes straight into the replica,
and then a turn of :mod:`replog.turns` carries out what the replica is ready for.  Readers of peers'
sockets take a turn after each batch; proposals, clients' requests and ticks wake the one task that
takes turns for them, so that they share one.

The disk works beside the network (Raft thesis §10.2.1), in a thread of its own; a sync that stalls
for seconds stops no heartbeat.

Nothing here knows which engine decides, or what the state machine means.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Final, ParamSpec, TypeVar, cast

import structlog
import trio

from replog.changes import ChangesPage
from replog.client_surface import watch_cursor
from replog.comparison import Difference
from replog.config import Config
from replog.envelope import check_term, mark_command
from replog.errors import (
    BadCommand,
    CommandTooLarge,
    DumpUnavailable,
    FatalError,
    NodeActive,
    OutcomeUnknown,
    Unavailable,
)
from replog.failures import main_error
from replog.formation import apart_sentence
from replog.jobs import Jobs
from replog.machine import DumpPage, Machine
from replog.node_messages import NODE_SPECS
from replog.opening import OpenedState
from replog.reports import Reports
from replog.server import ClientServer
from replog.sessions import SessionId
from replog.snapshots import (
    Snapshots,
    SnapshotSetup,
    SnapshotsPicture,
    SnapshotSurroundings,
    SnapshotTaken,
)
from replog.statemachine import Call
from replog.storage.directory import NodeDirectory
from replog.storage.identity import FoundingRecord, Identity
from replog.storage.protocol import Storage, Write
from replog.storage.snapshot_writer import SnapshotInfo
from replog.sync_thread import SyncThread
from replog.transfer_outlet import Job
from replog.transport.meetings import Meetings
from replog.transport.protocol import Transport
from replog.transport.tcp import Member, TcpTransport
from replog.turns import Surroundings, Turns
from replog.types import (
    Applied,
    Change,
    LogIndex,
    NodeId,
    ReadLevel,
    RoleChange,
    SoftState,
    Status,
    TermId,
    Voter,
    Waiter,
)
from replog.waiting import applied_by, taken_by
from replog.wakeup import Wakeup
from replog.wire import MessageCodec

WAITING_SECONDS_MIN: Final = 5.0
"""After so long a node says for the first time whom it waits for, ..."""

WAITING_SECONDS_MAX: Final = 60.0
"""... and in the end so often."""

P = ParamSpec("P")
R = TypeVar("R")

LEASE_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that goes on while the machine sleeps.  Linux's monotonic one stands still meanwhile."""


class Node:
    """A running node of a cluster; made by :func:`~replog.running.open_node`."""

    def __init__(
        self,
        config: Config,
        directory: NodeDirectory,
        storage: Storage,
        machine: Machine,
        state: OpenedState,
    ) -> None:
        identity = directory.identity
        self.node_id: NodeId = identity.node_id
        self.config = config
        self.machine = machine
        self.is_durable = storage.durable
        """Whether what is acknowledged survives a power cut."""
        self._directory = directory
        self._storage = storage
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger("replog").bind(
            cluster=config.cluster_id, node=self.node_id
        )
        self._reports = Reports(self._log, directory.path)
        self._replica = state.replica
        self._wakeup = Wakeup()
        self._formation = state.formation
        self._formed = trio.Event()
        self._transport: Transport = TcpTransport(
            _member_of(identity, state),
            config.node(self.node_id).peer_listen,
            {node.id: node.peer for node in config.nodes},
            MessageCodec(state.messages, config.limits, NODE_SPECS),
            config.limits,
            self._step,
            self._turn,
            Meetings(self._formation, directory.open_met().save, self._maybe_begin),
            self._log,
        )
        self._server = ClientServer(self, config, self._log)
        self._jobs = Jobs()
        self._transfer_jobs = Jobs()
        self._turns = Turns(
            self.node_id,
            self._replica,
            config.limits,
            Surroundings(
                send=self._transport.send,
                flush=self._transport.flush,
                write=self._write,
                wake=self._wakeup.set,
                answer=self._server.flush,
                report_role=self._report_role,
                time_ms=lambda: int(time.time() * 1000),
                clock_ns=partial(time.clock_gettime_ns, LEASE_CLOCK),
                is_full=lambda: storage.is_full,
                report_full=self._reports.tell_full,
            ),
            self._made_snapshots(state.snapshots),
            state.messages,
        )
        self._turns.waits_for = self._formation.waits_for
        self._replica.handle_learners = self._handle_learners
        self._turns.comparison.handle_difference = self._reports.tell_difference
        self._syncs: SyncThread | None = None
        self._is_running = False
        self._role_changed = trio.Event()

    def _made_snapshots(self, setup: SnapshotSetup) -> Snapshots:
        surroundings = SnapshotSurroundings(
            send=self._transport.send,
            start_job=self._jobs.start,
            start_transfer=self._transfer_jobs.start,
            written_bytes=lambda: self._storage.written_bytes,
            report=self._reports.tell_snapshot,
        )
        limits = self.config.limits
        return Snapshots(self.node_id, self._replica, limits, setup, surroundings)

    # -- for the embedding program --

    def submit(self, payload: bytes, waiter: Waiter) -> None:
        """Propose one command without waiting, together with all that come up until the next turn.

        The cheapest way in: no task, no channel, no check; ``payload`` comes from ``Call.encode``
        or has passed :meth:`check_command`.  Must be called on the node's event loop;
        ``waiter`` is called there, once (see :meth:`replog.replica.Replica.propose_batch`), must
        not raise and must not block.

        Raises a :class:`~replog.errors.NotDone` when nothing will be proposed; ``waiter`` is not
        called then.
        """
        if not self._is_running:
            raise Unavailable(f"node {self.node_id} is not running (any more)")
        self._turns.submit(payload, waiter)

    async def propose(self, payload: bytes, *, expect_term: TermId | None = None) -> Applied:
        """Replicate one command and return its index and result.

        ``expect_term``: it is done in this term only (:meth:`leading_term`).  Raises
        :class:`~replog.errors.BadCommand` for what is no command of the state machine, a
        :class:`~replog.errors.NotDone` when it was definitely not done (as
        :class:`~replog.errors.NotLeader` and :class:`~replog.errors.TermChanged`),
        :class:`~replog.errors.OutcomeUnknown` when it may have been, and the
        :class:`~replog.errors.StateMachineError` that the command declared.  When the wait is
        cancelled the command may still be done.
        """
        self.check_command(payload)
        return await self._replicate(mark_command(payload, None, check_term(expect_term)))

    async def leading_term(self) -> TermId:
        """The term in which this node leads, confirmed by a quorum, for ``expect_term``; from now
        on nothing is done that expects an earlier one (``docs/one-term.md``).

        Raises :class:`~replog.errors.NotLeader`, and :class:`~replog.errors.Unavailable` where a
        quorum does not answer.
        """
        return cast(TermId, (await applied_by(self.submit_term_read)).result)

    def check_command(self, payload: bytes) -> None:
        """Refuse what came from outside and is too large, or no command of the state machine.

        Raises :class:`~replog.errors.CommandTooLarge` or :class:`~replog.errors.BadCommand`.
        """
        bytes_max = self.config.limits.command_bytes_max
        if len(payload) > bytes_max:
            raise CommandTooLarge(len(payload), bytes_max)
        self.machine.check_payload(payload)

    def submit_opening(self, waiter: Waiter) -> None:
        """Have a session opened, without waiting; see :meth:`replog.turns.Turns.open_session`."""
        self._running_turns.open_session(waiter)
        self._wakeup.set()

    def submit_closing(self, session_id: SessionId, waiter: Waiter) -> None:
        """Have a session closed, without waiting; see
        :meth:`replog.turns.Turns.close_session`."""
        self._running_turns.close_session(session_id, waiter)
        self._wakeup.set()

    @property
    def _running_turns(self) -> Turns:
        if not self._is_running:
            raise Unavailable(f"node {self.node_id} is not running (any more)")
        return self._turns

    def submit_query(
        self, payload: bytes, level: ReadLevel, at_least: LogIndex, waiter: Waiter
    ) -> None:
        """Have a query run on this node's own state, without waiting; as of :meth:`submit`, and
        ``waiter`` as of :meth:`replog.replica.Replica.query`."""
        self._running_turns.query(payload, level, at_least, waiter)

    def submit_term_read(self, waiter: Waiter) -> None:
        """Ask for the term in which this node leads, without waiting; as of :meth:`submit`, and
        ``waiter`` as of :meth:`replog.replica.Replica.read_term`."""
        self._running_turns.read_term(waiter)

    def submit_log_read(
        self, from_index: LogIndex, level: ReadLevel, waits: bool, waiter: Waiter
    ) -> None:
        """Read the log, without waiting; as of :meth:`replog.replica.Replica.read_log`."""
        self._running_turns.read_log(from_index, level, waits, waiter)

    async def _replicate(self, payload: bytes) -> Applied:
        return await applied_by(partial(self.submit, payload))

    async def _read(self, payload: bytes, level: ReadLevel, at_least: LogIndex) -> Applied:
        return await applied_by(partial(self.submit_query, payload, level, at_least))

    async def call(self, call: Call[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one call of a state machine, ``node.call(Kv.get, "k")``: a command goes through the
        log, a query is read at this node, linearizably (:meth:`query`).

        Raises what :meth:`propose` or :meth:`query` raises.
        """
        payload = call.encode(*args, **kwargs)
        if call.is_query:
            applied = await self._read(payload, ReadLevel.LINEARIZABLE, 0)
        else:
            applied = await self._replicate(payload)
        return cast(R, applied.result)

    async def query(
        self,
        call: Call[..., object],
        /,
        *args: object,
        level: ReadLevel = ReadLevel.LINEARIZABLE,
        at_least: LogIndex = 0,
    ) -> Applied:
        """Run a query on this node's own state, whoever leads, and return its result with the index
        as of which it was read; ``at_least`` must be applied here at the level ``timeline``.

        Raises :class:`~replog.errors.BadCommand` for a command, another
        :class:`~replog.errors.NotDone` when it was not served (ask again), and the
        :class:`~replog.errors.StateMachineError` that the query declared.
        """
        if not call.is_query:
            raise BadCommand(f"{call.name} is a command, which goes through the log; call it")
        return await self._read(call.encode(*args), level, at_least)

    async def watch(
        self, call: Call[..., ChangesPage], /, *args: object, after: LogIndex | None = None
    ) -> AsyncIterator[Change]:
        """What the state machine changes, as this node applies it; as of
        :meth:`replog.Client.watch`.

        While the node is cut off from the others, nothing comes.  Raises
        :class:`~replog.errors.FellBehind`, and :class:`~replog.errors.Unavailable` when the node
        stops, or hears from no leader in time what was done before.
        """
        await self.wait_formed()
        cursor = watch_cursor(call, args, after, self.node_id)
        while True:
            applied = await self._read(cursor.payload, cursor.level, cursor.at_least)
            for change in cursor.take(applied.result, applied.index):
                yield change

    def status(self) -> Status:
        """A read-only picture of the node."""
        return self._replica.status()

    def snapshots(self) -> SnapshotsPicture:
        """A read-only picture of the node's snapshots."""
        return self._turns.snapshots.picture

    @property
    def differences(self) -> Mapping[NodeId, Difference]:
        """The peers that were seen to be in another state than this node, each with the entry that
        came to something else there (``docs/comparison.md``)."""
        return self._turns.comparison.differences

    @property
    def is_disk_full(self) -> bool:
        """Whether the disk has no room for more entries; the node goes on by itself when it has."""
        return self._storage.is_full

    @property
    def waits_for(self) -> Sequence[NodeId]:
        """The nodes that must know this one's directory before it takes part; empty: it does."""
        return self._formation.waits_for

    async def take_snapshot(self) -> SnapshotInfo:
        """Take a snapshot of what this node has applied, or find that there is one already; on
        return it is durable.

        Raises :class:`~replog.errors.SnapshotUnavailable` and
        :class:`~replog.errors.SnapshotFailed` (no room on the disk), and
        :class:`~replog.errors.Unavailable` when the node stops.
        """
        return await taken_by(self.submit_snapshot)

    def submit_snapshot(self, asker: SnapshotTaken) -> None:
        """Take a snapshot without waiting; see :meth:`replog.snapshots.Snapshots.take`."""
        self._running_turns.snapshots.take(asker)

    @property
    def learners(self) -> Sequence[Voter]:
        """Who takes part without a vote, each in the place of a voter that was lost; by node id."""
        return self._replica.learners

    @property
    def is_voter(self) -> bool:
        """Whether this node counts in quorums: it is no learner."""
        return self._directory.identity.is_founding

    @property
    def founding(self) -> FoundingRecord:
        """The record of the cluster."""
        return self._directory.identity.founding

    def submit_learner(self, learner: Voter, waiter: Waiter) -> None:
        """Have an incarnation of a node taken in as a learner, without waiting; see
        :meth:`check_lost` and :meth:`replog.turns.Turns.admit`."""
        turns = self._running_turns
        self.check_lost(learner)
        turns.admit(learner, waiter)
        self._wakeup.set()

    def check_lost(self, learner: Voter) -> None:
        """Raise :class:`~replog.errors.NodeActive` if the node whose place a learner is to have
        calls this one, or did a moment ago, :class:`~replog.errors.ConfigError` for a node that
        the cluster does not have, and :class:`~replog.errors.BadCommand` for a founding voter."""
        self.config.node(learner.node_id)
        if learner in self.founding.voters:
            raise BadCommand(f"{learner} is a founding voter; nobody comes back as that")
        if learner not in self.learners and self._transport.is_called_by(learner.node_id):
            raise NodeActive(learner.node_id)

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """A page of this replica's state; see :meth:`replog.machine.Machine.dump`."""
        if self._turns.snapshots.is_installing:
            raise DumpUnavailable(
                f"node {self.node_id} is being filled from a snapshot just now; ask again later"
            )
        return self.machine.dump(cursor, items_max)

    async def wait_formed(self) -> None:
        """Wait until this node takes part: every other founding voter knows its directory.

        Raises :class:`~replog.errors.Unavailable` when the node stops before.
        """
        if self._turns.waits_for:
            await self._formed.wait()
            if self._turns.waits_for:
                raise Unavailable(f"node {self.node_id} stopped before it took part")

    async def wait_leader(self) -> NodeId:
        """Wait until this node knows a leader, and return the leader's id."""
        while not (leader_id := self._replica.engine.soft_state.leader_id):
            await self._role_changed.wait()
        return leader_id

    async def role_changes(self) -> AsyncIterator[RoleChange]:
        """The node's role, leader and term, now and after each change.

        Who iterates slowly sees the latest state and may miss some in between.
        """
        seen: RoleChange | None = None
        while True:
            change = self._role()
            if change == seen:
                await self._role_changed.wait()
                continue
            seen = change
            yield change

    def transfer(self, to: NodeId) -> None:
        """Hand leadership to node ``to``; raises ``NotLeader`` or another ``CallerError``."""
        self._check_takes_part()
        self._replica.transfer(to)
        self._wakeup.set()

    def campaign(self) -> None:
        """Try to become leader now, without waiting for a timeout; nothing comes of it where the
        lease of another node may still run.

        Raises :class:`~replog.errors.Unavailable` while the node takes no part.
        """
        self._check_takes_part()
        self._turns.campaign()
        self._wakeup.set()

    def _check_takes_part(self) -> None:
        if not self._turns.takes_part:
            raise Unavailable(apart_sentence(self.node_id, self.waits_for))

    def wake(self) -> None:
        """Have the loop take a turn: something arrived."""
        self._wakeup.set()

    def _role(self) -> RoleChange:
        engine = self._replica.engine
        soft_state = engine.soft_state
        return RoleChange(soft_state.role, soft_state.leader_id, engine.term)

    # -- running --

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; started when both ports listen."""
        try:
            await self._transport.open()
            await self._server.open()
            self._directory.mark_started()
        except BaseException:
            self._transport.close()
            raise
        self._syncs = SyncThread(self._storage)
        own = self.config.node(self.node_id)
        self._log.info(
            "node_started",
            engine=self.config.engine,
            term=self._replica.engine.term,
            last_index=self.status().last_index,
            durable=self.is_durable,
            peer=str(own.peer_listen),
            client=str(own.client_listen),
        )
        self._is_running = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_turns)
                nursery.start_soon(self._run_ticks)
                nursery.start_soon(self._run_formation)
                nursery.start_soon(self._run_syncs, self._syncs)
                nursery.start_soon(self._jobs.run, self._handle_job)
                nursery.start_soon(self._transfer_jobs.run, self._handle_job)
                nursery.start_soon(self._end_snapshots)
                nursery.start_soon(self._transport.run)
                nursery.start_soon(self._server.run)
                task_status.started()
        except BaseExceptionGroup as group:
            failure = main_error(group)
            if isinstance(failure, FatalError):
                # With the cause: of a state machine's crash it names the author's own line.
                self._log.critical(
                    "node_failed", reason=str(failure), exc_info=failure.__cause__ or False
                )
            raise
        finally:
            self._is_running = False
            self._formed.set()  # or who waits for that would wait for ever
            self._turns.end(
                OutcomeUnknown("the node stopped before the outcome of the command was known"),
                Unavailable("the node stopped before it was done"),
            )
            self._server.flush()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._syncs.stop)
                await trio.to_thread.run_sync(self._turns.snapshots.close)
            self._log.info("node_stopped")

    async def _run_ticks(self) -> None:
        seconds = self.config.limits.tick_ms / 1000
        while True:
            # One tick per wake-up, however late: a process that was paused must first hear
            # what its peers sent meanwhile.
            await trio.sleep(seconds)
            self._turns.tick()
            self._turn()

    async def _run_formation(self) -> None:
        """Say now and then whom the node waits for, until it takes part."""
        seconds = WAITING_SECONDS_MIN
        while not self._turns.takes_part:
            with trio.move_on_after(seconds):
                await self._formed.wait()
                return
            self._log.warning(
                "waiting_for",
                nodes=list(self.waits_for),
                reason=apart_sentence(self.node_id, self.waits_for),
            )
            seconds = min(2 * seconds, WAITING_SECONDS_MAX)

    def _maybe_begin(self) -> None:
        """Something of the formation has become durable: it may have been the last of it."""
        if not self._turns.waits_for:
            return
        self._turns.waits_for = self._formation.waits_for
        if self._formation.is_formed:
            self._log.info("node_formed", birth=self._formation.birth)
            self._formed.set()

    async def _run_turns(self) -> None:
        """Take turns for what does not come in batches: proposals, ticks, clients' requests."""
        while True:
            await self._wakeup.wait()
            self._turn()

    async def _run_syncs(self, syncs: SyncThread) -> None:
        """Take a turn as soon as a group has become durable."""
        while True:
            await trio.lowlevel.wait_readable(syncs.wake_descriptor)
            if syncs.take_ended():
                self._turns.handle_synced()
                self._turn()

    async def _end_snapshots(self) -> None:
        """Have the job that runs come to its end as soon as the node is told to stop."""
        try:
            await trio.sleep_forever()
        finally:
            self._turns.snapshots.give_up()

    def _handle_job(self, job: Job) -> None:
        """Something of a snapshot was read or written."""
        self._turns.handle_job(job)
        self._turn()

    def _step(self, message: object) -> None:
        """Take one message from a peer."""
        self._turns.step(message)

    def _turn(self) -> None:
        """Carry out everything that the replica is ready for.

        A socket's reader calls this itself after a batch from a peer: a switch to another task
        would cost more than a small batch is worth.
        """
        self._turns.turn()

    def _write(self, writes: list[Write]) -> None:
        """Hand a group to the sync thread, which has none on its way."""
        assert self._syncs is not None
        self._syncs.submit(self._storage.encode(writes))

    def _handle_learners(self) -> None:
        self._transport.close_replaced()
        self._log.info("learners_changed", learners=[each.node_id for each in self.learners])

    def _report_role(self, soft_state: SoftState) -> None:
        self._reports.tell_role(soft_state, self._replica.engine.term)
        self._role_changed.set()
        self._role_changed = trio.Event()


def _member_of(identity: Identity, state: OpenedState) -> Member:
    return Member(
        identity.cluster_id,
        identity.node_id,
        identity.incarnation,
        state.snapshots.epoch,
        identity.founding.voters,
        lambda: state.replica.learners,
    )
