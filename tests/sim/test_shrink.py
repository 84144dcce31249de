"""A run that breaks something is made small, and what is left breaks the same thing."""

from __future__ import annotations

from functools import cache

import pytest

from replog.engine import Engine
from replog.plugins import engine_names
from replog.storage.protocol import Recovered
from replog.stored_log import HeldLog
from replog.testing.checks import Violation
from replog.testing.driver import QUIET
from replog.testing.runs import Runs
from replog.testing.shrink import shrink
from replog.testing.sim import SimOptions, simulate
from replog.types import EntryId, LogIndex, NodeId


def forget_on_restart(patch: pytest.MonkeyPatch) -> None:
    """A node that starts again amid the faults has forgotten its log; in calm, where some seeds
    start all nodes again without a strike, it has not."""
    right = Runs.make_engine

    def wrong(
        runs: Runs,
        node_id: NodeId,
        recovered: Recovered,
        snapshot: EntryId,
        applied_index: LogIndex,
        nonce: int,
    ) -> Engine:
        if runs.now and runs._driver.faults is not QUIET:
            log = HeldLog((), recovered.log.base)
            recovered = Recovered(recovered.hard_state, log)
        return right(runs, node_id, recovered, snapshot, applied_index, nonce)

    patch.setattr(Runs, "make_engine", wrong)


@cache
def first_violation(engine: str) -> tuple[SimOptions, Violation]:
    """The first seed that breaks something."""
    for seed in range(100):
        try:
            simulate(SimOptions(engine, seed))
        except Violation as violation:
            return SimOptions(engine, seed), violation
    raise AssertionError("no seed broke anything")


@pytest.mark.parametrize("engine", engine_names())
def test_shrink_to_few_strikes(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs a restart shrinks to few strikes in a short run, and still breaks the same."""
    forget_on_restart(monkeypatch)
    options, violation = first_violation(engine)
    whole = shrink(options, violation.invariant, attempts_max=1)
    shrunk = shrink(options, violation.invariant, attempts_max=100)
    assert whole is not None
    assert shrunk is not None
    assert 1 <= shrunk.strikes <= max(1, whole.strikes * 3 // 4)
    assert shrunk.options.ticks < options.ticks
    assert shrunk.options.operations_max < 2_000
    with pytest.raises(Violation) as again:
        simulate(shrunk.options)
    assert again.value.invariant == violation.invariant
    assert again.value.sentence == shrunk.violation.sentence
    kept = shrunk.violation
    runs = (kept.__traceback__, kept.__cause__, kept.__context__)
    assert runs == (None, None, None), "else each violation would keep a whole cluster in memory"


def test_shrink_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ends after as many runs as it was allowed, with what it has."""
    forget_on_restart(monkeypatch)
    engine = engine_names()[0]
    options, violation = first_violation(engine)
    shrunk = shrink(options, violation.invariant, attempts_max=3)
    assert shrunk is not None
    assert shrunk.attempts == 3


def test_shrink_healthy_run() -> None:
    """A run that breaks nothing cannot be shrunk."""
    assert shrink(SimOptions(engine_names()[0], 1), "I2") is None
