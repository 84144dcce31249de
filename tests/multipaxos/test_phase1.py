"""Phase 1: own promise first, every vote told, pages that tile, what is proposed afterwards."""

from __future__ import annotations

import pytest
from paxos_given import (
    SMALL,
    answers,
    b,
    carried_out,
    cluster_of,
    done,
    engine_of,
    kind,
    led,
    lone,
    vote,
)

from replog.errors import SchemaError
from replog.limits import Limits
from replog.testing import Outcome
from replog.types import EntryKind, Role
from replog_multipaxos import MultiPaxos, MultiPaxosOptions
from replog_multipaxos.ballot import next_ballot, owner_of, round_of
from replog_multipaxos.messages import Accept, Learn, LearnRequest, Nack, Prepare, Promise, Trimmed

BY_HAND = MultiPaxosOptions(automatic_elections=False)


def candidate(**given: object) -> MultiPaxos:
    """Node 1 in phase 1, its own promise on disk and its Prepares sent."""
    engine = lone(1, options=BY_HAND, **given)  # type: ignore[arg-type]
    engine.campaign()
    carried_out(engine)
    assert engine.role is Role.CANDIDATE
    return engine


def promise(
    engine: MultiPaxos,
    sender: int = 2,
    votes: tuple = (),
    *,
    page: tuple[int, int] | None = None,
    chosen_upto: int = 0,
    trimmed_upto: int = 0,
) -> Promise:
    """A promise at the candidate's ballot, one page of it or all."""
    first, last = page or (engine.commit_index + 1, 0)
    return Promise(
        1, engine.term, sender, 1, False, first, last, trimmed_upto, chosen_upto, tuple(votes)
    )


def proposed(engine: MultiPaxos) -> dict[int, bytes]:
    """What the leader proposes: the data by slot."""
    return {
        entry.index: entry.data
        for message in answers(engine)
        if isinstance(message, Accept) and message.to == 2
        for entry in message.entries
    }


@pytest.mark.parametrize("node_id", [1, 2, 65_535])
def test_ballots_have_one_owner(node_id: int) -> None:
    """A node's next ballot is its own, and above every ballot that it has seen, whoever's."""
    for seen in (0, b(1, 1), b(1, 65_535), b(7, 2)):
        ballot = next_ballot(seen, node_id)
        assert owner_of(ballot) == node_id
        assert ballot > seen
        assert round_of(ballot) == round_of(seen) + 1


def test_own_promise_before_own_prepare() -> None:
    """A Prepare leaves only after the candidate's own promise is on disk."""
    engine = lone(1, options=BY_HAND)
    engine.campaign()
    ready = engine.ready()
    assert ready is not None
    assert ready.hard_state is not None
    assert ready.hard_state.term == b(1, 1)
    assert ready.messages == []
    assert {type(message) for message in ready.messages_after_sync} == {Prepare}


def test_ballot_never_used_twice() -> None:
    """A node that crashed after its promise was on disk goes on with a higher ballot."""
    cluster = cluster_of(options=BY_HAND)
    cluster.campaign(1)
    cluster.crash(1)
    cluster.restart(1)
    cluster.campaign(1)
    assert engine_of(cluster, 1).term == b(2, 1)


def test_promise_after_sync() -> None:
    """A Promise leaves only after it is on disk."""
    engine = lone()
    engine.step(Prepare(1, b(1, 1), 1, 2, from_slot=1, pre=False, ordered_in=0))
    ready = engine.ready()
    assert ready is not None
    assert ready.hard_state is not None
    assert not [message for message in ready.messages if isinstance(message, Promise)]
    assert [type(message) for message in ready.messages_after_sync] == [Promise]


