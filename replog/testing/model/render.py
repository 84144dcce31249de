"""A path through the model as a trace that people can read.

The path is walked once more with the real engines, and each step is written down as
``docs/traces.md`` says; the tick is the number of the step.  Only what is on the path is shown: a
message that is lost because too many would be on their way is dropped with ``reason=bound``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from replog.engine import MessageSpec
from replog.testing.model.bounds import COPY_BITS
from replog.testing.model.local import Action, ActionKind, Local, Step, command_payload
from replog.testing.model.space import Move, Net, Place, Space
from replog.testing.network import Flight
from replog.testing.trace import Trace, entries_text, hard_state_pairs, node_text
from replog.types import NodeId, Ready, record


@record
class Hop:
    """One step of a path."""

    move: Move | None
    """``None``: one message is lost."""
    place: Place
    """Where it leads; of no meaning if the move itself breaks a rule."""
    net: Net | None
    """What is on its way afterwards; ``None`` at the end, where a rule is broken."""


def render_path(space: Space, specs: Sequence[MessageSpec], hops: Sequence[Hop]) -> list[str]:
    """The lines of the path that begins at the start of the space."""
    place, _ = space.start()
    renderer = _Renderer(space, specs, [space.moments[number] for number in place.locals])
    for tick, hop in enumerate(hops, 1):
        renderer.tick = tick
        is_kept = hop.move is not None and hop.place is hop.move.kept
        if hop.move is not None:
            renderer.take(hop.move, is_kept)
        if hop.net is not None:
            renderer.lose(hop.net)
    return renderer.trace.lines()


class _Renderer:
    """Walks a path and writes it down."""

    def __init__(
        self, space: Space, specs: Sequence[MessageSpec], locals_: Sequence[Local]
    ) -> None:
        self._space = space
        self._locals = list(locals_)
        self._flights: list[Flight] = []
        """On their way, in the order of sending."""
        self._flight_count = 0
        self.trace = Trace(specs)
        self.tick = 0

    def take(self, move: Move, is_kept: bool) -> None:
        """Do what a move says, and note it."""
        if move.is_crash_first:
            self._act(move.at, Action(ActionKind.CRASH))
        action = self._space.action(move.action)
        if action.kind is ActionKind.DELIVER:
            self._receive(move.at + 1, action.message, is_kept)
        self._act(move.at, action)

    def lose(self, net: Net) -> None:
        """Note what of the messages on their way is not in ``net``."""
        left = Counter(self._space.messages[flight >> COPY_BITS] for flight in net)
        kept: list[Flight] = []
        for flight in self._flights:
            if left[flight.message] > 0:
                left[flight.message] -= 1
                kept.append(flight)
            else:
                self.trace.add_flight(self.tick, flight.sender, "drop", flight, reason="bound")
        self._flights = kept

    def _receive(self, node_id: NodeId, message: object, is_kept: bool) -> None:
        flight = next(each for each in self._flights if each.message == message)
        self._flights.remove(flight)
        if is_kept:
            copy = self._fly(message)
            self.trace.add_flight(
                self.tick, flight.sender, "duplicate", flight, copy=f"m{copy.number}"
            )
        self.trace.add_flight(self.tick, node_id, "recv", flight)

    def _fly(self, message: object) -> Flight:
        self._flight_count += 1
        flight = Flight(self._flight_count, message)
        self._flights.append(flight)
        return flight

    def _act(self, at: int, action: Action) -> None:
        before = self._locals[at]
        step = self._space.model.act(before, action)
        assert step is not None, "the path was walked before"
        self._locals[at] = step.after
        self._note(before, action, step)

    def _note(self, before: Local, action: Action, step: Step) -> None:
        """Write down one step of one node, in the order of its duties."""
        trace, tick, node_id, after = self.trace, self.tick, before.node_id, step.after
        if action.kind is ActionKind.CRASH:
            trace.add(tick, node_id, "crash", lost_writes=before.pending_writes)
            pairs = hard_state_pairs(after.hard_state)
            trace.add(tick, node_id, "restart", **pairs, log=entries_text(after.entries))
        elif action.kind is ActionKind.CAMPAIGN:
            trace.add(tick, node_id, "campaign")
        elif action.kind is ActionKind.PROPOSE:
            payload = command_payload(action.command_number)
            trace.add(tick, node_id, "propose", f"p{action.command_number}", payload=payload)
        for ready in step.synced:
            if ready.writes:
                trace.add(tick, node_id, "sync", **_write_pairs(ready))
        is_changed = (before.role, before.term) != (after.role, after.term)
        if is_changed and action.kind is not ActionKind.CRASH:
            leader = node_text(after.engine.soft_state.leader_id)
            trace.add(tick, node_id, "role", after.role.value, term=after.term, leader=leader)
        for message in step.sent:
            trace.add_flight(tick, node_id, "send", self._fly(message))
        for entry in step.applied:
            trace.add(tick, node_id, "apply", entry)


def _write_pairs(ready: Ready) -> dict[str, object]:
    pairs = hard_state_pairs(ready.hard_state)
    if ready.truncate_from is not None:
        pairs["truncate_from"] = ready.truncate_from
    if ready.entries:
        pairs["entries"] = tuple(ready.entries)
    return pairs
