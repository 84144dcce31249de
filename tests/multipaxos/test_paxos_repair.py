"""What is lost is told again, once: slow links, holes, trimmed slots, long answers."""

from __future__ import annotations

from collections import deque

import pytest
from paxos_given import SMALL, answers, b, carried_out, done, engine_of, led, lone, vote

from replog.errors import InvariantViolated
from replog.limits import Limits
from replog.testing import Outcome
from replog.types import Entry, Role
from replog_multipaxos import MultiPaxos, MultiPaxosOptions
from replog_multipaxos.messages import (
    RANGES_MAX,
    Accept,
    Accepted,
    Commit,
    CommitReply,
    Learn,
    LearnRequest,
    Prepare,
    Promise,
)
from replog_multipaxos.slots import SLOTS_AHEAD_MAX

BY_HAND = MultiPaxosOptions(automatic_elections=False)


def leader_of(count: int) -> MultiPaxos:
    """Node 1, which leads at ballot 1.1, has sent ``count`` proposals, one per message, and knows
    where node 2 stands: at the beginning."""
    engine = lone(1, options=BY_HAND, limits=SMALL)
    engine.campaign()
    carried_out(engine)
    engine.step(Promise(1, b(1, 1), 2, 1, False, 1, 0, 0, 0, ()))
    assert engine.role is Role.LEADER
    for at in range(count):
        engine.propose(b"%d" % at)
    carried_out(engine)
    return engine


def missing(round_number: int, sent_upto: int, *ranges: tuple[int, int]) -> CommitReply:
    """Node 2 answers a round: these slots never arrived."""
    return CommitReply(1, b(1, 1), 2, 1, round_number, 0, sent_upto, ranges)


def sent_again(engine: MultiPaxos) -> list[int]:
    """The slots that the leader sends to node 2."""
    return [
        entry.index
        for message in answers(engine)
        if isinstance(message, Accept | Learn) and message.to == 2
        for entry in message.entries
    ]


def heartbeat(engine: MultiPaxos) -> None:
    """Time passes until the next round has been sent."""
    for _ in range(engine.options.heartbeat_ticks):
        engine.tick()
    carried_out(engine)


# -- holes --


def test_filled_hole_commits_what_is_behind() -> None:
    """When a Commit fills the hole in front of slots known as chosen, all are committed."""
    engine = lone(promised=b(1, 1))
    engine.step(Learn(1, b(1, 1), 3, 2, (vote(2, b(1, 1), b"two"),)))
    engine.step(Accept(1, b(1, 1), 1, 2, 0, (vote(1, b(1, 1), b"one"),)))
    engine.step(Commit(1, b(1, 1), 1, 2, chosen_upto=1, sent_upto=2, round=0))
    assert engine.commit_index == 2
    engine.check()


def test_check_finds_uncommitted_chosen_slot() -> None:
    """An engine that knows the slot behind its commit index as chosen, and did not commit it, is
    found out."""
    engine = lone(promised=b(1, 1), entries=[vote(1, b(1, 1))])
    engine.check()
    engine.chosen.add(1, 1)
    with pytest.raises(InvariantViolated, match="counts as chosen that is committed, or could be"):
        engine.check()


def test_hole_repeated_once_per_round() -> None:
    """Answers to rounds from before a repetition, which a slow link brings late, repeat nothing;
    the first answer to a later round does."""
    engine = leader_of(3)
    heartbeat(engine)
    heartbeat(engine)  # rounds 2 and 3 are on their way, and round 1 began the leadership
    assert engine.leader is not None
    assert engine.leader.round == 3
    sent = []
    for round_number in (1, 2, 3):
        engine.step(missing(round_number, 3, (1, 1)))
        sent.append(sent_again(engine))
    heartbeat(engine)
    engine.step(missing(4, 3, (1, 1)))
    sent.append(sent_again(engine))
    assert sent == [[1], [], [], [1]]


