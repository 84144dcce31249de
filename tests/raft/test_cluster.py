"""The test cluster does what it says: its disks, links, faults and controls, and its invariants."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from replog.errors import NotLeader, OutcomeUnknown
from replog.storage.protocol import Recovered, Write
from replog.stored_log import HeldLog
from replog.testing.agenda import Agenda
from replog.testing.chance import Chance
from replog.testing.checks import Check, Nodes, Violation
from replog.testing.cluster import Cluster
from replog.testing.disk import Disk, is_same
from replog.testing.faults import Faults, draw_delays, drawn_faults
from replog.testing.network import Flight, kind_of
from replog.testing.nodes import ClusterNode, Outcome, Proposal, Recorder
from replog.testing.trace import Trace, entries_text, payload_text
from replog.types import Entry, EntryKind, HardState, NodeId, Ready, Role, entry_body
from replog_raft import PLUGIN, Raft, RaftOptions

OPTIONS = RaftOptions(heartbeat_ticks=10, election_ticks_min=100, election_ticks_max=2000)


def led(node_count: int = 3, sync_ticks: int = 0, seed: int = 0) -> Cluster:
    """A cluster that node 1 leads, with its first no-op applied everywhere."""
    cluster = Cluster(PLUGIN, OPTIONS, node_count=node_count, sync_ticks=sync_ticks, seed=seed)
    cluster.campaign(1)
    cluster.settle()
    cluster.tick(5 * sync_ticks)
    assert cluster.leader() == 1
    assert cluster.is_converged()
    return cluster


def events(cluster: Cluster) -> list[str]:
    """The event column of the whole trace."""
    return [line.split()[2] for line in cluster.trace.lines()]


def payloads(cluster: Cluster, node_id: NodeId) -> list[bytes]:
    """What the machine of a node was given."""
    machine = cluster.nodes[node_id].machine
    assert isinstance(machine, Recorder)
    return machine.payloads


def noop(index: int, term: int) -> Entry:
    """An entry that carries nothing."""
    return Entry(1, index, term, entry_body(EntryKind.NOOP, 1, term, index, b""))


def write(
    hard_state: HardState | None = None,
    truncate_from: int | None = None,
    entries: Sequence[Entry] = (),
) -> list[Write]:
    """A group of one write."""
    return [Write(hard_state, truncate_from, entries)]


# -- time and disks --


def test_agenda_keeps_order() -> None:
    """What is planned comes by tick, then by priority, then in the order of planning."""
    agenda, came = Agenda(), list[str]()
    agenda.plan(1, lambda: came.append("later"))
    agenda.plan(0, lambda: came.append("first"))
    agenda.plan(0, lambda: came.append("second"))
    agenda.plan(0, lambda: came.append("before them"), priority=-1)
    for now in (0, 1):
        agenda.now = now
        while (act := agenda.take_due()) is not None:
            act()
    assert came == ["before them", "first", "second", "later"]


def test_disk_syncs_in_order() -> None:
    """The synced layer takes one group after the other: the last write per index wins."""
    disk = Disk(Recovered(None, HeldLog()))
    disk.write(write(HardState(1, 1, 2), None, [noop(1, 1), noop(2, 1), noop(3, 1)]), due=5)
    late = disk.write(write(None, 2, [noop(2, 3)]), due=0)
    assert late.due == 5  # never before the one ahead of it
    assert is_same(disk.recover(), Recovered(None, HeldLog()))
    disk.sync_next()
    assert list(disk.entries) == [1, 2, 3]
    disk.sync_next()
    assert is_same(disk.recover(), Recovered(HardState(1, 1, 2), HeldLog((noop(1, 1), noop(2, 3)))))


def test_disk_loses_pending() -> None:
    """A crash loses what was not synced and nothing else."""
    disk = Disk(Recovered(None, HeldLog((noop(1, 1),))))
    disk.write(write(entries=[noop(2, 1)]), due=1)
    assert disk.crash() == 1
    assert disk.entries == {1: noop(1, 1)}


def test_sync_latency_delays_acknowledgement() -> None:
    """With slow disks a proposal is done when a quorum's writes have had their ticks."""
    cluster = led(sync_ticks=3)
    proposal = cluster.propose(1, b"x")
    cluster.settle()
    cluster.tick(2)
    before = proposal.outcome
    cluster.tick()
    assert (before, proposal.outcome) == (Outcome.PENDING, Outcome.DONE)
    assert proposal.result == proposal.index == 2


