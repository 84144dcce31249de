"""The trial of Raft: each of its goals can be come to, and each of its rules can be broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from types import UnionType

import pytest
import raft_bugs
import shared_bugs
from shared_bugs import Bug
from trial_runs import isolate_leader, run_quietly, violations, watched

from replog.limits import Limits
from replog.plugins import find_engine
from replog.quorum import Majority, QuorumSystem, Threshold
from replog.storage.protocol import Recovered
from replog.stored_log import HeldLog
from replog.testing.checks import Check, Violation
from replog.testing.cluster import Cluster
from replog.testing.faults import Faults
from replog.testing.goals import Goals
from replog.testing.network import Flight, kind_of
from replog.testing.trials import find_trial
from replog.types import (
    Entry,
    EntryKind,
    HardState,
    NodeId,
    Role,
    Term,
    entry_body,
)
from replog_raft import PLUGIN, RaftOptions
from replog_raft.checks import (
    CommitsOwnTerm,
    Elections,
    LeaderCompleteness,
    StatesWhatIsDurable,
    WrittenLogs,
)
from replog_raft.limit_checks import WithinLimits
from replog_raft.messages import MESSAGE_TYPES
from replog_raft.trial import TRIAL

BY_HAND = RaftOptions(automatic_elections=False)
ONE_BY_ONE = Limits(message_bytes_max=1)
TROUBLE = Faults(
    drop_chance=0.1,
    duplicate_chance=0.2,
    reorder_chance=0.3,
    delay_ticks_max=1,
    sync_ticks_max=2,
    cut_chance=0.1,
    cut_ticks_max=25,
    campaign_chance=0.1,
)
SEEDS = range(30)


def tried(
    node_count: int = 3,
    options: RaftOptions = BY_HAND,
    limits: Limits | None = None,
    disks: dict[NodeId, Recovered] | None = None,
) -> tuple[Cluster, Goals]:
    """A quiet cluster that is watched."""
    return watched(PLUGIN, TRIAL, options, node_count, limits, disks)


def disk(terms: Sequence[Term], term: Term, voted_for: NodeId = 0) -> Recovered:
    """A disk with a no-op of each of these terms."""
    entries = tuple(
        Entry(1, index, each, entry_body(EntryKind.NOOP, 1, each, index, b""))
        for index, each in enumerate(terms, 1)
    )
    return Recovered(HardState(1, term, voted_for), HeldLog(entries))


# -- what it says of itself --


def test_trial_found() -> None:
    """The trial is installed under the engine's name, and its acknowledgements are messages."""
    trial = find_trial(find_engine("raft"))
    assert trial is TRIAL
    assert set(TRIAL.acknowledgements) <= {kind_of(each) for each in MESSAGE_TYPES}
    assert TRIAL.commit_quorum(RaftOptions(), (1, 2, 3)) == Majority((1, 2, 3))


def test_draw_options_valid() -> None:
    """All drawn options may be used together, and differ."""
    drawn = [TRIAL.draw_options(Random(seed), 3) for seed in range(50)]
    assert all(isinstance(each, RaftOptions) and not each.problems() for each in drawn)
    assert len(set(drawn)) > 10


def test_election_ticks_max_preferred() -> None:
    """With a preferred node the others wait longer."""
    plain, preferred = RaftOptions(), RaftOptions(preferred_node=1)
    assert TRIAL.election_ticks_max(plain) < TRIAL.election_ticks_max(preferred)
    for options in (plain, preferred):
        longest = max(options.election_ticks(1, 2, 1, at) for at in range(200))
        assert longest <= TRIAL.election_ticks_max(options)


# -- goals --


def test_quiet_run_reaches_nothing() -> None:
    """A cluster in which nothing goes wrong comes to no goal."""
    cluster, goals = tried(options=RaftOptions())
    run_quietly(cluster)
    assert goals.reached == []


def test_reach_truncation_and_step_back() -> None:
    """A leader that repairs a follower steps back in its log, and the follower cuts off its own."""
    disks = {1: disk([1, 1, 4], term=4), 2: disk([1, 2, 2, 2], term=4)}
    cluster, goals = tried(2, disks=disks)
    cluster.campaign(1)
    cluster.settle()
    assert cluster.is_converged()
    assert goals.reached == ["conflicting_suffix_truncated", "next_index_stepped_back"]


def test_reach_old_term_not_counted() -> None:
    """An entry of an earlier term comes to be on a majority, and is not committed."""
    disks = {1: disk([1, 2], term=2), 2: disk([1], term=1), 3: disk([1], term=1)}
    cluster, goals = tried(disks=disks, limits=ONE_BY_ONE)
    cluster.hold(lambda flight: 3 in entry_terms(flight))
    cluster.campaign(1)
    cluster.settle()
    # The first ones may pass: they must be rejected before entry 2 is sent.
    cluster.deliver(lambda flight: flight.kind == "append_entries")
    cluster.settle()
    assert [peer.match_index for peer in cluster.nodes[1].status_seen.peers] == [2, 2]
    assert cluster.nodes[1].status_seen.commit_index == 0
    assert "old_term_not_counted" in goals.reached
    cluster.release()
    cluster.tick(4)
    assert cluster.is_converged()


def entry_terms(flight: Flight) -> list[Term]:
    """The terms of the entries in a message."""
    return [entry.term for entry in getattr(flight.message, "entries", ())]


