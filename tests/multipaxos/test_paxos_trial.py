"""The trial of Multi-Paxos: each of its goals can be come to, and each of its rules be broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

import paxos_bugs
import pytest
import shared_bugs
from paxos_given import SMALL, b, kind
from shared_bugs import Bug
from trial_runs import VOTERS, isolate_leader, run_quietly, violations, watched

from replog.plugins import find_engine
from replog.quorum import Threshold
from replog.storage.protocol import Recovered
from replog.stored_log import HeldLog
from replog.testing.checks import Check, Nodes, Violation
from replog.testing.cluster import Cluster
from replog.testing.faults import Faults
from replog.testing.goals import Goals
from replog.testing.network import Flight, kind_of
from replog.testing.nodes import ClusterNode
from replog.testing.trials import find_trial
from replog.types import Entry, EntryKind, HardState, LogIndex, NodeId, Ready, entry_body
from replog_multipaxos import PLUGIN, MultiPaxosOptions
from replog_multipaxos.messages import MESSAGE_TYPES
from replog_multipaxos.trial import TRIAL

BY_HAND = MultiPaxosOptions(automatic_elections=False)
SEEDS = range(20)
TROUBLE = Faults(
    drop_chance=0.1,
    duplicate_chance=0.1,
    reorder_chance=0.3,
    delay_ticks_max=1,
    late_chance=0.1,
    late_ticks_max=20,
    sync_ticks_max=2,
    cut_chance=0.1,
    cut_ticks_max=25,
    crash_chance=0.005,
    down_ticks_max=10,
    campaign_chance=0.1,
)


def tried(
    options: MultiPaxosOptions = BY_HAND,
    disks: dict[NodeId, Recovered] | None = None,
    rule: str = "",
    node_count: int = 3,
) -> tuple[Cluster, Goals]:
    """A quiet cluster that is watched; every message carries one entry."""
    return watched(PLUGIN, TRIAL, options, node_count, SMALL, disks, partial(heard, rule=rule))


def slots_in(flight: Flight) -> list[LogIndex]:
    """The slots whose values a message carries."""
    return [entry.index for entry in getattr(flight.message, "entries", ())]


# -- what it says of itself --


def test_trial_found() -> None:
    """The trial is installed under the engine's name, and its acknowledgements are messages."""
    trial = find_trial(find_engine("multipaxos"))
    assert trial is TRIAL
    assert set(TRIAL.acknowledgements) <= {kind_of(each) for each in MESSAGE_TYPES}
    quorum = TRIAL.commit_quorum(MultiPaxosOptions(phase1_quorum=4), VOTERS)
    assert quorum == Threshold(VOTERS, 2)


@pytest.mark.parametrize("node_count", [3, 5, 7])
def test_draw_options_valid(node_count: int) -> None:
    """All drawn options may be used together, and their quorums meet and differ."""
    drawn = [TRIAL.draw_options(Random(seed), node_count) for seed in range(50)]
    sizes: set[tuple[int, int]] = set()
    for options in drawn:
        assert isinstance(options, MultiPaxosOptions)
        assert not options.problems()
        phase1, phase2 = options.quorum_sizes(node_count)
        assert phase1 <= node_count < phase1 + phase2
        sizes.add((phase1, phase2))
    assert len(set(drawn)) > 10
    assert len(sizes) > 1


def test_election_ticks_max_preferred() -> None:
    """No timeout is longer than the trial says, with a preferred node or without one."""
    plain, preferred = MultiPaxosOptions(), MultiPaxosOptions(preferred_node=1)
    assert TRIAL.election_ticks_max(plain) < TRIAL.election_ticks_max(preferred)
    for options in (plain, preferred):
        longest = max(options.election_ticks(1, 2, b(1, 1), at, 0) for at in range(200))
        assert longest <= TRIAL.election_ticks_max(options)


# -- goals --


def test_quiet_run_reaches_nothing() -> None:
    """A cluster in which nothing goes wrong comes to no goal."""
    cluster, goals = tried(MultiPaxosOptions())
    run_quietly(cluster)
    assert len(cluster.applied(1)) > 30
    assert goals.reached == []


def test_reach_order_and_hole() -> None:
    """Slot 2 is chosen before slot 1; the next leader, told of slot 2 alone, fills the hole."""
    cluster, goals = tried()
    leave_hole(cluster)
    assert goals.reached == ["slots_chosen_out_of_order"]
    fill_hole(cluster)
    assert [entry.kind for entry in cluster.applied(2)] == [EntryKind.NOOP, EntryKind.COMMAND]
    assert goals.reached == ["hole_filled_by_noop", "slots_chosen_out_of_order"]


