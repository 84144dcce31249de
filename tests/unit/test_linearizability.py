"""The judge of histories on histories whose verdict is known."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import pytest

from replog.testing.linearizability import (
    LINES_MAX,
    BadHistory,
    Finding,
    ListModel,
    Model,
    Operation,
    RegisterModel,
    Verdict,
    check_history,
)

BUDGET = 20_000
"""Far above what any history of this module takes, unless it says so."""

GET = ("get",)
DELETE = ("delete",)


def put(value: Hashable) -> tuple[str, Hashable]:
    """Set the value."""
    return ("put", value)


def cas(expected: Hashable, value: Hashable) -> tuple[str, Hashable, Hashable]:
    """Set the value if it is ``expected``."""
    return ("cas", expected, value)


def ended(
    invoked: int,
    returned: int,
    action: object,
    result: object = None,
    *,
    client: int = 1,
    key: Hashable = "x",
) -> Operation:
    """An operation with a known result."""
    return Operation(client, key, action, result, invoked, returned)


def unknown(invoked: int, action: object, *, client: int = 9, key: Hashable = "x") -> Operation:
    """An operation that may take effect at any time after it was invoked, or never."""
    return Operation(client, key, action, None, invoked, None)


def judged(*operations: Operation, model: Model | None = None, budget: int = BUDGET) -> Verdict:
    """The verdict on a history, of a register if nothing else is said."""
    return check_history(operations, model or RegisterModel(), budget)


def assert_linearizable(verdict: Verdict) -> None:
    """All is well, and nothing is said."""
    assert verdict.finding is Finding.LINEARIZABLE, verdict.explanation
    assert verdict.is_linearizable
    assert (verdict.key, verdict.explanation, verdict.stuck) == (None, "", None)


def assert_violation(verdict: Verdict, stuck: Operation) -> None:
    """The history is no linearizable one, and ``stuck`` is where it shows."""
    assert verdict.finding is Finding.VIOLATION
    assert not verdict.is_linearizable
    assert verdict.stuck == stuck
    assert verdict.key == stuck.key


def rounds(count: int, writers: int) -> list[Operation]:
    """Rounds of overlapping puts, after each of which one read sees one of them."""
    found: list[Operation] = []
    for number in range(count):
        start = 1000 + 100 * number
        found += [
            ended(start + client, start + 50 - client, put((number, client)), client=client)
            for client in range(writers)
        ]
        found.append(ended(start + 60, start + 61, GET, (number, number % writers), client=50))
    return found


# -- One client after the other --


def test_check_nothing() -> None:
    """A history without operations is linearizable, whatever the budget."""
    assert_linearizable(judged(budget=0))


def test_check_in_sequence() -> None:
    """What follows the model, one operation after the other, is linearizable in that order."""
    history = (
        ended(1, 2, GET),
        ended(3, 4, put("a")),
        ended(5, 6, cas("a", "b"), True),
        ended(7, 8, cas("a", "c"), False),
        ended(9, 10, GET, "b"),
        ended(11, 12, DELETE, True),
        ended(13, 14, DELETE, False),
        ended(15, 16, cas(None, "d"), True),
        ended(17, 18, GET, "d"),
    )
    verdict = judged(*history)
    assert_linearizable(verdict)
    assert verdict.order == history


def test_check_stale_read() -> None:
    """A read that began after a write had returned must not miss it."""
    stale = ended(5, 6, GET, "a", client=2)
    assert_violation(judged(ended(1, 2, put("a")), ended(3, 4, put("b")), stale), stale)


def test_check_never_written() -> None:
    """A read of a value that nobody wrote is a violation, open writes or not."""
    read = ended(3, 4, GET, "c")
    assert_violation(judged(ended(1, 2, put("a")), unknown(1, put("b")), read), read)


def test_check_lost_update() -> None:
    """Of two comparisons with the same value, only one can have succeeded."""
    first = ended(3, 6, cas("a", "b"), True)
    second = ended(4, 7, cas("a", "c"), True, client=2)
    assert_violation(judged(ended(1, 2, put("a")), first, second), second)


def test_check_lost_write() -> None:
    """A write that was acknowledged must not be missing, even if nobody wrote since."""
    read = ended(3, 4, GET, None)
    assert_violation(judged(ended(1, 2, put("a")), read), read)


@pytest.mark.parametrize(
    ("action", "result"),
    [(cas("a", "b"), False), (cas("b", "c"), True), (DELETE, False)],
)
def test_check_wrong_answer(action: object, result: bool) -> None:
    """An answer that tells of another state than there can have been is a violation."""
    wrong = ended(3, 4, action, result)
    assert_violation(judged(ended(1, 2, put("a")), wrong), wrong)


# -- Concurrent operations --


@pytest.mark.parametrize("seen", ["a", "b"])
def test_check_overlapping_writes(seen: str) -> None:
    """Of two writes that overlap either may have been the last."""
    writes = (ended(1, 4, put("a")), ended(2, 3, put("b"), client=2))
    assert_linearizable(judged(*writes, ended(5, 6, GET, seen)))


@pytest.mark.parametrize("seen", [None, "a"])
def test_check_read_during_write(seen: str | None) -> None:
    """A read that overlaps with a write may see it or miss it."""
    assert_linearizable(judged(ended(1, 4, put("a")), ended(2, 3, GET, seen, client=2)))


def test_check_new_then_old() -> None:
    """Once a read has seen a write, no later read may miss it, even if the write goes on."""
    writing = ended(1, 10, put("a"))
    new, old = ended(2, 3, GET, "a", client=2), ended(4, 5, GET, None, client=3)
    assert_violation(judged(writing, new, old), old)
    assert_linearizable(judged(writing, ended(2, 3, GET, None), ended(4, 5, GET, "a")))


def test_check_readers_disagree() -> None:
    """Two readers must see two overlapping writes in the same order."""
    writes = (ended(1, 20, put("a")), ended(2, 21, put("b"), client=2))
    one = (ended(3, 4, GET, "a", client=3), ended(7, 8, GET, "b", client=3))
    other = (ended(5, 6, GET, "b", client=4), ended(9, 10, GET, "a", client=4))
    assert_violation(judged(*writes, *one, *other), other[1])
    assert_linearizable(judged(*writes, *one))
    assert_linearizable(judged(*writes, *other))


def test_check_real_time_order() -> None:
    """The order of the answers is kept, even where the model alone would allow another one."""
    first, second = ended(1, 2, put("a")), ended(3, 4, put("b"), client=2)
    read = ended(5, 6, GET, "a", client=3)
    assert_violation(judged(first, second, read), read)
    assert_linearizable(judged(ended(1, 3, put("a")), ended(2, 4, put("b")), read))


def test_check_same_position() -> None:
    """Operations of which one ends at the very position at which the other begins may swap."""
    assert_linearizable(judged(ended(1, 2, GET, "a"), ended(2, 3, put("a"), client=2)))


def test_check_order_given() -> None:
    """The order in which a history is listed means nothing."""
    history = (ended(5, 6, GET, "b"), ended(3, 4, put("b")), ended(1, 2, put("a")))
    verdict = judged(*history)
    assert_linearizable(verdict)
    assert verdict.order == history[::-1]


# -- Unknown outcomes --


@pytest.mark.parametrize("seen", [None, "a"])
def test_check_unknown_write(seen: str | None) -> None:
    """A write with an unknown outcome may have been done or not."""
    assert_linearizable(judged(unknown(1, put("a")), ended(2, 3, GET, seen)))


def test_check_unknown_write_seen_late() -> None:
    """A write with an unknown outcome may take effect after any number of later operations."""
    history = [unknown(1, put("late"))]
    for value in range(10):
        start = 10 * value + 2
        history += [ended(start, start + 1, put(value)), ended(start + 2, start + 3, GET, value)]
    assert_linearizable(judged(*history, ended(200, 201, GET, "late")))


def test_check_unknown_write_seen_again() -> None:
    """A write with an unknown outcome takes effect once: overwritten, it does not come back."""
    again = ended(8, 9, GET, "a")
    history = (
        unknown(1, put("a")),
        ended(2, 3, GET, "a"),
        ended(4, 5, put("b")),
        ended(6, 7, GET, "b"),
    )
    assert_linearizable(judged(*history))
    assert_violation(judged(*history, again), again)
    assert_linearizable(judged(*history, again, unknown(1, put("a"), client=8)))


def test_check_unknown_write_undone() -> None:
    """A write with an unknown outcome that was seen must not be missing after that."""
    missing = ended(4, 5, GET, None)
    assert_violation(judged(unknown(1, put("a")), ended(2, 3, GET, "a"), missing), missing)


def test_check_unknown_write_seen_early() -> None:
    """A write with an unknown outcome takes no effect before it was invoked."""
    early = ended(1, 2, GET, "a")
    assert_violation(judged(early, unknown(3, put("a"))), early)


def test_check_unknown_chain() -> None:
    """Several operations with unknown outcomes may together explain one answer."""
    chain = (unknown(3, cas("b", "c")), unknown(1, put("a")), unknown(2, cas("a", "b")))
    assert_linearizable(judged(*chain, ended(9, 10, GET, "c")))
    read = ended(9, 10, GET, "c")
    assert_violation(judged(*chain[:2], read), read)


def test_check_unknown_explains_failure() -> None:
    """A write with an unknown outcome may be why a comparison failed."""
    failed = ended(4, 5, cas("a", "c"), False)
    written = ended(1, 2, put("a"))
    assert_violation(judged(written, failed), failed)
    assert_linearizable(judged(written, unknown(3, put("b")), failed))


def test_check_unknown_read() -> None:
    """A read with an unknown outcome never costs a configuration, not even in a violation."""
    history = (ended(1, 2, put("a")), ended(3, 4, GET, "a"))
    stale = ended(5, 6, GET, None)
    reads = [unknown(0, GET, client=client) for client in range(50)]
    assert_linearizable(judged(*reads, *history))
    plain, with_reads = judged(*history, stale), judged(*reads, *history, stale)
    assert_violation(with_reads, stale)
    assert with_reads.configurations == plain.configurations


def test_check_only_unknown() -> None:
    """A history in which nothing is known to have returned is linearizable."""
    assert_linearizable(judged(unknown(1, put("a")), unknown(2, GET)))


@pytest.mark.parametrize("count", [10, 20, 40])
def test_check_many_unknown_unseen(count: int) -> None:
    """Open writes that nobody saw cost in proportion to their number, even in a violation."""
    history = [unknown(number, put(("open", number))) for number in range(count)]
    for value in range(60):
        start = 100 + 4 * value
        history += [ended(start, start + 1, put(value)), ended(start + 2, start + 3, GET, value)]
    fine = judged(*history)
    assert_linearizable(fine)
    assert fine.configurations <= 61
    stale = ended(900, 901, GET, 3)
    broken = judged(*history, stale)
    assert_violation(broken, stale)
    assert broken.configurations <= 62 * (count + 2)


def test_check_many_unknown_of_two_kinds() -> None:
    """Of twenty open writes and ten open comparisons, no write is tried just before another."""
    history = [unknown(number, put(number)) for number in range(20)]
    history += [unknown(number, cas(number, 100 + number)) for number in range(10)]
    never = ended(50, 51, GET, "never written")
    verdict = judged(*history, never)
    assert_violation(verdict, never)
    # The start, each write alone, and each comparison after its write.
    assert verdict.configurations == 1 + 20 + 10


def test_check_many_unknown_seen() -> None:
    """Twenty open writes that are all seen, in another order than invoked, are found at once."""
    history = [unknown(number, put(number)) for number in range(20)]
    history += [ended(100 + 2 * at, 101 + 2 * at, GET, 7 * at % 20) for at in range(20)]
    verdict = judged(*history)
    assert_linearizable(verdict)
    assert verdict.configurations <= 30
    again = ended(500, 501, GET, 0)
    broken = judged(*history, again)
    assert_violation(broken, again)
    assert broken.configurations <= 500


class _Counter:
    """A model of a user's own: a number, and ``("add",)`` that gives nothing."""

    def initial(self) -> Hashable:
        return 0

    def step(self, state: Hashable, action: object) -> tuple[Hashable, object]:
        assert isinstance(state, int)
        return (state + 1, None) if action == ("add",) else (state, state)

    def is_read(self, action: object, result: object) -> bool:
        return action == GET


