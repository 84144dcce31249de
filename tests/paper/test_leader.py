"""The leader's side of replication (Raft §5.3; figure 2, "Leaders")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from given import (
    LIMITS,
    OPTIONS,
    accepted,
    heartbeat_reply,
    make_leader,
    make_new_leader,
    make_raft,
    make_steady_leader,
    only,
    rejected,
    settle,
    take,
    terms_of,
    tick,
)

from replog.errors import NotLeader, SchemaError
from replog.types import LogIndex, PeerState, PeerStatus, Term
from replog_raft.messages import AppendEntries, AppendReply, Heartbeat
from replog_raft.raft import Raft


def peer_status(raft: Raft, peer: int = 2) -> PeerStatus:
    """The leader's view of one peer."""
    return next(status for status in raft.status().peers if status.node_id == peer)


def spans(messages: Sequence[AppendEntries]) -> list[tuple[LogIndex, int]]:
    """Of each message, the index before its entries and their number."""
    return [(message.prev_index, len(message.entries)) for message in messages]


# -- appending --


def test_propose_appends() -> None:
    """§5.3: A leader appends a proposal to its own log in its own term, and sends it at the next
    Ready to everybody."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    entry = raft.propose(b"set")
    assert (entry.index, entry.term, entry.data) == (4, 5, b"set")
    ready = take(raft)
    assert ready.entries == (entry,)
    assert only(AppendEntries, ready.messages) == [
        AppendEntries(1, 5, 1, peer, 3, 5, 3, (entry,)) for peer in (2, 3)
    ]


def test_propose_as_follower_refused() -> None:
    """§5.1: Only the leader takes proposals; a follower names it."""
    raft = make_raft(term=1)
    with pytest.raises(NotLeader, match="node 1 does not lead"):
        raft.propose(b"set")
    assert terms_of(raft) == ()


def test_propose_batch_in_one_message() -> None:
    """§5.3: What is proposed between two Readys travels in one message per peer."""
    raft = make_steady_leader(make_raft())
    for _ in range(5):
        raft.propose(b"set")
    assert spans(only(AppendEntries, take(raft).messages, to=2)) == [(1, 5)]


def test_leader_never_overwrites() -> None:
    """Figure 3, Leader Append-Only: A leader keeps every entry of its log, its deposed
    predecessors' too."""
    raft = make_steady_leader(make_raft((1, 2, 2, 4), term=4))
    raft.propose(b"set")
    raft.step(rejected(5, 2, 5, hint_index=0))
    settle(raft)
    assert terms_of(raft) == (1, 2, 2, 4, 5, 5)


def test_send_network_before_disk() -> None:
    """Thesis §10.2.1: A leader sends entries in parallel with its own disk write."""
    raft = make_steady_leader(make_raft())
    entry = raft.propose(b"set")
    ready = take(raft)
    assert ready.entries == (entry,)
    assert [message.entries for message in only(AppendEntries, ready.messages)] == [(entry,)] * 2


# -- next_index and match_index --


def test_next_index_at_election() -> None:
    """Figure 2: On election next_index is the leader's last index + 1, and match_index 0."""
    raft = make_new_leader(make_raft((1, 1, 2), term=2))
    for status in raft.status().peers:
        assert (status.next_index, status.match_index) == (4, 0)
        assert status.state is PeerState.PROBE


def test_next_index_accepted() -> None:
    """Figure 2: Success moves match_index and next_index of that follower on, of no other."""
    raft = make_leader(make_raft((1, 1), term=1))
    raft.step(accepted(2, 2, 3))
    assert (peer_status(raft, 2).match_index, peer_status(raft, 2).next_index) == (3, 4)
    assert (peer_status(raft, 3).match_index, peer_status(raft, 3).next_index) == (0, 3)


def test_next_index_back_one_by_one() -> None:
    """§5.3: Without hints each rejection moves next_index back by one entry and tries again."""
    options = replace(OPTIONS, conflict_hints=False)
    raft = make_leader(make_raft((1, 1, 1, 1), term=1, options=options))
    for prev_index in (4, 3, 2, 1):
        raft.step(rejected(2, 2, prev_index, hint_index=0))
        assert spans(only(AppendEntries, settle(raft), to=2)) == [(prev_index - 1, 6 - prev_index)]


