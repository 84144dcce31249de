"""What a leader knows of one peer's log: ``match_index``, ``next_index``, and what is in flight.

All transitions are here:

* **probe**: where the logs agree is not known.  One message at a time; its answer either moves
  ``next_index`` back or turns the peer to *replicate*.
* **replicate**: pipelined.  ``next_index`` moves on when a message is *sent* (optimistic), bounded
  by a window of messages and of bytes.
* **snapshot**: what comes next for the peer was trimmed.  Nothing is sent until it says that it
  holds something again; how a snapshot gets to it is no affair of the leader's.

The rules: ``match_index`` never falls (a stale or duplicated answer cannot take back what is
durable); ``match_index < next_index`` always; an answer that is older than what is known changes
nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final

from replog.limits import Limits
from replog.types import LogIndex, NodeId, PeerState, PeerStatus

STORED_MESSAGES_MAX: Final = 3
"""Unanswered messages of entries that were read back from the storage.  One costs tens of
milliseconds to read and pack, in which the leader says nothing to anybody: a whole window at once
would take longer than an election timeout, and the others would elect somebody, perhaps the very
peer that has nothing.  With three, one is on its way while the peer works on another."""


class Progress:
    """One peer, as its leader sees it; made anew with each leadership."""

    __slots__ = (
        "_in_flight",
        "_in_flight_bytes",
        "_limits",
        "_probe_sent",
        "commit_sent",
        "match_index",
        "next_index",
        "recently_active",
        "state",
    )

    def __init__(self, next_index: LogIndex, limits: Limits) -> None:
        self.state = PeerState.PROBE
        self.match_index: LogIndex = 0
        self.next_index = next_index
        self.recently_active = False
        """Whether anything was heard since the last quorum check."""
        self.commit_sent: LogIndex = 0
        """The highest commit index that the peer was told, lost messages included."""
        self._probe_sent = False
        self._in_flight: deque[tuple[LogIndex, int]] = deque()
        self._in_flight_bytes = 0
        self._limits = limits

    @property
    def is_paused(self) -> bool:
        """Whether nothing may be sent until an answer (or a heartbeat's answer) has come."""
        if self.state is PeerState.PROBE:
            return self._probe_sent
        return self.state is PeerState.SNAPSHOT or (
            len(self._in_flight) >= self._limits.in_flight_messages_max
            or self._in_flight_bytes >= self._limits.in_flight_bytes_max
        )

    def pauses_below(self, held_index: LogIndex) -> bool:
        """The same, where everything below ``held_index`` has to be read from the storage."""
        return self.is_paused or (
            self.next_index < held_index and len(self._in_flight) >= STORED_MESSAGES_MAX
        )

    def handle_sent(self, last_index: LogIndex, size_bytes: int) -> None:
        """A message with the entries up to ``last_index`` was sent."""
        if self.state is PeerState.PROBE:
            self._probe_sent = True
            return
        assert last_index >= self.next_index
        self.next_index = last_index + 1
        self._in_flight.append((last_index, size_bytes))
        self._in_flight_bytes += size_bytes

    def handle_accepted(self, match_index: LogIndex) -> bool:
        """The peer holds everything up to ``match_index``; whether that is news."""
        in_flight = self._in_flight
        while in_flight and in_flight[0][0] <= match_index:
            self._in_flight_bytes -= in_flight.popleft()[1]
        is_news = match_index > self.match_index
        if is_news:
            self.match_index = match_index
        if self.next_index <= self.match_index:
            self.next_index = self.match_index + 1
        is_reached = self.state is PeerState.PROBE and match_index + 1 >= self.next_index
        if is_reached or (is_news and self.state is PeerState.SNAPSHOT):
            self._become(PeerState.REPLICATE)
        return is_news

    def handle_trimmed(self) -> None:
        """What is at ``next_index`` was trimmed: only a snapshot can help the peer."""
        self._become(PeerState.SNAPSHOT)

    def handle_apart(self, first: LogIndex, last: LogIndex) -> None:
        """The peer took in the messages that end within ``first..last``, and lacks something
        before them: they are unanswered no more."""
        if not any(first <= sent_last <= last for sent_last, _ in self._in_flight):
            return
        unanswered = [item for item in self._in_flight if not first <= item[0] <= last]
        self._in_flight = deque(unanswered)
        self._in_flight_bytes = sum(size_bytes for _, size_bytes in unanswered)

    def handle_rejected(self, rejected_index: LogIndex, next_index: LogIndex) -> bool:
        """The peer's log does not match at ``rejected_index``; try at ``next_index``.

        Returns whether anything changed: a stale rejection does not count (Raft §5.3 relies on
        the matching point never moving back).
        """
        if rejected_index <= self.match_index:
            return False
        if self.state is PeerState.PROBE and rejected_index != self.next_index - 1:
            return False
        if self.state is PeerState.REPLICATE and rejected_index >= self.next_index:
            return False
        if self.state is PeerState.SNAPSHOT:
            return False
        self._become(PeerState.PROBE)
        self.next_index = max(self.match_index + 1, min(rejected_index, next_index))
        return True

    def handle_tail_lost(self, next_index: LogIndex) -> None:
        """The peer, whose position is known, received nothing from ``next_index`` on: send it
        again from there."""
        assert self.state is PeerState.REPLICATE
        assert self.match_index < next_index <= self.next_index
        self._become(PeerState.REPLICATE)
        self.next_index = next_index

    def handle_heartbeat_answered(self) -> None:
        """The peer is alive: a probe that was lost may be repeated."""
        self._probe_sent = False

    def _become(self, state: PeerState) -> None:
        self.state = state
        self._probe_sent = False
        self._in_flight.clear()
        self._in_flight_bytes = 0

    def status(self, node_id: NodeId) -> PeerStatus:
        """A read-only picture."""
        return PeerStatus(
            node_id=node_id,
            state=self.state,
            match_index=self.match_index,
            next_index=self.next_index,
            in_flight_messages=len(self._in_flight),
            recently_active=self.recently_active,
        )

    def clone(self) -> Progress:
        """An independent copy."""
        copy = Progress(self.next_index, self._limits)
        copy.state = self.state
        copy.match_index = self.match_index
        copy.recently_active = self.recently_active
        copy.commit_sent = self.commit_sent
        copy._probe_sent = self._probe_sent
        copy._in_flight = self._in_flight.copy()
        copy._in_flight_bytes = self._in_flight_bytes
        return copy

    def key(self) -> Hashable:
        """Equal for two records that behave alike from here on."""
        return (
            self.state.value,
            self.match_index,
            self.next_index,
            self.recently_active,
            self.commit_sent,
            self._probe_sent,
            tuple(self._in_flight),
        )