def test_lost_end_repeated_once_per_round() -> None:
    """An end that was lost is sent again once, however many answers from before that say so."""
    engine = leader_of(3)
    heartbeat(engine)
    sent = []
    for round_number in (1, 2):
        engine.step(missing(round_number, 3, (2, 3)))
        sent.append(sent_again(engine))
    heartbeat(engine)
    engine.step(missing(3, 3, (2, 3)))
    sent.append(sent_again(engine))
    assert sent == [[2, 3], [], [2, 3]]


def test_notice_of_a_hole_repeats_at_once() -> None:
    """What a follower says the moment it sees a hole is sent again whatever was sent before."""
    engine = leader_of(5)
    for upto, hole in ((2, (2, 2)), (4, (4, 4))):
        engine.step(missing(0, upto, hole))
        assert sent_again(engine) == [hole[0]]


def test_repetition_bounded_per_answer() -> None:
    """One answer repeats a message full, however many holes it names."""
    engine = leader_of(9)
    engine.step(missing(0, 8, (1, 1), (3, 3), (5, 5)))
    assert sent_again(engine) == [1]


# -- long answers --


def test_asked_again_tells_the_lowest_votes() -> None:
    """Of more stretches than a message holds, the answer to an empty Accept tells the first, since
    nothing is applied before the lowest slot is."""
    engine = lone(promised=b(1, 1))
    count = 2 * RANGES_MAX + 10
    for slot in range(1, count, 2):
        engine.step(Accept(1, b(1, 1), 1, 2, 0, (vote(slot, b(1, 1)),)))
    carried_out(engine)
    engine.step(Accept(1, b(1, 1), 1, 2, 0, ()))
    [told] = answers(engine)
    assert isinstance(told, Accepted)
    assert told.ranges == tuple((slot, slot) for slot in range(1, 2 * RANGES_MAX, 2))


def test_answer_to_proposals_tells_their_slots() -> None:
    """Of more stretches than a message holds, the answer to a proposal tells of that proposal."""
    engine = lone(promised=b(1, 1))
    for slot in range(1, 2 * RANGES_MAX + 10, 2):
        engine.step(Accept(1, b(1, 1), 1, 2, 0, (vote(slot, b(1, 1)),)))
        told = [each for each in answers(engine) if isinstance(each, Accepted)]
        assert told[-1].ranges[-1] == (slot, slot)


# -- pages of a promise --


def asking() -> MultiPaxos:
    """Node 1 in phase 1, its first Prepares sent."""
    engine = lone(1, options=BY_HAND, limits=SMALL)
    engine.campaign()
    carried_out(engine)
    return engine


def page(engine: MultiPaxos, slot: int, sender: int = 2, last: bool = False) -> Promise:
    """The page that tells the vote in one slot."""
    upto = 0 if last else slot
    votes = (vote(slot, b(0, 2)),)
    return Promise(1, engine.term, sender, 1, False, slot, upto, 0, 0, votes)


def asked_of(engine: MultiPaxos, to: int) -> list[int]:
    """From which slots on the candidate asks a node."""
    return [m.from_slot for m in answers(engine) if isinstance(m, Prepare) and m.to == to]


def test_repeated_page_asks_nothing() -> None:
    """Only a page that tells something new is followed by the request for the next: else every
    page that is told twice would double all that follow."""
    engine = asking()
    for _ in range(3):
        engine.step(page(engine, 1))
    assert asked_of(engine, 2) == [2]


def test_silent_peer_asked_ever_less() -> None:
    """A heartbeat asks only who told nothing since the last one, and whoever stays silent after
    one, two, four of them."""
    engine = asking()
    asked: dict[int, list[int]] = {2: [], 3: []}
    for beat in range(1, 10):
        if beat == 3:
            engine.step(page(engine, 1))
        for _ in range(engine.options.heartbeat_ticks):
            engine.tick()
        for message in answers(engine):
            if isinstance(message, Prepare) and message.to in asked:
                asked[message.to].append(beat)
    # Node 2 is asked for its next page in beat 3, and again when that does not come.
    assert asked == {2: [1, 2, 3, 4, 5, 7], 3: [1, 2, 4, 8]}


