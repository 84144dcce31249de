"""Rule R8 of :mod:`replog_raft.checks`, the limits of a leader, counted from outside.

What a leader has on its way to a peer is what it sent with entries and what nothing has answered:

* an accepting reply answers all that ends at or below what it acknowledges;
* a refusing one ends them all, for the leader begins anew with a probe (Raft §5.3);
* while the leader probes, every answer to a heartbeat lets it try again: the probe may be lost.

So a lost message counts until one of these comes, as it does in the leader's own window.
"""

from __future__ import annotations

from replog.limits import Limits
from replog.testing.checks import Check, Nodes
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.testing.windows import Unanswered, Uncommitted, size_bytes_of, size_problem
from replog.types import LogIndex, NodeId, Ready, Term
from replog_raft.messages import AppendEntries, AppendReply, HeartbeatReply
from replog_raft.raft import Raft


class Window:
    """What one leader has on its way to one peer; its life follows :mod:`replog.progress`."""

    __slots__ = ("is_probing", "match_index", "probed_index", "unanswered")

    def __init__(self) -> None:
        self.unanswered = Unanswered()
        self.is_probing = True
        """Whether the leader may not know where the logs agree: then whatever shows that the peer
        lives lets it try again."""
        self.probed_index: LogIndex = -1
        """While that is so, the index in front of what was sent last; -1: nothing was."""
        self.match_index: LogIndex = 0

    def hear_reply(self, reply: AppendReply) -> None:
        """The peer took entries, or refused some; an old refusal changes nothing."""
        if reply.accepted:
            self.match_index = max(self.match_index, reply.match_index)
            self.unanswered.answer(0, reply.match_index)
            if self.is_probing and 0 <= self.probed_index <= reply.match_index:
                self.is_probing = False
                self.unanswered.forget()
        elif reply.rejected_index > self.match_index:
            self.is_probing, self.probed_index = True, -1
            self.unanswered.forget()

    def hear_heartbeat_reply(self) -> None:
        """The peer lives."""
        if self.is_probing:
            self.unanswered.forget()


class WithinLimits(Check):
    """R8, counted by what is sent and received.

    It does not see that a leader sends a second probe too early, nor, where a refusal comes that
    the leader knows to be too old, what was on its way before: such a refusal might begin a probe.
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[NodeId, Term, int], Window] = {}
        """By leader, term and incarnation of a peer."""
        self._uncommitted: dict[NodeId, Uncommitted] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Judge a message with entries by its size, and by what is before it."""
        message = flight.message
        if type(message) is not AppendEntries or not message.entries:
            return ""
        limits = limits_of(nodes[message.sender])
        place = (message.sender, message.term, flight.incarnations[1])
        window = self._windows.get(place)
        if window is None:
            window = self._windows[place] = Window()
        size_bytes = size_bytes_of(message.entries)
        found = size_problem(message.entries, size_bytes, limits)
        found = found or window.unanswered.problem(limits)
        window.unanswered.add(message.entries[-1].index, size_bytes)
        window.probed_index = message.prev_index
        return f"R8: node {message.sender} {found} (to node {message.to})" if found else ""

    def check_received(self, nodes: Nodes, node: ClusterNode, flight: Flight) -> str:
        """Note an answer; those of other terms than the leader's change nothing."""
        message = flight.message
        if isinstance(message, AppendReply | HeartbeatReply):
            window = self._windows.get((message.to, message.term, flight.incarnations[0]))
            if window is None:
                return ""
            if isinstance(message, AppendReply):
                window.hear_reply(message)
            else:
                window.hear_heartbeat_reply()
        return ""

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """Judge what a leader takes from clients."""
        if not ready.entries:
            return ""
        uncommitted = self._uncommitted.setdefault(node.node_id, Uncommitted())
        found = uncommitted.problem(node, ready, limits_of(node))
        return f"R8: node {node.node_id} {found}" if found else ""


def limits_of(node: ClusterNode) -> Limits:
    """The limits that the node was given."""
    engine = node.replica.engine
    assert isinstance(engine, Raft)
    return engine.setup.limits
