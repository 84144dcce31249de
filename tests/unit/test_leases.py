"""The parts of leases, each by itself: how long they are, the faith of a voter, the holder's."""

from __future__ import annotations

import pytest

from replog.leases import Faith, Lease, LeaseTerms, option_problems
from replog.limits import Limits
from replog.quorum import Majority

MS = 1_000_000
TERMS = LeaseTerms.of(500, 10)
NONE = LeaseTerms.of(0, 10)
THREE = Majority((1, 2, 3))


@pytest.mark.parametrize("drift_percent", [0, 1, 10, 33, 50])
def test_lease_shorter_than_faith_by_any_clocks(drift_percent: int) -> None:
    """However slow the holder's clock and however fast a voter's are within the bound, the lease is
    over in real time before the faith is."""
    terms = LeaseTerms.of(500, drift_percent)
    lease_real_ns = terms.lease_ns * 100 / (100 - drift_percent)
    faith_real_ns = terms.faith_ns * 100 / (100 + drift_percent)
    assert lease_real_ns <= faith_real_ns
    assert lease_real_ns > faith_real_ns * 0.999


def test_faith_for_as_long_as_agreed() -> None:
    """After a leader's message a voter refuses everybody, until the time is over."""
    faith = Faith(TERMS, term=3)
    faith.observe(7 * MS)
    faith.observe(1000 * MS)
    assert not faith.refuses(ordered_in=0)
    faith.hear_leader(4)
    faith.observe(1000 * MS + TERMS.faith_ns - 1)
    assert faith.refuses(ordered_in=0)
    faith.observe(1000 * MS + TERMS.faith_ns)
    assert not faith.refuses(ordered_in=0)


def test_faith_after_start() -> None:
    """A voter that has just started keeps faith as if it had heard a leader, and one that was never
    told the time keeps it for ever."""
    faith = Faith(TERMS, term=3)
    assert faith.refuses(ordered_in=0)
    faith.observe(50 * MS)
    assert faith.refuses(ordered_in=0)
    faith.observe(50 * MS + TERMS.faith_ns - 1)
    assert faith.refuses(ordered_in=0)
    faith.observe(50 * MS + TERMS.faith_ns)
    assert not faith.refuses(ordered_in=0)


def test_faith_yields_to_order_of_that_leader() -> None:
    """Who was ordered to take over by the leader that was heard, or by a later one, is not refused;
    who names an earlier term is."""
    faith = Faith(TERMS, term=3)
    faith.observe(0)
    assert [faith.refuses(term) for term in (2, 3, 4)] == [True, False, False]
    faith.hear_leader(5)
    assert [faith.refuses(term) for term in (4, 5, 6)] == [True, False, False]


def test_clock_that_goes_back_shortens_no_faith() -> None:
    """A time below the last one is ignored."""
    faith = Faith(TERMS, term=3)
    faith.observe(1000 * MS)
    faith.observe(0)
    faith.hear_leader(3)
    faith.observe(1000 * MS + TERMS.faith_ns - 1)
    assert faith.refuses(ordered_in=0)


def test_no_faith_without_leases() -> None:
    """Where no leases were agreed on, nobody is refused, and no time need be told."""
    faith = Faith(NONE, term=3)
    assert not faith.is_kept
    assert not faith.refuses(ordered_in=0)


def test_lease_runs_from_sending() -> None:
    """A lease runs from when the round left that a quorum answered, however late the answers."""
    lease = Lease(TERMS)
    lease.begin_round(1, 100 * MS)
    lease.begin_round(2, 200 * MS)
    assert lease.until_ns is None
    assert not lease.holds(100 * MS)
    lease.confirm(2, 1, THREE, 1)
    assert lease.until_ns == 100 * MS + TERMS.lease_ns
    assert lease.holds(100 * MS + TERMS.lease_ns - 1)
    assert not lease.holds(100 * MS + TERMS.lease_ns)
    lease.confirm(3, 2, THREE, 1)
    assert lease.until_ns == 200 * MS + TERMS.lease_ns


