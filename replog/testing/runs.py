"""The runs of the nodes of a test cluster: how each begins from its disk, and how it ends.

A run begins with what the node's disk holds: its log, its snapshots, and a new machine that is
filled from these.  It ends in a crash, which keeps what was synced and by chance some of the rest,
or in order.  A crash is a *power cut*, or that of the *process* alone, which leaves all that was
written: chance draws both kinds, and a test may ask for either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from replog.control import check_not_replaced, learners_at
from replog.engine import Engine, EnginePlugin, EngineSetup
from replog.errors import (
    DirectoryError,
    LogDamaged,
    OutcomeUnknown,
    Replaced,
    StorageFailed,
    StorageFull,
    Unavailable,
)
from replog.jitter import draw_ticks
from replog.limits import Limits
from replog.loading import Loaded, reloaded
from replog.machine import Machine
from replog.quorum import QuorumSystem
from replog.snapshots import Snapshots, SnapshotSetup
from replog.storage.protocol import Recovered
from replog.stored_log import all_entries
from replog.testing.checks import Broken
from replog.testing.disk import DiskModel, is_same
from replog.testing.files import Crashed, Keep, KeepEverything, KeepNothing
from replog.testing.judged_machine import JudgedKeeper, JudgedOnDisk
from replog.testing.log_disk import LogDisk, drawn_keep, is_power_cut
from replog.testing.nodes import ClusterNode, Outcome
from replog.testing.run_watcher import RunWatcher
from replog.testing.snapshot_disk import MACHINE
from replog.testing.trace import hard_state_pairs
from replog.testing.watched import WatchedReplica
from replog.turns import Surroundings, Turns
from replog.types import NO_ENTRY, NO_NODE, EntryId, Epoch, HardState, NodeId, Voter

if TYPE_CHECKING:
    from replog.testing.driver import Driver
    from replog.testing.forming import Forming

NONCE_MAX: Final = (1 << 63) - 1
"""Up to where a run's requests for reads may begin to be numbered."""


