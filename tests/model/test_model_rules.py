"""The rules that the model is judged by can be broken, each of them, and what breaks is named."""

from __future__ import annotations

import pytest

from replog.quorum import Majority, Threshold
from replog.testing.model.bounds import Bounds
from replog.testing.model.judge import GOALS, Judge
from replog.testing.model.local import (
    Facts,
    Local,
    RuleBroken,
    check_handed_out,
    check_hard_state,
    written_over,
)
from replog.types import NO_NODE, Entry, EntryKind, HardState, Ready, entry_body

ONE, TWO = (entry_body(EntryKind.COMMAND, 1, 1, number, b"") for number in (1, 2))
NOTHING = Facts(led=(), reported=(), durable=())
HOLDS_ONE = Facts(led=(), reported=(), durable=((1, ONE),))
JUDGE = Judge(Majority((1, 2, 3)))


def entry(index: int, body: bytes = ONE) -> Entry:
    """An entry at an index."""
    return Entry(1, index, 1, body)


def ready(truncate_from: int | None = None, *entries: Entry) -> Ready:
    """A Ready that does nothing but write."""
    return Ready((), None, truncate_from, entries, (), (), None)


def test_judge_one_leader() -> None:
    """I1: two nodes that led in one term are found, whenever that was."""
    assert not JUDGE.verdict((Facts((1, 3), (), ()), Facts((2,), (), ()), NOTHING)).problem
    problem = JUDGE.verdict((Facts((1, 3), (), ()), Facts((2, 3), (), ()), NOTHING)).problem
    assert problem == "I1: node 2 leads in term 3, in which node 1 led"


def test_judge_one_value() -> None:
    """I2: two nodes that were handed out different values at an index are found."""
    first, second = (Facts((), (body,), ((1, body),)) for body in (ONE, TWO))
    problem = JUDGE.verdict((first, second, NOTHING)).problem
    assert problem == "I2: nodes 1 and 2 were handed out different values at index 1"


@pytest.mark.parametrize("third", [NOTHING, Facts((), (), ((1, TWO),)), Facts((), (), ((2, ONE),))])
def test_judge_durable_on_quorum(third: Facts) -> None:
    """I5: what was handed out must be on the disks of a quorum, at its index, and it itself."""
    reported = Facts((), (ONE,), ((1, ONE),))
    assert not JUDGE.verdict((reported, HOLDS_ONE, third)).problem
    problem = JUDGE.verdict((reported, NOTHING, third)).problem
    assert "I5: entry 1" in problem
    assert problem.endswith("(on those of: 1)")


def test_judge_flexible_quorum() -> None:
    """I5 goes by the quorum that commits, be it one node."""
    judge = Judge(Threshold((1, 2, 3), 1))
    assert not judge.verdict((NOTHING, HOLDS_ONE, Facts((), (ONE,), ()))).problem
    assert judge.verdict((NOTHING, NOTHING, Facts((), (ONE,), ()))).problem


def test_judge_counts_goals() -> None:
    """What is to be seen in a state is named by bits, in the order of the goals."""
    reported = Facts((1,), (ONE,), ((1, ONE),))
    seen = JUDGE.verdict((reported, HOLDS_ONE, NOTHING)).goals
    assert [name for at, name in enumerate(GOALS) if seen >> at & 1] == [
        "leader elected",
        "entry committed",
        "command committed",
    ]
    assert JUDGE.verdict((NOTHING, NOTHING, NOTHING)).goals == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HardState(1, 5, NO_NODE), HardState(1, 4, NO_NODE)),
        (HardState(1, 5, 1), HardState(1, 5, 2)),
    ],
    ids=["term falls", "vote changes"],
)
def test_hard_state_falls(before: HardState, after: HardState) -> None:
    """I4: a lower term on disk, and another vote in one term, are found."""
    with pytest.raises(RuleBroken, match="I4"):
        check_hard_state(1, before, after)


@pytest.mark.parametrize("after", [HardState(1, 5, 2), HardState(1, 6, NO_NODE)])
def test_hard_state_rises(after: HardState) -> None:
    """A first vote, and a higher term without one, are no offence."""
    check_hard_state(1, HardState(1, 5, NO_NODE), after)
    check_hard_state(1, None, after)


def test_handed_out_gap() -> None:
    """I3: an index that is left out is found."""
    local: Local = object.__new__(Local)
    local.node_id, local.handed_index, local.reported = 1, 0, ()
    check_handed_out(local, entry(1))
    assert local.handed_index == 1
    assert list(local.reported) == [ONE]
    with pytest.raises(RuleBroken, match="I3: node 1 applies entry 3 after 1"):
        check_handed_out(local, entry(3))


def test_handed_out_otherwise() -> None:
    """I2: another value than before the crash is found."""
    local: Local = object.__new__(Local)
    local.node_id, local.handed_index, local.reported = 1, 0, (ONE,)
    with pytest.raises(RuleBroken, match="I2: node 1 applies another value at index 1"):
        check_handed_out(local, entry(1, TWO))


def test_write_truncates_then_puts() -> None:
    """A write voids everything from an index on before it puts its entries."""
    disk = (entry(1), entry(2), entry(3))
    assert written_over(disk, ready(2, entry(2, TWO))) == (entry(1), entry(2, TWO))
    assert written_over(disk, ready(None, entry(2, TWO))) == (entry(1), entry(2, TWO), entry(3))


def test_bounds_named_problems() -> None:
    """Each bound that makes no sense is named as the option that sets it."""
    assert not Bounds().problems()
    wrong = Bounds(nodes=10, terms=0, in_flight=16, pending=0)
    assert [text.partition(":")[0] for text in wrong.problems()] == [
        "nodes",
        "terms",
        "in-flight",
        "pending",
    ]


def test_candidates_follow_terms() -> None:
    """As many nodes campaign as there are campaigns, unless told otherwise."""
    assert Bounds(terms=2).candidate_count == 2
    assert Bounds(nodes=3, terms=5).candidate_count == 3
    assert Bounds(candidates=1).named()["candidates"] == 1