def test_reach_pre_vote_refused() -> None:
    """A node whose log is behind is refused before it raises a term."""
    disks = {1: disk([1, 1], term=1), 2: disk([1, 1], term=1), 3: disk([1], term=1)}
    cluster, goals = tried(options=RaftOptions(), disks=disks)
    cluster.campaign(3)
    cluster.settle()
    assert goals.reached == ["pre_vote_refused"]


def test_reach_check_quorum_step_down() -> None:
    """A leader that is cut off gives up by itself; one that hears of a higher term does not."""
    cluster, goals = tried()
    cluster.campaign(1)
    cluster.settle()
    cluster.campaign(2)
    cluster.settle()
    assert goals.reached == []
    isolate_leader(cluster, 2, 2 * BY_HAND.election_ticks_min)
    assert goals.reached == ["check_quorum_step_down"]


def test_reach_vote_split() -> None:
    """Two votes each among four nodes: it counts once somebody leads in a later term."""
    cluster, goals = tried(4)
    cluster.hold(lambda flight: (flight.sender, flight.to) not in ((1, 3), (2, 4)))
    cluster.campaign(1)
    cluster.campaign(2)
    cluster.settle()
    cluster.release()
    cluster.settle()
    assert cluster.leader() == 0
    assert goals.reached == []
    cluster.campaign(1)
    cluster.settle()
    assert cluster.leader() == 1
    assert goals.reached == ["vote_split"]


# -- rules --


BUGS: Sequence[tuple[str, Bug, type[Check] | None]] = (
    ("R1", raft_bugs.own_vote_is_enough, None),
    ("R2", raft_bugs.always_truncated, None),
    ("R3", raft_bugs.other_bytes_sent, None),
    ("R4", raft_bugs.vote_regardless_of_log, LeaderCompleteness),
    ("R5", raft_bugs.old_terms_counted, None),
    ("R6", raft_bugs.acknowledged_before_sync, StatesWhatIsDurable),
    ("R7", shared_bugs.sent_taken_for_held, None),
    ("R8", shared_bugs.window_ignored, None),
    ("R8", shared_bugs.bytes_window_ignored, WithinLimits),
    ("R8", shared_bugs.every_other_counted, WithinLimits),
    ("R8", raft_bugs.message_size_ignored, WithinLimits),
    ("R8", raft_bugs.uncommitted_ignored, WithinLimits),
    ("R9", raft_bugs.vote_regardless_of_log, None),
    ("R10", raft_bugs.answers_raise_no_term, None),
)
"""The rule, the bug that breaks it, and the only check that is asked (``None``: all)."""


def broken_rules(
    only: type[Check] | UnionType | None, quorum: QuorumSystem | None = None
) -> Iterator[str]:
    """What random runs say is broken, one after the other: the number of the rule."""

    def heard(checks: Sequence[Check]) -> Sequence[Check]:
        if only is None:
            return checks
        return [each for each in checks if isinstance(each, WrittenLogs | only)]

    for violation in violations(PLUGIN, TRIAL, SEEDS, TROUBLE, heard, quorum):
        yield violation.invariant


@pytest.mark.parametrize(
    ("rule", "bug", "only"), BUGS, ids=[f"{rule}-{bug.__name__}" for rule, bug, _ in BUGS]
)
def test_find_broken_rule(
    rule: str, bug: Bug, only: type[Check] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rule is broken by a bug, and says so by its number."""
    bug(monkeypatch)
    assert rule in broken_rules(only)


def test_find_commit_beyond_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that commits what its leader does not have breaks R5, whoever holds the entry."""
    raft_bugs.held_taken_for_committed(monkeypatch)
    # A quorum of nobody: I5 is silent, and the other rules are heard.
    assert "R5" in broken_rules(CommitsOwnTerm | Elections, Threshold((1, 2, 3, 4, 5), 0))


@pytest.mark.parametrize("is_seen_late", [False, True])
def test_find_leader_incomplete(is_seen_late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that lacks an entry breaks R4, also when that is committed in the earlier term only
    after the leader began; whichever of the nodes comes to it when."""
    raft_bugs.vote_regardless_of_log(monkeypatch)
    logs = WrittenLogs()
    checks = (logs, LeaderCompleteness(logs))
    cluster = Cluster(PLUGIN, BY_HAND, node_count=3, checks=checks)
    cluster.campaign(1)
    cluster.settle()
    cluster.cut([(1, 3), (3, 1)])

    def is_answer(flight: Flight) -> bool:
        return flight.kind == "append_reply"

    cluster.hold(is_answer)
    cluster.hold(lambda flight: flight.sender == 3 and flight.kind == "append_entries")
    cluster.propose(1, b"x")
    cluster.settle()
    assert cluster.nodes[2].disk.entries[2].term == 1
    if is_seen_late:
        cluster.campaign(3)  # wins with the vote of node 2; node 1 hears of nothing
        cluster.settle()
        assert cluster.nodes[3].status_seen.role is Role.LEADER
        assert cluster.nodes[1].status_seen.commit_index == 1
    with pytest.raises(Violation, match="R4: node 3 leads in term 2 without entry 2"):
        cluster.release(is_answer)
        cluster.settle()
        cluster.campaign(3)
        cluster.settle()


def test_find_nothing_without_bug() -> None:
    """The very same runs break no rule when there is no bug."""
    assert list(broken_rules(None)) == []
