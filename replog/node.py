"""A node: the one loop that carries out what its replica is ready for.

Synchronous code decides, asynchronous code carries.  What arrives goes straight into the replica,
and then a *turn*, which is synchronous, carries out what the replica is ready for:

1. the writes go to the sync thread, and the messages leave, beside each other;
2. what is committed is applied, and those who wait for it get their results (and may propose
   more, so the turn goes on until the replica is ready for nothing);
3. what was queued for clients leaves.

When a group has become durable its Readys are advanced, the messages that waited for it leave, and
a turn follows.  Readers of peers' sockets take a turn after each batch; proposals, clients'
requests and ticks wake the one loop that takes turns for them, so that they share one.

So a batch costs one turn, one write, one sync and one frame per peer, and it grows by itself with
the load.  The disk works beside the network (Raft thesis §10.2.1); a sync that stalls for seconds
stops no heartbeat.

Nothing here knows which engine decides, or what the state machine means.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import structlog
import trio

from replog import plugins
from replog.config import Config, load_config
from replog.engine import EngineSetup
from replog.errors import (
    CommandTooLarge,
    DirectoryError,
    FatalError,
    NotDone,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    UnknownFormat,
)
from replog.founding import bootstrap_cluster
from replog.machine import Machine
from replog.replica import Replica
from replog.server import ClientServer
from replog.statemachine import Call
from replog.storage.directory import NodeDirectory, open_directory
from replog.storage.protocol import Recovered, Storage, Write
from replog.sync_thread import SyncThread
from replog.transport.protocol import Transport
from replog.transport.tcp import Member, TcpTransport
from replog.types import (
    NO_NODE,
    Applied,
    Epoch,
    EpochNumber,
    HardState,
    LogIndex,
    NodeId,
    Ready,
    Role,
    RoleChange,
    Status,
    Waiter,
)
from replog.wakeup import Wakeup
from replog.wire import MessageCodec

P = ParamSpec("P")
R = TypeVar("R")


class Node:
    """A running node of a cluster; made by :func:`open_node`."""

    def __init__(
        self, config: Config, directory: NodeDirectory, storage: Storage, machine: Machine
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
        epoch = Epoch(
            number=1,
            engine=identity.engine,
            voters=identity.founding.voters,
            start_index=1,
            agreed=identity.founding.agreed,
        )
        recovered = storage.recover()
        check_epoch(directory.path, recovered, epoch.number)
        plugin = plugins.find_engine(identity.engine)
        engine = plugin.create(
            EngineSetup(
                node_id=self.node_id,
                epoch=epoch,
                hard_state=recovered.hard_state or HardState(epoch.number, 0, NO_NODE),
                entries=recovered.entries,
                limits=config.limits,
                options=config.engine_options,
                seed=identity.incarnation,
            )
        )
        self._replica = Replica(engine, machine, config.limits)
        self._wakeup = Wakeup()
        self._transport: Transport = TcpTransport(
            Member(config.cluster_id, self.node_id, identity.incarnation, epoch),
            config.node(self.node_id).peer_listen,
            {node.id: node.peer for node in config.nodes},
            MessageCodec(plugin.messages, config.limits),
            config.limits,
            self._replica.step,
            self._turn,
            self._log,
        )
        self._server = ClientServer(self, config, self._log)
        self._syncs: SyncThread | None = None
        self._unwritten: list[Write] = []
        """Writes that wait for the group on its way."""
        self._unsynced: deque[Ready] = deque()
        """Readys that were not advanced yet, oldest first."""
        self._written_count = 0
        """How many of them, from the oldest, the group on its way covers."""
        self._is_running = False
        self._is_turning = False
        self._payloads: list[bytes] = []
        """What was submitted since the last proposal, and beside it who waits for each."""
        self._waiters: list[Waiter] = []
        self._submitted_bytes = 0
        self._command_bytes_max = config.limits.command_bytes_max
        self._unapplied: deque[Ready] = deque()
        """Readys whose entries are committed and not applied yet."""
        self._role_changed = trio.Event()

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
        size_bytes = len(payload)
        if size_bytes > self._command_bytes_max:
            raise CommandTooLarge(size_bytes, self._command_bytes_max)
        self._submitted_bytes += size_bytes
        if self._submitted_bytes > self.config.limits.uncommitted_bytes_max:
            self._submitted_bytes -= size_bytes
            raise Overloaded(
                f"node {self.node_id} holds {self._submitted_bytes} bytes of commands that were "
                "submitted and not proposed yet; try again a little later"
            )
        self._payloads.append(payload)
        self._waiters.append(waiter)
        if not self._is_turning:
            self._wakeup.set()

    async def propose(self, payload: bytes) -> Applied:
        """Replicate one command and return its index and result.

        Raises :class:`~replog.errors.BadCommand` for what is no command of the state machine, a
        :class:`~replog.errors.NotDone` when it was definitely not done (as
        :class:`~replog.errors.NotLeader`), :class:`~replog.errors.OutcomeUnknown` when it may have
        been, and the :class:`~replog.errors.StateMachineError` that the command declared.  When
        the wait is cancelled the command may still be done.
        """
        self.check_command(payload)
        return await self._replicate(payload)

    def check_command(self, payload: bytes) -> None:
        """Refuse what came from outside and is too large, or no command of the state machine.

        Raises :class:`~replog.errors.CommandTooLarge` or :class:`~replog.errors.BadCommand`.
        """
        if len(payload) > self._command_bytes_max:
            raise CommandTooLarge(len(payload), self._command_bytes_max)
        self.machine.check_payload(payload)

    async def _replicate(self, payload: bytes) -> Applied:
        task = trio.lowlevel.current_task()
        is_waiting = True
        applied = Applied(0, None)
        failure: Exception | None = None

        def end_wait(index: LogIndex, result: object, error: Exception | None) -> None:
            nonlocal applied, failure
            if is_waiting:
                applied, failure = Applied(index, result), error
                trio.lowlevel.reschedule(task)

        def stop_waiting(_: Callable[[], None]) -> trio.lowlevel.Abort:
            nonlocal is_waiting
            is_waiting = False
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.checkpoint_if_cancelled()
        self.submit(payload, end_wait)
        await trio.lowlevel.wait_task_rescheduled(stop_waiting)
        if failure is not None:
            raise failure
        return applied

    async def call(self, call: Call[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Replicate one call of a state machine's command or query: ``node.call(Kv.get, "k")``.

        Raises what :meth:`propose` raises.
        """
        applied = await self._replicate(call.encode(*args, **kwargs))
        return cast(R, applied.result)

    def status(self) -> Status:
        """A read-only picture of the node."""
        return self._replica.status()

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
        """Hand leadership to node ``to``; raises ``NotLeader`` or ``CallerError``."""
        self._replica.transfer(to)
        self._wakeup.set()

    def campaign(self) -> None:
        """Try to become leader now, without waiting for a timeout."""
        self._replica.campaign()
        self._wakeup.set()

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
        self._syncs = SyncThread(self._storage.persist)
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
                nursery.start_soon(self._run_syncs, self._syncs)
                nursery.start_soon(self._transport.run)
                nursery.start_soon(self._server.run)
                task_status.started()
        except BaseExceptionGroup as group:
            failure = _main_error(group)
            if isinstance(failure, FatalError):
                # With the cause: of a state machine's crash it names the author's own line.
                self._log.critical(
                    "node_failed", reason=str(failure), exc_info=failure.__cause__ or False
                )
            raise
        finally:
            self._is_running = False
            self._replica.end_waits(
                OutcomeUnknown("the node stopped before the outcome of the command was known")
            )
            for waiter in self._waiters:
                waiter(0, None, Unavailable("the node stopped before the command was proposed"))
            self._server.flush()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._syncs.stop)
            self._log.info("node_stopped")

    async def _run_ticks(self) -> None:
        seconds = self.config.limits.tick_ms / 1000
        while True:
            # One tick per wake-up, however late: a process that was paused must first hear
            # what its peers sent meanwhile.
            await trio.sleep(seconds)
            self._replica.tick()
            self._turn()

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
                self._handle_synced()
                self._turn()

    def _turn(self) -> None:
        """Carry out everything that the replica is ready for.

        A socket's reader calls this itself after a batch from a peer: a switch to another task
        would cost more than a small batch is worth.
        """
        self._is_turning = True
        if len(self._unapplied) > 1:
            self._apply_next()  # a backlog that had to wait for the disk
        self._propose_submitted()
        while (ready := self._replica.ready()) is not None:
            self._carry_out(ready)
            self._propose_submitted()
            if len(ready.committed) >= self.config.limits.apply_entries_max:
                # There may be a long backlog: heartbeats go out and come in between.
                self._wakeup.set()
                break
        self._is_turning = False
        self._server.flush()

    def _propose_submitted(self) -> None:
        """Propose everything that was submitted, as one batch."""
        if not self._payloads:
            return
        payloads, waiters = self._payloads, self._waiters
        self._payloads, self._waiters, self._submitted_bytes = [], [], 0
        try:
            self._replica.propose_batch(payloads, int(time.time() * 1000), waiters)
        except NotDone as refusal:
            for waiter in waiters:
                waiter(0, None, refusal)
            # Who submits again at once is heard in another turn, or this one might never end.
            self._wakeup.set()

    def _carry_out(self, ready: Ready) -> None:
        """One Ready.  The disk first: it starts while the sends are in the kernel."""
        self._start_writing(ready)
        for message in ready.messages:
            self._transport.send(message)
        self._transport.flush()
        if ready.committed:
            self._unapplied.append(ready)
        # A sync thread that was just started needs the interpreter; unless somebody waits for
        # results, applying now would only hold up the acknowledgement.
        assert self._syncs is not None
        if self._unapplied and (self._replica.waiting_count or not self._syncs.is_busy):
            self._apply_next()
        if ready.soft_state is not None:
            # Now, and not when its turn to be applied comes: a backlog may last into a later
            # leadership, whose waits are none of this change's business.
            self._replica.follow_role(ready.soft_state)
            if self._unapplied and self._unapplied[-1] is ready:
                self._unapplied[-1] = replace(ready, soft_state=None)
            self._report_role()

    def _apply_next(self) -> None:
        """Apply what the oldest of the waiting Readys has committed; a turn for each of them."""
        self._replica.apply(self._unapplied.popleft())
        if self._unapplied:
            self._wakeup.set()

    def _start_writing(self, ready: Ready) -> None:
        """Send a Ready's writes on their way to disk, or let it pass if nothing is before it."""
        self._unsynced.append(ready)
        if ready.writes:
            self._unwritten.append(Write(ready.hard_state, ready.truncate_from, ready.entries))
            self._submit_group()
        elif len(self._unsynced) == 1:
            self._advance(1)

    def _submit_group(self) -> None:
        """Hand everything that waits to the sync thread, as one group."""
        assert self._syncs is not None
        if self._unwritten and not self._syncs.is_busy:
            group = self._storage.encode(self._unwritten)
            self._unwritten.clear()
            self._written_count = len(self._unsynced)
            self._syncs.submit(group)

    def _handle_synced(self) -> None:
        """Advance what has become durable, and start on what came up meanwhile."""
        self._advance(self._written_count)
        if self._unwritten:
            self._submit_group()
        else:
            self._advance(len(self._unsynced))
        self._transport.flush()
        if self._unapplied:
            self._apply_next()

    def _advance(self, count: int) -> None:
        """The oldest ``count`` Readys are durable: advance them, let their answers leave."""
        for _ in range(count):
            ready = self._unsynced.popleft()
            self._replica.advance(ready)
            for message in ready.messages_after_sync:
                self._transport.send(message)

    def _report_role(self) -> None:
        change = self._role()
        event = "leader_elected" if change.role is Role.LEADER else "role_changed"
        self._log.info(
            event, role=change.role.value, leader=change.leader_id or None, term=change.term
        )
        self._role_changed.set()
        self._role_changed = trio.Event()