def test_next_index_back_by_hint() -> None:
    """§5.3: With hints a rejection moves next_index behind the leader's own last entry whose term
    is at most the hint's."""
    raft = make_leader(make_raft((1, 1, 1, 4, 4, 5, 5, 6, 6, 6), term=6))
    raft.step(rejected(7, 2, 10, hint_index=9, hint_term=4))
    assert spans(only(AppendEntries, settle(raft), to=2)) == [(5, 6)]
    raft.step(rejected(7, 2, 5, hint_index=4, hint_term=2))
    assert spans(only(AppendEntries, settle(raft), to=2)) == [(3, 8)]


def test_next_index_back_to_short_log() -> None:
    """§5.3: A follower whose log is merely short gets everything after its end at once."""
    raft = make_leader(make_raft((1,) * 9, term=1))
    raft.step(rejected(2, 2, 9, hint_index=4, hint_term=1))
    assert spans(only(AppendEntries, settle(raft), to=2)) == [(4, 6)]


def test_next_index_above_match_index() -> None:
    """§5.3: next_index never goes back to what the follower is known to hold."""
    raft = make_steady_leader(make_raft((1, 1), term=1))
    raft.propose(b"set")
    settle(raft)
    raft.step(rejected(2, 2, 4, hint_index=0))
    assert (peer_status(raft).match_index, peer_status(raft).next_index) == (3, 4)


def repair(leader: Raft, follower: Raft) -> int:
    """Let a leader and one follower talk until the follower holds the whole log; how many appends
    were rejected."""
    rejections = 0
    for _ in range(100):
        for message in only(AppendEntries, settle(leader), to=follower.node_id):
            follower.step(message)
        for reply in only(AppendReply, settle(follower)):
            rejections += not reply.accepted
            leader.step(reply)
        if peer_status(leader, follower.node_id).match_index == leader.view.last_index:
            return rejections
    raise AssertionError("the follower was not repaired")


FIGURE_7: dict[str, tuple[Term, ...]] = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


@pytest.mark.parametrize("hints", [True, False], ids=["with_hints", "one_by_one"])
@pytest.mark.parametrize("case", FIGURE_7)
def test_repair_figure_7(case: str, hints: bool) -> None:
    """§5.3, figure 7: Whatever a follower's log looks like, the consistency check and the back-up
    make it equal to the leader's."""
    options = replace(OPTIONS, conflict_hints=hints)
    leader = make_new_leader(make_raft((1, 1, 1, 4, 4, 5, 5, 6, 6, 6), term=7, options=options))
    follower = make_raft(FIGURE_7[case], term=7, node_id=2)
    repair(leader, follower)
    assert terms_of(follower) == terms_of(leader)
    assert follower.status().durable_index == 11


@pytest.mark.parametrize(
    ("ours", "theirs", "rejections_max"),
    [
        ((1,) * 3 + (9,) * 20, (1,) * 3 + (8,) * 20, 1),
        ((1,) * 3 + (9,) * 20, (1,) * 3 + (2,) * 10 + (4,) * 10, 1),
        ((1,) * 3 + (5,) * 10 + (9,) * 10, (1,) * 3 + (4,) * 10 + (8,) * 10, 2),
        ((1,) * 3 + (5,) * 10 + (7,) * 10 + (9,) * 10, (1,) * 3 + (8,) * 30, 2),
        (
            (1,) * 3 + (3,) * 8 + (5,) * 8 + (7,) * 8,
            (1,) * 3 + (2,) * 8 + (4,) * 8 + (6,) * 8,
            3,
        ),
        ((1,) * 30, (1,) * 3, 1),
        ((1,) * 3, (1,) * 30, 0),
    ],
)
def test_repair_one_round_trip_per_term(
    ours: tuple[Term, ...], theirs: tuple[Term, ...], rejections_max: int
) -> None:
    """§5.3: With hints each rejection rules out a whole term of one of the two logs, so that there
    are at most as many as terms in which they differ."""
    leader = make_new_leader(make_raft(ours, term=9))
    follower = make_raft(theirs, term=9, node_id=2)
    assert repair(leader, follower) <= rejections_max
    assert terms_of(follower) == terms_of(leader)