class Runs:
    """Begins and ends the runs of all nodes of one cluster."""

    __slots__ = (
        "_disk_model",
        "_driver",
        "_epoch",
        "_forming",
        "_limits",
        "_machine",
        "_options",
        "_plugin",
    )

    def __init__(
        self,
        driver: Driver,
        plugin: EnginePlugin,
        options: object,
        epoch: Epoch,
        limits: Limits,
        disk_model: DiskModel,
        machine: Callable[[], Machine],
        forming: Forming,
    ) -> None:
        self._driver = driver
        self._forming = forming
        self._plugin = plugin
        self._options = options
        self._epoch = epoch
        self._limits = limits
        self._disk_model = disk_model
        self._machine = machine
        driver.handle_crash = self._crash_amid
        driver.handle_failure = self._fail
        driver.end_replaced = self.end_replaced
        driver.end_diverged = self._end_diverged
        driver.members.epoch = epoch

    def start(self, node: ClusterNode, event: str) -> None:
        """Begin a run of a node from its disk's synced layer."""
        assert not node.is_lost, f"node {node.node_id} is lost"
        try:
            self._driver.judge(partial(self._start, node, event))
        except Crashed as crashed:
            self._note_down(node, "crash", amid=f"recovery: {crashed}")

    def _start(self, node: ClusterNode, event: str) -> None:
        try:
            recovered = self._recover(node)
            turns = self._make_turns(node, recovered)
        except LogDamaged:
            if not node.is_damaged:
                raise
            node.is_lost = True
            self._driver.note(node.node_id, "refuse", reason="damage")
            self._driver.goals.reach("damaged_log_refused")
            return
        except Replaced:
            self._driver.handle_replaced(node)
            self._note_down(node, "fail", reason="replaced")
            return
        except (StorageFailed, StorageFull, DirectoryError) as error:
            is_struck = node.log_disk is not None and node.log_disk.files.fault is not None
            if not is_struck and not (isinstance(error, StorageFull) and node.is_full):
                raise
            self._note_down(node, "fail", reason="disk")
            return
        applied_index = turns.replica.applied_index
        if applied_index:
            self._driver.goals.reach("started_from_snapshot")
        node.start(turns, self._driver.invariants.stands_for(node, applied_index))
        pairs = hard_state_pairs(recovered.hard_state)
        with nullcontext() if node.log_disk is None else node.log_disk.unseen():
            entries = all_entries(recovered.log)
        self._driver.note(node.node_id, event, **pairs, log=entries)
        if not node.is_learner:
            self._forming.begin(node)
        self._driver.turn(node, _do_nothing)

    def _recover(self, node: ClusterNode) -> Recovered:
        """What the node finds; the model learns which of the uncertain groups it kept."""
        log_disk, disk = node.log_disk, node.disk
        if log_disk is None:
            disk.write_back()  # nothing is reported as recovered before it is durable
            return disk.recover()
        torn_count = log_disk.torn_count
        found = log_disk.recover()
        if not log_disk.is_end_clean:
            raise Broken(f"I11: node {node.node_id} leaves the remains of a torn group in its log")
        if not log_disk.outlasts_power_cut(found):
            raise Broken(f"I11: node {node.node_id} recovers what a power cut takes away again")
        if log_disk.torn_count > torn_count:
            self._driver.goals.reach("torn_tail_cut")
            self._rehearse(node, found)
        node.is_damaged = False  # by what was wiped, or by what says nothing
        with log_disk.unseen():
            self._learn_kept(node, log_disk, found)
        return found

    def _learn_kept(self, node: ClusterNode, log_disk: LogDisk, found: Recovered) -> None:
        """Make those of the uncertain groups durable in the model that were found."""
        disk = node.disk
        uncertain, log_disk.uncertain = log_disk.uncertain, []
        has_unsynced = bool(disk.unsynced)
        while not is_same(found, disk.recover()):
            if not uncertain:
                raise Broken(
                    f"I11: node {node.node_id} recovers something else from its log than was synced"
                )
            disk.pending.append(uncertain.pop(0))
            self._driver.make_durable(node, "kept")
        if has_unsynced:
            self._driver.goals.reach("unsynced_log_recovered")
        disk.write_back()

    def _rehearse(self, node: ClusterNode, found: Recovered) -> None:
        """Whoever cuts off a torn tail must find the same again when it crashes amid that."""
        assert node.log_disk is not None
        random = Random(f"{self._driver.seed}/rehearse/{node.node_id}/{node.run}")
        problem = "" if node.is_damaged else node.log_disk.rehearse(found, random)
        if problem:
            raise Broken(f"I11: node {node.node_id} {problem}")

    def _make_turns(self, node: ClusterNode, recovered: Recovered) -> Turns:
        machine, store = self._machine(), node.snapshots.store
        if isinstance(machine, JudgedOnDisk):
            machine.disk = node.machine_disk
        newest, loaded = node.snapshots.load(machine, store, recovered)
        last = newest.meta.last if newest else NO_ENTRY
        own, is_voter = node.own, not node.is_learner
        check_not_replaced(own, is_voter, loaded.learners)
        nonce = draw_ticks(0, NONCE_MAX, self._driver.seed, node.node_id, node.run + 1)
        engine = self.make_engine(own, recovered, last, loaded, nonce)
        watcher = RunWatcher(self._driver, node)
        loaded = reloaded(engine, machine, store, newest, loaded)
        if isinstance(machine, JudgedKeeper):
            machine.judge_sessions(loaded.sessions)
        engine.set_learners(learners_at(own, self._epoch, loaded.learners))
        replica = WatchedReplica(engine, machine, self._limits, loaded, watcher, own, is_voter)
        surroundings = Surroundings(
            send=partial(self._driver.send, node),
            flush=_do_nothing,
            write=partial(self._driver.write, node),
            wake=watcher.wake,
            answer=_do_nothing,
            report_role=_hear_nothing,
            time_ms=partial(self._driver.time_ms, node),
            clock_ns=partial(self._driver.clock_ns, node),
            is_full=partial(self._driver.room.is_full, node),
            report_full=partial(self._driver.room.report, node),
        )
        groups_max = 1 if self._disk_model.is_real else self._disk_model.groups_max
        setup = SnapshotSetup(store, newest, MACHINE, self._epoch)
        snapshots = Snapshots(
            node.node_id, replica, self._limits, setup, self._driver.jobs.surroundings(node)
        )
        return Turns(
            node.node_id,
            replica,
            self._limits,
            surroundings,
            snapshots,
            self._plugin.messages,
            groups_max,
        )

    @property
    def now(self) -> int:
        """The current tick."""
        return self._driver.agenda.now

    def make_engine(
        self, own: Voter, recovered: Recovered, snapshot: EntryId, loaded: Loaded, nonce: int
    ) -> Engine:
        """The engine of one run; of two runs ``nonce`` must never be the same."""
        setup = EngineSetup(
            node_id=own.node_id,
            epoch=self._epoch,
            hard_state=recovered.hard_state or HardState(self._epoch.number, 0, NO_NODE),
            log=recovered.log,
            limits=self._limits,
            options=self._options,
            seed=self._driver.seed,
            nonce=nonce,
            snapshot=snapshot,
            applied_index=loaded.applied_index,
            learners=learners_at(own, self._epoch, loaded.learners),
        )
        return self._plugin.create(setup)

    def crash(self, node: ClusterNode, kept: int, amid: str = "") -> None:
        """End a run: of its pending groups the ``kept`` oldest survive, the others are lost.

        On a real log chance decides what survives.
        """
        pairs: dict[str, object] = {"amid": amid} if amid else {}
        self._driver.judge(partial(self._end_run, node, "crash", kept, None, **pairs))

    def crash_process(self, node: ClusterNode) -> None:
        """End a run by the end of its process: what it had written stays, synced or not."""
        self._driver.judge(partial(self._end_run, node, "crash", 0, KeepEverything()))

    def cut_power(self, node: ClusterNode) -> None:
        """End a run by a power cut that leaves nothing but what was synced, or written back."""
        self._driver.judge(partial(self._end_run, node, "power_cut", 0, KeepNothing()))

    def _crash_amid(self, node: ClusterNode, amid: str) -> None:
        self.crash(node, 0, amid)

    def _fail(self, node: ClusterNode) -> None:
        """The node's disk failed: it ends by itself."""
        self._stop(node, "fail", reason="disk")

    def end_replaced(self, node: ClusterNode) -> None:
        """The node has heard that another incarnation took its place: it ends by itself."""
        self._stop(node, "fail", reason="replaced")

    def _end_diverged(self, node: ClusterNode) -> None:
        """The node has found that it is in another state than the others: it ends by itself."""
        self._stop(node, "fail", reason="diverged")

    def stop(self, node: ClusterNode) -> None:
        """End a run in order."""
        self._driver.judge(partial(self._stop, node, "stop"))

    def _stop(self, node: ClusterNode, event: str, **pairs: object) -> None:
        """The node answers whoever waits, as it does whenever it ends by itself."""
        node.is_up = False
        node.turns.end(
            OutcomeUnknown("the node stopped before the outcome of the command was known"),
            Unavailable("the node stopped before the command was proposed"),
        )
        for proposal in self._driver.proposals:
            if proposal.node_id == node.node_id and proposal.outcome is Outcome.PENDING:
                raise Broken(
                    f"L5: node {node.node_id} stopped and told nobody what became of "
                    f"p{proposal.number}"
                )
        for query in self._driver.open_queries(node):
            raise Broken(f"L5: node {node.node_id} stopped and did not answer q{query.number}")
        self._end_run(node, event, 0, None, **pairs)

    def _end_run(
        self, node: ClusterNode, event: str, kept: int, keep: Keep | None, **pairs: object
    ) -> None:
        for _ in range(kept):
            self._driver.make_durable(node, "kept")
        unsynced_count = len(node.disk.unsynced)
        self._crash_disks(node, keep)
        if len(node.disk.unsynced) < unsynced_count:
            # The log may be older than a vote now, and the node must refuse it then.
            node.is_damaged = node.log_disk is not None
            pairs["lost_unsynced"] = unsynced_count
        lost = node.disk.crash()
        if lost:
            self._driver.goals.reach("crash_between_write_and_sync")
        self._driver.note(node.node_id, event, lost_writes=lost, **pairs)
        node.is_up = node.is_paused = False
        # The replica of this run is not used again, so its waiters are answered here.
        for proposal in self._driver.proposals:
            if proposal.node_id == node.node_id and proposal.outcome is Outcome.PENDING:
                self._driver.end(proposal, 0, None, OutcomeUnknown("the node crashed"))
        self._driver.forget_queries(node)
        inbox, node.inbox = node.inbox, []
        for flight in inbox:
            self._driver.lose(flight, "down")
        self._driver.handle_down(node)

    def _crash_disks(self, node: ClusterNode, keep: Keep | None = None) -> None:
        """Have the node's disks forget; chance says what they keep, unless ``keep`` does."""
        random = self._keep_random(node)
        if node.log_disk is not None:
            keep = node.log_disk.crash(node.disk, random, keep)
        else:
            keep = keep or drawn_keep(random, node.disk.is_synced)
            node.snapshots.files.crash(keep)
            if is_power_cut(keep):
                node.disk.cut_power()
        if node.snapshots.files.struck_unsynced:
            self._driver.goals.reach("power_cut" if is_power_cut(keep) else "process_crash")

    def _note_down(self, node: ClusterNode, event: str, **pairs: object) -> None:
        """A start came to nothing."""
        self._crash_disks(node)
        node.run += 1
        self._driver.note(node.node_id, event, **pairs)
        self._driver.handle_down(node)

    def _keep_random(self, node: ClusterNode) -> Random:
        return Random(f"{self._driver.seed}/keep/{node.node_id}/{node.run}")


def founded_epoch(plugin: EnginePlugin, options: object, node_ids: Sequence[NodeId]) -> Epoch:
    """The epoch with which a cluster begins."""
    voters = tuple(Voter(node_id, incarnation=node_id) for node_id in node_ids)
    agreed = tuple(sorted(plugin.agreed(options, len(node_ids)).items()))
    return Epoch(1, plugin.name, voters, start_index=1, agreed=agreed)


def spare_count(node_ids: Sequence[NodeId], quorum: QuorumSystem) -> int:
    """How many nodes may be lost for ever: whoever leads must meet every quorum that commits."""
    counts = range(1, len(node_ids) + 1)
    committing = next(count for count in counts if quorum.is_quorum(node_ids[:count]))
    return min(len(node_ids) - committing, committing - 1)


def _do_nothing() -> None:
    """There is nothing to do, or nothing to flush."""


def _hear_nothing(_: object) -> None:
    """Nobody has to know: changes of the role are seen in the status."""