def test_all_votes_told() -> None:
    """A promise tells every vote from the asked slot on, those known as chosen and those applied
    long ago among them: a candidate that hears nothing of a slot takes it for empty."""
    votes = [vote(slot, b(1, 1), b"%d" % slot) for slot in (1, 2, 3, 5)]
    engine = lone(promised=b(1, 1), entries=votes, hint=2)
    carried_out(engine)
    engine.step(Prepare(1, b(2, 3), 3, 2, from_slot=2, pre=False, ordered_in=0))
    [told] = answers(engine)
    assert isinstance(told, Promise)
    assert [entry.index for entry in told.entries] == [2, 3, 5]
    assert (told.from_slot, told.upto_slot, told.chosen_upto) == (2, 0, 2)


def test_promise_in_pages() -> None:
    """Votes that do not fit into a message come in pages, which the candidate asks for one by one;
    each says which slots it covers, holes included."""
    votes = [vote(slot, b(1, 3)) for slot in (1, 4, 9)]
    engine = lone(promised=b(1, 3), entries=votes, limits=SMALL)
    covered = []
    first = 1
    while first:
        engine.step(Prepare(1, b(2, 1), 1, 2, from_slot=first, pre=False, ordered_in=0))
        [page] = answers(engine)
        assert isinstance(page, Promise)
        covered.append((page.from_slot, page.upto_slot, [e.index for e in page.entries]))
        first = page.upto_slot and page.upto_slot + 1
    assert covered == [(1, 3, [1]), (4, 8, [4]), (9, 0, [9])]


def test_pages_must_tile() -> None:
    """A promise counts when its pages cover everything; a page that is missing is asked for."""
    engine = candidate()
    engine.step(promise(engine, votes=(vote(1, b(0, 2)),), page=(1, 1)))
    engine.step(promise(engine, page=(5, 0)))
    assert engine.role is Role.CANDIDATE
    asked = [m.from_slot for m in answers(engine) if isinstance(m, Prepare) and m.to == 2]
    assert asked[-1] == 2
    engine.step(promise(engine, page=(2, 4)))
    assert engine.role is Role.LEADER


def test_lost_page_is_asked_for_again() -> None:
    """Whatever of a promise is lost, the candidate asks again, and leads."""
    cluster = led(limits=SMALL)
    cluster.cut([(1, 3), (3, 1)])
    for at in range(5):
        done(cluster, 1, b"%d" % at)
    cluster.crash(1)
    cluster.tick(12)
    if cluster.leader() == 0:
        cluster.campaign(3)
    for _ in range(4):
        cluster.deliver(count=2)
        cluster.drop(kind("promise"))
        cluster.tick(2)
    assert cluster.run_until(lambda: cluster.leader() != 0, 100)
    cluster.settle()
    assert len(cluster.applied(cluster.leader())) >= 5


def test_duplicate_promise_is_one() -> None:
    """Five nodes: the same promise three times is the promise of one node."""
    engine = candidate(node_count=5)
    for _ in range(3):
        engine.step(promise(engine))
    assert engine.role is Role.CANDIDATE
    engine.step(promise(engine, sender=3))
    assert engine.role is Role.LEADER


def test_old_promise_does_not_count() -> None:
    """A promise of an earlier ballot of the same node counts nothing."""
    engine = candidate()
    old = promise(engine)
    engine.campaign()
    carried_out(engine)
    engine.step(old)
    assert engine.role is Role.CANDIDATE


def test_highest_ballot_adopted() -> None:
    """In each slot the value of the highest ballot is proposed, be it our own vote or a promised
    one; a gap is filled with a no-op, and nothing else is (PMS §2.2, P2c; §3)."""
    mine = [vote(1, b(2, 1), b"mine"), vote(2, b(1, 1), b"mine")]
    engine = candidate(promised=b(3, 2), entries=mine)
    told = (vote(1, b(1, 2), b"told"), vote(2, b(3, 2), b"told"), vote(4, b(1, 2), b"told"))
    engine.step(promise(engine, votes=told))
    assert engine.role is Role.LEADER
    assert proposed(engine) == {1: b"mine", 2: b"told", 3: b"", 4: b"told"}
    assert engine.slots.at(3).kind == EntryKind.NOOP
    assert all(engine.slots.at(slot).term == engine.term for slot in range(1, 5))


