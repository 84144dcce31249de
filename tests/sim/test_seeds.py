"""Random seeds under all faults: nothing breaks, and together they come to every goal."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from replog.plugins import engine_names
from replog.testing.chance import KINDS
from replog.testing.seeds import Tally, run_seeds
from replog.testing.sim import SimOptions

pytestmark = pytest.mark.slow

SEEDS = range(86)


@pytest.fixture(scope="module")
def tallies() -> Mapping[str, Tally]:
    """Every seed of every engine, run once for all tests of this module, on every core."""
    return run_seeds(engine_names(), SimOptions("", 0), SEEDS)


def test_seeds_break_nothing(
    tallies: Mapping[str, Tally], record_property: Callable[[str, object], None]
) -> None:
    """No seed breaks an invariant; what they came to is printed."""
    for tally in tallies.values():
        record_property(
            "said",
            f"{tally.engine}: {tally.seeds} seeds, {tally.events} events, "
            f"{tally.events_per_second:.0f} events/s of one core; in the median seed "
            f"{tally.median_events:.0f} events and {tally.median_operations:.0f} commands; "
            f"{tally.real_count} seeds over the real log and codec; seeds per goal: "
            + ", ".join(f"{name} {count}" for name, count in tally.goal_counts.items()),
        )
    broken = [
        f"replog sim --engine {tally.engine} --seed {found.options.seed}: {found.sentence}"
        for tally in tallies.values()
        for found in tally.found
    ]
    assert broken == []


@pytest.mark.parametrize("engine", engine_names())
def test_seeds_reach_every_goal(tallies: Mapping[str, Tally], engine: str) -> None:
    """Each goal was come to by some seed, so the runs are about what they are there for."""
    assert tallies[engine].missed_goals == []


@pytest.mark.parametrize("engine", engine_names())
def test_seeds_suffer_every_fault(tallies: Mapping[str, Tally], engine: str) -> None:
    """Each kind of fault took effect in some seed."""
    assert [kind for kind in KINDS if not tallies[engine].struck[kind]] == []


@pytest.mark.parametrize("engine", engine_names())
def test_seeds_are_long(tallies: Mapping[str, Tally], engine: str) -> None:
    """The median run has 2,000 events and 100 client commands, and a quarter has the real log."""
    tally = tallies[engine]
    assert tally.median_events >= 2_000
    assert tally.median_operations >= 100
    assert tally.real_count >= len(SEEDS) / 4
