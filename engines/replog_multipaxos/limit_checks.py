"""Rule P10 of :mod:`replog_multipaxos.checks`, the limits of a leader, counted from outside.

What a leader has on its way to a peer is the proposals (Accepts) that it sent for the first time
and that nothing has answered:

* an Accepted answers a proposal whose last slot is in its ranges: it arrived, whatever is missing
  in front of it;
* whatever states ``chosen_upto`` answers those that end at or below that;
* a CommitReply that misses the end of all that was sent ends them all, for the leader sends that
  end again.

What is sent once more, slot by slot, is no part of a leader's window, and at most a message full
each time.
"""

from __future__ import annotations

from replog.limits import Limits
from replog.testing.checks import Check, Nodes
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.testing.windows import Unanswered, Uncommitted, size_bytes_of, size_problem
from replog.types import LogIndex, NodeId, Ready, Role, Status, Term
from replog_multipaxos.messages import Accept, Accepted, CommitReply, Learn, Promise
from replog_multipaxos.multipaxos import MultiPaxos


class Window:
    """What one leader has on its way to one peer; its life follows :mod:`replog.progress`."""

    __slots__ = ("sent_upto", "told_upto", "unanswered")

    def __init__(self) -> None:
        self.unanswered = Unanswered()
        self.sent_upto: LogIndex = 0
        """The highest slot that was proposed to the peer."""
        self.told_upto: LogIndex = 0
        """The highest slot that the peer spoke of; it may know of some as facts before they are
        proposed to it, and then no answer to the proposal need come."""

    def hear(self, message: Accepted | CommitReply | Promise) -> None:
        """The peer says where it stands."""
        self.told_upto = max(self.told_upto, message.chosen_upto)
        self.unanswered.answer(0, message.chosen_upto)
        if type(message) is Accepted:
            for first, last in message.ranges:
                self.told_upto = max(self.told_upto, last)
                self.unanswered.answer(first, last)
        elif type(message) is CommitReply and message.ranges:
            is_end = message.ranges[-1][1] == message.sent_upto
            if is_end and message.sent_upto >= self.unanswered.last_index:
                self.unanswered.forget()


class WithinLimits(Check):
    """P10, but for the slots that may be open.

    It does not see how many facts (Learns) are on their way, nor proposals that were sent again:
    from outside they look like answers to a request, or to a report of what is missing.
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[NodeId, Term, int], Window] = {}
        """By leader, ballot and incarnation of a peer."""
        self._uncommitted: dict[NodeId, Uncommitted] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Judge a message with entries by its size, and a new proposal by what is before it."""
        message = flight.message
        if not isinstance(message, Accept | Learn | Promise) or not message.entries:
            return ""
        limits = limits_of(nodes[message.sender])
        size_bytes = size_bytes_of(message.entries)
        found = size_problem(message.entries, size_bytes, limits)
        if type(message) is Accept:
            place = (message.sender, message.term, flight.incarnations[1])
            found = found or self._judge_window(place, message, size_bytes, limits)
        return f"P10: node {message.sender} {found} (to node {message.to})" if found else ""

    def _judge_window(
        self, place: tuple[NodeId, Term, int], message: Accept, size_bytes: int, limits: Limits
    ) -> str:
        window = self._windows.get(place)
        if window is None:
            window = self._windows[place] = Window()
        first, last = message.entries[0].index, message.entries[-1].index
        if first <= window.sent_upto:
            window.sent_upto = max(window.sent_upto, last)
            return ""
        found = window.unanswered.problem(limits)
        window.sent_upto = last
        if last > window.told_upto:
            window.unanswered.add(last, size_bytes)
        return found

    def check_received(self, nodes: Nodes, node: ClusterNode, flight: Flight) -> str:
        """Note an answer; those to other ballots than the leader's change nothing."""
        message = flight.message
        if isinstance(message, Accepted | CommitReply | Promise):
            window = self._windows.get((message.to, message.term, flight.incarnations[0]))
            is_binding = not (isinstance(message, Promise) and message.pre)
            if window is not None and is_binding:
                window.hear(message)
        return ""

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """Judge what a leader takes from clients."""
        if not ready.entries:
            return ""
        uncommitted = self._uncommitted.setdefault(node.node_id, Uncommitted())
        found = uncommitted.problem(node, ready, limits_of(node))
        return f"P10: node {node.node_id} {found}" if found else ""


class WithinOpenSlots(Check):
    """P10: the slots that may be open."""

    def __init__(self, open_slots_max: int) -> None:
        self._open_slots_max = open_slots_max
        self._seen: dict[NodeId, tuple[int, Status]] = {}
        """What the node's status was, and in which run."""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Look at a leader whose status is new."""
        status = node.status_seen
        run, seen = self._seen.get(node.node_id, (0, status))
        if run and seen is status:
            return ""
        self._seen[node.node_id] = (node.run, status)
        # A leadership may begin with more open slots than that; it only adds none.
        led_already = (run, seen.role, seen.term) == (node.run, Role.LEADER, status.term)
        open_count = seen.last_index - status.commit_index
        is_full = open_count >= self._open_slots_max
        is_leader = status.role is Role.LEADER
        if is_leader and led_already and is_full and status.last_index > seen.last_index:
            return (
                f"P10: node {node.node_id} takes a proposal with {open_count} slots open, and "
                f"open_slots_max = {self._open_slots_max}"
            )
        return ""


def limits_of(node: ClusterNode) -> Limits:
    """The limits that the node was given."""
    engine = node.replica.engine
    assert isinstance(engine, MultiPaxos)
    return engine.setup.limits
