"""The judge of histories against an oracle that tries all orders, and on histories made to be fine.

Everything is drawn from numbered seeds, so that a failure names the history that shows it.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, permutations

import pytest

from replog.testing.linearizability import (
    Finding,
    ListModel,
    Model,
    Operation,
    RegisterModel,
    check_history,
)

BUDGET = 100_000
KEY = "x"

REGISTER_ACTIONS: tuple[object, ...] = (
    *(("get",),) * 4,
    *(("put", value) for value in (1, 2, 3)),
    *(("cas", expected, value) for expected in (None, 1, 2) for value in (2, 3)),
    ("delete",),
)
LIST_ACTIONS: tuple[object, ...] = (
    ("read",), ("read",), ("append", 1), ("append", 2), ("append", 3),
)  # fmt: skip


NUMBER_ACTIONS: tuple[object, ...] = (("get",), ("get",), ("add",), ("double",))


class _NumberModel:
    """A number whose changes give nothing away: neither does their order, and yet it matters."""

    def initial(self) -> Hashable:
        return 0

    def step(self, state: Hashable, action: object) -> tuple[Hashable, object]:
        assert isinstance(state, int)
        if action == ("get",):
            return state, state
        return (state + 1 if action == ("add",) else 2 * state), None

    def is_read(self, action: object, result: object) -> bool:
        return action == ("get",)


class _NoReads:
    """A model that never says that an action is a read, which is always a safe answer."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def initial(self) -> Hashable:
        return self._model.initial()

    def step(self, state: Hashable, action: object) -> tuple[Hashable, object]:
        return self._model.step(state, action)

    def is_read(self, action: object, result: object) -> bool:
        return False


def fits(order: Sequence[Operation], model: Model) -> bool:
    """Whether an order keeps real time, and gives each operation the result that it had."""
    state = model.initial()
    latest_invoked = 0
    for operation in order:
        if operation.returned is not None and operation.returned < latest_invoked:
            return False
        latest_invoked = max(latest_invoked, operation.invoked)
        state, result = model.step(state, operation.action)
        if operation.returned is not None and result != operation.result:
            return False
    return True


def is_orderable(needed: Sequence[Operation], optional: Sequence[Operation], model: Model) -> bool:
    """Whether all of ``needed``, with some of ``optional``, have an order: by trying every one."""
    return any(
        fits(order, model)
        for count in range(len(optional) + 1)
        for chosen in combinations(optional, count)
        for order in permutations((*needed, *chosen))
    )


def small_history(seed: int, model: Model, actions: Sequence[object]) -> list[Operation]:
    """Up to six operations that took effect in some order, and perhaps one answer exchanged."""
    rng = random.Random(seed)
    count = rng.randint(2, 6)
    # Three positions for each operation, the middle one of which is when it takes effect.
    spans = [sorted(rng.sample(range(rng.choice((3, 8)) * count), 3)) for _ in range(count)]
    history: list[Operation] = []
    state = model.initial()
    for client, (invoked, _, returned) in enumerate(sorted(spans, key=lambda span: span[1])):
        action = rng.choice(actions)
        is_open = rng.random() < 0.3
        if is_open and rng.random() < 0.5:
            history.append(Operation(client, KEY, action, None, invoked, None))
            continue
        state, result = model.step(state, action)
        history.append(
            Operation(client, KEY, action, result, invoked, None if is_open else returned)
        )
    if rng.random() < 0.6:
        at = rng.randrange(count)
        result = rng.choice([operation.result for operation in history] + [None, 1, True, (1, 2)])
        history[at] = replace(history[at], result=result)
    rng.shuffle(history)
    return history