def test_paused_node_syncs_later() -> None:
    """A write whose tick comes while its node is paused is durable when the node goes on."""
    cluster = led(sync_ticks=3)
    cluster.propose(1, b"x")
    cluster.pause(1)
    cluster.tick(5)
    waiting = len(cluster.nodes[1].disk.pending)
    cluster.resume(1)
    assert (waiting, len(cluster.nodes[1].disk.pending)) == (1, 0)


def test_held_disk_acknowledges_nothing() -> None:
    """Several Readys can be on their way to disk; synced one by one, each lets its own ack go."""
    cluster = led()
    cluster.hold_disk(2)
    for payload in (b"a", b"b"):
        cluster.propose(1, payload)
        cluster.settle()
    # Each append, and each answer that must not overtake its sync, waits in its turn.
    held = len(cluster.nodes[2].disk.pending)
    assert held >= 2
    sent = cluster.network.sent_count
    cluster.tick(5)
    assert [flight.kind for flight in cluster.network.matching(None)] == []
    assert cluster.network.sent_count == sent
    cluster.sync(2, count=1)
    assert [flight.kind for flight in cluster.network.matching(None)] == ["append_reply"]
    cluster.release_disk(2)
    assert not cluster.nodes[2].disk.pending
    cluster.settle()
    assert cluster.is_converged()


def test_crash_loses_unsynced_writes() -> None:
    """A crash with nothing kept forgets the entry; one that keeps a prefix finds it again."""
    for kept, last_index in ((0, 1), (1, 2)):
        cluster = led()
        cluster.hold_disk(1)
        proposal = cluster.propose(1, b"x")
        cluster.drop()
        cluster.crash(1, kept=kept)
        assert proposal.outcome is Outcome.UNKNOWN
        assert isinstance(proposal.error, OutcomeUnknown)
        cluster.restart(1)
        assert cluster.nodes[1].status_seen.last_index == last_index


def test_restart_applies_again() -> None:
    """A restarted node builds a new machine by applying its log from the start."""
    cluster = led()
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.crash(3)
    cluster.restart(3)
    assert payloads(cluster, 3) == []
    cluster.tick(20)
    assert payloads(cluster, 3) == [b"x"]
    assert cluster.nodes[3].run == 2


# -- messages and links --


def test_deliver_chooses() -> None:
    """Messages arrive one by one or as chosen, and what they cause waits for its own turn."""
    cluster = led()
    cluster.propose(1, b"x")
    assert [flight.to for flight in cluster.network.matching(None)] == [2, 3]
    assert cluster.deliver(lambda flight: flight.to == 3) == 1
    assert [flight.link for flight in cluster.network.matching(None)] == [(1, 2), (3, 1)]
    assert cluster.deliver(count=1) == 1
    assert [flight.link for flight in cluster.network.matching(None)] == [(3, 1), (2, 1)]


def test_hold_and_release() -> None:
    """A hold keeps back what is on its way and what is sent later; a release lets it arrive."""
    cluster = led()
    first = cluster.propose(1, b"x")

    def is_append(flight: Flight) -> bool:
        return flight.kind == "append_entries"

    cluster.hold(is_append)
    second = cluster.propose(1, b"y")
    cluster.settle()
    assert {first.outcome, second.outcome} == {Outcome.PENDING}
    assert len(cluster.network.held) == 4
    cluster.release(is_append)
    cluster.settle()
    assert {first.outcome, second.outcome} == {Outcome.DONE}


def test_drop_and_duplicate() -> None:
    """A dropped message never arrives; a duplicate arrives as often as it was sent."""
    cluster = led()
    cluster.propose(1, b"x")
    assert cluster.drop(lambda flight: flight.to == 2) == 1
    assert cluster.duplicate(lambda flight: flight.to == 3, ticks=2) == 1
    cluster.settle()
    assert payloads(cluster, 2) == []
    before = events(cluster).count("recv")
    cluster.tick(2)
    assert events(cluster).count("recv") == before + 2  # the duplicate, and its answer
    assert payloads(cluster, 3) == [b"x"]


