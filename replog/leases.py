"""Leases: reads that need no message, for as long as a clock vouches that nobody else can lead.

A leader that has just heard a quorum need not ask it again for every read, if every node promises
to elect nobody else for a while (Raft thesis §6.4.1; Gray and Cheriton, "Leases", 1989).  That
rests on clocks, so it is opt-in twice: ``lease_ms``, which is agreed on for the cluster, and the
level of the read.  The rules:

* **A voter keeps faith.**  For ``lease_ms`` after each message of a leader, by its own clock, it
  gives nobody a vote or a promise that could elect another, itself included: neither by a timeout
  nor by ``campaign()``.  After its start it keeps faith for as long, because it may have answered
  just before it stopped, and remembers nothing of that.
* **A lease runs from the sending** of the round that a quorum answered, never from the receipt of
  the answers: what the answers prove is that faith is kept since some moment after the sending.
* **It is shorter than faith**, by what two clocks may drift apart: each runs at most
  ``clock_drift_percent`` faster or slower than real time.
* **Who reads hands in the time**, read from the clock *after* it was asked.  So a process that
  was suspended between two lines of its program finds its lease run out.  For the same reason the
  clock must count the time for which a machine sleeps.
* **There is none before a quorum answered** a round of this leadership.
* **An order to take over ends leases for good**: the successor's requests name the term in which
  the order was given, and pass the faith that is kept with that term's leader or with an earlier
  one.  The order may arrive at any time, so in its term there is no lease any more.

Why it is safe: who is elected has the votes of a quorum, and that meets the quorum of every round.
Let v be in both.  It answered the round before it voted, or its vote would have ended that term
for it; and if v is the leader itself, its vote ended its leadership and the lease with it.  Else
it voted ``lease_ms`` of its clock after it had heard the round, or for a successor that
was ordered to come, and then the leader had stopped reading by leases before.  In the first case
the lease is over by any clock that keeps to the bound.  So when somebody is elected, all leases of
earlier terms are over; and nobody but the holder of a lease commits anything while it lasts.

Times are nanoseconds of a clock that each node has for itself.  A node whose engine is never told
the time keeps faith for ever and holds no lease.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Final

from replog.limits import Limits
from replog.quorum import QuorumSystem
from replog.types import NodeId, Term, record

LEASE_NAME: Final = "lease_ms"
"""What all nodes of a cluster must hold to alike: the name among what is agreed on."""

_MS: Final = 1_000_000
"""Nanoseconds in a millisecond."""


@record
class LeaseTerms:
    """How long faith is kept, and how much shorter a lease is; 0: there are no leases."""

    faith_ns: int
    lease_ns: int

    @staticmethod
    def of(lease_ms: int, clock_drift_percent: int) -> LeaseTerms:
        """The terms that follow from what was agreed on and from the bound on the clocks."""
        faith_ns = lease_ms * _MS
        # The holder's clock may be the slow one and the voter's the fast one: lease / (1 - d) of
        # real time must not be longer than faith / (1 + d).
        slow, fast = 100 - clock_drift_percent, 100 + clock_drift_percent
        return LeaseTerms(faith_ns, faith_ns * slow // fast)

    def problems(self, heartbeat_ticks: int, election_ticks_min: int, limits: Limits) -> list[str]:
        """Every relation to an engine's ticks that does not hold, as ``key: sentence``."""
        if not self.faith_ns:
            return []
        found = []
        lease_ms, least_ms = self.faith_ns // _MS, 2 * heartbeat_ticks * limits.tick_ms
        # The first tick after a leader's message may come at once.
        most_ms = (election_ticks_min - 1) * limits.tick_ms
        if lease_ms > most_ms:
            found.append(
                f"{LEASE_NAME}: {lease_ms} must be at most (election_ticks_min - 1) * "
                f"limits.tick_ms = {most_ms}, or elections wait for leases that nobody holds any "
                "more"
            )
        if self.lease_ns <= least_ms * _MS:
            found.append(
                f"{LEASE_NAME}: of {lease_ms} ms a leader may use {self.lease_ns // _MS}, by "
                "clock_drift_percent, and that must be more than two heartbeats, "
                f"2 * heartbeat_ticks * limits.tick_ms = {least_ms}, or one that is lost ends it"
            )
        return found


def option_problems(lease_ms: int, clock_drift_percent: int) -> list[str]:
    """What is wrong with the options of an engine that speak of leases, as ``key: sentence``."""
    found = []
    if lease_ms < 0:
        found.append(f"{LEASE_NAME}: must be at least 0, not {lease_ms}")
    if not 0 <= clock_drift_percent <= 50:
        found.append(f"clock_drift_percent: must be 0 to 50, not {clock_drift_percent}")
    return found


def agreed_lease(lease_ms: int) -> Mapping[str, int]:
    """What is agreed on for a cluster whose founder asks for these leases."""
    return {LEASE_NAME: lease_ms} if lease_ms else {}


