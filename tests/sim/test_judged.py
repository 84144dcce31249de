"""What is judged of commands, clients and clocks can fail, in the cluster and in the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from replog.errors import CallerError, CommandTooLarge, DumpUnavailable, Overloaded
from replog.limits import Limits
from replog.machine import DumpPage
from replog.plugins import engine_names, find_engine
from replog.quorum import Majority
from replog.sessions import Sessions
from replog.snapshots import Snapshots
from replog.testing import sim
from replog.testing.calm import check_lone_leader, check_overtaken_leader, check_vain_transfer
from replog.testing.chance import Chance, Selection
from replog.testing.checks import Broken, Violation
from replog.testing.cluster import Cluster
from replog.testing.files import Crashed
from replog.testing.nodes import Outcome, Proposal, Recorder
from replog.testing.registers import DrawnWorkload, Registers
from replog.testing.sim import SimOptions, Simulation, simulate
from replog.turns import Turns
from replog.types import Waiter

ENGINE = engine_names()[0]
NONE = Selection.parse("none")
OVERTAKEN_LIMITS: Final = Limits(trim_margin_entries=1)


def led(limits: Limits | None = None, batched: bool = False) -> Cluster:
    """A cluster that node 1 leads."""
    cluster = Cluster(find_engine(ENGINE), limits=limits, batched=batched)
    cluster.campaign(1)
    cluster.tick()
    assert cluster.leader() == 1
    return cluster


def test_equal_command_is_another() -> None:
    """I6: who asked for the same as somebody else is not done because the other is."""
    cluster = led()
    proposal = cluster.propose(1, b"x")
    cluster.settle()
    assert proposal.outcome is Outcome.DONE
    cluster.invariants.check_done(proposal)
    proposal.term += 1
    with pytest.raises(Broken, match="I6: proposal 1 was reported done"):
        cluster.invariants.check_done(proposal)


def test_message_of_two_readys_waits_twice() -> None:
    """I9: one message object that two Readys hold back waits for the sync of each."""
    cluster = led()
    node, message = cluster.nodes[1], object()
    synced = node.disk.synced_writes_count
    node.after_sync[id(message)] = (message, [synced, synced + 1])
    cluster.invariants.check_leaves(node, message)
    with pytest.raises(Broken, match="I9: node 1 sends"):
        cluster.invariants.check_leaves(node, message)
    cluster.invariants.check_leaves(node, message)


def test_crowd_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """I15: a node refuses what is too much before its next turn, and one that does not is found."""
    limits = Limits(command_bytes_max=20, uncommitted_bytes_max=20)
    cluster = led(limits, batched=True)
    taken, refused = cluster.propose(1, b"x" * 15), cluster.propose(1, b"y" * 6)
    assert (taken.outcome, refused.outcome) == (Outcome.PENDING, Outcome.NOT_DONE)
    cluster.tick()
    assert taken.outcome is Outcome.DONE

    def submit(turns: Turns, payload: bytes, waiter: Waiter) -> None:
        if len(payload) > limits.command_bytes_max:
            raise CommandTooLarge(len(payload), limits.command_bytes_max)
        turns._payloads.append(payload)
        turns._waiters.append(waiter)

    monkeypatch.setattr(Turns, "submit", submit)
    cluster.propose(1, b"x" * 15)
    with pytest.raises(Violation, match="I15: node 1 holds 21 bytes"):
        cluster.propose(1, b"y" * 6)


def test_clients_ask_within_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager clients ask within the turn in which they are answered, and only those do."""
    within: list[bool] = []
    right = Turns.submit

    def submit(turns: Turns, payload: bytes, waiter: Waiter) -> None:
        within.append(turns._is_turning)
        right(turns, payload, waiter)

    monkeypatch.setattr(Turns, "submit", submit)
    for is_eager in (True, False):
        within.clear()
        monkeypatch.setattr(sim, "EAGER_CHANCE", float(is_eager))
        simulate(SimOptions(ENGINE, 0, faults=NONE))
        assert any(within) is is_eager
        assert not all(within)


def test_stale_time_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """I10: a command that is applied at a time before its leader's clock is found."""
    call = Proposal.__call__

    def wrong(proposal: Proposal, index: int, result: object, error: Exception | None) -> None:
        proposal.stamp_ms += 60_000 if index == 5 else 0
        call(proposal, index, result, error)

    monkeypatch.setattr(Proposal, "__call__", wrong)
    with pytest.raises(Violation, match=r"I10: the command at index 5 was proposed at 6\d+ ms"):
        simulate(SimOptions(ENGINE, 0, faults=NONE))


def test_wrong_sessions_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """I21: a node that has applied all and holds a session that the log does not open is found."""
    monkeypatch.setattr(Sessions, "numbers", lambda *_: {77: [1]})
    with pytest.raises(Violation, match=r"I21: node \d has these commands .*\{77: \[1\]\}"):
        simulate(SimOptions(ENGINE, 0, faults=NONE))


