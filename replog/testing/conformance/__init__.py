"""The conformance suite: what every engine behind :mod:`replog.engine` promises, as scenarios.

Both built-in engines pass it; run it with your own (``docs/conformance.md``)::

    python -m replog.testing.conformance NAME

or from a test::

    from replog.testing.conformance import scenarios, subject_of

    @pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.name)
    def test_conforms(scenario):
        scenario.run(subject_of(PLUGIN))

The scenarios name no engine and no message.  Each runs real replicas in a
:class:`~replog.testing.cluster.Cluster`, so the invariants of :mod:`replog.testing.checks` are
judged after every event besides what the scenario itself asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from replog.engine import EnginePlugin
from replog.testing.conformance import contract, elections, failures, faults, replication
from replog.testing.conformance.subject import ELECTION_TICKS_DEFAULT, Scenario, Subject
from replog.types import record

__all__ = ["Result", "Scenario", "Subject", "check_engine", "scenarios", "subject_of"]


@record
class Result:
    """How one scenario ended."""

    scenario: Scenario
    failure: str
    """What went wrong; empty if nothing did."""


def scenarios() -> tuple[Scenario, ...]:
    """All of them, in a fixed order."""
    return (
        *contract.SCENARIOS,
        *elections.SCENARIOS,
        *replication.SCENARIOS,
        *faults.SCENARIOS,
        *failures.SCENARIOS,
    )


def subject_of(plugin: EnginePlugin, options: object | None = None) -> Subject:
    """An engine as the subject of scenarios; ``options`` of ``None`` are its defaults.

    How long an election may take is read from an option ``election_ticks_max`` if there is one.
    """
    if options is None:
        options = plugin.options()
    ticks = cast("int", getattr(options, "election_ticks_max", ELECTION_TICKS_DEFAULT))
    return Subject(plugin, options, ticks)


def check_engine(
    plugin: EnginePlugin,
    options: object | None = None,
    chosen: Sequence[Scenario] | None = None,
    report: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Run scenarios (``None``: all) and say how each ended; ``report`` hears of each at once."""
    subject = subject_of(plugin, options)
    results: list[Result] = []
    for scenario in scenarios() if chosen is None else chosen:
        failure = ""
        try:
            scenario.run(subject)
        except AssertionError as error:
            failure = str(error) or "an assertion failed"
        result = Result(scenario, failure)
        results.append(result)
        if report is not None:
            report(result)
    return results
