"""The states of the model: where all nodes are, and which messages are on their way.

A state is a :class:`Place` (the moments of all nodes, and how much of the bounds is used up) with a
:data:`Net`.  Moments and messages are numbered when they are first seen, by their whole keys; so a
state is a few small numbers, is compared exactly, and what an action makes of a node is computed
once for all the states in which that node is at that moment.

**The network** loses, reorders and, within a bound, duplicates.  A bound on what is on its way has
to say what becomes of one message more.  Here the *lost* ones do not count: whenever more than
``in_flight`` messages would be on their way, some are lost, and every choice of those that are kept
is a state of its own.  So the space holds every execution in which never more than ``in_flight``
messages are on their way that are still going to arrive; nothing is blocked, and a broadcast of any
size can be sent.  A duplicated message arrives and stays on its way.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations
from typing import Final, NamedTuple, TypeAlias, cast

from replog.engine import EnginePlugin
from replog.quorum import QuorumSystem
from replog.testing.model.bounds import COPY_BITS, IN_FLIGHT_MAX, Bounds
from replog.testing.model.judge import Judge
from replog.testing.model.local import Action, ActionKind, Facts, Local, LocalModel
from replog.testing.network import Addressed

Net: TypeAlias = frozenset[int]
"""The messages on their way: each as its number and, in the low bits, which copy of it this is.
Copies are counted from 0 without a gap, so that equal networks are equal sets."""


class Used(NamedTuple):
    """How much of the bounds a path has used up."""

    campaigns: int = 0
    commands: int = 0
    crashes: int = 0
    duplicates: int = 0


SYNC: Final = -1
CRASH: Final = -2
CAMPAIGN: Final = -3
PROPOSE: Final = -4
"""The first command; the others follow downwards.  A message that arrives is its own number."""

_KINDS: Final = {
    SYNC: ActionKind.SYNC,
    CRASH: ActionKind.CRASH,
    CAMPAIGN: ActionKind.CAMPAIGN,
}

NUMBER_BITS: Final = 40
"""Room for the number of a moment in a key."""


class Move:
    """What one action at one node leads to from a place, whatever the network."""

    __slots__ = (
        "action",
        "at",
        "is_crash_first",
        "is_idle",
        "is_replacing",
        "kept",
        "place",
        "problem",
        "sent",
    )

    def __init__(self, at: int, action: int, place: Place) -> None:
        self.at = at
        """The position of the node, from 0."""
        self.action = action
        """Its number; see :meth:`Space.action`."""
        self.place = place
        self.kept: Place | None = None
        """Where a delivery leads if the message stays on its way; ``None``: it may not."""
        self.sent: tuple[int, ...] = ()
        """The numbers of the messages that leave."""
        self.is_idle = False
        """Whether the node stays as it is and nothing leaves."""
        self.is_replacing = False
        self.is_crash_first = False
        """Whether the node crashes and starts again just before."""
        self.problem = ""


class Place:
    """Where all nodes are, and how much of the bounds is used up."""

    __slots__ = ("deliveries", "goals", "locals", "nets", "own_moves", "problem", "used")

    def __init__(self, local_numbers: tuple[int, ...], used: Used) -> None:
        self.locals = local_numbers
        """The numbers of the nodes' moments, in the order of the ids."""
        self.used = used
        self.problem = ""
        """The rule between the nodes that is broken here."""
        self.goals = 0
        self.nets: dict[Net, None] = {}
        """The networks with which this place was reached."""
        self.deliveries: dict[int, tuple[Move, ...]] = {}
        """By the number of the message; made when first asked for."""
        self.own_moves: list[Move] | None = None
        """The actions that need no message; made when first asked for."""