def test_lease_needs_quorum() -> None:
    """Of five, one answer beside the leader is none; an answer that comes twice is one answer."""
    five = Majority((1, 2, 3, 4, 5))
    lease = Lease(TERMS)
    lease.begin_round(1, 0)
    lease.confirm(2, 1, five, 1)
    lease.confirm(2, 1, five, 1)
    assert lease.until_ns is None
    lease.confirm(3, 1, five, 1)
    assert lease.until_ns == TERMS.lease_ns


def test_lease_by_different_rounds() -> None:
    """The rounds that a quorum has answered at least are what counts, not the latest of each."""
    five = Majority((1, 2, 3, 4, 5))
    lease = Lease(TERMS)
    for number in (1, 2, 3):
        lease.begin_round(number, number * 10 * MS)
    lease.confirm(2, 3, five, 1)
    lease.confirm(3, 1, five, 1)
    assert lease.until_ns == 10 * MS + TERMS.lease_ns
    lease.confirm(4, 2, five, 1)
    assert lease.until_ns == 20 * MS + TERMS.lease_ns


def test_lease_is_over_for_good() -> None:
    """After somebody was ordered to take over, no answer brings the lease back."""
    lease = Lease(TERMS)
    lease.begin_round(1, 0)
    lease.confirm(2, 1, THREE, 1)
    lease.begin_round(2, 10 * MS)
    lease.end()
    lease.confirm(3, 2, THREE, 1)
    lease.begin_round(3, 20 * MS)
    lease.confirm(3, 3, THREE, 1)
    assert lease.until_ns is None


def test_rounds_held_are_bounded() -> None:
    """Rounds that nobody answers are forgotten when they are too old to be worth anything."""
    lease = Lease(TERMS)
    for number in range(10_000):
        lease.begin_round(number + 1, number * MS)
    assert len(lease._sent) <= TERMS.lease_ns // MS + 1
    lease.confirm(2, 1, THREE, 1)
    assert lease.until_ns is None


def test_clones_are_apart_and_equal_keys_alike() -> None:
    """A clone has its own future, and a key counts time from now on: who stands the same way to its
    own clock goes on alike."""
    lease, faith = Lease(TERMS), Faith(TERMS, 1)
    for at in (0, 10):
        faith.observe(at * MS)
        lease.begin_round(at + 1, at * MS)
    lease.confirm(2, 1, THREE, 1)
    copy, faith_copy = lease.clone(), faith.clone()
    assert copy.key(10 * MS) == lease.key(10 * MS)
    assert faith_copy.key() == faith.key()
    copy.confirm(2, 11, THREE, 1)
    faith_copy.observe(20 * MS)
    assert copy.key(10 * MS) != lease.key(10 * MS)
    assert faith_copy.key() != faith.key()
    later = Lease(TERMS)
    later.begin_round(1, 100 * MS)
    later.begin_round(11, 110 * MS)
    later.confirm(2, 1, THREE, 1)
    assert later.key(110 * MS) == lease.key(10 * MS)


@pytest.mark.parametrize(
    ("lease_ms", "drift_percent", "named"),
    [(-1, 10, "lease_ms"), (500, -1, "clock_drift_percent"), (500, 51, "clock_drift_percent")],
)
def test_options_out_of_range(lease_ms: int, drift_percent: int, named: str) -> None:
    """An option that can mean nothing is named."""
    (problem,) = option_problems(lease_ms, drift_percent)
    assert problem.startswith(f"{named}:")


def test_relations_to_ticks() -> None:
    """A lease must not be longer than an election timeout, and must span two heartbeats even as
    much shorter as the drift makes it."""
    limits = Limits(tick_ms=50)
    assert LeaseTerms.of(450, 10).problems(2, 10, limits) == []
    assert NONE.problems(2, 10, limits) == []
    (too_long,) = LeaseTerms.of(451, 10).problems(2, 10, limits)
    assert "at most (election_ticks_min - 1) * limits.tick_ms = 450" in too_long
    (too_short,) = LeaseTerms.of(200, 0).problems(2, 10, limits)
    assert "2 * heartbeat_ticks * limits.tick_ms = 200, or" in too_short
