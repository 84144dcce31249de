"""Runs of Multi-Paxos that everybody should have read once, kept as traces.

A ballot is a round and its owner, ``round << 16 | node``: 65537 is round 1 of n1, 131074 round 2 of
n2, 196610 round 3 of n2.  The rest is as in ``test_golden_traces.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from golden import golden_text

from replog.envelope import pack_envelope
from replog.limits import Limits
from replog.storage.protocol import Recovered
from replog.stored_log import HeldLog
from replog.testing.cluster import Cluster
from replog.testing.network import Flight
from replog.testing.nodes import Outcome
from replog.types import Entry, EntryKind, HardState, Term, entry_body
from replog_multipaxos import PLUGIN, MultiPaxosOptions
from replog_multipaxos.ballot import ballot_of, owner_of

FOLDER = Path(__file__).resolve().parent / "multipaxos"

BY_HAND = MultiPaxosOptions(
    heartbeat_ticks=500,
    election_ticks_min=1000,
    election_ticks_max=2000,
    automatic_elections=False,
)
"""Nothing happens by itself: the test is the failure detector."""

BEATING = MultiPaxosOptions(automatic_elections=False)
"""The same with heartbeats."""

ONE_BY_ONE = Limits(message_bytes_max=1)
"""One entry per message."""


def slots_of(flight: Flight) -> Sequence[int]:
    """The slots of the entries in a message."""
    return [entry.index for entry in getattr(flight.message, "entries", ())]


def take_over() -> Cluster:
    """A leader dies with three slots open: one vote at n2, none, one vote at n3.

    n1 proposes a, b and c in slots 1 to 3 and dies before its own disk has any of them.  a has
    reached n2, c has reached n3, b nobody.  n2 is told to lead.  It promises itself ballot 131074,
    and asks; n3 promises and tells its vote for slot 3.  So n2 proposes at its own ballot: in slot
    1 its own vote, in slot 3 the value that it was told, and in slot 2, where nobody of the quorum
    has voted, a no-op.  All three are chosen, and applied in order.  n1 comes back, is not probed
    (its answer to the first heartbeat says where it stands), and is sent them.
    """
    cluster = Cluster(PLUGIN, BEATING, limits=ONE_BY_ONE)
    cluster.campaign(1)
    cluster.settle()
    cluster.hold_disk(1)
    lost = {(1, 3), (2, 2), (2, 3), (3, 2)}  # (slot, to)
    cluster.hold(lambda flight: any((slot, flight.to) in lost for slot in slots_of(flight)))
    for payload in (b"a", b"b", b"c"):
        cluster.propose(1, payload)
    cluster.hold(lambda flight: flight.to == 1)
    cluster.settle()
    cluster.remark("n1 dies; a is on n2, c on n3, b nowhere")
    cluster.crash(1)
    cluster.network.held.clear()
    cluster.release()
    cluster.campaign(2)
    cluster.settle()
    assert cluster.leader() == 2
    kinds = [entry.kind for entry in cluster.applied(3)]
    assert kinds == [EntryKind.COMMAND, EntryKind.NOOP, EntryKind.COMMAND]
    assert [entry.data[-1:] for entry in cluster.applied(3)] == [b"a", b"", b"c"]
    cluster.remark("n1 comes back")
    cluster.release_disk(1)
    cluster.restart(1)
    cluster.tick(2)
    assert cluster.is_converged()
    return cluster


def hole() -> Cluster:
    """Slot 2 is chosen before slot 1.

    The leader's disk stands still, so the two others decide.  Its Accept for slot 1 is lost to
    both; that for slot 2 arrives, is accepted by both and is chosen: n1 knows it, and can neither
    commit nor apply it, for slot 1 is open.  Both followers said at once that slot 1 never came
    (commit_reply, ranges=1), but what is sent again is held back for a while.  When it arrives,
    both slots are committed, in order.  next_index stands at 3 all the time.
    """
    cluster = Cluster(PLUGIN, BEATING, limits=ONE_BY_ONE)
    cluster.campaign(1)
    cluster.settle()
    cluster.hold_disk(1)
    cluster.propose(1, b"first")
    cluster.drop(lambda flight: slots_of(flight) == [1])
    cluster.hold(lambda flight: slots_of(flight) == [1])
    cluster.propose(1, b"second")
    cluster.settle()
    cluster.remark("slot 2 is chosen; slot 1 is not")
    assert cluster.nodes[1].replica.engine.status().commit_index == 0
    cluster.release()
    cluster.settle()
    assert [entry.data[-5:] for entry in cluster.applied(1)] == [b"first", b"econd"]
    cluster.release_disk(1)
    return cluster


def figure_8_chosen() -> Cluster:
    """Raft's figure 8 in Paxos: what a majority holds at the new leader's ballot is chosen.

    Before: n1 led at 131073 (round 2) and has its value in slot 2 on n2 as well; n5 led at 196613
    (round 3) and has another value in slot 2.  Now n1 leads again, at 262145 (round 4), with the
    promises of n2 and n3.  It finds its old value and proposes it *at its own ballot*: n2 and n3
    accept, and so slot 2 is chosen, though n1 dies before it knows.  n5 is told to lead and gets
    262149 (round 4, and above n1's).  n3 tells it what it accepted at 262145, which is above n5's
    own vote, so n5 adopts the value.  In Raft the same entry keeps its old term, and n5 replaces it
    (figure_8_overwritten).
    """
    disks = {
        1: disk([(1, 1), (2, 1)], promised=(3, 5)),
        2: disk([(1, 1), (2, 1)], promised=(2, 1)),
        3: disk([(1, 1)], promised=(3, 5)),
        4: disk([(1, 1)], promised=(3, 5)),
        5: disk([(1, 1), (3, 5)], promised=(3, 5)),
    }
    cluster = Cluster(PLUGIN, BY_HAND, node_count=5, disks=disks, limits=ONE_BY_ONE)
    cluster.crash(5)
    cluster.partition([1], [4])
    cluster.remark("n1 leads in round 4; nobody's answer to its Accepts arrives")
    cluster.hold(lambda flight: flight.kind == "accepted")
    cluster.campaign(1)
    cluster.settle()
    assert cluster.leader() == 1
    assert not cluster.invariants.chosen
    cluster.remark("n1 crashes; n5 leads")
    cluster.crash(1)
    cluster.network.held.clear()
    cluster.release()
    cluster.heal()
    cluster.restart(5)
    cluster.campaign(5)
    cluster.settle()
    assert cluster.leader() == 5
    assert cluster.applied(5)[1].data.endswith(b"2 of round 2")
    return cluster


def disk(votes: Sequence[tuple[int, int]], promised: tuple[int, int]) -> Recovered:
    """A disk with one vote per (round, owner) of ``votes``, and a promise."""
    entries = [vote(slot, ballot_of(*ballot)) for slot, ballot in enumerate(votes, 1)]
    ballot = ballot_of(*promised)
    return Recovered(HardState(1, ballot, owner_of(ballot)), HeldLog(entries))


def vote(slot: int, ballot: Term) -> Entry:
    """A command that names its slot and its round."""
    payload = b"%d of round %d" % (slot, ballot >> 16)
    body = entry_body(EntryKind.COMMAND, 1, ballot, slot, pack_envelope(payload, 0))
    return Entry(1, slot, ballot, body)


def fail_over() -> Cluster:
    """One command, and the death of a leader that has just sent another.

    x goes its usual way: sent to both while the leader's own disk works, on two disks, chosen,
    applied, answered.  y reaches n2 alone when n1 dies.  n3 is told to lead: it has not seen y and
    leads all the same, because n2's promise tells it.  n3 proposes y at its own ballot, in the slot
    in which it was, and n1's client was told that nobody knows.
    """
    cluster = Cluster(PLUGIN, BY_HAND)
    cluster.campaign(1)
    cluster.settle()
    cluster.remark("one command")
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.remark("the next one reaches n2 alone; then the leader dies")
    cluster.hold(lambda flight: flight.to == 3 or flight.sender == 2)
    proposal = cluster.propose(1, b"y")
    cluster.settle()
    cluster.crash(1)
    cluster.drop()
    cluster.network.held.clear()
    cluster.release()
    assert proposal.outcome is Outcome.UNKNOWN
    cluster.remark("n3 leads")
    cluster.campaign(3)
    cluster.settle()
    assert cluster.leader() == 3
    assert [entry.data[-1:] for entry in cluster.applied(3)] == [b"x", b"y"]
    return cluster


def install() -> Cluster:
    """A node comes back to others that have trimmed what it lacks.

    n3 is cut off while four commands are chosen.  All that can tell it of them, n1 and n2, take
    snapshots, and trim their slots behind these but for one.  n3 hears that more is chosen than it
    has and asks for it; it is told how far the slots are trimmed (trimmed).  It asks who has a
    snapshot that reaches as far, and fetches one in two chunks.  When its machine is filled, its
    disk is told where its slots begin, and n3 says up to where it holds what is chosen.
    """
    limits = Limits(trim_margin_entries=1, snapshot_chunk_bytes=400)
    cluster = Cluster(PLUGIN, BEATING, limits=limits)
    cluster.campaign(1)
    cluster.settle()
    cluster.remark("n3 is cut off")
    cut = cluster.isolate(3)
    for payload in (b"a", b"b", b"c", b"d"):
        cluster.propose(1, payload)
        cluster.settle()
    cluster.remark("n1 and n2 take snapshots, and trim their slots")
    for node_id in (1, 2):
        cluster.take_snapshot(node_id)
    cluster.tick()
    assert [cluster.nodes[node_id].disk.base_index for node_id in (1, 2)] == [3, 3]
    cluster.remark("n3 is back")
    cluster.mend(cut)
    assert cluster.run_until(cluster.is_converged, 60)
    assert cluster.nodes[3].installed_index == 4
    cluster.tick()
    assert cluster.nodes[3].disk.base_index == 4
    return cluster


SCENARIOS: Mapping[str, Callable[[], Cluster]] = {
    scenario.__name__: scenario
    for scenario in (take_over, hole, figure_8_chosen, fail_over, install)
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_trace_is_golden(name: str, pytestconfig: pytest.Config) -> None:
    """A scenario gives the very trace that was read and kept."""
    path = FOLDER / f"{name}.trace"
    text = golden_text(SCENARIOS[name])
    if pytestconfig.getoption("--rewrite", default=False):
        path.write_text(text)
    assert text.splitlines() == path.read_text().splitlines(), (
        "read the difference; if it is meant, run pytest tests/traces --rewrite"
    )


def test_golden_files_are_scenarios() -> None:
    """No golden file is left behind by a scenario that is gone."""
    assert sorted(path.stem for path in FOLDER.glob("*.trace")) == sorted(SCENARIOS)