def test_one_way_cut() -> None:
    """A cut is one-way: what goes there is lost, at sending and on its way; the rest arrives."""
    cluster = led()
    cluster.propose(1, b"x")
    cut = cluster.cut([(1, 2)])
    cluster.settle()
    assert payloads(cluster, 2) == []
    assert payloads(cluster, 3) == [b"x"]
    cluster.campaign(2)
    cluster.deliver(count=1)
    assert cluster.trace.lines(-1)[0].split()[2:5:2] == ["recv", "n2>n1"]
    cluster.mend(cut)
    cluster.mend(cut)  # does nothing
    assert events(cluster).count("heal") == 1


def test_isolated_leader_commits_nothing() -> None:
    """A partition cuts every link between its groups, and the other side can go on."""
    cluster = led()
    cluster.isolate(1)
    lost = cluster.propose(1, b"lost")
    cluster.tick(100)
    cluster.campaign(2)
    cluster.settle()
    assert cluster.leader() == 2
    kept = cluster.propose(2, b"kept")
    cluster.settle()
    assert kept.outcome is Outcome.DONE
    cluster.heal()
    cluster.tick(100)
    assert lost.outcome is Outcome.UNKNOWN
    assert [payloads(cluster, node_id) for node_id in (1, 2, 3)] == [[b"kept"]] * 3


def test_paused_node_reads_later() -> None:
    """A paused node neither ticks nor syncs nor answers; what arrived waits for it."""
    cluster = led()
    cluster.pause(3)
    cluster.propose(1, b"x")
    cluster.settle()
    assert cluster.nodes[3].inbox
    assert payloads(cluster, 3) == []
    cluster.resume(3)
    cluster.settle()
    assert payloads(cluster, 3) == [b"x"]


def test_messages_to_the_dead_are_lost() -> None:
    """What arrives at a node that is down is dropped, also what waited when it crashed paused."""
    cluster = led()
    cluster.pause(3)
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.crash(3)
    cluster.propose(1, b"y")
    cluster.settle()
    assert sum("reason=down" in line for line in cluster.trace.lines()) >= 2


# -- proposals and liveness --


def test_proposal_refused() -> None:
    """A proposal at a node that does not lead is definitely not done, and says who leads."""
    cluster = led()
    proposal = cluster.propose(2, b"x")
    assert proposal.outcome is Outcome.NOT_DONE
    assert isinstance(proposal.error, NotLeader)
    assert proposal.error.leader_id == 1


def test_proposal_ends_once() -> None:
    """A waiter that is called twice is a mistake that the cluster does not forgive."""
    proposal = Proposal(1, 1, b"x", lambda *_: None)
    proposal.end(0, None, OutcomeUnknown("lost"))
    with pytest.raises(AssertionError, match="twice"):
        proposal.end(0, None, OutcomeUnknown("lost"))


def test_liveness_demanded() -> None:
    """A cluster without a quorum fails the demand for a leader, and calm mends it."""
    cluster = led()
    cluster.crash(1)
    cluster.crash(2)
    cluster.isolate(3)
    with pytest.raises(Violation, match="no leader after 50 ticks"):
        cluster.check_liveness(50, 50)
    cluster.calm()
    cluster.check_liveness(4000, 500)


def test_single_node_commits_alone() -> None:
    """A cluster of one needs no messages."""
    cluster = led(node_count=1)
    assert cluster.propose(1, b"x").outcome is Outcome.DONE
    assert cluster.network.sent_count == 0


# -- chance --


def test_run_repeats() -> None:
    """The same seed gives the same trace, whatever ran before in this process."""

    def trace(seed: int) -> str:
        cluster = Cluster(PLUGIN, RaftOptions(2, 8, 16), seed=seed)
        cluster.run(80, drawn_faults(cluster.random, 16), propose_chance=0.5)
        return cluster.trace.text()

    first, other = trace(3), trace(4)
    assert first == trace(3)
    assert first != other


def test_quiet_run_has_no_faults() -> None:
    """Without faults a run loses nothing and keeps its leader."""
    cluster = led()
    cluster.run(60, propose_chance=0.5)
    assert not {"drop", "duplicate", "crash", "pause", "partition"} & set(events(cluster))
    assert {proposal.outcome for proposal in cluster.proposals if proposal.node_id == 1} == {
        Outcome.DONE
    }