def test_check_twins() -> None:
    """Open operations with equal actions are interchangeable, so that any number is cheap."""
    adds = [unknown(number, ("add",)) for number in range(30)]
    fine = ended(100, 101, GET, 17)
    assert_linearizable(judged(*adds, fine, model=_Counter()))
    much = ended(100, 101, GET, 31)
    verdict = judged(*adds, much, model=_Counter())
    assert_violation(verdict, much)
    assert verdict.configurations <= 31
    early = ended(15, 16, GET, 18)
    assert_violation(judged(*adds, early, model=_Counter()), early)


# -- Lists --


def test_check_list() -> None:
    """A list's appends give positions and its reads everything, the open append included."""
    history = (
        ended(1, 4, ("append", "a"), 2),
        ended(2, 3, ("append", "b"), 1, client=2),
        unknown(5, ("append", "c")),
        ended(6, 7, ("append", "d"), 4),
    )
    assert_linearizable(judged(*history, ended(8, 9, ("read",), tuple("bacd")), model=ListModel()))
    wrong = ended(8, 9, ("read",), tuple("bad"))
    assert_violation(judged(*history, wrong, model=ListModel()), wrong)


def test_check_list_same_position() -> None:
    """Two appends at one position, as of two leaders, are a violation."""
    first, second = ended(1, 3, ("append", "a"), 1), ended(2, 4, ("append", "b"), 1, client=2)
    assert_violation(judged(first, second, model=ListModel()), second)


