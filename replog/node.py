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
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from os import PathLike
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import structlog
import trio

from replog import plugins
from replog.config import SYNC_LEVELS, Config, load_config, options_error
from replog.engine import EngineSetup
from replog.errors import (
    CommandTooLarge,
    ConfigError,
    DirectoryError,
    FatalError,
    OutcomeUnknown,
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
from replog.turns import Surroundings, Turns
from replog.types import (
    NO_NODE,
    Applied,
    Epoch,
    EpochNumber,
    HardState,
    LogIndex,
    NodeId,
    Role,
    RoleChange,
    SoftState,
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
        setup = EngineSetup(
            node_id=self.node_id,
            epoch=epoch,
            hard_state=recovered.hard_state or HardState(epoch.number, 0, NO_NODE),
            log=recovered.log,
            limits=config.limits,
            options=config.engine_options,
            seed=identity.incarnation,
        )
        try:
            engine = plugin.create(setup)
        except ConfigError as error:
            raise options_error(config, error) from error
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
            ),
        )
        self._syncs: SyncThread | None = None
        self._is_running = False
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
        self._turns.submit(payload, waiter)

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
        bytes_max = self.config.limits.command_bytes_max
        if len(payload) > bytes_max:
            raise CommandTooLarge(len(payload), bytes_max)
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
            self._turns.end(
                OutcomeUnknown("the node stopped before the outcome of the command was known"),
                Unavailable("the node stopped before the command was proposed"),
            )
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
                self._turns.handle_synced()
                self._turn()

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

    def _report_role(self, soft_state: SoftState) -> None:
        event = "leader_elected" if soft_state.role is Role.LEADER else "role_changed"
        self._log.info(
            event,
            role=soft_state.role.value,
            leader=soft_state.leader_id or None,
            term=self._replica.engine.term,
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
        storage = directory.open_storage(is_synced=config.sync == SYNC_LEVELS[0])
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
    found = {run.epoch for run in recovered.log.runs} - {epoch}
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