def test_delays_drawn() -> None:
    """A message is lost, late or doubled exactly when the chances say so."""
    chance = Chance(1)
    assert draw_delays(Faults(), chance) == (0,)
    assert draw_delays(Faults(drop_chance=1.0), chance) == ()
    assert len(draw_delays(Faults(duplicate_chance=1.0, late_ticks_max=9), chance)) == 2
    drawn = {draw_delays(Faults(delay_ticks_max=2), chance)[0] for _ in range(100)}
    assert drawn == {0, 1, 2}
    late = [draw_delays(Faults(late_chance=1.0, late_ticks_max=50), chance)[0] for _ in range(50)]
    assert max(late) > 25


# -- the trace --


def test_entries_rendered_by_runs() -> None:
    """Entries are shown by runs of one term at contiguous indexes."""
    entries = [noop(1, 1), noop(2, 1), noop(3, 2), noop(5, 2)]
    assert entries_text(entries) == "1..2@t1,3@t2,5@t2"
    assert entries_text([]) == "-"


def test_payload_rendered_on_one_line() -> None:
    """A payload is cut and escaped, so that it never breaks a line or holds a bare quote."""
    assert payload_text(b'a "b"\n\xff') == r'"a \"b\"\n\u00ff"'
    assert payload_text(b"x" * 25) == '"' + "x" * 24 + '.."'


def test_kinds_in_snake_case() -> None:
    """A message is named after its record."""
    assert [kind_of(spec.record) for spec in PLUGIN.messages][:4] == [
        "request_vote",
        "vote",
        "append_entries",
        "append_reply",
    ]


def test_message_spelled_again_when_late() -> None:
    """A message that arrives soon is named; one that arrives many lines later is spelled out."""
    trace = Trace(PLUGIN.messages)
    cluster = led()
    cluster.propose(1, b"x")
    flight = cluster.network.matching(None)[0]
    flight.line = 0
    for event, filler in (("send", 0), ("recv", 0), ("recv", 30)):
        for _ in range(filler):
            trace.add(0, 1, "remark")
        trace.add_flight(0, 1, event, flight)
    spelled = ["entries=2@t1" in line for line in trace.lines() if "remark" not in line]
    assert spelled == [True, False, True]


# -- the invariants can fail --


def as_leader_of_term_1(cluster: Cluster, node_id: NodeId) -> Raft:
    """Make a node take itself for the leader of term 1."""
    raft = cluster.nodes[node_id].replica.engine
    assert isinstance(raft, Raft)
    raft.become_leader()
    raft.voted_for = node_id
    return raft


def test_second_leader_found() -> None:
    """I1: two nodes that lead in one term are found, whatever they say of themselves."""
    cluster = led()
    as_leader_of_term_1(cluster, 2)
    with pytest.raises(Violation, match="I1: node 2"):
        cluster.tick()


def test_other_value_found() -> None:
    """I2: a node that applies another value at an index is found; its term does not matter."""
    cluster = led()
    node = cluster.nodes[1]
    cluster.invariants.chosen[2] = noop(2, 7)
    with pytest.raises(Violation, match="I2: node 1 applies another value at index 2"):
        cluster.propose(1, b"x")
        cluster.settle()
    assert node.applied_index == 1


def test_same_value_of_other_term_passes() -> None:
    """I2: the same body under another term is the same value."""
    cluster = led()
    chosen = cluster.invariants.chosen[1]
    again = Entry(chosen.epoch, 1, chosen.term + 5, chosen.body)
    cluster.nodes[3].handed_index = 0
    cluster.invariants.check_ready(cluster.nodes[3], Ready((), None, None, (), (), (again,), None))


def test_gap_found() -> None:
    """I3: an entry that is applied out of turn is found."""
    cluster = led()
    raft = cluster.nodes[2].replica.engine
    assert isinstance(raft, Raft)
    raft._handed_index = 0
    with pytest.raises(Violation, match="I3: node 2 hands out entry 1 after 1"):
        cluster.tick()


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        (HardState(1, 9, 0), "I4: node 1 wrote term 1 over 9"),
        (HardState(1, 1, 3), "I4: node 1 changed its vote of term 1 from node 3 to node 1"),
    ],
)
def test_forgotten_hard_state_found(before: HardState, sentence: str) -> None:
    """I4: a term that falls on disk, and a vote that changes within its term, are found."""
    cluster = Cluster(PLUGIN, OPTIONS)
    cluster.campaign(1)
    node = cluster.nodes[1]
    node.disk.hard_state = before
    with pytest.raises(Violation) as caught:
        cluster.settle()
    assert sentence in caught.value.sentence