def test_repair_one_by_one_counts_entries() -> None:
    """§5.3: Without hints there is one rejection per entry: the paper's plain decrement."""
    options = replace(OPTIONS, conflict_hints=False)
    leader = make_new_leader(make_raft((1,) * 3 + (5,) * 7, term=5, options=options))
    assert repair(leader, make_raft((1,) * 3 + (4,) * 7, term=5, node_id=2)) == 7


def test_ignore_stale_rejection() -> None:
    """§5.3: A rejection of what the follower is known to hold is stale: it lowers neither
    match_index nor next_index."""
    raft = make_steady_leader(make_raft((1, 1, 1), term=1))
    before = peer_status(raft)
    for rejected_index in (0, 2, 4):
        raft.step(rejected(2, 2, rejected_index, hint_index=0))
    assert peer_status(raft) == replace(before, recently_active=True)


def test_ignore_duplicate_rejection() -> None:
    """§5.3: The second copy of a rejection neither moves next_index back nor sends anything."""
    raft = make_leader(make_raft((1, 2, 3, 4), term=4))
    raft.step(rejected(5, 2, 4, hint_index=3, hint_term=3))
    assert spans(only(AppendEntries, settle(raft), to=2)) == [(3, 2)]
    raft.step(rejected(5, 2, 4, hint_index=3, hint_term=3))
    assert not only(AppendEntries, settle(raft), to=2)
    assert peer_status(raft).next_index == 4


def test_ignore_rejection_of_unsent() -> None:
    """§5.3: A rejection at a place that was not asked about is none of ours."""
    raft = make_steady_leader(make_raft((1, 1), term=1))
    raft.step(rejected(2, 2, 8, hint_index=0))
    assert peer_status(raft).state is PeerState.REPLICATE
    assert peer_status(raft).next_index == 4


def test_ignore_stale_acknowledgement() -> None:
    """§5.3: Acknowledgements that arrive late, twice or out of order never lower match_index."""
    raft = make_steady_leader(make_raft())
    for _ in range(3):
        raft.propose(b"set")
        settle(raft)
    for match_index in (3, 2, 4, 1, 4, 0):
        raft.step(accepted(1, 2, match_index))
    assert (peer_status(raft).match_index, peer_status(raft).next_index) == (4, 5)


# -- the window --


def test_probe_sends_one_message() -> None:
    """§5.3: While the matching point is not known one message at a time is on its way."""
    raft = make_leader(make_raft((1, 1), term=1))
    for _ in range(3):
        raft.propose(b"set")
        assert not only(AppendEntries, settle(raft), to=2)
    assert peer_status(raft).state is PeerState.PROBE


def test_probe_repeated_after_heartbeat_answer() -> None:
    """§5.3: A probe that was lost is sent again when the peer answers a heartbeat."""
    raft = make_leader(make_raft((1, 1), term=1))
    raft.step(heartbeat_reply(2, 2))
    assert spans(only(AppendEntries, settle(raft), to=2)) == [(2, 1)]


def test_replicate_pipelined() -> None:
    """Thesis §10.2.1: Once the logs match, next_index moves on when a message is sent, and more
    follow before it is answered."""
    raft = make_steady_leader(make_raft())
    sent = []
    for _ in range(3):
        raft.propose(b"set")
        sent += spans(only(AppendEntries, settle(raft), to=2))
    assert sent == [(1, 1), (2, 1), (3, 1)]
    assert (peer_status(raft).next_index, peer_status(raft).match_index) == (5, 1)
    assert peer_status(raft).in_flight_messages == 3


def test_window_in_messages() -> None:
    """Thesis §10.2.1: At most ``in_flight_messages_max`` messages are unanswered; each answer lets
    more go."""
    limits = replace(LIMITS, in_flight_messages_max=2)
    raft = make_steady_leader(make_raft(limits=limits))
    sent = []
    for _ in range(5):
        raft.propose(b"set")
        sent += spans(only(AppendEntries, settle(raft), to=2))
    assert sent == [(1, 1), (2, 1)]
    raft.step(accepted(1, 2, 2))
    assert spans(only(AppendEntries, settle(raft), to=2)) == [(3, 3)]


