"""What makes it Paxos: holes, one slot at two ballots, no check of the entry before."""

from __future__ import annotations

import ast
from pathlib import Path
from random import Random

import pytest
from paxos_given import SMALL, b, carried_out, done, engine_of, kind, led, lone, vote

import replog_multipaxos
from replog.errors import InvariantViolated
from replog.testing import Cluster, Outcome, drawn_faults
from replog.testing.nodes import Recorder
from replog_kv import Kv
from replog_multipaxos import PLUGIN
from replog_multipaxos.messages import Accept, Commit

FOLDER = Path(replog_multipaxos.__file__).parent


def payloads(cluster: Cluster, node_id: int) -> list[bytes]:
    machine = cluster.nodes[node_id].machine
    assert isinstance(machine, Recorder)
    return machine.payloads


def next_indexes(cluster: Cluster) -> list[int]:
    return [peer.next_index for peer in engine_of(cluster, 1).status().peers]


def test_slot_chosen_before_the_one_in_front() -> None:
    """Slot 2 is chosen before slot 1, which is filled later; the log is applied in order, and
    ``next_index`` is unmoved by the hole."""
    cluster = led(limits=SMALL)
    cluster.hold_disk(1)  # the leader's own votes are not what decides here
    cluster.hold(lambda flight: any(e.index == 1 for e in getattr(flight.message, "entries", ())))
    first = cluster.propose(1, b"a")
    second = cluster.propose(1, b"b")
    cluster.settle()
    leader = engine_of(cluster, 1)
    assert 2 in leader.chosen
    assert leader.commit_index == 0
    assert (first.outcome, second.outcome) == (Outcome.PENDING, Outcome.PENDING)
    assert all(payloads(cluster, node_id) == [] for node_id in cluster.nodes)
    before = next_indexes(cluster)
    cluster.release()
    cluster.deliver(kind("accept"))
    assert next_indexes(cluster) == before == [3, 3]
    cluster.settle()
    cluster.tick(2)
    assert (first.outcome, second.outcome) == (Outcome.DONE, Outcome.DONE)
    assert all(payloads(cluster, node_id) == [b"a", b"b"] for node_id in cluster.nodes)


def test_hole_is_reported_at_once() -> None:
    """An Accept that was lost is sent again as soon as a later one shows the hole, without any time
    passing."""
    cluster = led(limits=SMALL)
    first = cluster.propose(1, b"a")
    assert cluster.drop(kind("accept")) == 2
    second = cluster.propose(1, b"b")
    cluster.settle()
    assert (first.outcome, second.outcome) == (Outcome.DONE, Outcome.DONE)
    assert cluster.now == 0
    assert next_indexes(cluster) == [3, 3]


def test_stuck_slot_holds_up_nobody() -> None:
    """While one slot is stuck, the slots behind it are chosen as they come; once it is filled they
    are all committed together."""
    cluster = led(limits=SMALL)
    cluster.hold(lambda flight: any(e.index == 1 for e in getattr(flight.message, "entries", ())))
    proposals = [cluster.propose(1, b"%d" % at) for at in range(10)]
    cluster.settle()
    assert engine_of(cluster, 1).chosen.ranges() == ((2, 10),)
    assert all(each.outcome is Outcome.PENDING for each in proposals)
    cluster.release()
    cluster.settle()
    assert all(each.outcome is Outcome.DONE for each in proposals)


def test_one_slot_at_two_ballots() -> None:
    """Two replicas learn one slot at two ballots, with equal results and equal machines."""
    cluster = Cluster(PLUGIN, machine=Kv)
    cluster.campaign(1)
    cluster.settle()
    proposal = cluster.propose(1, Kv.put.encode("k", b"v"))
    cluster.hold(kind("accept", to=3))
    cluster.hold(kind("commit"))  # node 2 has voted and does not know that the slot is chosen
    cluster.settle()
    assert proposal.outcome is Outcome.DONE
    cluster.crash(1)
    cluster.network.held.clear()
    cluster.release()
    # Node 3 leads, adopts the value from node 2's promise and proposes it at its own ballot.
    # Node 1 applied it as chosen at the first ballot and is not there.
    cluster.tick(15)
    cluster.campaign(3)
    cluster.settle()
    assert cluster.leader() == 3
    ballots = {
        node_id: cluster.nodes[node_id].disk.entries[proposal.index].term for node_id in (1, 3)
    }
    assert ballots[1] == b(1, 1)
    assert ballots[3] > ballots[1]
    applied = [cluster.nodes[node_id].applied[0].body for node_id in (1, 3)]
    assert applied[0] == applied[1]
    pages = [cluster.nodes[node_id].machine.dump(b"", 10) for node_id in (1, 3)]
    assert pages[0] == pages[1]