def test_origin_survives_re_proposal() -> None:
    """A value that is proposed again keeps its origin, bit by bit."""
    engine = candidate(promised=b(3, 2))
    told = vote(1, b(3, 2), b"x")
    engine.step(promise(engine, votes=(told,)))
    assert engine.slots.at(1).body == told.body


def test_known_as_chosen_is_taken() -> None:
    """What a promise tells as chosen is a fact: it is committed at once and not proposed again."""
    engine = candidate()
    engine.step(promise(engine, votes=(vote(1, b(0, 2), b"x"),), chosen_upto=1))
    assert engine.role is Role.LEADER
    assert engine.commit_index == 1
    assert proposed(engine) == {}


def test_late_promise_changes_nothing() -> None:
    """A promise that comes when the candidate leads already changes no proposal."""
    engine = candidate()
    engine.step(promise(engine))
    assert engine.role is Role.LEADER
    engine.propose(b"new")
    engine.step(promise(engine, sender=3, votes=(vote(1, b(0, 3), b"late"),)))
    assert engine.slots.at(1).data == b"new"


def test_own_promise_counts_on_disk() -> None:
    """The candidate's own promise counts only when it is on disk."""
    engine = lone(1, options=BY_HAND)
    engine.campaign()
    ready = engine.ready()
    assert ready is not None
    engine.step(promise(engine))
    assert engine.role is Role.CANDIDATE
    engine.advance(ready)
    assert engine.role is Role.LEADER


def test_page_that_contradicts_itself() -> None:
    """A page with a vote outside of the slots that it covers, or above its ballot, is refused."""
    engine = candidate()
    for votes, page in (((vote(9, b(0, 2)),), (1, 5)), ((vote(1, b(9, 2)),), (1, 0)), ((), (5, 2))):
        with pytest.raises(SchemaError, match="promises ballot"):
            engine.step(promise(engine, votes=votes, page=page))


# -- trimmed slots --


def test_trimmed_is_not_empty() -> None:
    """A promise from a node that has trimmed slots which the candidate lacks does not count, and
    the candidate asks for them, before it proposes anything there."""
    engine = candidate()
    engine.step(promise(engine, trimmed_upto=2, chosen_upto=3, votes=(vote(3, b(0, 2), b"c"),)))
    assert engine.role is Role.CANDIDATE
    [asked] = [message for message in answers(engine) if isinstance(message, LearnRequest)]
    assert asked.ranges == ((1, 2),)
    facts = (vote(1, b(0, 2), b"a"), vote(2, b(0, 2), b"b"))
    engine.step(Learn(1, engine.term, 3, 1, facts))
    engine.step(promise(engine, trimmed_upto=2, chosen_upto=3))
    assert engine.role is Role.LEADER
    assert engine.commit_index == 3
    assert proposed(engine) == {}


def test_other_quorum_when_trimmed_is_gone() -> None:
    """When another quorum has promised, nothing waits for the node that trimmed."""
    engine = candidate()
    engine.step(promise(engine, trimmed_upto=2, chosen_upto=2))
    assert engine.role is Role.CANDIDATE
    votes = (vote(1, b(0, 3), b"a"), vote(2, b(0, 3), b"b"))
    engine.step(promise(engine, sender=3, votes=votes, chosen_upto=2))
    assert engine.role is Role.LEADER
    assert engine.commit_index == 2