@asynccontextmanager
async def open_node(
    config: Config | str | PathLike[str],
    node: NodeId,
    machine: Machine | None = None,
    bootstrap: bool = False,
) -> AsyncIterator[Node]:
    """Run one node of a cluster for as long as the block lasts.

    ``config`` is a :class:`~replog.config.Config` or the path of a TOML file; ``machine`` is the
    node's own state machine (default: a new one of the kind that the configuration names).  With
    ``bootstrap`` the directories of the whole cluster are made if none exists yet, which suits
    programs and tests on one machine; otherwise ``replog init`` made them.

    Leaving the block stops the node cleanly.  An error that stops the node cancels the block and
    is raised out of it.  Raises :class:`~replog.errors.ConfigError`,
    :class:`~replog.errors.DirectoryError`, :class:`~replog.errors.AddressError`,
    :class:`~replog.errors.PlatformError` and, for damage, a :class:`~replog.errors.FatalError`.
    """
    if not isinstance(config, Config):
        config = load_config(Path(config))
    own = config.node(node)
    if machine is None:
        machine = plugins.find_state_machine(config.state_machine)()
    if bootstrap:
        bootstrap_cluster(config, node)
    with open_directory(
        own.directory,
        cluster_id=config.cluster_id,
        node_id=node,
        engine=config.engine,
        storage=config.storage,
        plugin=plugins.find_storage(config.storage),
    ) as directory:
        _check_voters(config, directory)
        storage = directory.open_storage()
        try:
            running = Node(config, directory, storage, machine)
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(running.run)
                    yield running
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                error = _main_error(group)
                raise error from error.__cause__
        finally:
            storage.close()