def leave_hole(cluster: Cluster) -> None:
    """Node 1 leads, and only its own disk has slot 1, while every one has slot 2."""
    cluster.campaign(1)
    cluster.settle()
    cluster.hold(lambda flight: 1 in slots_in(flight))
    cluster.propose(1, b"one")
    cluster.propose(1, b"two")
    cluster.settle()


def fill_hole(cluster: Cluster) -> None:
    """Node 1 is lost with what it sent, and node 2 leads."""
    cluster.isolate(1)
    cluster.release()
    cluster.campaign(2)
    cluster.settle()


def test_reach_adopted_value() -> None:
    """A new leader without any vote proposes what it was promised; one that holds the value itself
    adopts nothing."""
    bodies = [entry_body(EntryKind.NOOP, 1, b(1, 1), slot, b"") for slot in (1, 2)]
    votes = tuple(Entry(1, slot, b(1, 1), body) for slot, body in enumerate(bodies, 1))
    voted = Recovered(HardState(1, b(1, 1), 1), HeldLog(votes))
    disks = {1: voted, 2: voted}
    cluster, goals = tried(disks=disks)
    cluster.campaign(2)
    cluster.settle()
    assert goals.reached == []
    cluster, goals = tried(disks=disks)
    cluster.campaign(3)
    cluster.settle()
    assert cluster.is_converged()
    assert goals.reached == ["value_adopted_from_promise"]


def test_reach_two_ballots() -> None:
    """One node hands out a slot that it led to be chosen, another the same value of its own
    ballot."""
    cluster, goals = tried()
    cluster.campaign(1)
    cluster.settle()
    cluster.hold(kind("commit"))
    cluster.propose(1, b"x")
    cluster.settle()
    assert [len(cluster.applied(node_id)) for node_id in (1, 2, 3)] == [1, 0, 0]
    cluster.crash(1)
    assert goals.reached == []
    cluster.campaign(2)
    cluster.settle()
    assert [cluster.applied(node_id)[0].term for node_id in (1, 2)] == [b(1, 1), b(2, 2)]
    assert goals.reached == ["slot_learned_at_two_ballots"]


def refuse_both(cluster: Cluster) -> None:
    """Nodes 1 and 2 are both refused by their acceptors; what else was sent is held."""
    cluster.hold(lambda _: True)
    cluster.campaign(1)
    cluster.campaign(2)
    cluster.deliver(kind("prepare", sender=2, to=3))
    cluster.deliver(kind("prepare", sender=1, to=3))
    cluster.deliver(kind("nack", to=1))
    cluster.campaign(1)
    cluster.deliver(lambda flight: flight.kind == "prepare" and flight.term == b(2, 1))
    cluster.deliver(kind("prepare", sender=2, to=1))
    cluster.deliver(kind("nack", to=2))
    assert cluster.leader() == 0


def test_reach_duel() -> None:
    """Two proposers refuse each other by way of their acceptors, and then one of them leads."""
    cluster, goals = tried()
    refuse_both(cluster)
    assert goals.reached == []
    cluster.release()
    cluster.settle()
    assert cluster.leader() == 1
    assert goals.reached == ["duel_ended_by_back_off"]


def test_reach_no_duel_third_leads() -> None:
    """A duel that a third node ended was not ended by backing off, whoever leads after that."""
    cluster, goals = tried()
    refuse_both(cluster)
    cluster.partition((1,), (2,), (3,))
    cluster.release()
    cluster.settle()
    cluster.heal()
    for node_id in (3, 1):
        cluster.campaign(node_id)
        cluster.settle()
        assert cluster.leader() == node_id
    assert goals.reached == []


def test_reach_no_duel_leader_deposed() -> None:
    """One candidate that is refused makes no duel, nor does a leader that is deposed by it."""
    cluster, goals = tried()
    cluster.cut([(1, 2), (2, 1)])
    cluster.campaign(2)
    cluster.settle()
    cluster.campaign(1)
    cluster.settle()
    assert [cluster.nodes[node_id].status_seen.term for node_id in (1, 3)] == [b(1, 2)] * 2
    cluster.hold(kind("promise", to=1))
    cluster.campaign(1)
    cluster.tick(BY_HAND.heartbeat_ticks)
    assert cluster.leader() == 0
    cluster.release()
    cluster.settle()
    assert cluster.leader() == 1
    assert goals.reached == []