def test_commit_without_quorum_found() -> None:
    """I5: an entry that is reported as committed and is on no quorum's disk is found."""
    cluster = led()
    cluster.propose(1, b"x")
    cluster.deliver(lambda flight: flight.to > 1)
    del cluster.nodes[1].disk.entries[2], cluster.nodes[2].disk.entries[2]
    with pytest.raises(Violation, match="I5: node 1 reports entry 2 as committed"):
        cluster.settle()


def test_voided_committed_entry_found() -> None:
    """I5: a write that takes a committed entry from the last quorum is found at that write."""
    cluster = led()
    node: ClusterNode = cluster.nodes[1]
    voiding = write(truncate_from=1)
    cluster.nodes[2].disk.write(voiding, due=0)
    cluster.invariants.check_write(cluster.nodes[2], voiding, cluster.nodes[2].disk.sync_next)
    node.disk.write(voiding, due=0)
    with pytest.raises(Exception, match="I5: node 1 voided entry 1"):
        cluster.invariants.check_write(node, voiding, node.disk.sync_next)


def test_lost_proposal_found() -> None:
    """I6: a proposal that was reported done and is not at its index is found."""
    cluster = led()
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.check_acknowledged()
    cluster.nodes[3].applied[1] = noop(2, 1)
    with pytest.raises(Violation, match="I6: node 3 lost proposal 1"):
        cluster.check_acknowledged()


def test_wrong_acknowledgement_found() -> None:
    """I6: a proposal is judged in the very turn in which it is reported done."""
    cluster = led()
    proposal = cluster.propose(1, b"x")
    proposal.payload = b"y"
    with pytest.raises(Violation, match="I6: proposal 1 was reported done"):
        cluster.settle()


def test_fallen_term_found() -> None:
    """I7: a node whose term is below what its disk holds is found."""
    cluster = led()
    cluster.nodes[2].disk.hard_state = HardState(1, 4, 0)
    with pytest.raises(Violation, match="I7: node 2 is in term 1 after it was in 4"):
        cluster.tick()


def test_fallen_match_found() -> None:
    """I8: a leader that knows a peer to hold less than before is found."""
    cluster = led()
    raft = cluster.nodes[1].replica.engine
    assert isinstance(raft, Raft)
    assert raft.leader is not None
    raft.leader.progress[2].match_index = 0
    with pytest.raises(Violation, match="I8: node 1 knew node 2 to hold 1, and now only 0"):
        cluster.tick()


def test_violation_shows_trace() -> None:
    """A violation names the seed and ends with the last lines of the trace."""
    cluster = led(seed=5)
    as_leader_of_term_1(cluster, 2)
    cluster.remark("it was here")
    with pytest.raises(Violation) as caught:
        cluster.tick()
    assert caught.value.seed == 5
    assert "(seed 5)" in str(caught.value)
    assert any("it was here" in line for line in caught.value.trace_tail)


def test_outside_check_heard() -> None:
    """A rule from outside is asked about every message and every event, and can end the run."""

    class NoSecondLeader(Check):
        def __init__(self) -> None:
            self.sent_count = 0

        def check_sent(self, nodes: Nodes, flight: Flight) -> str:
            self.sent_count += 1
            return ""

        def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
            role = node.replica.engine.soft_state.role
            return "somebody leads" if role is Role.LEADER else ""

    check = NoSecondLeader()
    cluster = Cluster(PLUGIN, OPTIONS, checks=[check])
    cluster.campaign(1)
    with pytest.raises(Violation, match="somebody leads"):
        cluster.settle()
    assert check.sent_count == cluster.network.sent_count


def test_crash_of_the_engine_is_a_violation() -> None:
    """Whatever an engine raises ends the run with the trace, not with a bare traceback."""
    cluster = led()
    raft = cluster.nodes[2].replica.engine
    assert isinstance(raft, Raft)
    raft.commit_index = 9
    with pytest.raises(Violation, match=r"InvariantViolated|AssertionError"):
        cluster.tick()