def test_next_page_begins_behind_the_commit_index() -> None:
    """What is known as chosen meanwhile need not be promised any more: the candidate asks for what
    is behind it, and leads without the pages in front."""
    engine = asking()
    engine.step(page(engine, 1))
    carried_out(engine)
    facts = tuple(vote(slot, b(0, 2)) for slot in range(1, 6))
    engine.step(Learn(1, engine.term, 3, 1, facts))
    for _ in range(2 * engine.options.heartbeat_ticks):
        engine.tick()
    assert set(asked_of(engine, 2)) == {6}
    engine.step(page(engine, 6, last=True))
    assert engine.role is Role.LEADER


@pytest.mark.parametrize("hint", [0, 40])
@pytest.mark.parametrize(("delay", "pages_per_tick"), [(1, 1000), (0, 5), (3, 1), (0, 1 / 4)])
def test_pages_on_a_slow_link(delay: int, pages_per_tick: float, hint: int) -> None:
    """A candidate that lacks 40 pages is told each a few times at most, however slow the link."""
    ballot, count = b(1, 3), 40
    votes = [vote(slot, ballot) for slot in range(1, count + 1)]
    one = lone(1, promised=ballot, limits=SMALL, options=BY_HAND)
    two = lone(2, promised=ballot, entries=votes, hint=hint, limits=SMALL, options=BY_HAND)
    wires: dict[int, deque[tuple[int, object]]] = {1: deque(), 2: deque()}
    pages_sent, now, budget = 0, 0, 0.0

    def post() -> None:
        nonlocal pages_sent
        for engine in (one, two):
            for message in answers(engine):
                if (to := message.to) in wires:  # type: ignore[attr-defined]
                    pages_sent += isinstance(message, Promise)
                    wires[to].append((now + delay, message))

    one.campaign()
    while one.role is not Role.LEADER:
        post()
        budget = min(budget, 1) + pages_per_tick
        while wires[2] and wires[2][0][0] <= now:
            two.step(wires[2].popleft()[1])
            post()
        while wires[1] and wires[1][0][0] <= now and budget >= 1:
            budget -= 1
            one.step(wires[1].popleft()[1])
            post()
        now += 1
        one.tick()
        two.tick()
        assert pages_sent <= 8 * count, f"after {now} ticks"
        assert now < 2000, f"{pages_sent} pages sent"
    assert pages_sent <= 5 * count


# -- trimmed slots --


def test_trim_waits_for_what_is_rewritten() -> None:
    """Applied slots that are proposed again are not on disk at the new ballot yet: a trim leaves
    them, and says so."""
    votes = tuple(vote(slot, b(1, 1)) for slot in (1, 2, 3))
    engine = lone(promised=b(1, 1), entries=votes, hint=3)
    carried_out(engine)
    engine.step(Accept(1, b(2, 3), 3, 2, 0, (vote(2, b(2, 3)),)))
    assert engine.trim(3) == 1
    assert engine.slots.base_index == 1
    carried_out(engine)
    assert engine.trim(3) == 3


def test_peer_behind_trimmed_slots_votes() -> None:
    """A leader that trimmed what a peer lacks goes on with what is left: the peer's vote is what
    a quorum needs."""
    cluster = led(3, limits=Limits(trim_margin_entries=1))
    cut = cluster.isolate(2)
    for at in range(5):
        done(cluster, 1, b"%d" % at)
    cluster.take_snapshot(1)
    cluster.tick()
    assert engine_of(cluster, 1).slots.base_index == 4
    cluster.crash(3)
    cluster.mend(cut)
    cluster.tick(6)
    proposal = cluster.propose(1, b"after")
    assert cluster.run_until(lambda: proposal.outcome is Outcome.DONE, 60)


