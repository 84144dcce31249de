"""Judge whether a history of client operations is linearizable, by what the clients saw alone.

An operation takes effect at one moment between its call and its answer, as if there were one copy
of the data: a history is *linearizable* if its operations can be put into one order that keeps
every order of real time (what had returned before another was invoked stands before it) and in
which a sequential :class:`Model` gives each the result that its client got (Herlihy and Wing,
"Linearizability: A Correctness Condition for Concurrent Objects", 1990).

**Per key.**  A history is linearizable iff its part for each object is (their theorem of locality),
so every key is searched on its own.

**The search** is that of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993): pick any
operation that no other must precede, apply it, go on; return when nothing fits.  Lowe ("Testing for
Linearizability", 2017) adds the memory of configurations (the set of operations done, the state)
from which the search has failed before.  The set is an integer used as a bit mask.

**Unknown outcomes** stay open for ever: such an operation may take effect at any time after it was
invoked, or never.  Each doubles what a plain search must remember, so four things keep it small,
none of which changes the verdict:

* *Reads at once.*  An operation that fits and that changes no state whatever (the model says which)
  is done as soon as it can be: nothing is lost by it, and it never branches.
* *Fewer used is better.*  The memory keeps the open operations used apart from the set of those
  done: a configuration in which more open operations are used than in one that has failed, at the
  same set and state, fails as well, because whatever it can still do the other could.
* *Nothing in vain.*  An open operation that leaves the state as it is, or whose effect the very
  next one wipes out, is not used: the same is reached without it.
* *Twins.*  Of open operations with equal actions the one invoked first is used first.

With values that are written once, an open write is then only ever used where somebody read it, and
the configurations grow in proportion to the open operations instead of doubling with each: twenty
to eighty in one key are no trouble.  What stays exponential is the number of *completed* writes of
one key that overlap in time: about ten concurrent clients per key are easy, thirty are out of reach
in Python.  So do open operations that no order makes equal (appends to a list): they cost nothing
while the history is linearizable, but a violation behind more than half a dozen is undecided.

The search is therefore on a **budget** of configurations, and a verdict is one of three: a history
that could not be judged is *undecided*, which never passes for linearizable.  The memory holds at
most one configuration per unit of the budget, some 300 bytes each; one takes about 10 microseconds.

This module shares nothing with what it judges, and reads neither clock nor dice.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import chain
from typing import Final, Protocol

from replog.errors import CallerError
from replog.types import record

LINES_MAX: Final = 8
"""How many operations of a kind an explanation lists before it counts the rest."""


class BadHistory(CallerError):
    """The history cannot be judged: an operation ends before it begins, or its action is unknown
    to the model."""


@record
class Operation:
    """One operation of a client, as the client saw it.

    ``invoked`` and ``returned`` are positions in one total order of events; where two positions
    are equal, the operations count as concurrent.  An operation of which it is certain that it
    was *not* done has no place in a history: leave it out.
    """

    client: int
    key: Hashable
    """The object that the operation is about; each is judged on its own."""
    action: object
    """What was asked for, in the words of the model."""
    result: object
    """What the client was told; without meaning while ``returned`` is ``None``."""
    invoked: int
    returned: int | None
    """``None``: the outcome is unknown or still open; the operation may take effect at any time
    after ``invoked``, or never."""


class Model(Protocol):
    """What one object does when its operations come one after the other: deterministic.

    States are never changed in place; they are compared and kept.
    """

    def initial(self) -> Hashable:
        """The state of an object that nobody has touched."""

    def step(self, state: Hashable, action: object) -> tuple[Hashable, object]:
        """The state after ``action``, and its result; raises :class:`BadHistory`."""

    def is_read(self, action: object, result: object) -> bool:
        """Whether ``action``, where it gives ``result``, changes no state whatever.

        ``False`` is always a safe answer and costs time only.  ``True`` for an action that changes
        so much as one state in which it gives ``result`` makes verdicts wrong.
        """


class Finding(Enum):
    """What the checker found out about a history."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNDECIDED = "undecided"
    """The budget was spent before the search came to an end: this is *not* a pass."""