def test_accept_needs_nothing_before_it() -> None:
    """A node that has nothing accepts slot 100, and then slot 50."""
    engine = lone()
    for slot in (100, 50):
        engine.step(Accept(1, b(1, 1), 1, 2, 0, (vote(slot, b(1, 1)),)))
    carried_out(engine)
    assert engine.slots.held.ranges() == ((50, 50), (100, 100))
    assert engine.slots.last_index == 100


def test_nothing_is_ever_cut_off() -> None:
    """Over random runs with changes of leader no Ready ever asks the disk to void an entry."""
    for seed in range(10):
        cluster = Cluster(PLUGIN, seed=seed)
        cluster.run(200, drawn_faults(Random(seed), 20), propose_chance=0.5)
        assert "truncate_from" not in cluster.trace.text()


def names_in(path: Path) -> set[str]:
    """Every name that the code of a file uses, comments and docstrings aside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute | ast.FunctionDef | ast.arg | ast.keyword):
            found.add(str(getattr(node, "attr", None) or getattr(node, "name", None) or node.arg))  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_no_previous_entry_and_no_truncation(path: Path) -> None:
    """The engine's code knows no entry before and no truncation."""
    suspicious = [name for name in names_in(path) if "prev" in name or "truncat" in name]
    assert suspicious == []


def test_commit_marks_the_leaders_ballot_only() -> None:
    """A Commit chooses the slots in which the vote has the leader's ballot; in any other slot the
    value may be another, so it is asked for (PMS §2.2, P2b)."""
    mine = [vote(1, b(1, 1), b"old"), vote(2, b(2, 3), b"new")]
    engine = lone(promised=b(2, 3), entries=mine)
    engine.step(Commit(1, b(2, 3), 3, 2, chosen_upto=2, sent_upto=2, round=1))
    assert engine.commit_index == 0
    assert engine.chosen.ranges() == ((2, 2),)


def test_two_values_of_one_ballot_stop_the_node() -> None:
    """Two values in one slot at one ballot: somebody broke the protocol, and the node says so."""
    engine = lone()
    engine.step(Accept(1, b(1, 1), 1, 2, 0, (vote(1, b(1, 1), b"x"),)))
    with pytest.raises(InvariantViolated, match="slot 1"):
        engine.step(Accept(1, b(1, 1), 1, 2, 0, (vote(1, b(1, 1), b"y"),)))


def test_stable_leader_prepares_once() -> None:
    """With a stable leader K commands cost one Prepare round in all (PMS §3)."""
    cluster = led(5)
    for at in range(50):
        done(cluster, 1, b"%d" % at)
        cluster.tick()
    prepares = [line for line in cluster.trace.lines() if " send " in line and "prepare " in line]
    assert len(prepares) == 4 + 4  # the round that binds nobody, and phase 1


def test_bookkeeping_is_bounded() -> None:
    """What a leader remembers beside the log does not grow with the proposals that are done."""
    cluster = led(5)
    for at in range(300):
        done(cluster, 1, b"%d" % at)
    cluster.tick(4)
    leader = engine_of(cluster, 1)
    assert leader.leader is not None
    assert len(leader.chosen.ranges()) == 0
    assert all(len(each.ranges()) == 0 for each in leader.leader.accepted.values())
    assert len(leader.slots.held.ranges()) == len(leader.slots.durable.ranges()) == 1
    assert leader.leader.uncommitted_bytes == 0
