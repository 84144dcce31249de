"""The search of a space: every state once, in the order of the least number of actions.

``is_reduced`` (the default) leaves out what cannot matter; without it every interleaving of every
action is walked.  Why nothing is lost by each of the reductions:

* **A loss is nothing that happens.**  A message that is never received is as good as lost, so to
  drop one is no action; messages are lost only where they would be too many
  (:mod:`replog.testing.model.space`).
* **More messages can do more.**  Let the same place be reached with two networks, one within the
  other.  Whatever can be delivered of the smaller can be delivered of the larger, and what is kept
  of the smaller when too many are sent can be kept of the larger, with something beside it.  So
  every path from the smaller has its twin from the larger, through the same places; and the rules
  are about places.  The smaller is *covered*, and left out.  For the same reason a message that
  would change nothing where it arrives is not delivered: what follows is covered by what was.
* **A crash waits.**  It changes only the node that crashes, it sends nothing, and no rule is about
  what it changes.  So it commutes with everything that other nodes do, and is taken together with
  what its node does next; a crash after which the node does nothing more need not be taken at all.
  (A crash that breaks a rule, or sends something, is an action of its own.)
* **A sync of nothing does not wait.**  It commutes with all that its node might do before, for it
  changes neither engine nor disk (:mod:`replog.testing.model.local`); all that it does is to send.
  Here, and only here, the bound on the messages is felt: they count as on their way from then on.

States are compared by whole keys, never by digests, so none is left out by accident.  What an
action makes of one node is computed once for all states in which that node is at that moment, and
the verdict on some nodes once for all with the same facts.  The search goes breadth first: a
counterexample has about as few steps as there can be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from replog.engine import EnginePlugin, FieldKind, MessageSpec
from replog.quorum import QuorumSystem
from replog.testing.model.bounds import COPY_BITS, Bounds
from replog.testing.model.judge import GOALS, chosen_log
from replog.testing.model.local import Facts
from replog.testing.model.render import Hop, render_path
from replog.testing.model.space import Move, Net, Place, Space
from replog.testing.network import kind_of
from replog.testing.trials import find_trial
from replog.types import record

PROGRESS_STATES: Final = 20_000
"""Progress is told every so many states."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (states explored, states waiting)."""


@record
class Counterexample:
    """A broken rule, and how it came about."""

    problem: str
    trace: tuple[str, ...]
    """The lines of a trace, as ``docs/traces.md`` describes them; the tick is the step."""


@record
class Exploration:
    """What became of one exploration."""

    engine: str
    bounds: Bounds
    is_reduced: bool
    is_complete: bool
    """Whether every state of the space was explored."""
    states: int
    transitions: int
    places: int
    """How many combinations of the nodes' moments there were, whatever was on its way."""
    goals: Mapping[str, int]
    """By goal, the states in which it shows; and the moves that replaced an entry on a disk."""
    unseen_messages: tuple[str, ...]
    """The kinds of messages that no node ever sent; see :func:`unseen_messages`."""
    violation: Counterexample | None
    facts: frozenset[tuple[Facts, ...]]
    """Every combination of what the nodes had led, handed out and stored."""

    outcomes: frozenset[tuple[bytes, ...]]
    """Every log that was handed out anywhere, as its bodies."""

    @property
    def is_vacuous(self) -> bool:
        """Whether nothing was ever committed: then all rules hold, and nothing is proven."""
        return self.goals["entry committed"] == 0


REPLACED: Final = "entry replaced"
"""Counted by states from which a move leads that voids or replaces an entry on a disk."""


def explore(
    plugin: EnginePlugin,
    bounds: Bounds,
    *,
    options: object | None = None,
    quorum: QuorumSystem | None = None,
    is_reduced: bool = True,
    states_max: int | None = None,
    handle_progress: Progress | None = None,
) -> Exploration:
    """Explore the space of ``bounds`` with the real engine until it is complete, a rule is broken,
    or ``states_max`` states are explored.

    ``options`` is an instance of the plugin's options class (``None``: its defaults).  ``quorum``
    is what a committed entry must be durable on (``None``: as the engine's trial says, see
    :mod:`replog.testing.trials`).
    """
    options = plugin.options() if options is None else options
    if quorum is None:
        voters = tuple(range(1, bounds.nodes + 1))
        quorum = find_trial(plugin).commit_quorum(options, voters)
    space = Space(plugin, bounds, options=options, quorum=quorum, is_reduced=is_reduced)
    search = Search(space, plugin)
    search.run(states_max, handle_progress)
    goals = {
        name: sum(count for bits, count in search.goal_counts.items() if bits >> at & 1)
        for at, name in enumerate(GOALS)
    }
    goals[REPLACED] = search.replaced_count
    seen = space.judge.seen
    return Exploration(
        engine=plugin.name,
        bounds=bounds,
        is_reduced=is_reduced,
        is_complete=search.is_complete,
        states=search.states,
        transitions=search.transitions,
        places=space.place_count,
        goals=goals,
        unseen_messages=unseen_messages(plugin.messages, space.messages),
        violation=search.violation,
        facts=frozenset(seen),
        outcomes=frozenset([chosen_log(each) for each in seen]),
    )