@pytest.mark.parametrize(
    ("model", "actions"),
    [
        (RegisterModel(), REGISTER_ACTIONS),
        (ListModel(), LIST_ACTIONS),
        (_NumberModel(), NUMBER_ACTIONS),
    ],
    ids=["register", "list", "number"],
)
def test_check_against_all_orders(model: Model, actions: Sequence[object]) -> None:
    """The verdict is that of trying every order, and the order that comes with it is right.

    In a violation that order holds all that returned before the operation that is stuck, and no
    order holds that one as well.
    """
    found = dict.fromkeys(Finding, 0)
    for seed in range(700):
        history = small_history(seed, model, actions)
        returned = [operation for operation in history if operation.returned is not None]
        opened = [operation for operation in history if operation.returned is None]
        verdict = check_history(history, model, BUDGET)
        found[verdict.finding] += 1
        assert verdict.is_linearizable == is_orderable(returned, opened, model), f"seed {seed}"
        assert fits(verdict.order, model), f"seed {seed}"
        assert check_history(history, _NoReads(model), BUDGET).finding is verdict.finding
        if verdict.stuck is None:
            assert set(returned) <= set(verdict.order), f"seed {seed}"
            continue
        end = verdict.stuck.returned
        assert end is not None
        before = {one for one in returned if one.returned is not None and one.returned < end}
        assert before <= set(verdict.order), f"seed {seed}"
        assert verdict.stuck not in verdict.order, f"seed {seed}"
        needed = [one for one in returned if one.returned is not None and one.returned <= end]
        optional = [one for one in history if one not in needed and one.invoked <= end]
        # Where two returned at one position, either may be the one that is stuck.
        assert not is_orderable(needed, optional, model), f"seed {seed}"
    assert found[Finding.UNDECIDED] == 0
    assert min(found[Finding.LINEARIZABLE], found[Finding.VIOLATION]) >= 150, found


def _effects(rng: random.Random, clients: int, count: int) -> Iterator[Operation]:
    """A register's history by clients that each wait for their answer; one in ten gets none.

    An operation without an answer takes effect at some later time, or never.
    """
    model = RegisterModel()
    state = model.initial()
    started: dict[int, tuple[object, int]] = {}
    answered: dict[int, Operation] = {}
    lost: list[object] = []
    for time in range(10**9):
        client = rng.randrange(clients)
        if lost and rng.random() < 0.05:
            state, _ = model.step(state, lost.pop(rng.randrange(len(lost))))
        if client in answered:
            yield replace(answered.pop(client), returned=time)
        elif client in started:
            action, invoked = started.pop(client)
            if rng.random() < 0.1:
                yield Operation(client, KEY, action, None, invoked, None)
                lost += [action] * rng.randrange(2)
                continue
            state, result = model.step(state, action)
            answered[client] = Operation(client, KEY, action, result, invoked, None)
        elif count > 0:
            count -= 1
            expected = state if rng.random() < 0.7 else time
            action = rng.choice(
                (("get",), ("get",), ("put", time), ("cas", expected, time), ("delete",))
            )
            started[client] = (action, time)
        elif not started and not answered:
            return


def large_history(seed: int, keys: int, clients: int, count: int) -> list[Operation]:
    """``count`` operations for each of so many keys, linearizable by the way they are made."""
    rng = random.Random(seed)
    return [
        replace(operation, key=key)
        for key in range(keys)
        for operation in _effects(rng, clients, count)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_check_large_linearizable(seed: int) -> None:
    """Five keys, ten clients and a hundred operations each pass in a few configurations each."""
    history = large_history(seed, keys=5, clients=10, count=100)
    assert len(history) == 500
    assert 20 < sum(operation.returned is None for operation in history) < 80
    verdict = check_history(history, RegisterModel(), BUDGET)
    assert verdict.is_linearizable, verdict.explanation
    assert verdict.configurations < 20 * len(history)
    for key in range(5):
        order = [operation for operation in verdict.order if operation.key == key]
        assert fits(order, RegisterModel())
    assert {operation for operation in history if operation.returned} <= set(verdict.order)


@pytest.mark.parametrize("seed", range(12))
def test_check_large_broken(seed: int) -> None:
    """One read that goes back to a value long overwritten is found among 500 operations."""
    history = large_history(seed, keys=5, clients=10, count=100)
    rng = random.Random(seed)
    ends = [operation.returned for operation in history if operation.returned is not None]
    seen = [
        operation
        for operation in history
        if operation.action == ("get",) and operation.result is not None and operation.key == 3
    ]
    stale = Operation(99, 3, ("get",), seen[0].result, max(ends) + 1, max(ends) + 2)
    reset = Operation(99, 3, ("put", "new"), None, max(ends) - 1, max(ends))
    rng.shuffle(history)
    verdict = check_history([*history, reset, stale], RegisterModel(), BUDGET)
    assert verdict.finding is Finding.VIOLATION
    assert verdict.key == 3
    assert verdict.stuck == stale


def test_check_same_verdict_again() -> None:
    """A history is judged alike every time, whatever the order in which it is listed."""
    history = large_history(77, keys=2, clients=8, count=80)
    verdict = check_history(history, RegisterModel(), BUDGET)
    assert check_history(history, RegisterModel(), BUDGET) == verdict
    random.Random(1).shuffle(history)
    assert check_history(history, RegisterModel(), BUDGET).finding is verdict.finding