def test_reach_pre_round_refused() -> None:
    """Who hears a leader refuses to promise anybody else; a ballot that is refused is another
    thing."""
    cluster, goals = tried(MultiPaxosOptions())
    cluster.campaign(1)
    cluster.settle()
    assert cluster.leader() == 1
    assert goals.reached == []
    cluster.campaign(3)
    cluster.settle()
    assert cluster.leader() == 1
    assert goals.reached == ["pre_round_refused"]


def test_reach_check_quorum_step_down() -> None:
    """A leader that is cut off gives up by itself; one that hears of a higher ballot, or crashes,
    does not."""
    cluster, goals = tried()
    for node_id in (1, 2, 1):
        cluster.campaign(node_id)
        cluster.settle()
    cluster.crash(1)
    cluster.restart(1)
    cluster.campaign(2)
    cluster.settle()
    assert goals.reached == []
    isolate_leader(cluster, 2, 2 * BY_HAND.election_ticks_min)
    assert goals.reached == ["check_quorum_step_down"]


# -- rules --


BUGS: Sequence[tuple[str, str, Bug, str]] = (
    ("P1", "two values in slot", paxos_bugs.other_bytes_sent, ""),
    ("P2", "is chosen at ballot", paxos_bugs.open_slots_emptied, "P2"),
    ("P3", "accepts slot", paxos_bugs.refused_gets_vote, ""),
    ("P3", "replaces its record", paxos_bugs.refused_replaces_vote, ""),
    ("P4", "acts at ballot", paxos_bugs.foreign_ballot_taken, ""),
    ("P5", "states ballot", paxos_bugs.no_sync_awaited, ""),
    ("P5", "states slot ", paxos_bugs.accepted_before_sync, ""),
    ("P5", "states slots up to", paxos_bugs.position_told_early, ""),
    ("P6", "takes its vote in slot", paxos_bugs.written_taken_for_durable, ""),
    ("P6", "takes its vote in slot", paxos_bugs.replaced_stays_durable, ""),
    ("P6", "counts a vote of node", shared_bugs.sent_taken_for_held, ""),
    ("P7", "leads at ballot", paxos_bugs.one_promise_too_few, ""),
    ("P7", "leads at ballot", paxos_bugs.first_page_is_enough, ""),
    ("P7", "leads at ballot", paxos_bugs.leads_before_sync, "P7"),
    ("P8", "leaves out its vote", paxos_bugs.promise_omits_chosen, ""),
    ("P9", "proposes another value", paxos_bugs.open_slots_emptied, ""),
    ("P10", "messages on their way", shared_bugs.window_ignored, ""),
    ("P10", "messages on their way", shared_bugs.every_other_counted, ""),
    ("P10", "bytes of messages on their way", shared_bugs.bytes_window_ignored, ""),
    ("P10", "in one message", paxos_bugs.message_size_ignored, ""),
    ("P10", "bytes uncommitted", paxos_bugs.uncommitted_ignored, ""),
    ("P10", "takes a proposal", paxos_bugs.open_slots_ignored, ""),
    ("P11", "is in term", paxos_bugs.nack_raises_no_promise, ""),
)
"""The rule, words of what it says, the bug that breaks it in random runs, and the only rule of the
engine's that is heard (``""``: all)."""


def ask_twice(cluster: Cluster) -> None:
    """Node 1 asks for a ballot, and crashes before its promise is on disk; then it asks again."""
    cluster.campaign(2)
    cluster.settle()
    cluster.hold_disk(1)
    cluster.campaign(1)
    cluster.crash(1)
    cluster.release_disk(1)
    cluster.restart(1)
    cluster.campaign(1)
    cluster.settle()
    assert cluster.leader() == 1


def leave_and_fill_hole(cluster: Cluster) -> None:
    """Node 2 leads, and has to fill a hole."""
    leave_hole(cluster)
    fill_hole(cluster)
    assert cluster.leader() == 2


def lose_a_disk(cluster: Cluster) -> None:
    """Node 3 holds what was chosen, and comes back with an empty disk."""
    cluster.campaign(1)
    cluster.settle()
    cluster.propose(1, b"x")
    cluster.tick(BY_HAND.heartbeat_ticks)
    cluster.crash(3)
    cluster.rejoin(3)
    assert cluster.run_until(cluster.is_converged, 100)