@record
class Verdict:
    """The judgement of one history."""

    finding: Finding
    configurations: int
    """How many configurations were examined, in all keys together."""
    key: Hashable
    """The key that is violated or undecided; ``None`` if all is well."""
    explanation: str
    """Why, for people; empty if all is well."""
    order: tuple[Operation, ...]
    """If all is well, a linearization, key after key.  In a violation, an order of the longest
    prefix of the key's history that has one: of all that returned before ``stuck`` did."""
    stuck: Operation | None
    """In a violation, the operation whose answer no order explains."""

    @property
    def is_linearizable(self) -> bool:
        """Whether the history was judged, and is linearizable."""
        return self.finding is Finding.LINEARIZABLE

    def __bool__(self) -> bool:
        """Refused: of three findings, ``if verdict`` would take two for one."""
        raise TypeError("a verdict is neither true nor false: ask for is_linearizable")


def check_history(operations: Iterable[Operation], model: Model, budget: int) -> Verdict:
    """Judge a history, examining at most ``budget`` configurations in all keys together.

    Every key first gets an equal share of what is left, so that one hard key does not hide the
    violation of another; those that are still undecided then get the rest, in turn.

    Raises :class:`BadHistory`.
    """
    assert budget >= 0
    searches = [_Search(own, model) for own in _by_key(operations).values()]
    spent = 0
    undecided = searches
    for is_last in (False, True):
        pending, undecided = undecided, []
        for position, search in enumerate(pending):
            left = budget - spent
            spent += search.run(left if is_last else left // (len(pending) - position))
            if search.finding is Finding.VIOLATION:
                stuck, order = search.stuck()
                why = search.explanation()
                return Verdict(Finding.VIOLATION, spent, stuck.key, why, order, stuck)
            if search.finding is Finding.UNDECIDED:
                undecided.append(search)
    if undecided:
        key, why = undecided[0].key, _why_undecided(undecided, budget)
        return Verdict(Finding.UNDECIDED, spent, key, why, (), None)
    order = tuple(operation for search in searches for operation in search.order())
    return Verdict(Finding.LINEARIZABLE, spent, None, "", order, None)


def _by_key(operations: Iterable[Operation]) -> dict[Hashable, list[Operation]]:
    found: dict[Hashable, list[Operation]] = {}
    for operation in operations:
        if operation.returned is not None and operation.returned < operation.invoked:
            raise BadHistory(
                f"an operation returned at {operation.returned}, before it was invoked: "
                f"{operation_text(operation)}; give both as positions in one order of events"
            )
        found.setdefault(operation.key, []).append(operation)
    return found


def _why_undecided(undecided: Sequence[_Search], budget: int) -> str:
    first = undecided[0]
    others = f", and {len(undecided) - 1} more keys" if len(undecided) > 1 else ""
    return (
        f"undecided: the budget of {budget} configurations was spent before key {first.key!r} was "
        f"judged ({first.completed_count} operations and {first.open_count} with an unknown "
        f"outcome){others}; raise the budget, or let fewer clients share a key"
    )


def operation_text(operation: Operation) -> str:
    """An operation as one line for people."""
    if operation.returned is None:
        return (
            f"client {operation.client}: {operation.action!r}, "
            f"invoked at {operation.invoked}, outcome unknown"
        )
    return (
        f"client {operation.client}: {operation.action!r} gave {operation.result!r}, "
        f"from {operation.invoked} to {operation.returned}"
    )


class _Nothing:
    """Stands where a state may be missing; ``None`` may be a state."""


_NOTHING: Final = _Nothing()


class _Frame:
    """One configuration on the path that the search is on."""

    __slots__ = ("children", "done", "state", "taken", "used")

    def __init__(
        self,
        done: int,
        state: Hashable,
        used: int,
        taken: list[int],
        children: Iterator[tuple[int, Hashable]],
    ) -> None:
        self.done = done
        """The mask of the completed operations that are in the order."""
        self.state = state
        self.used = used
        """The mask of the open operations that are."""
        self.taken = taken
        """What led here from the frame below: an operation, and the reads that fitted then."""
        self.children = children
        """The operations to try next, each with the state that it leads to."""


class _Search:
    """The search for a linearization of one key's operations, which can go on with more budget.

    Completed operations are numbered in the order in which they returned, and the open ones, in the
    order in which they were invoked, from -1 downwards (``~0``, ``~1``, ...), each with a bit in a
    mask of its own.  The lowest number that is not yet in the order, the *frontier*, bounds what
    may come next: all that was invoked before the frontier returned.
    """

    def __init__(self, operations: Sequence[Operation], model: Model) -> None:
        completed = sorted(
            (returned, operation.invoked, at)
            for at, operation in enumerate(operations)
            if (returned := operation.returned) is not None
        )
        opened = [operation for operation in operations if operation.returned is None]
        self._completed = [operations[at] for _, _, at in completed]
        self._open = sorted(opened, key=lambda operation: operation.invoked)
        self._model = model
        self._actions = [operation.action for operation in self._completed]
        self._results = [operation.result for operation in self._completed]
        self._all = (1 << len(completed)) - 1
        self._reads = sum(
            1 << number
            for number, operation in enumerate(self._completed)
            if model.is_read(operation.action, operation.result)
        )
        returns = [returned for returned, _, _ in completed]
        self._ready = _invoked_by(returns, [operation.invoked for operation in self._completed])
        self._ready_open = _invoked_by(returns, [operation.invoked for operation in self._open])
        self._twins = _twins([operation.action for operation in self._open])
        self._failed: dict[tuple[int, Hashable], list[int]] = {}
        """By operations done and state, the masks of open operations used; none within another."""
        self._led: dict[Hashable, list[Hashable]] = {}
        """What :meth:`_leads` found, by state."""
        self._path: list[_Frame] = []
        self._is_begun = False
        self._furthest: tuple[int, int, int] = (-1, -1, 0)
        self._furthest_order: list[int] = []
        self._furthest_state: Hashable = None
        self.key = operations[0].key
        self.finding = Finding.UNDECIDED

    @property
    def completed_count(self) -> int:
        """How many operations have a known result."""
        return len(self._completed)

    @property
    def open_count(self) -> int:
        """How many do not."""
        return len(self._open)

    def run(self, budget: int) -> int:
        """Examine up to ``budget`` configurations; returns how many it were.

        ``finding`` tells where the search stands then.
        """
        spent = 0
        if not self._is_begun and budget > 0:
            self._is_begun = True
            spent = 1
            self._enter(0, self._model.initial(), 0, [], _NOTHING)
        path = self._path
        while self._is_begun and self.finding is Finding.UNDECIDED:
            if not path:
                self.finding = Finding.VIOLATION
                break
            frame = path[-1]
            child = next(frame.children, None)
            if child is None:
                self._note_furthest(frame)
                path.pop()
                continue
            if spent == budget:
                frame.children = chain((child,), frame.children)
                break
            spent += 1
            number, state = child
            if number >= 0:
                self._enter(frame.done | 1 << number, state, frame.used, [number], _NOTHING)
            else:
                self._enter(frame.done, state, frame.used | 1 << ~number, [number], frame.state)
        return spent

    def _enter(
        self, done: int, state: Hashable, used: int, taken: list[int], without: Hashable
    ) -> None:
        """Come to a configuration; a new one goes on the path.

        ``without`` is the state before the open operation that led here, if one did.
        """
        absorbed = self._absorb(done, state, taken)
        if absorbed == self._all:
            self._path.append(_Frame(absorbed, state, used, taken, iter(())))
            self.finding = Finding.LINEARIZABLE
            return
        failed = self._failed.setdefault((absorbed, state), [])
        for fewer in failed:
            if fewer & used == fewer:
                return
        failed[:] = [more for more in failed if more & used != used]
        failed.append(used)
        if absorbed != done:
            # Somebody saw the effect of the open operation: it was not used in vain.
            without = _NOTHING
        children = self._children(absorbed, state, used, without)
        self._path.append(_Frame(absorbed, state, used, taken, children))

    def _absorb(self, done: int, state: Hashable, taken: list[int]) -> int:
        """Put every read that fits into the order: ``done`` with them, and them onto ``taken``.

        The reads that do not fit hold up the frontier, and with it what may come next.
        """
        step, actions, results = self._model.step, self._actions, self._results
        seen = done
        while done != self._all:
            ready = self._ready[_frontier(done)] & self._reads & ~seen
            if not ready:
                break
            seen |= ready
            while ready:
                bit = ready & -ready
                ready ^= bit
                number = bit.bit_length() - 1
                if step(state, actions[number])[1] == results[number]:
                    done |= bit
                    taken.append(number)
        return done

    def _children(
        self, done: int, state: Hashable, used: int, without: Hashable
    ) -> Iterator[tuple[int, Hashable]]:
        """The operations that may come next, with the states that they lead to.

        By the order of their returns, which is about the order in which they took effect, and open
        operations last.  If the frontier does not fit, those after which it does go first: it is
        what must come soon.
        """
        frontier = _frontier(done)
        action, result = self._actions[frontier], self._results[frontier]
        step = self._model.step
        candidates = self._candidates(done, state, used, without)
        if step(state, action)[1] == result:
            yield from candidates
            return
        later: list[tuple[int, Hashable]] = []
        for candidate in candidates:
            if step(candidate[1], action)[1] == result:
                yield candidate
            else:
                later.append(candidate)
        yield from later

    def _candidates(
        self, done: int, state: Hashable, used: int, without: Hashable
    ) -> Iterator[tuple[int, Hashable]]:
        """Every operation that may come next and is not in vain, in the order of the numbers.

        Reads are not among them: one that fits is done already, and one that does not cannot be.

        What is left out as in vain is reached without loss from the configuration before the open
        operation, which is on the path and tries the same candidates: the memory stays right,
        although what is left out depends on the way that led here.
        """
        step, actions, results = self._model.step, self._actions, self._results
        has_other = without is not _NOTHING
        frontier = _frontier(done)
        ready = self._ready[frontier] & ~done & ~self._reads
        while ready:
            bit = ready & -ready
            ready ^= bit
            number = bit.bit_length() - 1
            after, result = step(state, actions[number])
            if result != results[number]:
                continue
            # What led here was in vain if this leads to the same state without it.
            if has_other and step(without, actions[number]) == (after, result):
                continue
            yield number, after
        ready = self._ready_open[frontier] & ~used
        leads = self._leads(state)
        others = self._leads(without) if has_other else None
        if not ready or leads == others:
            return
        while ready:
            bit = ready & -ready
            ready ^= bit
            at = bit.bit_length() - 1
            after = leads[at]
            in_vain = after == state or (others is not None and after == others[at])
            if not in_vain and not self._twins[at] & ~used:
                yield ~at, after

    def _leads(self, state: Hashable) -> list[Hashable]:
        """For each open operation the state that it leads to from ``state``."""
        leads = self._led.get(state)
        if leads is None:
            leads = [self._model.step(state, operation.action)[0] for operation in self._open]
            self._led[state] = leads
        return leads

    def _note_furthest(self, frame: _Frame) -> None:
        """Remember the order that explains the most, by the frontier that it reached.

        Of several, the one with the fewest open operations: those that do not help only confuse.
        """
        reached = _frontier(frame.done), frame.done.bit_count(), -frame.used.bit_count()
        if reached > self._furthest:
            self._furthest = reached
            self._furthest_order = [number for below in self._path for number in below.taken]
            self._furthest_state = frame.state

    def _operation(self, number: int) -> Operation:
        return self._completed[number] if number >= 0 else self._open[~number]

    def order(self) -> tuple[Operation, ...]:
        """The linearization that was found."""
        assert self.finding is Finding.LINEARIZABLE
        return tuple(self._operation(number) for frame in self._path for number in frame.taken)

    def stuck(self) -> tuple[Operation, tuple[Operation, ...]]:
        """The first operation, by returns, that no order explains, and an order of those before."""
        assert self.finding is Finding.VIOLATION
        order = tuple(self._operation(number) for number in self._furthest_order)
        return self._completed[self._furthest[0]], order

    def explanation(self) -> str:
        """Why there is no linearization, in a few lines."""
        stuck, order = self.stuck()
        state = self._furthest_state
        lines = [
            f"key {self.key!r} is not linearizable: no order of its operations explains",
            f"  {operation_text(stuck)}",
        ]
        if order:
            lines.append("What returned before can be ordered, for instance so:")
            if len(order) > LINES_MAX:
                lines.append(f"  ({len(order) - LINES_MAX} operations before these)")
            lines += [f"  {operation_text(operation)}" for operation in order[-LINES_MAX:]]
        lines.append(f"The state is then {state!r}, in which none of these fits:")
        frontier = self._furthest[0]
        placed = set(self._furthest_order)
        for number, operation in enumerate(self._completed):
            if number not in placed and self._ready[frontier] >> number & 1:
                given = self._model.step(state, operation.action)[1]
                if given != operation.result:
                    lines.append(f"  {operation_text(operation)}: would give {given!r}")
        spare = [
            operation
            for at, operation in enumerate(self._open)
            if ~at not in placed and self._ready_open[frontier] >> at & 1
        ]
        if spare:
            lines.append("Nor does it help if some of these took effect:")
            lines += [f"  {operation_text(operation)}" for operation in spare[:LINES_MAX]]
        if len(spare) > LINES_MAX:
            lines.append(f"  (and {len(spare) - LINES_MAX} more)")
        return "\n".join(lines)


def _frontier(done: int) -> int:
    """The lowest number that is not in ``done``."""
    return (~done & (done + 1)).bit_length() - 1


def _invoked_by(returns: Sequence[int], invocations: Sequence[int]) -> list[int]:
    """For each of the ascending ``returns``, the mask of the invocations at or before it."""
    by_time = sorted(range(len(invocations)), key=lambda at: invocations[at])
    masks: list[int] = []
    mask = taken = 0
    for returned in returns:
        while taken < len(by_time) and invocations[by_time[taken]] <= returned:
            mask |= 1 << by_time[taken]
            taken += 1
        masks.append(mask)
    return masks


def _twins(actions: Sequence[object]) -> list[int]:
    """For each action the mask of its equal that stands last before it; 0 if there is none."""
    return [
        next((1 << other for other in reversed(range(at)) if actions[other] == action), 0)
        for at, action in enumerate(actions)
    ]


class RegisterModel:
    """One key of a key-value store; ``None`` is the state, and the value, of an absent one.

    ``("get",)`` gives the value.  ``("put", value)`` gives ``None``.  ``("delete",)`` gives whether
    there was a value.  ``("cas", expected, value)`` sets the value if it is ``expected`` and gives
    whether it was; ``None`` stands for absence in both places.  Values are hashable.
    """

    def initial(self) -> Hashable:
        """No value."""
        return None

    def step(self, state: Hashable, action: object) -> tuple[Hashable, object]:
        """Get, put, delete, or compare and set."""
        match action:
            case ("get",):
                return state, state
            case ("put", value):
                return value, None
            case ("cas", expected, value):
                return (value, True) if state == expected else (state, False)
            case ("delete",):
                return None, state is not None
        raise BadHistory(
            f"a register has no action {action!r}; it has ('get',), ('put', value), ('delete',) "
            "and ('cas', expected, value)"
        )

    def is_read(self, action: object, result: object) -> bool:
        """A get; a delete where there was nothing; a comparison that failed."""
        match action:
            case ("get",):
                return True
            case ("delete",) | ("cas", _, _):
                return result is False
        return False


class ListModel:
    """A list that only grows, as a log does; the state is a tuple.

    ``("append", value)`` gives the position of the value, from 1.  ``("read",)`` gives the whole
    list as a tuple.  Values are hashable.
    """

    def initial(self) -> Hashable:
        """Nothing."""
        return ()

    def step(self, state: Hashable, action: object) -> tuple[Hashable, object]:
        """Append, or read."""
        assert isinstance(state, tuple)
        match action:
            case ("append", value):
                return (*state, value), len(state) + 1
            case ("read",):
                return state, state
        raise BadHistory(f"a list has no action {action!r}; it has ('append', value) and ('read',)")

    def is_read(self, action: object, result: object) -> bool:
        """A read."""
        return action == ("read",)
