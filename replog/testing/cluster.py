"""A cluster in one object: real replicas, a modelled network and modelled disks, virtual ticks.

Everything is synchronous and comes from one seed, so a run can be repeated exactly; nothing waits,
and no clock is read.  A test either directs it step by step::

    cluster = Cluster(find_engine("..."), node_count=3)
    cluster.campaign(1)
    cluster.settle()
    proposal = cluster.propose(cluster.leader(), b"x")
    cluster.settle()
    assert proposal.outcome is Outcome.DONE

or lets chance direct it (:meth:`Cluster.run` with :class:`~replog.testing.faults.Faults`).  Either
way the invariants of :mod:`replog.testing.checks` are judged after every event, and the first one
that is broken raises :class:`~replog.testing.checks.Violation` with the end of the trace.

Time moves only in :meth:`Cluster.tick`.  What takes no time (a message without delay, a write
without latency) is *due* at once: writes happen within the turn that asks for them, messages when
the cluster settles.  No engine is named here, and no message of one.

What is left to others: the turn of a node (:mod:`replog.testing.driver`), chance (``faults``), the
links (``network``), durability (``disk``), what must hold (``checks``), and what a line of the
trace looks like (``trace``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Final

from replog.engine import EnginePlugin
from replog.errors import CallerError
from replog.limits import Limits
from replog.machine import Machine
from replog.node_messages import NODE_SPECS
from replog.quorum import QuorumSystem
from replog.storage.protocol import Recovered
from replog.stored_log import HeldLog
from replog.testing.calm import check_leader, check_liveness, end_faults, is_done
from replog.testing.chance import Chance
from replog.testing.checks import Check, Invariants, Violation
from replog.testing.disk import DiskModel
from replog.testing.driver import QUIET, Driver
from replog.testing.faults import Faults, draw_troubles, plan_restart, propose_somewhere
from replog.testing.forming import Forming
from replog.testing.goals import COMMON, ON_FILES, Goals
from replog.testing.network import Link, Matches, Network
from replog.testing.nodes import ClusterNode, Proposal, Recorder
from replog.testing.queries import Query
from replog.testing.rejoining import Rejoining
from replog.testing.runs import Runs, founded_epoch, spare_count
from replog.testing.trace import Trace, links_text, node_text
from replog.testing.trials import find_trial
from replog.types import NO_NODE, Entry, LogIndex, NodeId, ReadLevel, Role
from replog.wire import MessageCodec

SETTLE_ACTS_MAX: Final = 100_000
"""A cluster that still moves after so many acts within one tick never comes to rest."""


class Cluster:
    """Some replicas that agree on one log; see the module's text.

    ``options`` is an instance of the plugin's options class (``None``: its defaults).  ``disks``
    says what a node's disk holds before its first start.  ``sync_ticks`` is how long a write takes
    to be durable.  ``quorum`` is what a committed entry must be durable on (``None``: what
    the engine's trial says).
    ``disk_model`` says more of the disks (``None``: ``DiskModel(sync_ticks)``); ``codec`` sends
    every message through the bytes that would travel; ``chance`` draws the faults (``None``: all of
    them, from ``seed``); ``goals`` are told what the run came to; ``acknowledgements`` are the
    kinds of the messages that acknowledge entries; ``batched`` has a node deal with all that
    arrives in a tick in one turn, and not in one for each; ``handle_ended`` is told of every
    proposal that ended; ``formed`` false: the nodes have not met yet.
    """

    def __init__(
        self,
        plugin: EnginePlugin,
        options: object | None = None,
        *,
        node_count: int = 3,
        seed: int = 0,
        limits: Limits | None = None,
        machine: Callable[[], Machine] = Recorder,
        disks: Mapping[NodeId, Recovered] | None = None,
        sync_ticks: int = 0,
        quorum: QuorumSystem | None = None,
        checks: Sequence[Check] = (),
        disk_model: DiskModel | None = None,
        codec: bool = False,
        chance: Chance | None = None,
        goals: Goals | None = None,
        acknowledgements: Sequence[str] = (),
        batched: bool = False,
        handle_ended: Callable[[Proposal], None] | None = None,
        formed: bool = True,
    ) -> None:
        node_ids = tuple(range(1, node_count + 1))
        options = plugin.options() if options is None else options
        self._limits = Limits() if limits is None else limits
        quorum = quorum or find_trial(plugin).commit_quorum(options, node_ids)
        self._spare_count = spare_count(node_ids, quorum)
        self.seed = seed
        disk_model = disk_model or DiskModel(sync_ticks)
        self.nodes: Mapping[NodeId, ClusterNode] = {
            node_id: ClusterNode(
                node_id,
                (disks or {}).get(node_id) or Recovered(None, HeldLog()),
                disk_model,
            )
            for node_id in node_ids
        }
        """All nodes by id, ascending, those that are down included."""
        self.trace = Trace((*plugin.messages, *NODE_SPECS))
        self.invariants = Invariants(self.nodes, quorum, checks)
        self.driver = Driver(
            seed,
            self._limits,
            disk_model,
            self.trace,
            self.invariants,
            MessageCodec(plugin.messages, self._limits, NODE_SPECS) if codec else None,
            chance or Chance(seed),
            goals or Goals({**COMMON, **ON_FILES}),
        )
        self.driver.acknowledgements = tuple(acknowledgements)
        self.driver.is_batched = batched
        if handle_ended is not None:
            self.driver.handle_ended = handle_ended
        self.driver.handle_down = self._handle_down
        self._forming = Forming(self.driver, self.nodes, formed)
        self._runs = Runs(
            self.driver,
            plugin,
            options,
            founded_epoch(plugin, options, node_ids),
            self._limits,
            disk_model,
            machine,
            self._forming,
        )
        self._rejoining = Rejoining(self.driver, self.nodes, self._runs)
        self._agenda = self.driver.agenda
        for node in self.nodes.values():
            self._runs.start(node, "start")

    def _handle_down(self, node: ClusterNode) -> None:
        """A node went down while chance directs the cluster: it will come back."""
        if self.driver.faults is not QUIET:
            plan_restart(self, node, self.driver.faults, self.driver.chance)

    # -- looking --

    @property
    def now(self) -> int:
        """The current tick."""
        return self._agenda.now

    @property
    def random(self) -> Random:
        """The one source of chance."""
        return self.driver.random

    @property
    def network(self) -> Network:
        """The messages on their way."""
        return self.driver.network

    @property
    def proposals(self) -> Sequence[Proposal]:
        """Everything that was ever proposed, in order."""
        return self.driver.proposals

    @property
    def queries(self) -> Sequence[Query]:
        """Everything that was ever read, in order."""
        return self.driver.queries

    @property
    def turn_count(self) -> int:
        """How many events the nodes dealt with."""
        return self.driver.turn_count

    def leader(self) -> NodeId:
        """Who leads in the highest term among the nodes that are up; ``NO_NODE``: nobody."""
        leaders = [
            (node.replica.engine.term, node_id)
            for node_id, node in self.nodes.items()
            if node.is_up and self._is_leader(node_id)
        ]
        return max(leaders, default=(0, NO_NODE))[1]

    def applied(self, node_id: NodeId) -> Sequence[Entry]:
        """What the node's current run applied, in order."""
        return self.nodes[node_id].applied

    def is_converged(self) -> bool:
        """Whether every node is up and applied everything that was ever committed; those that are
        lost for ever aside."""
        chosen_count = len(self.invariants.chosen)
        return self._rejoining.is_at_rest and all(
            node.is_running and node.applied_index == chosen_count
            for node in self.nodes.values()
            if not self.is_out(node.node_id)
        )

    def is_out(self, node_id: NodeId) -> bool:
        """Whether a node takes part no more, for ever: its disk is gone or not to be trusted."""
        return self.nodes[node_id].is_lost or self._forming.is_refused(node_id)

    def can_lose(self, node_id: NodeId) -> bool:
        """Whether the others can do without a node for ever: a quorum of every kind is left."""
        left = [other for other in self.nodes if self._is_whole(other)]
        is_enough = len(self.nodes) - len(left) < self._spare_count
        return node_id in left and is_enough and self._forming.can_lose(left)

    def _is_whole(self, node_id: NodeId) -> bool:
        """Whether a node is a voter that never lost anything, and is to stay that."""
        return self._rejoining.is_whole(self.nodes[node_id]) and not self.is_out(node_id)

    def can_replace(self, node_id: NodeId) -> bool:
        """Whether another incarnation may take a node's place, just now."""
        node = self.nodes[node_id]
        return self.can_lose(node_id) or (node.is_learner and not self.is_out(node_id))

    def is_voter(self, node_id: NodeId, at: NodeId) -> bool:
        """Whether a node counts in quorums, as another one takes it."""
        learners = self.nodes[at].replica.engine.learners
        return all(learner.node_id != node_id for learner in learners)

    # -- time --

    def tick(self, count: int = 1) -> None:
        """Let time pass: every running node ticks, and everything that is due happens."""
        for _ in range(count):
            self._agenda.now += 1
            self._forming.tick()
            self._rejoining.tick()
            for node in self.nodes.values():
                for _ in range(node.take_ticks() if node.is_running else 0):
                    if node.is_running:
                        self.driver.turn(node, node.turns.tick)
            self.settle()

    def settle(self) -> None:
        """Let everything happen that is due, without letting time pass, until nothing moves."""
        for _ in range(SETTLE_ACTS_MAX):
            act = self._agenda.take_due()
            if act is None:
                return
            act()
        raise self.driver.violation(f"the cluster does not come to rest within tick {self.now}")

    def run_until(self, holds: Callable[[], bool], ticks_max: int) -> bool:
        """Tick until a condition holds; whether it did within ``ticks_max``."""
        for _ in range(ticks_max):
            if holds():
                return True
            self.tick()
        return holds()

    def run(
        self,
        ticks: int,
        faults: Faults = QUIET,
        propose_chance: float = 0.0,
        before_tick: Callable[[], None] | None = None,
    ) -> None:
        """Let chance direct the cluster for a while; ``propose_chance`` is per tick, and
        ``before_tick`` is called in each, when the troubles of the tick have begun."""
        self.driver.faults = faults
        for _ in range(ticks):
            draw_troubles(self, faults, self.driver.chance)
            if self.random.random() < propose_chance:
                propose_somewhere(self)
            if before_tick is not None:
                before_tick()
            self.tick()
        self.driver.faults = QUIET
        self.check_acknowledged()

    def plan(self, ticks: int, act: Callable[[], object]) -> None:
        """Have ``act`` called ``ticks`` from now, when the cluster next settles."""
        self._agenda.plan(self.now + ticks, act)

    def calm(self) -> None:
        """End every fault: links whole, holds released, disks free, every clock right, every node
        running but those that are lost for ever."""
        end_faults(self)

    @property
    def is_calm(self) -> bool:
        """Whether chance does nothing to the cluster just now."""
        return self.driver.faults is QUIET

    def violation(self, sentence: str) -> Violation:
        """What to raise when something that must hold does not."""
        return self.driver.violation(sentence)

    def remark(self, text: str) -> None:
        """Add a sentence to the trace, for its reader."""
        self.driver.note(NO_NODE, "remark", text)

    # -- what must come of it --

    def check_committed(self) -> None:
        """Judge that all that was ever committed was proposed here (I6)."""
        self.driver.judge(partial(self.invariants.check_committed, self.proposals))

    def check_acknowledged(self) -> None:
        """Judge that every replica has each proposal that was ever reported done (I6)."""
        self.driver.judge(partial(self.invariants.check_acknowledged, self.proposals))

    def check_leader(self, ticks_max: int) -> None:
        """Judge that a calm cluster has a leader within so many ticks (L1)."""
        check_leader(self, ticks_max)

    def check_liveness(
        self, leader_ticks_max: int, done_ticks_max: int, payload: bytes = b"fresh"
    ) -> None:
        """Judge that a calm cluster works: a leader (within ``leader_ticks_max``), then a fresh
        proposal done, then all equal (each within ``done_ticks_max``, which must be enough to catch
        up in).  In the end every proposal has an outcome."""
        check_liveness(self, leader_ticks_max, done_ticks_max, payload)

    def run_until_done(self, payload: bytes, ticks_max: int) -> bool:
        """Propose at whoever leads, again when that fails, and let time pass until it is done;
        whether it was within so many ticks."""
        fresh: list[Proposal] = []
        return self.run_until(lambda: is_done(self, fresh, payload), ticks_max)

    # -- asking the nodes --

    def campaign(self, node_id: NodeId) -> None:
        """Have a node try to become leader now."""
        node = self._running(node_id)
        self.driver.note(node_id, "campaign")
        if node.turns.takes_part:
            self.driver.turn(node, node.turns.campaign)

    def transfer(self, node_id: NodeId, to: NodeId) -> None:
        """Have a leader hand over; raises what the replica raises."""
        node = self._running(node_id)
        self.driver.note(node_id, "transfer", to=node_text(to))
        self.driver.transfer_asked = (to, node.replica.engine.term)
        refused: list[CallerError] = []

        def ask() -> None:
            try:
                node.replica.transfer(to)
            except CallerError as error:
                refused.append(error)

        self.driver.turn(node, ask)
        if refused:
            raise refused[0]

    def take_snapshot(self, node_id: NodeId) -> None:
        """Have a node take a snapshot; it is durable when its jobs have run.  Raises its errors."""
        node = self._running(node_id)
        self.driver.note(node_id, "take_snapshot")
        # What came of it shows in the trace.
        asked = partial(node.turns.snapshots.take, lambda info, error: None)  # noqa: ARG005
        self.driver.turn(node, asked)

    def propose(
        self, node_id: NodeId, payload: bytes, client: int = 0, is_within: bool = False
    ) -> Proposal:
        """Propose a command at a node; the outcome shows in what is returned.  ``is_within``: the
        node takes a turn just now, in which somebody got an answer."""
        return self.driver.propose(self._running(node_id), payload, client, is_within)

    def query(
        self,
        node_id: NodeId,
        payload: bytes = b"",
        level: ReadLevel = ReadLevel.LINEARIZABLE,
        at_least: LogIndex = 0,
        client: int = 0,
    ) -> Query:
        """Ask a node a query; the answer shows in what is returned, and is judged (I22)."""
        return self.driver.query(self._running(node_id), payload, level, at_least, client)

    def _is_leader(self, node_id: NodeId) -> bool:
        return self.nodes[node_id].replica.engine.soft_state.role is Role.LEADER

    def _running(self, node_id: NodeId) -> ClusterNode:
        node = self.nodes[node_id]
        assert node.is_running, f"node {node_id} is down or paused"
        return node

    # -- messages --

    def deliver(self, matches: Matches | None = None, count: int | None = None) -> int:
        """Let messages arrive now, in the order of sending; returns how many did.  ``matches``
        chooses among those on their way and those that are held (``None``: all that are on their
        way), ``count`` takes only so many.  What they cause to be sent is not delivered."""
        flights = self.network.matching(matches)
        if matches is not None:
            flights += [flight for flight in self.network.held.values() if matches(flight)]
            flights.sort(key=lambda flight: flight.number)
        flights = flights[:count]
        for flight in flights:
            if self.network.held.pop(flight.number, None) is not None:
                self.network.in_flight[flight.number] = flight
            self.driver.arrive(flight)
        return len(flights)

    def drop(self, matches: Matches | None = None) -> int:
        """Lose messages that are on their way (``None``: all); returns how many."""
        flights = self.network.matching(matches)
        for flight in flights:
            self.network.take(flight)
            self.driver.lose(flight, "script")
        return len(flights)

    def duplicate(self, matches: Matches, ticks: int = 0) -> int:
        """Send messages that are on their way once more, to arrive in ``ticks``."""
        flights = self.network.matching(matches)
        for flight in flights:
            self.driver.duplicate(flight, ticks)
        return len(flights)

    def hold(self, matches: Matches) -> None:
        """Keep matching messages back, now and from now on, until they are released."""
        for flight in self.network.hold(matches):
            self.driver.note_flight(flight.sender, "hold", flight)

    def release(self, matches: Matches | None = None) -> None:
        """End a hold (``None``: all holds); what it kept back is due at once."""
        for flight in self.network.release(matches):
            self.driver.note_flight(flight.sender, "release", flight)
            self.driver.launch(flight, 0)

    # -- links --

    def cut(self, links: Iterable[Link]) -> int:
        """Cut directed links; what is on its way there is lost.  Returns a number to mend it by."""
        links = tuple(links)
        self.driver.note(NO_NODE, "partition", links=links_text(links))
        return self.network.cut(links)

    def partition(self, *groups: Iterable[NodeId]) -> int:
        """Cut every link between two groups, both ways."""
        sides = [tuple(group) for group in groups]
        pairs = [(side, other) for side in sides for other in sides if other is not side]
        return self.cut((a, b) for side, other in pairs for a in side for b in other)

    def isolate(self, node_id: NodeId) -> int:
        """Cut every link of one node, both ways."""
        return self.partition((node_id,), (other for other in self.nodes if other != node_id))

    def fade(self, node_id: NodeId, random: Random) -> None:
        """Lose half of what a node sends from now on, as ``random`` decides."""
        self.network.fading[node_id] = random
        self.driver.note(node_id, "fade")

    def end_fade(self, node_id: NodeId) -> None:
        """Let a node that fades be heard again; nothing happens if it does not."""
        if self.network.fading.pop(node_id, None) is not None:
            self.driver.note(node_id, "end_fade")

    def mend(self, cut: int) -> None:
        """Undo one cut; nothing happens if it was undone before."""
        links = self.network.mend(cut)
        if links:
            self.driver.note(NO_NODE, "heal", links=links_text(links))

    def heal(self) -> None:
        """Undo every cut."""
        for cut in list(self.network.cuts):
            self.mend(cut)

    # -- nodes and their disks --

    def crash(self, node_id: NodeId, kept: int = 0) -> None:
        """End a node's run; of its pending groups the ``kept`` oldest survive."""
        node = self.nodes[node_id]
        assert node.is_up, f"node {node_id} is down already"
        assert not kept or node.log_disk is None, "of a real log chance decides what survives"
        self._runs.crash(node, min(kept, len(node.disk.pending)))

    def crash_process(self, node_id: NodeId) -> None:
        """End a node's run by the end of its process: all that it had written stays."""
        assert self.nodes[node_id].is_up, f"node {node_id} is down already"
        self._runs.crash_process(self.nodes[node_id])

    def cut_power(self, node_id: NodeId) -> None:
        """End a node's run by a power cut: all is lost that is neither synced nor written back."""
        assert self.nodes[node_id].is_up, f"node {node_id} is down already"
        self._runs.cut_power(self.nodes[node_id])

    def stop(self, node_id: NodeId) -> None:
        """End a node's run as an operator does: whoever waits is answered first."""
        node = self.nodes[node_id]
        assert node.is_up, f"node {node_id} is down already"
        self._runs.stop(node)

    def crash_in_write(self, node_id: NodeId, operations: int) -> None:
        """End a node's run within the ``operations``-th operation on its files from now, be it of a
        write or of a recovery; what was not synced is kept, lost or torn.  For real logs."""
        node = self.nodes[node_id]
        assert node.log_disk is not None, "only DiskModel(is_real=True) has operations"
        node.log_disk.set_crash(operations)

    def restart(self, node_id: NodeId) -> None:
        """Start a node that is down from its synced layer; it applies its log again."""
        self._runs.start(self.nodes[node_id], "restart")

    def wipe(self, node_id: NodeId, fenced: bool = True) -> None:
        """Lose the disk of a node that is down: when it is started it remembers nothing.  Its new
        directory has another birth, so whoever has met it refuses it; ``fenced`` false: it has the
        old one, as if there were none, and they take it for the node that it was."""
        self.driver.note(node_id, "wipe", fenced=fenced)
        self.nodes[node_id].wipe(fenced)
        if fenced:
            self._forming.wipe(self.nodes[node_id])

    def rejoin(self, node_id: NodeId, started: bool = True) -> None:
        """Lose the disk of a node that is down, and have it come back as a learner, under another
        incarnation that the operator has taken in.  ``started`` false: when that is done."""
        self._rejoining.rejoin(self.nodes[node_id], started)

    def back_up(self, node_id: NodeId, source_id: NodeId) -> None:
        """Let the next directory of a node begin with the newest snapshot of another one."""
        self._rejoining.back_up(self.nodes[node_id], self.nodes[source_id])

    def replace(self, node_id: NodeId) -> None:
        """Have another incarnation of a node taken in while it goes on; it comes in its place when
        that is known, or the node has heard of it and stopped."""
        self._rejoining.replace(self.nodes[node_id])

    def damage(self, node_id: NodeId, random: Random) -> None:
        """Flip a bit of the log of a node that is down."""
        node = self.nodes[node_id]
        assert node.log_disk is not None, "there is no log to damage"
        assert not node.is_up, f"node {node_id} runs"
        node.log_disk.flip_bit(random)
        node.is_damaged = True
        self.driver.note(node_id, "damage")

    def set_clock(self, node_id: NodeId, rate: int, ahead_ms: int) -> None:
        """Let a node's clock make ``rate`` ticks in 100 of the cluster's, and its time of day be
        ``ahead_ms`` ahead."""
        node = self.nodes[node_id]
        node.clock_rate, node.clock_ahead_ms = rate, ahead_ms
        self.driver.note(node_id, "clock", rate=rate, ahead_ms=ahead_ms)

    def pause(self, node_id: NodeId) -> None:
        """Make a node stand still: no ticks, no syncs, and what arrives waits."""
        self._running(node_id).is_paused = True
        self.driver.note(node_id, "pause")

    def resume(self, node_id: NodeId) -> None:
        """Let a paused node go on; what arrived meanwhile is due at once."""
        node = self.nodes[node_id]
        assert node.is_paused, f"node {node_id} is not paused"
        node.is_paused = False
        self.driver.note(node_id, "resume", waiting=len(node.inbox))
        inbox, node.inbox = node.inbox, []
        for flight in inbox:
            self.driver.launch(flight, 0)
        self.driver.sync_due(node, node.run)
        self.driver.jobs.plan(node)

    def hold_disk(self, node_id: NodeId) -> None:
        """Let nothing become durable at a node until it is released or synced by hand."""
        self.nodes[node_id].disk.is_held = True
        self.driver.note(node_id, "hold_disk")

    def release_disk(self, node_id: NodeId) -> None:
        """End the hold of a disk; what is overdue becomes durable now."""
        node = self.nodes[node_id]
        if node.disk.is_held:
            node.disk.is_held = False
            self.driver.note(node_id, "free_disk")
        self.driver.sync_due(node, node.run)

    def write_back(self, node_id: NodeId) -> None:
        """Let a node's operating system make durable what it has."""
        self.nodes[node_id].write_back()
        self.driver.note(node_id, "write_back")

    def fill_disk(self, node_id: NodeId, room_groups: int = 0, room_bytes: int = 0) -> None:
        """Leave so little room on a node's disk; see ``ClusterNode.fill_disk``."""
        self.nodes[node_id].fill_disk(room_groups, room_bytes)
        self.driver.note(node_id, "fill_disk")

    def clear_disk(self, node_id: NodeId) -> None:
        """Let a disk have room again; the node finds out by itself."""
        self.nodes[node_id].clear_disk()
        self.driver.note(node_id, "clear_disk")

    def sync(self, node_id: NodeId, count: int | None = None) -> None:
        """Make the ``count`` oldest pending groups of a node durable now (``None``: all)."""
        node = self._running(node_id)
        pending_count = len(node.disk.pending)
        self.driver.sync(node, pending_count if count is None else min(count, pending_count))
