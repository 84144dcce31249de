"""The simulator judges: what breaks in a run, and what does not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import count
from random import Random

import pytest

from replog.errors import CommandFailed, Overloaded, Unavailable
from replog.machine import ApplyContext
from replog.plugins import engine_names
from replog.replica import Replica
from replog.testing import sim
from replog.testing.chance import Selection
from replog.testing.checks import Violation
from replog.testing.cluster import Cluster
from replog.testing.linearizability import Operation, Verdict, check_history
from replog.testing.nodes import Outcome, Proposal, Recorder
from replog.testing.registers import DrawnWorkload, NoValue, Registers, RegisterWorkload
from replog.testing.sim import SimOptions, Simulation, simulate
from replog.types import Role, SoftState

NONE = Selection.parse("none")
ENGINE = engine_names()[0]
LATE_TICKS = 300


class Undecided(Registers):
    """Each replica answers with a number of its own."""

    numbers = count()

    def __init__(self) -> None:
        super().__init__()
        self._number = next(self.numbers)

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Answer by who applies, which no machine may do."""
        super().apply(context, payload)
        return self._number


class Forgetful(Registers):
    """Every fifth write is answered and left out, alike on every replica."""

    def __init__(self) -> None:
        super().__init__()
        self._writes = 0

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Apply most commands."""
        self._writes += payload.startswith(b"put")
        if payload.startswith(b"put") and self._writes % 5 == 0:
            return None
        return super().apply(context, payload)


class Hidden(Registers):
    """Its state, as it is shown, differs from replica to replica."""

    numbers = count()

    def __init__(self) -> None:
        super().__init__()
        self._values[b"hidden"] = b"%d" % next(self.numbers)


def workload_of(machine: type[Registers]) -> RegisterWorkload:
    """The usual commands for another machine."""

    class Workload(RegisterWorkload):
        def machine(self) -> Registers:
            return machine()

    return Workload()


@pytest.mark.parametrize("engine", engine_names())
def test_simulate_without_faults(engine: str) -> None:
    """Without faults every command ends as done, and nothing breaks, whatever else is drawn."""
    for seed in range(2):
        simulation = Simulation(SimOptions(engine, seed, faults=NONE))
        report = simulation.run()
        assert report.operations >= 5
        outcomes = {proposal.outcome for proposal in simulation.cluster.proposals}
        assert Outcome.UNKNOWN not in outcomes
        assert not any(simulation.chance.struck.values())


def test_simulate_judges_what_is_proposed_in_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is proposed to see that the cluster works is in the history: others may read it."""
    judged: list[Operation] = []

    def keep(history: Sequence[Operation], *rest: object) -> Verdict:
        judged.extend(history)
        return check_history(history, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sim, "check_history", keep)
    simulation = Simulation(SimOptions(ENGINE, 5, ticks=60))
    simulation.run()
    fresh = [each for each in simulation.cluster.proposals if each.client == 0]
    assert any(each.outcome is Outcome.DONE for each in fresh)
    clients = [operation.client for operation in judged]
    assert clients.count(0) == len([each for each in fresh if each.mark is None])


def test_simulate_repeats() -> None:
    """The same options come to the same report and the same trace."""
    runs = [Simulation(SimOptions(ENGINE, 5)) for _ in range(2)]
    reports = [run.run() for run in runs]
    assert reports[0] == reports[1]
    assert runs[0].cluster.trace.lines() == runs[1].cluster.trace.lines()


def test_simulate_fewer_ticks_is_prefix() -> None:
    """A run with fewer ticks is the beginning of the longer one."""
    long, short = Simulation(SimOptions(ENGINE, 5)), Simulation(SimOptions(ENGINE, 5, ticks=50))
    long.run()
    short.run()
    before = [line for line in short.cluster.trace.lines() if int(line.split()[0]) <= 50]
    assert len(before) > 100
    assert long.cluster.trace.lines()[: len(before)] == before


def test_simulate_limits_operations() -> None:
    """No client asks for more than it may; the one that calm demands comes on top."""
    simulation = Simulation(SimOptions(ENGINE, 5, faults=NONE, operations_max=7))
    simulation.run()
    assert len(simulation.cluster.proposals) == 8


def test_simulate_nodes_given() -> None:
    """A number of nodes is taken as it is given."""
    assert simulate(SimOptions(ENGINE, 5, nodes=1, faults=NONE)).nodes == 1


@pytest.mark.parametrize(
    ("machine", "invariant"), [(Undecided, "I10"), (Forgetful, "I13"), (Hidden, "I10")]
)
def test_simulate_bad_machine(machine: type[Registers], invariant: str) -> None:
    """A machine that is not deterministic, or forgets, is found out, with or without faults."""
    with pytest.raises(Violation) as found:
        simulate(SimOptions(ENGINE, 3, faults=NONE), workload_of(machine))
    assert found.value.invariant == invariant
    assert found.value.trace_tail