def learn_of_next_ballot(cluster: Cluster) -> None:
    """Node 3 lacks what node 1 got chosen, and is told it by node 2, which asks for a ballot of
    its own; nothing but that fact tells node 3 of the ballot."""
    cluster.campaign(1)
    cluster.settle()
    cluster.hold(lambda flight: flight.link == (1, 3) and slots_in(flight) == [1])
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.hold(lambda flight: flight.link == (2, 1) or flight.kind == "prepare")
    cluster.campaign(2)
    cluster.tick(4 * BY_HAND.heartbeat_ticks)
    assert len(cluster.applied(3)) == 1
    assert cluster.nodes[3].status_seen.term == b(2, 2)


def ask_holder_of_old_vote(cluster: Cluster) -> None:
    """Node 3 lacks what node 2 got chosen, and asks node 1, which holds what node 5 proposed in
    that slot before."""
    cluster.campaign(5)
    cluster.settle()
    cluster.hold(lambda flight: flight.sender == 5 and flight.to != 1 and slots_in(flight) == [1])
    cluster.propose(5, b"old")
    cluster.settle()
    cuts = [cluster.isolate(1), cluster.isolate(5)]
    cluster.campaign(2)
    cluster.settle()
    for cut in cuts:
        cluster.mend(cut)
    cluster.hold(lambda flight: flight.link in ((2, 1), (2, 3)) and slots_in(flight) == [1])
    cluster.propose(2, b"young")
    cluster.tick(5 * BY_HAND.heartbeat_ticks)
    assert len(cluster.applied(3)) == 1


SCRIPTS: Sequence[tuple[str, str, Bug, Callable[[Cluster], None], str, int]] = (
    ("P6", "which that never said", paxos_bugs.lost_peer_remembered, lose_a_disk, "", 3),
    ("P4", "two runs of node", paxos_bugs.no_sync_awaited, ask_twice, "P4", 3),
    (
        "P9",
        "proposes an older value",
        paxos_bugs.hole_gets_value,
        leave_and_fill_hole,
        "",
        3,
    ),
    ("P11", "is in term", paxos_bugs.learn_raises_no_promise, learn_of_next_ballot, "", 3),
    ("P12", "as a fact", paxos_bugs.votes_told_as_facts, ask_holder_of_old_vote, "", 5),
)
"""The same for what random runs come to too seldom, with what has to happen and among how many."""


class Hears(Check):
    """Lets another check see everything, and passes on what it says of one rule alone."""

    def __init__(self, check: Check, rule: str) -> None:
        self._check = check
        self._rule = rule

    def _heard(self, sentence: str) -> str:
        return sentence if sentence.startswith(f"{self._rule}:") else ""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """A message has left."""
        return self._heard(self._check.check_sent(nodes, flight))

    def check_received(self, nodes: Nodes, node: ClusterNode, flight: Flight) -> str:
        """A message is about to be received."""
        return self._heard(self._check.check_received(nodes, node, flight))

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """A Ready was handed out."""
        return self._heard(self._check.check_ready(nodes, node, ready))

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """An event was dealt with."""
        return self._heard(self._check.check_event(nodes, node))


def heard(checks: Sequence[Check], rule: str) -> Sequence[Check]:
    """Checks of which one rule alone is heard (``""``: all)."""
    return [Hears(check, rule) for check in checks] if rule else checks


def broken_rules(rule: str = "") -> Iterator[Violation]:
    """What random runs find, one after the other; ``rule`` is the only one of the engine's that is
    heard (``""``: all are)."""
    return violations(PLUGIN, TRIAL, SEEDS, TROUBLE, partial(heard, rule=rule))


@pytest.mark.parametrize(
    ("rule", "words", "bug", "only"), BUGS, ids=[f"{row[0]}-{row[2].__name__}" for row in BUGS]
)
def test_find_broken_rule(
    rule: str, words: str, bug: Bug, only: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rule is broken by a bug, and says so by its number."""
    bug(monkeypatch)
    found = broken_rules(only)
    assert any(each.invariant == rule and words in each.sentence for each in found)


@pytest.mark.parametrize(
    ("rule", "words", "bug", "script", "only", "node_count"),
    SCRIPTS,
    ids=[f"{row[0]}-{row[2].__name__}" for row in SCRIPTS],
)
def test_find_broken_rule_script(
    rule: str,
    words: str,
    bug: Bug,
    script: Callable[[Cluster], None],
    only: str,
    node_count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A script breaks a rule by a bug, and none without it."""
    script(tried(node_count=node_count)[0])
    bug(monkeypatch)
    with pytest.raises(Violation, match=words) as raised:
        script(tried(rule=only, node_count=node_count)[0])
    assert raised.value.invariant == rule


def test_find_nothing_without_bug() -> None:
    """The very same runs break no rule when there is no bug."""
    assert list(broken_rules()) == []