# -- Keys --


def test_check_keys_apart() -> None:
    """Every key is an object of its own, and a violation names the one that is broken."""
    fine = (ended(1, 2, put("a"), key="x"), ended(3, 4, GET, "a", key="x"))
    assert_linearizable(judged(*fine, ended(5, 6, GET, None, key="y")))
    broken = ended(5, 6, GET, "a", key=("y", 2))
    assert_violation(judged(*fine, broken), broken)


def test_check_hard_key_first() -> None:
    """A key that would eat up the whole budget does not hide the violation of another one."""
    hard = rounds(12, 8)
    broken = ended(2, 3, GET, "never written", key="y")
    assert judged(*hard, budget=600).finding is Finding.UNDECIDED
    assert_violation(judged(*hard, broken, budget=600), broken)


def test_check_rest_of_budget() -> None:
    """What easy keys leave of their shares goes to the hard ones."""
    hard = rounds(3, 5)
    needed = judged(*hard).configurations
    easy = [ended(1, 2, put("a"), key=key) for key in range(10)]
    verdict = judged(*hard, *easy, budget=needed + 2 * len(easy))
    assert_linearizable(verdict)
    assert verdict.configurations == needed + 2 * len(easy)


# -- Budgets --


def test_check_budget_spent() -> None:
    """A budget that is too small by one makes a history undecided, and that is no pass."""
    history = rounds(2, 4)
    stale = ended(5000, 5001, GET, (0, 0))
    for operations, finding in (
        (history, Finding.LINEARIZABLE),
        ([*history, stale], Finding.VIOLATION),
    ):
        verdict = judged(*operations)
        assert verdict.finding is finding
        needed = verdict.configurations
        assert judged(*operations, budget=needed) == verdict
        for budget in (0, 1, needed // 2, needed - 1):
            short = judged(*operations, budget=budget)
            assert short.finding is Finding.UNDECIDED
            assert not short.is_linearizable
            assert (short.configurations, short.key, short.order) == (budget, "x", ())


def test_check_budget_explained() -> None:
    """An undecided verdict says which key, how large it is and what to do."""
    history = [*rounds(2, 4), unknown(1, put(1)), ended(1, 2, put(1), key="y")]
    why = judged(*history, budget=1).explanation
    assert "budget of 1 configurations" in why
    assert "key 'x'" in why
    assert "10 operations and 1 with an unknown outcome" in why
    assert "1 more" in why
    assert "raise the budget" in why


def test_verdict_no_truth() -> None:
    """A verdict refuses to be true or false, so that nobody takes undecided for a pass."""
    with pytest.raises(TypeError, match="is_linearizable"):
        bool(judged())


# -- Explanations and bad input --


def test_explain_violation() -> None:
    """A violation shows the answer, an order of what came before, the state, what would fit."""
    verdict = judged(
        ended(1, 2, put("a")),
        ended(3, 4, put("b"), client=2),
        ended(5, 7, GET, "a", client=3),
        ended(6, 8, GET, "c", client=4),
        unknown(5, put("d")),
        unknown(9, put("e")),
    )
    assert verdict.explanation.splitlines() == [
        "key 'x' is not linearizable: no order of its operations explains",
        "  client 3: ('get',) gave 'a', from 5 to 7",
        "What returned before can be ordered, for instance so:",
        "  client 1: ('put', 'a') gave None, from 1 to 2",
        "  client 2: ('put', 'b') gave None, from 3 to 4",
        "The state is then 'b', in which none of these fits:",
        "  client 3: ('get',) gave 'a', from 5 to 7: would give 'b'",
        "  client 4: ('get',) gave 'c', from 6 to 8: would give 'b'",
        "Nor does it help if some of these took effect:",
        "  client 9: ('put', 'd'), invoked at 5, outcome unknown",
    ]


def test_explain_long_history() -> None:
    """However long the history, an explanation is short; the record holds the whole order."""
    history = [ended(10 * at, 10 * at + 1, put(at)) for at in range(200)]
    history += [unknown(at, put(-at)) for at in range(1, 100)]
    verdict = judged(*history, ended(5000, 5001, GET, 7), budget=200_000)
    assert verdict.finding is Finding.VIOLATION
    assert len(verdict.order) == 200
    assert len(verdict.explanation.splitlines()) <= 2 * LINES_MAX + 8
    assert f"({200 - LINES_MAX} operations before these)" in verdict.explanation
    assert f"(and {99 - LINES_MAX} more)" in verdict.explanation


@pytest.mark.parametrize(
    ("history", "sentence"),
    [
        ([ended(5, 4, GET, None)], "returned at 4, before it was invoked"),
        ([ended(1, 2, ("swap", 1))], "a register has no action \\('swap', 1\\)"),
        ([unknown(1, "get"), ended(2, 3, GET, "a")], "a register has no action 'get'"),
    ],
)
def test_check_bad_history(history: Sequence[Operation], sentence: str) -> None:
    """What cannot be judged is refused with a sentence that names it."""
    with pytest.raises(BadHistory, match=sentence):
        judged(*history)


def test_list_unknown_action() -> None:
    """A list has no other actions than its own."""
    with pytest.raises(BadHistory, match="a list has no action"):
        judged(ended(1, 2, GET), model=ListModel())