class Faith:
    """The faith that one node keeps with the leaders it hears; lives as long as the node."""

    __slots__ = ("_heard_ns", "_heard_term", "_terms", "now_ns")

    def __init__(self, terms: LeaseTerms, term: Term) -> None:
        """``term``: the highest of which a leader may have been heard before the start."""
        self._terms = terms
        self.now_ns: int | None = None
        """The time, as of the last message, tick or read; ``None``: not known yet."""
        self._heard_ns = 0
        self._heard_term = term if terms.faith_ns else 0

    @property
    def is_kept(self) -> bool:
        """Whether the cluster has leases at all."""
        return self._terms.faith_ns > 0

    def observe(self, now_ns: int) -> None:
        """The clock shows ``now_ns``: after what arrived, and before that is looked at."""
        if self.now_ns is None:
            self._heard_ns = self.now_ns = now_ns  # the start counts as a leader's message
        elif now_ns > self.now_ns:
            self.now_ns = now_ns

    def hear_leader(self, term: Term) -> None:
        """A message of the leader of ``term`` came."""
        if self.now_ns is not None:
            self._heard_ns, self._heard_term = self.now_ns, term

    def refuses(self, ordered_in: Term) -> bool:
        """Whether nobody may be voted for, but who was ordered to take over in the term
        ``ordered_in`` (0: not ordered) of the leader that was heard, or in a later one."""
        if not self._terms.faith_ns or (ordered_in and ordered_in >= self._heard_term):
            return False
        return self.now_ns is None or self.now_ns < self._heard_ns + self._terms.faith_ns

    def clone(self) -> Faith:
        """An independent copy."""
        copy = Faith(self._terms, self._heard_term)
        copy.now_ns, copy._heard_ns = self.now_ns, self._heard_ns
        return copy

    def key(self) -> Hashable:
        """Equal for two that go on alike: only what is left of the time matters."""
        if not self._terms.faith_ns:
            return None
        left_ns = None
        if self.now_ns is not None:
            left_ns = max(0, self._heard_ns + self._terms.faith_ns - self.now_ns)
        return (left_ns, self._heard_term)


class Lease:
    """The lease of one leadership; dies with it."""

    __slots__ = ("_answered", "_is_over", "_sent", "_terms", "_until_ns")

    def __init__(self, terms: LeaseTerms) -> None:
        self._terms = terms
        self._sent: deque[tuple[int, int]] = deque()
        """Rounds that may still extend the lease, ascending: the number, and when it left."""
        self._answered: dict[NodeId, int] = {}
        """By peer, the highest round that it answered."""
        self._until_ns: int | None = None
        """Until when it runs; ``None``: no quorum has answered yet."""
        self._is_over = False
        """Whether somebody was ordered to take over in this term."""

    def begin_round(self, number: int, now_ns: int | None) -> None:
        """A round leaves, not before ``now_ns``; its number is above every earlier one's."""
        if not self._terms.lease_ns or now_ns is None or self._is_over:
            return
        sent = self._sent
        while sent and sent[0][1] + self._terms.lease_ns <= now_ns:
            sent.popleft()  # too old to be worth anything
        sent.append((number, now_ns))

    def confirm(self, peer: NodeId, number: int, quorum: QuorumSystem, node_id: NodeId) -> None:
        """A peer answered a round, in our term; ``quorum`` must meet all that elect, and the
        leader ``node_id`` counts for itself in it."""
        if not self._sent or number <= self._answered.get(peer, 0):
            return
        self._answered[peer] = number
        confirmed = quorum.committed_index({**self._answered, node_id: self._sent[-1][0]})
        while self._sent and self._sent[0][0] <= confirmed:
            self._until_ns = self._sent.popleft()[1] + self._terms.lease_ns

    def end(self) -> None:
        """Somebody was ordered to take over: no lease any more in this term."""
        self._is_over = True
        self._until_ns = None
        self._sent.clear()
        self._answered.clear()

    @property
    def until_ns(self) -> int | None:
        """Until when it runs, unless it ends before; ``None``: there is none."""
        return self._until_ns

    def holds(self, now_ns: int) -> bool:
        """Whether at ``now_ns`` nobody else can have been elected."""
        return self._until_ns is not None and now_ns < self._until_ns

    def clone(self) -> Lease:
        """An independent copy."""
        copy = Lease(self._terms)
        copy._sent, copy._answered = self._sent.copy(), self._answered.copy()
        copy._until_ns, copy._is_over = self._until_ns, self._is_over
        return copy

    def key(self, now_ns: int | None) -> Hashable:
        """Equal for two that go on alike: times count from ``now_ns``."""
        if not self._terms.lease_ns or now_ns is None:
            return None
        until_ns = None if self._until_ns is None else max(0, self._until_ns - now_ns)
        sent = tuple((number, sent_ns - now_ns) for number, sent_ns in self._sent)
        return (until_ns, sent, tuple(sorted(self._answered.items())), self._is_over)
