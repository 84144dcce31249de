"""Questions to single nodes: over a line of its own for each, so that any node can be asked.

A question changes nothing, so it goes to the next address whatever went wrong at the one before; it
ends with the first reply, whatever that says.  Which command is a question is told by its
:class:`~replog.client_actions.Route`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from replog.address import Address
from replog.client_actions import Command, Line, Route
from replog.client_core import failure_of
from replog.client_lines import Lines
from replog.client_search import LeaderSearch
from replog.errors import AddressError, CallerError, Unavailable
from replog.frames import Outcome, Reply, ServerHello
from replog.types import NO_NODE, Applied, NodeId

W = TypeVar("W")


class Questions(Generic[W]):
    """The questions of a client, as far as they differ from commands."""

    __slots__ = ("_end", "_lines", "_search")

    def __init__(
        self,
        lines: Lines[W],
        search: LeaderSearch,
        end: Callable[[Command[W], Exception | None], None],
    ) -> None:
        """``end`` is called once for each question, with ``None`` or why it was not answered."""
        self._lines = lines
        self._search = search
        self._end = end

    def route_to(self, node: NodeId | str | None) -> Route[W]:
        """The way to an id or an address; ``None`` is whichever answers first, the leader by
        preference.  Raises :class:`~replog.errors.AddressError`.
        """
        if isinstance(node, str):
            return Route([str(Address.parse(node))], None)
        members = self._search.members
        if node is not None and node in members:
            return Route([members[node]], None)
        # Whoever welcomes the client names the members.
        return Route(list(self._search.addresses()), node)

    def go_on(self, now: float, question: Command[W], route: Route[W]) -> None:
        """Ask at the next address, or end the question when there is none."""
        route.line = None
        while route.addresses:
            address = route.addresses.pop(0)
            route.line = self._lines.connect(now, address, self._search.cluster_id, question)
            if route.line is not None:
                return
            route.reasons.append(f"{address}: it is no address")
        self._end(question, no_answer(question, route))

    def handle_welcome(
        self, now: float, line: Line[W], question: Command[W], hello: ServerHello
    ) -> None:
        """A node has welcomed the client: ask it, or go to the one whose address it knows."""
        self._search.note_members(hello)
        route = route_of(question)
        if route.node_id is not None:
            self._lines.close(line, "it has named the members")
            self._go_to_member(now, question, route, route.node_id)
            return
        try:
            question.request_id, frame = line.core.request(question.verb, question.body, question)
        except CallerError as failure:
            route.line = None
            self._lines.close(line, "the question is too large")
            self._end(question, failure)
            return
        question.line = line
        self._lines.send(line, frame)

    def _go_to_member(
        self, now: float, question: Command[W], route: Route[W], node_id: NodeId
    ) -> None:
        members = self._search.members
        if node_id in members:
            route.addresses, route.node_id = [members[node_id]], None
            self.go_on(now, question, route)
            return
        route.line = None
        ids = ", ".join(map(str, sorted(members)))
        self._end(question, AddressError(f"the cluster has no node {node_id}; its nodes are {ids}"))

    def handle_reply(
        self, line: Line[W], question: Command[W], reply: Reply, value: object
    ) -> None:
        """The node has answered, or said why it does not."""
        if reply.outcome is Outcome.DONE:
            question.applied = Applied(reply.index, value)
            self._end(question, None)
        else:
            self._end(question, failure_of(reply, NO_NODE, len(question.body)))
        self._lines.close(line, "the question is answered")

    def handle_end(self, now: float, line: Line[W], question: Command[W], reason: str) -> None:
        """The line of a question that is not answered has ended."""
        route = route_of(question)
        if route.line is line:
            question.line = None
            route.reasons.append(f"{line.address}: {reason}")
            self.go_on(now, question, route)

    def withdraw(self, question: Command[W], route: Route[W]) -> None:
        """Nobody waits for the answer any more."""
        if route.line is not None:
            self._lines.close(route.line, "nobody waits for the answer any more")
            route.line = None


def route_of(question: Command[W]) -> Route[W]:
    """The way of a question, which has one."""
    assert question.route is not None, "a line that is for a question has one with a route"
    return question.route


def no_answer(question: Command[W], route: Route[W]) -> Unavailable:
    """What a question ends with that no node has answered."""
    found = "; ".join(route.reasons) or f"nothing came within {question.seconds:g} s"
    return Unavailable(f"no node answered ({found}); see that it runs, and check the address")
