"""The trial of Raft: each of its goals can be come to, and each of its rules can be broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from types import UnionType

import pytest

from replog.errors import NotLeader
from replog.limits import Limits
from replog.plugins import find_engine
from replog.progress import Progress
from replog.quorum import Majority, QuorumSystem, Threshold
from replog.storage.protocol import Recovered
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
    LogIndex,
    NodeId,
    PeerState,
    Role,
    Term,
    entry_body,
)
from replog_raft import PLUGIN, Raft, RaftOptions, election, follower, leader
from replog_raft.checks import (
    CommitsOwnTerm,
    Elections,
    LeaderCompleteness,
    StatesWhatIsDurable,
    WrittenLogs,
)
from replog_raft.leader import Leader
from replog_raft.limit_checks import WithinLimits
from replog_raft.logview import LogView
from replog_raft.messages import (
    MESSAGE_TYPES,
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    RequestVote,
)
from replog_raft.raft import _HANDLERS
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

Bug = Callable[[pytest.MonkeyPatch], None]


def tried(
    node_count: int = 3,
    options: RaftOptions = BY_HAND,
    limits: Limits | None = None,
    disks: dict[NodeId, Recovered] | None = None,
) -> tuple[Cluster, Goals]:
    """A quiet cluster that is watched."""
    goals = Goals(TRIAL.goals)
    checks = TRIAL.checks(options, tuple(range(1, node_count + 1)), goals)
    cluster = Cluster(
        PLUGIN, options, node_count=node_count, limits=limits, disks=disks, checks=checks
    )
    return cluster, goals


def disk(terms: Sequence[Term], term: Term, voted_for: NodeId = 0) -> Recovered:
    """A disk with a no-op of each of these terms."""
    entries = tuple(
        Entry(1, index, each, entry_body(EntryKind.NOOP, 1, each, index, b""))
        for index, each in enumerate(terms, 1)
    )
    return Recovered(HardState(1, term, voted_for), entries)


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
    assert cluster.run_until(lambda: cluster.leader() != 0, 100)
    cluster.run(100, propose_chance=0.5)
    assert cluster.is_converged()
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
    assert cluster.leader() == 2
    assert goals.reached == []
    cluster.isolate(2)
    cluster.tick(2 * BY_HAND.election_ticks_min)
    assert cluster.leader() == 0
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


def leads_alone(patch: pytest.MonkeyPatch) -> None:
    """A candidate leads with the first vote, its own."""
    right = election.count_vote

    def wrong(raft: Raft, voter: NodeId, granted: bool) -> None:
        if raft.role is Role.CANDIDATE:
            raft.become_leader()
        else:
            right(raft, voter, granted)

    patch.setattr(election, "count_vote", wrong)


def always_truncates(patch: pytest.MonkeyPatch) -> None:
    """A follower drops everything behind the previous entry."""

    def wrong(raft: Raft, entries: tuple[Entry, ...]) -> None:
        if entries[0].index <= raft.view.last_index:
            raft.view.truncate(entries[0].index)
        raft.view.extend(entries)

    patch.setattr(follower, "put_entries", wrong)


def sends_other_bytes(patch: pytest.MonkeyPatch) -> None:
    """A leader sends other entries than it has."""
    right = Raft.send

    def wrong(raft: Raft, message: Message) -> None:
        if isinstance(message, AppendEntries):
            entries = tuple(replace(each, body=each.body + b"x") for each in message.entries)
            message = replace(message, entries=entries)
        right(raft, message)

    patch.setattr(Raft, "send", wrong)


def votes_for_any_log(patch: pytest.MonkeyPatch) -> None:
    """A node votes for a candidate whose log is behind its own."""
    right = election.handle_request_vote

    def wrong(raft: Raft, message: RequestVote) -> None:
        right(raft, replace(message, last_term=1 << 40))

    for row in _HANDLERS.values():
        patch.setitem(row, RequestVote, wrong)


def counts_old_terms(patch: pytest.MonkeyPatch) -> None:
    """A leader commits what a quorum holds, whatever its term."""

    def wrong(raft: Raft, leading: Leader) -> None:
        match = {peer: progress.match_index for peer, progress in leading.progress.items()}
        match[raft.node_id] = raft.view.durable_index
        raft.commit_index = max(raft.commit_index, raft.quorum.committed_index(match))

    patch.setattr(leader, "advance_commit_index", wrong)


def commits_what_it_holds(patch: pytest.MonkeyPatch) -> None:
    """A follower that hears a leader commits its whole log."""
    right = follower.handle_heartbeat

    def wrong(raft: Raft, message: Heartbeat) -> None:
        right(raft, message)
        raft.commit_index = raft.view.last_index

    patch.setitem(_HANDLERS[Role.FOLLOWER], Heartbeat, wrong)


def acknowledges_at_once(patch: pytest.MonkeyPatch) -> None:
    """An acknowledgement leaves before the sync."""
    patch.setattr(Raft, "acknowledge", Raft.send)


def takes_sent_for_held(patch: pytest.MonkeyPatch) -> None:
    """A leader takes what it sent for what its peer holds."""
    right = Progress.handle_sent

    def wrong(progress: Progress, last_index: LogIndex, size_bytes: int) -> None:
        right(progress, last_index, size_bytes)
        progress.match_index = progress.next_index - 1

    patch.setattr(Progress, "handle_sent", wrong)


def window_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader sends on however much is unanswered."""

    def wrong(progress: Progress) -> bool:
        return progress.state is PeerState.PROBE and progress._probe_sent

    patch.setattr(Progress, "is_paused", property(wrong))


