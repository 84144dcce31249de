"""What is judged of commands, clients and clocks can fail, in the cluster and in the simulator."""

from __future__ import annotations

import pytest

from replog.errors import CommandTooLarge
from replog.limits import Limits
from replog.plugins import engine_names, find_engine
from replog.testing import sim
from replog.testing.chance import Selection
from replog.testing.checks import Broken, Violation
from replog.testing.cluster import Cluster
from replog.testing.nodes import Outcome, Proposal
from replog.testing.sim import SimOptions, simulate
from replog.turns import Turns
from replog.types import Waiter

ENGINE = engine_names()[0]
NONE = Selection.parse("none")


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