def test_window_in_bytes() -> None:
    """Thesis §10.2.1: Nothing more is sent once ``in_flight_bytes_max`` bytes are unanswered."""
    limits = replace(LIMITS, in_flight_bytes_max=2000)
    raft = make_steady_leader(make_raft(limits=limits))
    sent = []
    for _ in range(4):
        raft.propose(bytes(1000))
        sent += spans(only(AppendEntries, settle(raft), to=2))
    assert sent == [(1, 1), (2, 1)]
    raft.step(accepted(1, 2, 2))
    assert spans(only(AppendEntries, settle(raft), to=2)) == [(3, 2)]


def test_message_bytes_bounded() -> None:
    """§5.3: A message takes the entries that fit into ``message_bytes_max``, and at least one."""
    limits = replace(LIMITS, message_bytes_max=2500)
    raft = make_steady_leader(make_raft(limits=limits))
    for size in (1000, 1000, 1000, 9000, 1000):
        raft.propose(bytes(size))
    assert spans(only(AppendEntries, settle(raft), to=2)) == [(1, 2), (3, 1), (4, 1), (5, 1)]


def test_acknowledgement_stands_for_earlier() -> None:
    """§5.3: One acknowledgement answers every message up to its match_index."""
    raft = make_steady_leader(make_raft())
    for _ in range(4):
        raft.propose(b"set")
        settle(raft)
    raft.step(accepted(1, 2, 4))
    assert peer_status(raft).in_flight_messages == 1


def test_lost_append_repaired() -> None:
    """§5.3: A lost append comes to light by the answer to the next heartbeat: the leader asks where
    the follower stands, and sends again what it lacks."""
    leader = make_steady_leader(make_raft())
    follower = make_raft(term=1, node_id=2)
    follower.step(AppendEntries(1, 1, 1, 2, 0, 0, 0, leader.view.slice(1, 1)))
    settle(follower)
    leader.propose(b"lost")
    settle(leader)
    leader.propose(b"lost too")
    settle(leader)
    assert terms_of(follower) == (1,)
    leader.step(heartbeat_reply(1, 2))
    repair(leader, follower)
    assert terms_of(follower) == terms_of(leader) == (1, 1, 1)


def test_full_window_of_lost_acknowledgements() -> None:
    """§5.3: When every acknowledgement of a full window was lost, the answer to a heartbeat opens
    it again."""
    leader = make_steady_leader(make_raft(limits=replace(LIMITS, in_flight_messages_max=1)))
    leader.propose(b"answer lost")
    settle(leader)
    leader.propose(b"waits")
    assert not only(AppendEntries, settle(leader), to=2)
    leader.step(heartbeat_reply(1, 2))
    assert spans(only(AppendEntries, settle(leader), to=2)) == [(2, 0)]
    leader.step(accepted(1, 2, 2))
    assert spans(only(AppendEntries, settle(leader), to=2)) == [(2, 1)]


def test_heartbeat_answer_of_current_peer() -> None:
    """§5.3: The answer to a heartbeat costs nothing when the follower holds everything."""
    raft = make_steady_leader(make_raft())
    raft.step(heartbeat_reply(1, 2))
    assert raft.ready() is None


def test_heartbeat_answer_before_sending() -> None:
    """§5.3: What was not sent yet cannot be lost: it is sent, and nothing is asked."""
    raft = make_steady_leader(make_raft())
    raft.propose(b"set")
    raft.step(heartbeat_reply(1, 2))
    assert spans(only(AppendEntries, settle(raft), to=2)) == [(1, 1)]


def test_heartbeats_while_window_full() -> None:
    """§5.2: Heartbeats leave whatever the window: a slow follower does not depose its leader."""
    raft = make_leader(make_raft())
    tick(raft, OPTIONS.heartbeat_ticks)
    assert [beat.to for beat in only(Heartbeat, settle(raft))] == [2, 3]


def test_acknowledgement_beyond_the_log_refused() -> None:
    """§5.3: An acknowledgement of more than the leader's log comes from no correct follower."""
    raft = make_steady_leader(make_raft())
    with pytest.raises(SchemaError):
        raft.step(accepted(1, 2, match_index=7))