def test_refused_yet_committed_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: a command whose client was refused, and knows no index, must not be committed."""
    cluster = led()
    right = Turns.submit

    def submit(turns: Turns, payload: bytes, waiter: Waiter) -> None:
        right(turns, payload, lambda *_: None)
        raise Overloaded("too much", 10)

    monkeypatch.setattr(Turns, "submit", submit)
    assert cluster.propose(1, b"x").outcome is Outcome.NOT_DONE
    cluster.settle()
    with pytest.raises(Violation, match=r"I6: entry \d is a command of term"):
        cluster.check_committed()


def test_silent_stop_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """L5: a node that stops in order answers whoever waits for it."""
    cluster = led()
    cluster.isolate(1)
    assert cluster.propose(1, b"x").outcome is Outcome.PENDING
    monkeypatch.setattr(Turns, "end", lambda *_: None)
    with pytest.raises(Violation, match="L5: node 1 stopped and told nobody what became of p1"):
        cluster.stop(1)


def test_crash_over_a_message_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that crashes as it takes a message in, which it may read its log for, is down, also
    where its turn comes later; the others go on."""
    cluster = led(batched=True)
    node = cluster.nodes[2]

    step, turns = Turns.step, node.turns

    def crash(self: Turns, message: object) -> None:
        if self is turns:
            raise Crashed("read")
        step(self, message)

    monkeypatch.setattr(Turns, "step", crash)
    proposal = cluster.propose(1, b"x")
    cluster.tick(4)
    assert not node.is_running
    assert proposal.outcome is Outcome.DONE


def test_batched_proposal_gets_turn() -> None:
    """In a batched cluster what is proposed is dealt with in the same tick."""
    cluster = led(batched=True)
    proposal = cluster.propose(1, b"x")
    cluster.settle()
    assert proposal.outcome is Outcome.DONE


@pytest.mark.parametrize("size_bytes", [1, 100, 4000])
def test_own_commands_of_any_size(size_bytes: int) -> None:
    """Limits are drawn to fit the commands of a workload, however large those are."""
    for seed in range(6):
        workload = DrawnWorkload(Recorder, (b"x" * size_bytes,))
        simulation = Simulation(SimOptions(ENGINE, seed, ticks=80), workload)
        assert not simulation.limits.problems()
        simulation.run()


class Hidden(Recorder):
    """A machine that cannot be looked at."""

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """Say so."""
        raise DumpUnavailable("there is no dump")


@pytest.mark.parametrize(
    ("workload", "sentence"),
    [
        (DrawnWorkload(Recorder, ()), "has no command"),
        (DrawnWorkload(Registers, (b"jump k",)), "no command of registers"),
        (DrawnWorkload(Hidden, (b"x",)), "there is no dump"),
    ],
)
def test_bad_workload_named(workload: DrawnWorkload, sentence: str) -> None:
    """A workload that cannot be run is refused before the run, with what is wrong."""
    with pytest.raises(CallerError, match=sentence):
        Simulation(SimOptions(ENGINE, 1), workload)


@pytest.mark.parametrize(
    "options",
    [
        SimOptions(ENGINE, 1, nodes=-1),
        SimOptions(ENGINE, 1, nodes=10),
        SimOptions(ENGINE, 1, ticks=0),
        SimOptions(ENGINE, 1, operations_max=-1),
    ],
)
def test_bad_options_named(options: SimOptions) -> None:
    """Numbers that make no run are refused."""
    with pytest.raises(CallerError, match=r"nodes|simulated"):
        Simulation(options)


def test_lone_leader_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """L9: a leader that hears nobody and goes on is found."""
    cluster = led()
    engine = cluster.nodes[1].replica.engine
    quorum = Majority((1, 2, 3))
    assert check_lone_leader(cluster, 1, 100, Majority((1,))) == ""
    monkeypatch.setattr(type(engine), "tick", lambda _: None)
    with pytest.raises(Violation, match="L9: node 1 reaches nobody"):
        check_lone_leader(cluster, 1, 100, quorum)


def test_vain_transfer_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """L10: a leader that takes no commands because of a transfer that never ends is found."""
    cluster = led()
    monkeypatch.setattr(Turns, "_propose_submitted", lambda _: None)
    with pytest.raises(Violation, match="L10: node 1 was to hand over to node 2"):
        check_vain_transfer(cluster, 1, 100, b"x")


def overtake(cluster: Cluster) -> Sequence[str]:
    """Have the leader of a cluster overtaken."""
    margin = OVERTAKEN_LIMITS.trim_margin_entries
    return check_overtaken_leader(cluster, 1, 300, margin, lambda: b"x", Chance(1))


def test_overtaken_leader_filled() -> None:
    """L11: a leader that comes back to a trimmed log is filled from a snapshot."""
    cluster = led(limits=OVERTAKEN_LIMITS)
    assert overtake(cluster) == ("leader_overtaken", "overtaken_leader_filled")
    assert cluster.leader() in (2, 3)


def test_overtaken_leader_not_replaced_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """L11: that nobody takes the place of a leader which is cut off is found."""
    cluster = led(limits=OVERTAKEN_LIMITS)
    monkeypatch.setattr(type(cluster.nodes[2].replica.engine), "tick", lambda _: None)
    with pytest.raises(Violation, match=r"L11: node 1 led and was cut off, .* nobody else leads"):
        overtake(cluster)


def test_overtaken_leader_not_filled_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """L11: a leader that comes back to a trimmed log and stays behind is found."""
    monkeypatch.setattr(Snapshots, "_install", lambda *_: None)
    cluster = led(limits=OVERTAKEN_LIMITS)
    with pytest.raises(Violation, match=r"L11: node 1 led, .* is not as they are"):
        overtake(cluster)


def test_filled_machine_waits() -> None:
    """I3: what is committed while a machine is filled from a snapshot is applied when that is over,
    and not before."""
    cluster = led()
    node = cluster.nodes[1]
    before = node.applied_index
    node.turns.snapshots.is_installing = True
    cluster.propose(1, b"x")
    cluster.tick(3)
    assert node.status_seen.commit_index == before + 1
    assert node.applied_index == before
    with pytest.raises(Broken, match=f"I3: node 1 applies entry {before + 1} to a machine"):
        cluster.invariants.check_applied(node, [cluster.invariants.chosen[before + 1]])
    node.turns.snapshots.is_installing = False
    cluster.tick()
    assert node.applied_index == before + 1