def _check_voters(config: Config, directory: NodeDirectory) -> None:
    """Refuse a configuration that describes other nodes than the cluster was founded with."""
    described = sorted(node.id for node in config.nodes)
    founded = [voter.node_id for voter in directory.identity.founding.voters]
    if described != founded:
        raise DirectoryError(
            f"{directory.path} belongs to a cluster that was founded with the nodes "
            f"{', '.join(map(str, founded))}, but {config.source} describes the nodes "
            f"{', '.join(map(str, described))}; correct the configuration: the members of a "
            "cluster cannot be changed yet"
        )


def check_epoch(path: Path, recovered: Recovered, epoch: EpochNumber) -> None:
    """Stop at state of another epoch, which only a later release can have written.

    Raises :class:`~replog.errors.UnknownFormat`.
    """
    hard_state = recovered.hard_state
    found = {entry.epoch for entry in recovered.entries} - {epoch}
    if hard_state is not None and hard_state.epoch != epoch:
        found.add(hard_state.epoch)
    if found:
        raise UnknownFormat(
            f"{path} holds state of epoch {max(found)}, and this release knows epoch {epoch} "
            "alone; upgrade this node"
        )


def _main_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended the block: what stopped the node, else the only error, else all of them.

    When a node stops, whoever waits on it inside the block fails as well; that is no news.
    """
    leaves: list[BaseException] = []
    groups = [group]
    while groups:
        for error in groups.pop().exceptions:
            if isinstance(error, BaseExceptionGroup):
                groups.append(error)
            else:
                leaves.append(error)
    for error in leaves:
        if isinstance(error, FatalError):
            return error
    return leaves[0] if len(leaves) == 1 else group
