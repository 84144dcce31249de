"""What the reduction leaves out is nothing that a rule, or an outcome, could depend on."""

from __future__ import annotations

import pytest

from replog.plugins import engine_names, find_engine
from replog.testing.model import Bounds, explore
from replog.testing.model.space import Move, Place, Space, Used

SPACES = (
    Bounds(terms=1, crashes=0),
    Bounds(terms=1, in_flight=1, crashes=2),
    Bounds(terms=1, in_flight=1, crashes=0, duplicates=1),
    Bounds(terms=1, in_flight=1, crashes=1, pending=2),
    Bounds(nodes=2, crashes=1),
    Bounds(terms=2, in_flight=1, crashes=0),
)


def spelled(bounds: Bounds) -> str:
    """The bounds as the id of a test."""
    return ".".join(f"{name}{value}" for name, value in bounds.named().items())


@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize("bounds", SPACES, ids=spelled)
def test_reduction_keeps_facts(engine: str, bounds: Bounds) -> None:
    """With and without the reduction the nodes come to the same facts, together, and the same
    logs are chosen; with it fewer states are needed."""
    plugin = find_engine(engine)
    reduced = explore(plugin, bounds)
    whole = explore(plugin, bounds, is_reduced=False)
    assert reduced.is_complete
    assert whole.is_complete
    assert reduced.violation is None
    assert whole.violation is None
    assert reduced.facts == whole.facts
    assert reduced.outcomes == whole.outcomes
    assert reduced.states < whole.states
    assert reduced.transitions < whole.transitions
    assert [name for name, count in reduced.goals.items() if count] == [
        name for name, count in whole.goals.items() if count
    ]


@pytest.mark.parametrize("engine", engine_names())
def test_answers_are_not_left_out(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that changes nothing where it arrives but is answered is delivered all the same."""
    answers: list[Move] = []
    move_of = Space._move

    def move_and_note(space: Space, place: Place, at: int, action: int, used: Used) -> Move | None:
        move = move_of(space, place, at, action, used)
        if move is not None and move.place.locals == place.locals and move.sent:
            answers.append(move)
        return move

    monkeypatch.setattr(Space, "_move", move_and_note)
    explore(find_engine(engine), Bounds(in_flight=1, crashes=0))
    assert answers
    assert not any(move.is_idle for move in answers)


@pytest.mark.parametrize("engine", engine_names())
def test_exploration_repeats(engine: str) -> None:
    """The same bounds give the same counts, in every order of the hashes."""
    plugin, bounds = find_engine(engine), Bounds(terms=1)
    first, second = explore(plugin, bounds), explore(plugin, bounds)
    assert (first.states, first.transitions) == (second.states, second.transitions)
    assert first.goals == second.goals


@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize(
    "larger",
    [
        Bounds(terms=1, in_flight=2, crashes=0, commands=1),
        Bounds(terms=1, in_flight=2, crashes=1, commands=0),
        Bounds(terms=1, in_flight=3, crashes=0, commands=0),
        Bounds(terms=1, in_flight=2, crashes=0, commands=0, duplicates=1),
        Bounds(terms=2, in_flight=2, crashes=0, commands=0),
    ],
    ids=spelled,
)
def test_bound_raised_holds_more(engine: str, larger: Bounds) -> None:
    """A higher bound, whichever it is, holds more states and every outcome of the lower."""
    plugin = find_engine(engine)
    least = explore(plugin, Bounds(terms=1, in_flight=2, crashes=0, commands=0), is_reduced=False)
    more = explore(plugin, larger, is_reduced=False)
    assert more.states > least.states
    assert more.facts >= least.facts


@pytest.mark.parametrize("engine", engine_names())
def test_budget_ends_exploration(engine: str) -> None:
    """A budget ends an exploration at that many states, which is then not complete."""
    found = explore(find_engine(engine), Bounds(), states_max=500)
    assert (found.states, found.is_complete) == (500, False)