def test_trimmed_cluster_takes_over() -> None:
    """A candidate that is behind what others trimmed is brought up by them, and leads."""
    cluster = led(5, limits=Limits(trim_margin_entries=2))
    cluster.isolate(5)
    for at in range(6):
        done(cluster, 1, b"%d" % at)
    cluster.tick(3)
    for node_id in (2, 3):
        cluster.take_snapshot(node_id)
        cluster.tick()
        assert engine_of(cluster, node_id).slots.base_index == 4
    cluster.crash(1)
    cluster.heal()
    cluster.tick(12)
    cluster.campaign(5)
    assert cluster.run_until(lambda: cluster.leader() != 0, 80)
    done(cluster, cluster.leader(), b"after")
    values = [entry.data for entry in cluster.applied(cluster.leader())]
    assert len(values) == 7
    assert all(entry.kind == EntryKind.COMMAND for entry in cluster.applied(cluster.leader()))


def test_accept_of_trimmed_slot_is_a_fact() -> None:
    """An Accept for a trimmed slot is answered with what is chosen, and counts in no voter set."""
    engine = lone(promised=b(1, 1), entries=[vote(1, b(1, 1), b"x")], hint=1)
    carried_out(engine)
    engine.trim(1)
    engine.step(Accept(1, b(2, 3), 3, 2, 0, (vote(1, b(2, 3), b"x"),)))
    [answer] = answers(engine)
    assert answer.ranges == ()  # type: ignore[attr-defined]
    assert answer.chosen_upto == 1  # type: ignore[attr-defined]


def test_request_for_trimmed_is_told_the_rest() -> None:
    """Who asks for trimmed slots is told how far they are trimmed, and what is left of those asked
    for; the next request goes to another node."""
    votes = [vote(slot, b(1, 1), b"x") for slot in (1, 2)]
    engine = lone(promised=b(1, 1), entries=votes, hint=2)
    carried_out(engine)
    engine.trim(1)
    engine.step(LearnRequest(1, b(1, 1), 3, 2, ((1, 1),)))
    assert answers(engine) == [Trimmed(1, b(1, 1), 2, 3, 1)]
    engine.step(LearnRequest(1, b(1, 1), 3, 2, ((1, 2),)))
    [trimmed, told] = answers(engine)
    assert trimmed == Trimmed(1, b(1, 1), 2, 3, 1)
    assert isinstance(told, Learn)
    assert [entry.index for entry in told.entries] == [2]


# -- the fence --


@pytest.mark.parametrize(
    "message",
    [
        Prepare(1, b(1, 1), 1, 2, from_slot=1, pre=False, ordered_in=0),
        Prepare(1, b(1, 1), 1, 2, from_slot=1, pre=True, ordered_in=0),
        Accept(1, b(1, 1), 1, 2, 0, ()),
    ],
)
def test_lower_ballot_is_nacked(message: object) -> None:
    """Whoever acts at a lower ballot is told the promised one, never met with silence."""
    engine = lone(promised=b(2, 3))
    engine.step(message)
    [nack] = answers(engine)
    assert isinstance(nack, Nack)
    assert (nack.term, nack.rejected, nack.to) == (b(2, 3), b(1, 1), 1)


def test_ballot_of_another_refused() -> None:
    """Nobody acts at a ballot that is not his own."""
    engine = lone()
    for message in (
        Prepare(1, b(1, 3), 1, 2, from_slot=1, pre=False, ordered_in=0),
        Accept(1, b(1, 3), 1, 2, 0, ()),
    ):
        with pytest.raises(SchemaError, match="belongs to node 3"):
            engine.step(message)


def test_nack_ends_a_leadership() -> None:
    """One Nack with a higher ballot stops new proposals; the client's outcome is unknown, and what
    was sent may still be chosen."""
    cluster = led()
    proposal = cluster.propose(1, b"x")
    engine_of(cluster, 1).step(Nack(1, b(5, 3), 3, 1, rejected=b(1, 1), leader_id=0))
    cluster.tick()
    assert engine_of(cluster, 1).role is not Role.LEADER
    assert proposal.outcome is Outcome.UNKNOWN
    assert engine_of(cluster, 2).slots.at(1).data != b""
