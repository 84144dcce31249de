"""The conformance suite: what every engine behind :mod:`replog.engine` promises, as scenarios.

Both built-in engines pass it; run it with your own (``docs/conformance.md``)::

    python -m replog.testing.conformance NAME

or from a test::

    from replog.testing.conformance import run_scenario, scenarios, subject_of

    @pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.name)
    def test_conforms(scenario):
        assert not run_scenario(scenario, subject_of(PLUGIN)).failure

The scenarios name no engine and no message.  Each runs real replicas in a
:class:`~replog.testing.cluster.Cluster`, so the invariants of :mod:`replog.testing.checks` are
judged after every event besides what the scenario itself asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from replog.engine import EnginePlugin
from replog.testing import scenarios as suite
from replog.testing.conformance import (
    contract,
    crashes,
    elections,
    failures,
    faults,
    log,
    reads,
    refusals,
    replication,
    snapshots,
)
from replog.testing.conformance.subject import (
    ELECTION_TICKS_DEFAULT,
    Scenario,
    Subject,
    unsupported_counts,
)
from replog.testing.scenarios import Skipped, run_scenario, run_scenarios

__all__ = [
    "Result",
    "Scenario",
    "Skipped",
    "Subject",
    "check_engine",
    "run_scenario",
    "scenarios",
    "subject_of",
]


Result: TypeAlias = suite.Result[Subject]
"""How one scenario ended."""


def scenarios() -> tuple[Scenario, ...]:
    """All of them, in a fixed order."""
    return (
        *contract.SCENARIOS,
        *refusals.SCENARIOS,
        *elections.SCENARIOS,
        *replication.SCENARIOS,
        *faults.SCENARIOS,
        *failures.SCENARIOS,
        *crashes.SCENARIOS,
        *snapshots.SCENARIOS,
        *reads.SCENARIOS,
        *log.SCENARIOS,
    )


def subject_of(
    plugin: EnginePlugin, options: object | None = None, node_counts: Sequence[int] | None = None
) -> Subject:
    """An engine as the subject of scenarios; ``options`` of ``None`` are its defaults.

    How long an election may take is read from an option ``election_ticks_max`` if there is one.
    ``node_counts`` are the sizes of cluster that it is to be judged in (``None``: those that its
    options fit, and in which it commits with a majority).
    """
    if options is None:
        options = plugin.options()
    ticks = cast("int", getattr(options, "election_ticks_max", ELECTION_TICKS_DEFAULT))
    return Subject(plugin, options, ticks, unsupported_counts(plugin, options, node_counts))


def check_engine(
    plugin: EnginePlugin,
    options: object | None = None,
    chosen: Sequence[Scenario] | None = None,
    report: Callable[[Result], None] | None = None,
    node_counts: Sequence[int] | None = None,
) -> list[Result]:
    """Run scenarios (``None``: all) and say how each ended; ``report`` hears of each at once.

    Whatever a scenario raises is a failure of that scenario, and the others are run.
    """
    subject = subject_of(plugin, options, node_counts)
    return run_scenarios(scenarios() if chosen is None else chosen, subject, report)