def test_simulate_history_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A history that cannot be judged within the budget has not passed."""
    monkeypatch.setattr(sim, "HISTORY_BUDGET", 1)
    with pytest.raises(Violation, match="undecided is not passed"):
        simulate(SimOptions(ENGINE, 3, faults=NONE))


def test_simulate_own_machine() -> None:
    """Any machine can be simulated with payloads alone; then no history is judged."""
    report = simulate(SimOptions(ENGINE, 3), DrawnWorkload(Recorder, (b"one", b"two")))
    assert report.operations > 0


@pytest.mark.parametrize("engine", engine_names())
def test_simulate_no_leader_in_calm(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that does not come back in calm is a violation."""
    calm = Cluster.calm

    def half_calm(cluster: Cluster) -> None:
        calm(cluster)
        cluster.partition(*((node_id,) for node_id in cluster.nodes))

    monkeypatch.setattr(Cluster, "calm", half_calm)
    with pytest.raises(Violation) as found:
        simulate(SimOptions(engine, 3, nodes=3))
    assert found.value.invariant in ("L1", "L2", "L7")


def test_simulate_restless_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of leader in calm is a violation."""
    tick = Cluster.tick

    def restless(cluster: Cluster, count: int = 1) -> None:
        if count > 1:
            leader = cluster.leader()
            cluster.transfer(leader, leader % len(cluster.nodes) + 1)
        tick(cluster, count)

    monkeypatch.setattr(Cluster, "tick", restless)
    with pytest.raises(Violation) as found:
        simulate(SimOptions(ENGINE, 3, faults=NONE))
    assert found.value.invariant == "L4"


def test_simulate_chatty_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """More messages than a calm cluster needs are a violation."""
    monkeypatch.setattr(sim, "CALM_MESSAGES_PER_LINK", 0)
    with pytest.raises(Violation) as found:
        simulate(SimOptions(ENGINE, 3, faults=NONE))
    assert found.value.invariant == "L6"


def test_register_workload_values_fresh() -> None:
    """No value is written twice, and each key serves for a while only."""
    workload, random = RegisterWorkload(), Random(1)
    words = [workload.draw(random, number).split() for number in range(1, 1001)]
    written = [each[-1] for each in words if each[0] in (b"put", b"cas")]
    assert len(written) == len(set(written)) > 500
    assert max(sum(each[1] == key for each in words) for _, key, *_ in words) < 80


class Growing(Registers):
    """Its result is the very list that it keeps, and goes on filling."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[bytes] = []

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Answer with all payloads so far."""
        self._seen.append(payload)
        return self._seen


def test_second_copy_of_a_failed_comparison() -> None:
    """A copy in a session is told of a declared error by its name; to the model both are the same
    comparison that failed."""
    results = []
    for error in (NoValue("no value"), CommandFailed("NoValue", "no value")):
        proposal = Proposal(1, 1, b"cas k1 7 8", lambda *_: None)
        proposal.error, proposal.outcome = error, Outcome.DONE
        results.append(RegisterWorkload().operation(proposal).result)
    assert results == [False, False]


def test_simulate_growing_result() -> None:
    """A machine is not accused because the object that it answered with changed later."""
    simulate(SimOptions(ENGINE, 3, operations_max=40), DrawnWorkload(Growing, (b"get k",)))


def test_simulate_digest_of_results() -> None:
    """The digest stands for the results: the same run has the same, another one has not."""
    digests = [simulate(SimOptions(ENGINE, seed, ticks=100)).digest for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_simulate_dishonest_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told that a command is not done, and it is, was told a lie, whatever the machine."""

    def wrong(replica: Replica, soft_state: SoftState) -> None:
        if soft_state.role is not Role.LEADER:
            replica.end_waits(Unavailable("not done"))

    monkeypatch.setattr(Replica, "follow_role", wrong)
    workload = DrawnWorkload(Recorder, (b"one",))
    found = None
    for seed in range(40):
        try:
            simulate(SimOptions(ENGINE, seed), workload)
        except Violation as violation:
            found = violation
            break
    assert found is not None
    assert found.sentence.startswith("I6: proposal")


def test_simulate_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told another command's result was told a lie, whatever the machine."""
    call = Proposal.__call__

    def wrong(proposal: Proposal, index: int, result: object, error: Exception | None) -> None:
        call(proposal, index, b"9" if index == 5 else result, error)

    monkeypatch.setattr(Proposal, "__call__", wrong)
    with pytest.raises(Violation, match=r"I6: applying entry 5 came to 5, and .* is told b'9'"):
        simulate(SimOptions(ENGINE, 3, faults=NONE), DrawnWorkload(Recorder, (b"one",)))


def test_simulate_error_of_a_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error meant for callers that comes out of a step is a violation as any other."""

    def wrong(replica: Replica, message: object) -> None:
        raise Overloaded("too much")

    monkeypatch.setattr(Replica, "step", wrong)
    with pytest.raises(Violation) as found:
        simulate(SimOptions(ENGINE, 3, faults=NONE))
    assert found.value.invariant == "Overloaded"


def test_simulate_late_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that comes later than it must is a violation, however calm it is then."""
    calm = Cluster.calm

    def silent_calm(cluster: Cluster) -> None:
        calm(cluster)
        for node_id in cluster.nodes:
            cluster.crash(node_id)
            cluster.plan(LATE_TICKS, partial(cluster.restart, node_id))

    monkeypatch.setattr(Cluster, "calm", silent_calm)
    with pytest.raises(Violation) as found:
        simulate(SimOptions(ENGINE, 3, faults=NONE))
    assert found.value.invariant == "L1"
