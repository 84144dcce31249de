"""The simulator: whole clusters under faults, from one seed, judged after every event.

``simulate(SimOptions(engine="raft", seed=7))`` runs a cluster of real nodes (the engine, the
replica and the turn that serve users) in virtual time over a modelled network, and in two fifths of
the seeds over the real log code on files in memory and through the real codec; a fifth of these has
the sync level ``os``, and no power cuts.  The seed draws everything: the number of nodes, tiny
limits, the engine's options, which faults are on and how strong (swarm testing), and every single
fault.

A run has two phases.  In the first, faults strike while clients ask for things; nothing that is
promised may break.  Then everything is mended, and the cluster must work: a leader, a fresh command
done, all replicas equal, and no more changes of leader.  At last the history of all clients is
judged for linearizability.

Whatever breaks raises :class:`~replog.testing.checks.Violation`.  The numbers of the invariants
(I1, I2, ...) are those of ``docs/invariants.md``; ``docs/testing.md`` tells how to replay a seed,
write a scenario step by step (:class:`~replog.testing.cluster.Cluster`) and simulate a state
machine of your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Final

from replog.errors import BadCommand, CallerError, DumpUnavailable
from replog.limits import KIB, MIB, Limits
from replog.plugins import find_engine
from replog.testing.calm import (
    check_deaf_node,
    check_lone_leader,
    check_overtaken_leader,
    check_vain_transfer,
    restart_everybody,
)
from replog.testing.chance import ALL, Chance, Selection
from replog.testing.checks import Check
from replog.testing.cluster import Cluster
from replog.testing.disk import GROUPS_UNBOUNDED, DiskModel
from replog.testing.diverging import check_found
from replog.testing.faults import Faults, drawn_faults
from replog.testing.followers import Followers
from replog.testing.goals import COMMON, ON_FILES, Goals
from replog.testing.judged_machine import Results, dump_all, judged
from replog.testing.lease_trials import LeaseReaders, LeaseWatch
from replog.testing.linearizability import Finding, check_history
from replog.testing.nodes import Outcome, Proposal
from replog.testing.queries import STRICT_LEVELS
from replog.testing.readers import Readers
from replog.testing.registers import Workload
from replog.testing.session_clients import SessionClients, drawn_session_limits, drawn_term
from replog.testing.trials import EngineTrial, find_trial
from replog.testing.watchers import Watchers, drawn_workload
from replog.types import NodeId, Role, record

NODES_MAX: Final = 9
"""The largest cluster."""

TICKS: Final = 360
"""How long the first phase lasts."""

HISTORY_BUDGET: Final = 300_000
"""How many configurations the search for a linearization may examine."""

PATIENCE_TICKS: Final = 24
"""After so many ticks without an answer a client gives up: the outcome is unknown to it."""

UNCOMMITTED_BYTES_MAX: Final = 4 * KIB
"""No more than this, or 64 of the largest commands, may be proposed and not committed, so that a
leader which loses count of it soon refuses everything."""

LEADER_TIMEOUTS: Final = 10
"""In calm a leader must be there within so many of the longest election timeouts, ..."""

CALM_TIMEOUTS: Final = 4
"""... and still be the same after so many more."""

CALM_MESSAGES_PER_LINK: Final = 2
"""A leader with nothing to do sends each peer a heartbeat in a tick at most, and is answered."""

BATCHED_CHANCE: Final = 0.4
"""How likely it is that nodes deal with all that arrives in a tick in one turn."""

ON_DISK_CHANCE: Final = 0.45
"""How likely it is that the machines are on disks of their own."""

KEPT_ANSWERS_CHANCE: Final = 0.7
"""How likely it is that those keep what commands in sessions were answered."""

SESSION_CLIENTS_KEPT: Final = 4
"""There are so many clients with sessions then, ..."""

FORGOTTEN_MAX: Final = 6
"""... and each may ask again for the answers of so many commands before its last."""

FORGOTTEN_ELSE: Final = (2, 0, 2)
"""The same for each client where they are not kept."""

CROWDED_CHANCE: Final = 0.15
"""How likely it is that one command, if it is as large as any, is as much as a node takes."""

FORMING_CHANCE: Final = 0.1
"""How likely it is that the nodes have not met yet."""

EAGER_CHANCE: Final = 0.3
"""How likely it is that clients are eager, ..."""

ASKS_AGAIN_CHANCE: Final = 0.5
"""... and that an eager one that gets an answer asks for something else in the same turn."""

SESSIONS_CHANCE: Final = 0.5
"""How many of the seeds have clients with sessions."""

SNAPSHOT_CHANCE: Final = 0.01
"""Where machines keep answers: per tick, that some node is told to take a snapshot."""

COUP_CHANCE: Final = 0.004
"""How likely a coup is in a tick, where there are leases."""

PROCESS_CRASHES_CHANCE: Final = 0.2
"""How likely it is that the real log runs at the sync level ``os``, where processes crash and the
power is never cut."""

OVERTAKE_CHANCE: Final = 0.4
"""How likely it is that in calm the leader is cut off and overtaken."""

TICKS_PER_ENTRY: Final = 8
"""How long a slow disk and a window of one entry may take to bring a node one entry further."""


@record
class SimOptions:
    """What to simulate; the rest is drawn from the seed."""

    engine: str
    """The name of an installed engine."""
    seed: int
    nodes: int = 0
    """How many nodes; 0: drawn."""
    faults: Selection = ALL
    """Which strikes of chance take effect."""
    ticks: int = TICKS
    """How long the first phase lasts; with less, a run is a prefix of the full one."""
    operations_max: int = 1 << 30
    """How many commands the clients ask for at most."""


@record
class SimReport:
    """What a run that broke nothing came to."""

    engine: str
    seed: int
    nodes: int
    events: int
    """How many events the nodes dealt with."""
    operations: int
    """How many commands ended for a client as done or unknown."""
    goals: tuple[str, ...]
    """The names of the goals that the run came to."""
    struck: tuple[str, ...]
    """The kinds of faults that took effect."""
    is_real: bool
    """Whether it ran over the real log and codec."""
    digest: str
    """Stands for the results of all commands; the same in every process."""


class Simulation:
    """One run; :meth:`run` is all of it."""

    def __init__(self, options: SimOptions, workload: Workload | None = None) -> None:
        """Raises :class:`~replog.errors.PluginError` when the engine is not installed, and
        :class:`~replog.errors.CallerError` for options and workloads that cannot be run."""
        self.options = options
        self._reads_max = self._source("reads").choice((1, 2, 65_536))
        watched = self._source("watched")
        self.workload: Workload = workload or drawn_workload(watched, self._reads_max)
        plugin = find_engine(options.engine)
        _check_options(options)
        _check_workload(self.workload)
        self.trial: EngineTrial = find_trial(plugin)
        self._clients_random = self._source("clients")
        drawn = self._source("nodes").choice((3, 3, 3, 5, 4))
        node_count = options.nodes or drawn
        self.engine_options = self.trial.draw_options(self._source("options"), node_count)
        self.election_ticks = self.trial.election_ticks_max(self.engine_options)
        voters: tuple[NodeId, ...] = tuple(range(1, node_count + 1))
        self.is_real = self._source("files").random() < 0.4
        """Whether the real log and codec are in the run."""
        self.disk_model = self._drawn_disks()
        is_on_disk = self._source("machine").random() < ON_DISK_CHANCE
        keeps = is_on_disk and self._source("kept answers").random() < KEPT_ANSWERS_CHANCE
        self.machines_keep = keeps
        """Whether machines on their own disks keep what commands in sessions were answered."""
        self.limits = self._drawn_limits()
        self.goals = Goals({**COMMON, **ON_FILES, **self.trial.goals})
        self.chance = Chance(options.seed, options.faults)
        self._results = results = Results()
        self._eager_random = self._source("eager")
        self._is_eager = self._eager_random.random() < EAGER_CHANCE
        self.cluster = Cluster(
            plugin,
            self.engine_options,
            node_count=node_count,
            seed=options.seed,
            limits=self.limits,
            machine=lambda: judged(self.workload.machine(), results, is_on_disk, keeps),
            quorum=self.trial.commit_quorum(self.engine_options, voters),
            checks=self._made_checks(voters),
            disk_model=self.disk_model,
            codec=self.is_real,
            chance=self.chance,
            goals=self.goals,
            acknowledgements=self.trial.acknowledgements,
            batched=self._source("batched").random() < BATCHED_CHANCE,
            handle_ended=self._handle_ended,
            formed=self._source("formed").random() >= FORMING_CHANCE,
        )
        self.faults = self._drawn_faults()
        self._ask_chance = self._source("asking").choice((0.6, 0.9, 0.95))
        self._clients: list[Proposal | None] = [None] * self._source("client count").choice(
            (4, 6, 8)
        )
        """What each client waits for."""
        self._asked_at: list[int] = [0] * len(self._clients)
        cluster, workload, first = self.cluster, self.workload, len(self._clients) + 1
        source = self._source("readers")
        self._readers = Readers(source, cluster, workload, first, self._ask_chance)
        first += len(self._readers)
        source, drift = self._source("leases"), self.trial.clock_drift_percent(self.engine_options)
        self._lease_readers = LeaseReaders(source, cluster, workload, first, drift)
        self._sessions = self._made_session_clients()
        self._terms_random = self._source("terms")
        followers = self._source("followers")
        count, reads_max = followers.choice((0, 1, 2)), self.limits.reads_max
        driver, nodes = cluster.driver, cluster.nodes
        self._followers = Followers(driver, nodes, followers, count, reads_max)
        source = self._source("watchers")
        self._watchers = Watchers(driver, nodes, source, results, self.workload)

    def _drawn_faults(self) -> Faults:
        faults = drawn_faults(self._source("faults"), self.election_ticks)
        if self.trial.clock_drift_percent(self.engine_options) is not None:
            faults = replace(faults, coup_chance=COUP_CHANCE)
        return replace(faults, snapshot_chance=self.machines_keep * SNAPSHOT_CHANCE)

    def _made_checks(self, voters: tuple[NodeId, ...]) -> Sequence[Check]:
        leases = LeaseWatch(self.goals, lambda node: self.cluster.driver.clock_ns(node))
        return (*self.trial.checks(self.engine_options, voters, self.goals), leases)

    def _made_session_clients(self) -> SessionClients:
        """In half of the seeds, some more clients repeat in sessions what was not answered; in all
        of those where machines keep answers, and for what was answered as well."""
        random = self._source("sessions")
        count = random.choice((1, 2, 3)) if random.random() < SESSIONS_CHANCE else 0
        forgotten_max = FORGOTTEN_ELSE[:count]
        if self.machines_keep:
            forgotten_max = (FORGOTTEN_MAX,) * SESSION_CLIENTS_KEPT
        self._sessions_random = self._source("session commands")
        return SessionClients(
            self.cluster.driver,
            self.cluster.nodes,
            self._results,
            random,
            forgotten_max,
            PATIENCE_TICKS,
            self.limits.session_idle_ms_max,
            self._node_for,
        )

    def _source(self, purpose: str) -> Random:
        """What one thing is drawn from.  Each has a source of its own, so that what is added later
        leaves the other draws of a seed as they were."""
        return Random(f"{self.options.seed}/{purpose}")

    def _drawn_disks(self) -> DiskModel:
        random = self._source("disks")
        sync_ticks = random.choice((0, 0, 1, 3))
        is_contract = random.random() < 0.3 and not self.is_real
        is_os_level = self._source("process crashes").random() < PROCESS_CRASHES_CHANCE
        return DiskModel(
            sync_ticks,
            GROUPS_UNBOUNDED if is_contract else 1,
            self.is_real,
            is_synced=not (self.is_real and is_os_level),
        )

    def _drawn_limits(self) -> Limits:
        random, snapshots = self._source("limits"), self._source("snapshots")
        largest = self.workload.command_bytes_max
        much = max(UNCOMMITTED_BYTES_MAX, 64 * largest)
        uncommitted = self._source("uncommitted").choice((2 * largest, much, much))
        unapplied = self._source("unapplied")
        is_crowded = self._source("crowded").random() < CROWDED_CHANCE
        limits = Limits(
            command_bytes_max=largest,
            uncommitted_bytes_max=largest if is_crowded else uncommitted,
            unapplied_entries_max=unapplied.choice((3, 12, *[65_536] * 6)),
            unapplied_bytes_max=unapplied.choice((4 * largest, much, much)),
            message_bytes_max=random.choice((1, 1, 100, MIB)),
            in_flight_messages_max=random.choice((1, 2, 8, 64)),
            in_flight_bytes_max=random.choice((1, 200, MIB)),
            apply_entries_max=random.choice((1, 3, 4096)),
            reads_max=self._reads_max,
            read_wait_ms=self._source("read wait").choice((500, 5000)),
            query_reruns_max=self._source("reruns").choice((1, 128)),
            log_cache_bytes_max=self._source("cache").choice((1, 2000, MIB)),
            **drawn_session_limits(self._source("session limits"), self.machines_keep),
            snapshot_entries=snapshots.choice((5, 12, 30, 1 << 30)),
            trim_margin_entries=snapshots.choice((1, 3, 10)),
            snapshot_chunk_bytes=(chunk_bytes := snapshots.choice((40, 100, 1000))),
            snapshot_bytes_per_second_max=max(chunk_bytes, snapshots.choice((400, 1000, 1 << 20))),
        )
        if self.machines_keep:
            # So that there are answers to be kept that are not in a snapshot.
            return replace(limits, snapshot_entries=snapshots.choice((30, 1 << 30, 1 << 30)))
        return limits

    def run(self) -> SimReport:
        """Both phases and the judgement of the history; raises ``Violation``."""
        cluster = self.cluster
        cluster.run(self.options.ticks, self.faults, before_tick=self._ask)
        cluster.calm()
        self._check_liveness()
        if self.machines_keep:
            self._check_answers_outlive()
        cluster.check_committed()
        cluster.driver.judge(self._sessions.check_log)
        is_overtaken = self._overtake()
        self._check_equal()
        self._check_answered()
        if not is_overtaken:
            self._check_last_trouble()
        self._check_history()
        return SimReport(
            engine=self.options.engine,
            seed=self.options.seed,
            nodes=len(cluster.nodes),
            events=cluster.turn_count,
            operations=len(self._ended()),
            goals=tuple(self.goals.reached),
            struck=tuple(kind for kind, numbers in self.chance.struck.items() if numbers),
            is_real=self.is_real,
            digest=self._results.digest(),
        )

    # -- clients --

    def _ask(self) -> None:
        """Let each client that waits for nothing ask for something, if it likes."""
        random, cluster = self._clients_random, self.cluster
        for client, waits_for in enumerate(self._clients):
            is_waiting = waits_for is not None and waits_for.outcome is Outcome.PENDING
            if is_waiting and cluster.now - self._asked_at[client] < PATIENCE_TICKS:
                continue
            # Drawn whatever happens, so that a shorter run is a prefix of a longer one.
            asks, guess = random.random() < self._ask_chance, random.random()
            number = len(cluster.proposals) + 1
            payload = self.workload.draw(random, number)
            node_id = self._node_for(guess)
            dice = self._terms_random.random()
            if asks and node_id and number <= self.options.operations_max:
                self._asked_at[client] = cluster.now
                node = cluster.nodes[node_id]
                expected = drawn_term(dice, node)
                proposal = cluster.driver.propose(node, payload, client + 1, expected=expected)
                self._clients[client] = proposal
        is_open = len(cluster.proposals) < self.options.operations_max
        self._sessions.tick(self._ask_chance, self._draw_in_session, is_open)
        operations_max = self.options.operations_max
        cluster.driver.crowd.ask(self._node_for, self.workload.draw, operations_max)
        self._readers.tick(self.options.operations_max)
        self._lease_readers.tick()
        self._followers.tick()
        self._watchers.tick()

    def _draw_in_session(self) -> bytes:
        return self.workload.draw(self._sessions_random, len(self.cluster.proposals) + 1)

    def _handle_ended(self, proposal: Proposal) -> None:
        """Judge what a client is told; whoever waits for an answer may ask again within it."""
        if proposal.mark is not None:
            self._sessions.handle_ended(proposal)
            return
        if proposal.outcome is Outcome.DONE:
            self._results.judge_answer(proposal)
        elif proposal.outcome is Outcome.UNKNOWN:
            return
        client = proposal.client - 1
        if not self._is_eager or not 0 <= client < len(self._clients):
            return
        if self._clients[client] is not proposal:
            return
        if not self.cluster.nodes[proposal.node_id].is_running:
            return  # it stops
        number, is_calm = len(self.cluster.proposals) + 1, self.cluster.now >= self.options.ticks
        if self._eager_random.random() >= ASKS_AGAIN_CHANCE or is_calm:
            return
        payload = self.workload.draw(self._eager_random, number)
        if number <= self.options.operations_max:
            self._asked_at[client] = self.cluster.now
            again = self.cluster.propose(proposal.node_id, payload, client + 1, is_within=True)
            self._clients[client] = again

    def _node_for(self, guess: float) -> NodeId:
        """Whom a client asks: mostly a node that takes itself for the leader, else any.

        A deposed leader that does not know it yet is as good: what it takes must not be lost in
        silence.  0: nobody runs.
        """
        running = [node_id for node_id, node in self.cluster.nodes.items() if node.is_running]
        leaders = [
            node_id
            for node_id in running
            if self.cluster.nodes[node_id].replica.engine.soft_state.role is Role.LEADER
        ]
        among = leaders if leaders and guess < 0.9 else running
        return among[int(guess * 1000) % len(among)] if among else 0

    # -- what must come of it --

    def _check_liveness(self) -> None:
        cluster = self.cluster
        backlog = max(node.status_seen.last_index for node in cluster.nodes.values())
        leader_ticks = LEADER_TIMEOUTS * self.election_ticks
        payload = self.workload.draw(self._clients_random, len(cluster.proposals) + 1)
        done_ticks = 2 * leader_ticks + TICKS_PER_ENTRY * backlog
        check_found(cluster, leader_ticks, done_ticks, payload)
        cluster.check_leader(leader_ticks)
        if not cluster.run_until(self._is_settled, done_ticks) and cluster.leader():
            raise cluster.violation(
                f"L7: after {done_ticks} ticks of calm the leader holds entries that are not "
                "committed everywhere, and waits for a fresh one"
            )
        cluster.check_liveness(leader_ticks, done_ticks, payload)
        # What was sent amid the faults may be late, and depose a leader once more.
        cluster.tick(self.faults.late_ticks_max + self.faults.delay_ticks_max)
        leader_id = cluster.leader()
        if not leader_id:
            raise cluster.violation("L4: a leader is lost in calm, and nobody takes its place")
        term = cluster.nodes[leader_id].replica.engine.term
        sent_before, ticks = cluster.network.sent_count, CALM_TIMEOUTS * self.election_ticks
        cluster.tick(ticks)
        now_leads = cluster.leader()
        if not now_leads:
            raise cluster.violation(f"L4: node {leader_id} led in term {term}, in calm nobody does")
        if (now_leads, cluster.nodes[now_leads].replica.engine.term) != (leader_id, term):
            raise cluster.violation(
                f"L4: node {leader_id} led in term {term}, and in calm node {now_leads} does"
            )
        sent_count = cluster.network.sent_count - sent_before
        sent_max = CALM_MESSAGES_PER_LINK * ticks * (len(cluster.nodes) - 1)
        if sent_count > sent_max:
            raise cluster.violation(
                f"L6: {sent_count} messages in {ticks} ticks of calm with nothing to do, and "
                f"{sent_max} are enough"
            )

    def _check_answers_outlive(self) -> None:
        """All nodes are started again, and who then asks again is told the first answer."""
        cluster, leader_ticks = self.cluster, LEADER_TIMEOUTS * self.election_ticks
        restart_everybody(cluster)
        cluster.check_leader(leader_ticks)
        backlog = max(node.status_seen.last_index for node in cluster.nodes.values())
        done_ticks = 2 * leader_ticks + TICKS_PER_ENTRY * backlog
        self._sessions.ask_again(cluster, done_ticks)
        cluster.check_liveness(leader_ticks, done_ticks, self._draw_in_session())

    def _is_settled(self) -> bool:
        """Whether all that the leader holds is committed, and known to be, on every node."""
        cluster = self.cluster
        leader_id = cluster.leader()
        if not leader_id:
            return False
        last_index = cluster.nodes[leader_id].status_seen.last_index
        return all(
            node.status_seen.commit_index == last_index
            for node_id, node in cluster.nodes.items()
            if not cluster.is_out(node_id)
        )

    def _check_equal(self) -> None:
        cluster = self.cluster
        dumps = {
            node_id: dump_all(node.machine)
            for node_id, node in cluster.nodes.items()
            if not cluster.is_out(node_id)
        }
        first = next(iter(dumps.values()))
        for node_id, dump in dumps.items():
            if dump != first:
                raise cluster.violation(f"I10: the state of node {node_id} differs from another's")

    def _check_answered(self) -> None:
        cluster = self.cluster
        waiting = [query for query in cluster.queries if query.outcome is Outcome.PENDING]
        if waiting:
            cluster.tick(self.limits.read_ticks_max + 1)
        for query in waiting:
            if query.outcome is Outcome.PENDING:
                raise cluster.violation(f"L5: nobody is told what came of q{query.number}")

    def _overtake(self) -> bool:
        """By chance, have the leader cut off and overtaken; whether that could be done."""
        cluster = self.cluster
        if not self.chance.strikes("overtake", OVERTAKE_CHANCE):
            return False
        random, leader_id = self._source("overtake"), cluster.leader()

        def draw() -> bytes:
            return self.workload.draw(random, len(cluster.proposals) + 1)

        ticks = 2 * LEADER_TIMEOUTS * self.election_ticks
        ticks += TICKS_PER_ENTRY * cluster.nodes[leader_id].status_seen.last_index
        margin = self.limits.trim_margin_entries
        goals = check_overtaken_leader(cluster, leader_id, ticks, margin, draw, self.chance)
        cluster.check_committed()
        for goal in goals:
            self.goals.reach(goal)
        return bool(goals)

    def _check_last_trouble(self) -> None:
        """One last trouble in calm, by the seed: each has an end that can be told."""
        leader_id = self.cluster.leader()
        ticks = CALM_TIMEOUTS * self.election_ticks
        kind = self.options.seed % 3
        if kind == 0:
            goal = check_deaf_node(self.cluster, leader_id, ticks)
        elif kind == 1:
            voters = tuple(self.cluster.nodes)
            quorum = self.trial.commit_quorum(self.engine_options, voters)
            goal = check_lone_leader(self.cluster, leader_id, ticks, quorum)
        else:
            payload = self.workload.draw(self._clients_random, len(self.cluster.proposals) + 1)
            goal = check_vain_transfer(self.cluster, leader_id, ticks, payload)
        if goal:
            self.goals.reach(goal)

    def _ended(self, client_min: int = 1) -> Sequence[Proposal]:  # 0 proposes fresh ones in calm
        return [
            proposal
            for proposal in self.cluster.proposals
            if proposal.client >= client_min and proposal.outcome in (Outcome.DONE, Outcome.UNKNOWN)
        ] + list(self._sessions.ended())

    def _check_history(self) -> None:
        model = self.workload.model()
        if model is None:
            return
        history = [self.workload.operation(proposal) for proposal in self._ended(client_min=0)]
        history += [
            self.workload.reading(query)
            for query in self.cluster.queries
            if query.level in STRICT_LEVELS and query.outcome is Outcome.DONE
        ]
        verdict = check_history(history, model, HISTORY_BUDGET)
        if verdict.finding is Finding.VIOLATION:
            raise self.cluster.violation(f"I13: {verdict.explanation}")
        if verdict.finding is Finding.UNDECIDED:
            raise self.cluster.violation(
                f"I13: whether the history of {verdict.key!r} is linearizable could not be decided "
                f"within {HISTORY_BUDGET} configurations, and undecided is not passed"
            )


def _check_options(options: SimOptions) -> None:
    if not 0 <= options.nodes <= NODES_MAX:
        raise CallerError(
            f"there can be 1 to {NODES_MAX} nodes, or 0 for a drawn number, not {options.nodes}"
        )
    if options.ticks < 1 or options.operations_max < 0:
        raise CallerError(
            f"a run of {options.ticks} ticks and {options.operations_max} operations cannot be "
            "simulated; choose one tick at least, and no negative number of operations"
        )


def _check_workload(workload: Workload) -> None:
    """Say what is wrong with a workload before a run says something else of it."""
    if workload.command_bytes_max < 1:
        raise CallerError("the workload has no command of a byte or more; give it one to propose")
    machine, payload = workload.machine(), workload.draw(Random("a payload"), 1)
    if len(payload) > workload.command_bytes_max:
        raise CallerError(
            f"the workload draws a command of {len(payload)} bytes, and its command_bytes_max is "
            f"{workload.command_bytes_max}; raise that"
        )
    try:
        machine.check_payload(payload)
        machine.dump(b"", 1)
    except (BadCommand, DumpUnavailable) as error:
        raise CallerError(f"the workload cannot be simulated: {error}") from error


def simulate(options: SimOptions, workload: Workload | None = None) -> SimReport:
    """Run one seed; raises :class:`~replog.testing.checks.Violation` when something breaks."""
    return Simulation(options, workload).run()