def test_lost_end_behind_trimmed_slots_repeated() -> None:
    """Of an end that a peer lacks, what was not trimmed is sent again."""
    engine = leader_of(4)
    engine.step(Accepted(1, b(1, 1), 3, 1, 0, ((1, 2),)))
    carried_out(engine)
    assert engine.trim(2) == 2
    engine.step(missing(1, 4, (1, 4)))
    assert sent_again(engine) == [3, 4]


def test_trimmed_end_moves_nothing_back() -> None:
    """An end that was trimmed as a whole cannot be sent again, and ``next_index`` stays."""
    engine = leader_of(4)
    engine.step(Accepted(1, b(1, 1), 3, 1, 0, ((1, 4),)))
    carried_out(engine)
    assert engine.trim(4) == 4
    engine.step(missing(1, 4, (1, 4)))
    assert sent_again(engine) == []
    assert engine.leader is not None
    assert engine.leader.progress[2].next_index == 5


# -- far slots --


def far(ballot: int) -> tuple[Entry, ...]:
    """A vote in the first slot that is too far."""
    return (vote(SLOTS_AHEAD_MAX + 1, ballot),)


@pytest.mark.parametrize(
    "message",
    [
        Accept(1, b(1, 1), 1, 2, 0, far(b(1, 1))),
        Learn(1, b(1, 1), 1, 2, far(b(1, 1))),
    ],
)
def test_far_slot_waits(message: object) -> None:
    """A slot that is too far ahead is not taken in, for a message must not use up the memory; who
    needs a snapshot first says where it stands."""
    engine = lone(promised=b(1, 1))
    engine.step(message)
    assert engine.slots.last_index == 0
    assert not [each for each in answers(engine) if isinstance(each, Accepted) and each.ranges]


def test_far_slot_in_a_promise_waits() -> None:
    """The same in a promise, which would have its candidate propose a no-op for every slot: it does
    not count, and what was trimmed is asked for."""
    engine = asking()
    engine.step(Promise(1, engine.term, 2, 1, False, 1, 0, 7, 7, far(b(0, 2))))
    assert engine.role is Role.CANDIDATE
    [request] = [each for each in answers(engine) if isinstance(each, LearnRequest)]
    assert request.ranges == ((1, 7),)


def test_trim_of_what_is_trimmed_already() -> None:
    """A trim below an earlier one changes nothing, and says how far the slots are trimmed."""
    engine = lone(
        promised=b(1, 1), entries=tuple(vote(slot, b(1, 1)) for slot in (1, 2, 3)), hint=3
    )
    carried_out(engine)
    assert engine.trim(2) == 2
    assert engine.trim(1) == 2
    assert engine.slots.base_index == 2


def test_answers_behind_a_gap_free_the_window() -> None:
    """A peer that lacks trimmed slots votes on behind them, and more is sent than one window."""
    engine = leader_of(2)
    engine.step(Accepted(1, b(1, 1), 3, 1, 0, ((1, 2),)))
    carried_out(engine)
    assert engine.trim(2) == 2
    window = engine.setup.limits.in_flight_messages_max
    for slot in range(3, 3 + 3 * window):
        engine.propose(b"more")
        sent = [
            message
            for message in answers(engine)
            if isinstance(message, Accept) and message.to == 2
        ]
        assert [entry.index for message in sent for entry in message.entries] == [slot]
        engine.step(Accepted(1, b(1, 1), 2, 1, 0, ((3, slot),)))


def test_round_that_times_out_lengthens_the_next() -> None:
    """Pages that take longer than a timeout are waited for in the end: a round of phase 1 that
    times out doubles the range of timeouts, as a Nack does."""
    engine = lone(1)
    longest = 0
    for _ in range(40):
        while engine.role is not Role.PRE_CANDIDATE:
            engine.tick()
        carried_out(engine)
        engine.step(Promise(1, engine.next_ballot, 2, 1, True, 1, 0, 0, 0, ()))
        carried_out(engine)
        assert engine.role is Role.CANDIDATE
        longest = max(longest, engine.election_ticks)
    assert longest > 2 * engine.options.election_ticks_max