def bytes_window_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader counts messages, and not their bytes."""
    right = Progress.handle_sent
    patch.setattr(Progress, "handle_sent", lambda self, last, _: right(self, last, 0))


def counts_every_other(patch: pytest.MonkeyPatch) -> None:
    """A leader counts every other message that it sends."""
    right = Progress.handle_sent

    def wrong(progress: Progress, last_index: LogIndex, size_bytes: int) -> None:
        right(progress, last_index, size_bytes)
        if progress.state is PeerState.REPLICATE and last_index % 2:
            progress._in_flight_bytes -= progress._in_flight.pop()[1]

    patch.setattr(Progress, "handle_sent", wrong)


def message_size_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader puts all that a peer lacks into one message."""
    right = LogView.slice_within
    patch.setattr(LogView, "slice_within", lambda self, first, _: right(self, first, 1 << 40))


def uncommitted_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader takes proposals however much is uncommitted."""

    def wrong(raft: Raft, datas: Sequence[bytes], kind: EntryKind) -> Sequence[Entry]:
        if raft.leader is None:
            raise NotLeader(raft.node_id, raft.leader_id)
        return leader.append_entries(raft, raft.leader, kind, datas)

    patch.setattr(Raft, "propose_batch", wrong)


def acks_raise_no_term(patch: pytest.MonkeyPatch) -> None:
    """A higher term in an answer is ignored."""
    right = Raft._admit_term

    def wrong(raft: Raft, message: Message) -> bool:
        return isinstance(message, AppendReply | HeartbeatReply) or right(raft, message)

    patch.setattr(Raft, "_admit_term", wrong)


BUGS: Sequence[tuple[str, Bug, type[Check] | None]] = (
    ("R1", leads_alone, None),
    ("R2", always_truncates, None),
    ("R3", sends_other_bytes, None),
    ("R4", votes_for_any_log, LeaderCompleteness),
    ("R5", counts_old_terms, None),
    ("R6", acknowledges_at_once, StatesWhatIsDurable),
    ("R7", takes_sent_for_held, None),
    ("R8", window_ignored, None),
    ("R8", bytes_window_ignored, WithinLimits),
    ("R8", counts_every_other, WithinLimits),
    ("R8", message_size_ignored, WithinLimits),
    ("R8", uncommitted_ignored, WithinLimits),
    ("R9", votes_for_any_log, None),
    ("R10", acks_raise_no_term, None),
)
"""The rule, the bug that breaks it, and the only check that is asked (``None``: all)."""


TIGHT_LIMITS: Sequence[Limits] = (
    Limits(message_bytes_max=1, in_flight_messages_max=2),
    Limits(message_bytes_max=150, in_flight_bytes_max=100, uncommitted_bytes_max=100),
)
"""Of every other seed each."""


def broken_rules(
    only: type[Check] | UnionType | None, quorum: QuorumSystem | None = None
) -> Iterator[str]:
    """What random runs say is broken, one after the other: the number of the rule."""
    for seed in SEEDS:
        options = TRIAL.draw_options(Random(seed), 5)
        checks: Sequence[Check] = TRIAL.checks(options, (1, 2, 3, 4, 5), Goals(TRIAL.goals))
        if only is not None:
            checks = [each for each in checks if isinstance(each, WrittenLogs | only)]
        cluster = Cluster(
            PLUGIN,
            options,
            node_count=5,
            seed=seed,
            limits=TIGHT_LIMITS[seed % len(TIGHT_LIMITS)],
            sync_ticks=1,
            checks=checks,
            quorum=quorum,
        )
        # Faults from the very start, for the first election is as good as any.
        try:
            cluster.run(150, TROUBLE, propose_chance=0.5)
        except Violation as violation:
            yield violation.invariant


@pytest.mark.parametrize(("rule", "bug", "only"), BUGS, ids=lambda each: str(each)[:40])
def test_find_broken_rule(
    rule: str, bug: Bug, only: type[Check] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rule is broken by a bug, and says so by its number."""
    bug(monkeypatch)
    assert rule in broken_rules(only)


def test_find_commit_beyond_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that commits what its leader does not have breaks R5, whoever holds the entry."""
    commits_what_it_holds(monkeypatch)
    # A quorum of nobody: I5 is silent, and the other rules are heard.
    assert "R5" in broken_rules(CommitsOwnTerm | Elections, Threshold((1, 2, 3, 4, 5), 0))


@pytest.mark.parametrize("is_seen_late", [False, True])
def test_find_leader_incomplete(is_seen_late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that lacks an entry breaks R4, also when that is committed in the earlier term only
    after the leader began; whichever of the nodes comes to it when."""
    votes_for_any_log(monkeypatch)
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