class Space:
    """Everything that was numbered: moments, messages, places."""

    def __init__(
        self,
        plugin: EnginePlugin,
        bounds: Bounds,
        *,
        options: object,
        quorum: QuorumSystem,
        is_reduced: bool,
    ) -> None:
        assert not bounds.problems(), bounds.problems()
        self.bounds = bounds
        self.is_reduced = is_reduced
        self.judge = Judge(quorum)
        self.model = LocalModel(plugin, bounds.nodes, options, is_reduced)
        self.moments: list[Local] = []
        self.messages: list[object] = []
        self._facts: list[Facts] = []
        self._writes: list[int] = []
        self._receivers: list[int] = []
        """By message, the position of the node that it goes to."""
        self._all_facts: dict[Facts, Facts] = {}
        self._moment_numbers: dict[Hashable, int] = {}
        self._message_numbers: dict[object, int] = {}
        self._steps: dict[int, _Made] = {}
        self._places: dict[tuple[tuple[int, ...], Used], Place] = {}
        self._nets: dict[Net, Net] = {}

    # -- numbering --

    def start(self) -> tuple[Place, Net]:
        """All nodes with nothing on their disks, nothing on its way."""
        numbers: list[int] = []
        for node_id in range(1, self.bounds.nodes + 1):
            step = self.model.start(node_id)
            assert not step.problem, step.problem
            assert not step.sent, "a node that has just started sends nothing"
            numbers.append(self._moment_number(step.after))
        return self._place(tuple(numbers), Used()), frozenset()

    def _moment_number(self, local: Local) -> int:
        key = (local.node_id, local.key())
        number = self._moment_numbers.setdefault(key, len(self.moments))
        if number == len(self.moments):
            self.moments.append(local)
            facts = local.facts()
            self._facts.append(self._all_facts.setdefault(facts, facts))
            self._writes.append(local.pending_writes)
        return number

    def _message_number(self, message: object) -> int:
        number = self._message_numbers.setdefault(message, len(self.messages))
        if number == len(self.messages):
            self.messages.append(message)
            self._receivers.append(cast("Addressed", message).to - 1)
        return number

    def _place(self, local_numbers: tuple[int, ...], used: Used) -> Place:
        key = (local_numbers, used)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = Place(local_numbers, used)
            verdict = self.judge.verdict(tuple(self._facts[number] for number in local_numbers))
            place.problem, place.goals = verdict.problem, verdict.goals
        return place

    @property
    def place_count(self) -> int:
        """How many places were reached."""
        return len(self._places)

    # -- actions --

    def deliveries(self, place: Place, number: int) -> tuple[Move, ...]:
        """The moves that the arrival of a message is; none while its receiver has to wait."""
        moves = place.deliveries.get(number)
        if moves is None:
            moves = place.deliveries[number] = tuple(self._made_deliveries(place, number))
        return moves

    def _made_deliveries(self, place: Place, number: int) -> Iterator[Move]:
        """The receiver as it is, or crashed just before; the message gone, or still on its way."""
        at = self._receivers[number]
        for used in self._with_crash(place.used):
            move = self._move(place, at, number, used)
            if move is None or (self.is_reduced and move.is_idle):
                continue
            if used.duplicates < self.bounds.duplicates:
                again = used._replace(duplicates=used.duplicates + 1)
                move.kept = self._place(move.place.locals, again)
            yield move

    def _with_crash(self, used: Used) -> Sequence[Used]:
        """What is used up by an action alone, and by a crash of its node together with it: where
        the space is reduced, a crash is taken only with what its node does next."""
        if self.is_reduced and used.crashes < self.bounds.crashes:
            return (used, used._replace(crashes=used.crashes + 1))
        return (used,)

    def own_moves(self, place: Place) -> list[Move]:
        """The moves that need no message, node by node."""
        if place.own_moves is None:
            place.own_moves = list(self._made_own_moves(place))
        return place.own_moves

    def _made_own_moves(self, place: Place) -> Iterator[Move]:
        for at in range(self.bounds.nodes):
            for action, used in self._asked(place.used, at):
                for each in self._with_crash(used):
                    move = self._move(place, at, action, each)
                    if move is not None and not move.is_idle:
                        yield move
            if place.used.crashes < self.bounds.crashes:
                used = place.used._replace(crashes=place.used.crashes + 1)
                crash = self._move(place, at, CRASH, used)
                assert crash is not None, "a node can always crash"
                is_own = not self.is_reduced or crash.problem or crash.sent
                if is_own and not crash.is_idle:
                    yield crash

    def _asked(self, used: Used, at: int) -> Iterator[tuple[int, Used]]:
        """The actions that a node may be asked for, and what is used up then."""
        yield SYNC, used
        if used.campaigns < self.bounds.terms and at < self.bounds.candidate_count:
            yield CAMPAIGN, used._replace(campaigns=used.campaigns + 1)
        if used.commands < self.bounds.commands:
            yield PROPOSE - used.commands, used._replace(commands=used.commands + 1)

    def action(self, number: int) -> Action:
        """The action that a move's number stands for."""
        if number >= 0:
            return Action(ActionKind.DELIVER, self.messages[number])
        if number <= PROPOSE:
            return Action(ActionKind.PROPOSE, command_number=PROPOSE - number + 1)
        return Action(_KINDS[number])

    def _move(self, place: Place, at: int, action: int, used: Used) -> Move | None:
        """The action at one node, after a crash of it if one more is ``used``; ``None``: it cannot
        be done."""
        before = place.locals[at]
        is_crash_first = action != CRASH and used.crashes > place.used.crashes
        if is_crash_first:
            restarted = self._made_of(before, CRASH)
            if restarted.number == before or restarted.problem or restarted.sent:
                return None  # nothing was lost, or the crash is a move of its own
            before = restarted.number
        made = self._made_of(before, action)
        if not made.is_possible:
            return None
        numbers = (*place.locals[:at], made.number, *place.locals[at + 1 :])
        move = Move(at, action, self._place(numbers, used))
        move.sent, move.problem, move.is_replacing = made.sent, made.problem, made.is_replacing
        move.is_idle = made.number == before and not made.sent and not made.problem
        move.is_crash_first = is_crash_first
        return move

    def _made_of(self, before: int, action: int) -> _Made:
        key = action << NUMBER_BITS | before
        made = self._steps.get(key)
        if made is None:
            made = self._steps[key] = self._made(before, action)
        return made

    def _made(self, before: int, number: int) -> _Made:
        made = _Made(before)
        step = self.model.act(self.moments[before], self.action(number))
        if step is None:
            return made
        made.is_possible = True
        made.problem, made.is_replacing = step.problem, step.is_replacing
        if not step.problem:
            # A moment in which a rule is broken has no future, so none is numbered.
            made.number = self._moment_number(step.after)
            writes = self._writes[made.number]
            made.is_possible = writes <= max(self.bounds.pending, self._writes[before])
            if made.is_possible:
                made.sent = tuple([self._message_number(message) for message in step.sent])
        return made

    # -- the network --

    def networks(self, net: Net, sent: tuple[int, ...]) -> list[Net]:
        """What may be on its way once ``sent`` has left: all of it, or every choice that fits."""
        if not sent:
            return [self._nets.setdefault(net, net)]
        flights = set(net)
        for number in sent:
            flight = number << COPY_BITS
            while flight in flights:
                flight += 1
            flights.add(flight)
        if len(flights) <= self.bounds.in_flight:
            whole = frozenset(flights)
            return [self._nets.setdefault(whole, whole)]
        choices: list[Net] = []
        for chosen in combinations(sorted(flights), self.bounds.in_flight):
            kept = frozenset(chosen)
            # Of copies the first ones stay: they are alike.
            if all(not flight & IN_FLIGHT_MAX or flight - 1 in kept for flight in chosen):
                choices.append(self._nets.setdefault(kept, kept))
        return choices


class _Made:
    """What an action makes of one node, by numbers."""

    __slots__ = ("is_possible", "is_replacing", "number", "problem", "sent")

    def __init__(self, number: int) -> None:
        self.number = number
        self.sent: tuple[int, ...] = ()
        self.problem = ""
        self.is_possible = False
        self.is_replacing = False