def unseen_messages(specs: Sequence[MessageSpec], sent: Sequence[object]) -> tuple[str, ...]:
    """What the engine can send and nobody sent, in the order of its specifications: the kinds, and
    of those that were sent the flags that never had a value (``vote pre=true``).

    A space says nothing of what never happens in it.
    """
    by_type: dict[type, list[object]] = {}
    for message in sent:
        by_type.setdefault(type(message), []).append(message)
    found: list[str] = []
    for spec in specs:
        kind, messages = kind_of(spec.record), by_type.get(spec.record, [])
        if not messages:
            found.append(kind)
            continue
        for name, field in spec.fields.items():
            if field is FieldKind.BOOL:
                values = {bool(getattr(message, name)) for message in messages}
                unseen = [value for value in (False, True) if value not in values]
                found += [f"{kind} {name}={str(value).lower()}" for value in unseen]
    return tuple(found)


class Search:
    """One walk through a space."""

    def __init__(self, space: Space, plugin: EnginePlugin) -> None:
        self._space = space
        self._plugin = plugin
        self._in_flight = space.bounds.in_flight
        self._is_reduced = space.is_reduced
        # One row per state that was reached, in four columns; its number is its place in the queue.
        self._places: list[Place] = []
        self._nets: list[Net] = []
        self._parents: list[int] = []
        self._moves: list[Move | None] = []
        """What led to the state; ``None``: a loss, or the start."""
        self.states = 0
        self.transitions = 0
        self.is_complete = False
        self.violation: Counterexample | None = None
        self.goal_counts: dict[int, int] = {}
        self.replaced_count = 0

    def run(self, states_max: int | None, progress: Progress | None) -> None:
        """Walk until there is nothing left, a rule is broken, or the budget is used up."""
        place, net = self._space.start()
        self._reach(-1, None, place, net)
        at = 0
        while at < len(self._places) and self.violation is None:
            if self._nets[at] in self._places[at].nets:  # else it was covered while it waited
                if self.states == states_max:
                    return
                self.states += 1
                self._expand(at)
                if progress is not None and self.states % PROGRESS_STATES == 0:
                    progress(self.states, len(self._places) - at)
            at += 1
        self.is_complete = self.violation is None

    def _expand(self, at: int) -> None:
        """Reach every state that one action leads to."""
        space, place, net = self._space, self._places[at], self._nets[at]
        counts = self.goal_counts
        counts[place.goals] = counts.get(place.goals, 0) + 1
        is_replacing = False
        for move in space.own_moves(place):
            is_replacing |= move.is_replacing
            self._take(at, move, move.place, net)
        for flight in sorted(net):
            if flight + 1 in net and flight + 1 >> COPY_BITS == flight >> COPY_BITS:
                continue  # of copies the last goes first: they are alike
            rest = net.difference((flight,))
            for move in space.deliveries(place, flight >> COPY_BITS):
                self._take(at, move, move.place, rest)
                if move.kept is not None:
                    self._take(at, move, move.kept, net)
            if not self._is_reduced:
                self.transitions += 1
                self._reach(at, None, place, rest)
        self.replaced_count += is_replacing

    def _take(self, at: int, move: Move, place: Place, net: Net) -> None:
        """Reach what a move leads to, once for each choice of what is on its way then."""
        if move.problem or place.problem:
            if self.violation is None:
                self.violation = self._counterexample(at, move, place)
            return
        for after in self._space.networks(net, move.sent):
            self.transitions += 1
            self._reach(at, move, place, after)

    def _reach(self, parent: int, move: Move | None, place: Place, net: Net) -> None:
        """Queue a state unless it, or one that covers it, was reached before."""
        nets = place.nets
        if net in nets:
            return
        if self._is_reduced:
            size = len(net)
            if size < self._in_flight:
                for other in nets:
                    if net <= other:
                        return
            for other in [each for each in nets if len(each) < size and each <= net]:
                del nets[other]
        nets[net] = None
        self._places.append(place)
        self._nets.append(net)
        self._parents.append(parent)
        self._moves.append(move)

    def _counterexample(self, at: int, move: Move, place: Place) -> Counterexample:
        """The path to a broken rule, as a trace."""
        hops = [Hop(move, place, None)]
        while self._parents[at] >= 0:
            hops.append(Hop(self._moves[at], self._places[at], self._nets[at]))
            at = self._parents[at]
        hops.reverse()
        return Counterexample(
            problem=move.problem or place.problem,
            trace=tuple(render_path(self._space, self._plugin.messages, hops)),
        )
