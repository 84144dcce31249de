"""Random runs: a few hundred ticks under faults, then calm, then the cluster must work again.

A run is a function of its number of nodes and its seed; a run that fails is replayed by its test's
name, as in ``pytest "tests/sim/test_random_runs.py::test_run_keeps_invariants[5-17]"``.
"""

from __future__ import annotations

from collections import Counter

import pytest
from random_runs import run_seed

from replog.testing.cluster import Cluster

pytestmark = pytest.mark.slow

SEEDS = range(60)
NODE_COUNTS = (3, 5)

GOALS = (
    "campaign",
    "crash",
    "done",
    "duplicate",
    "heal",
    "kept",
    "not_done",
    "pause",
    "transfer",
    "unknown",
    "truncation",
    "election",
    "write_lost",
)
"""What must have happened in some run, or the runs prove little."""

_tally: Counter[str] = Counter()
"""How often each event happened in the runs so far."""


def tally_of(cluster: Cluster) -> Counter[str]:
    """How often each event of the trace happened, and a few details of them."""
    counted: Counter[str] = Counter()
    for line in cluster.trace.lines():
        words = line.split()
        counted[words[2]] += 1
        counted["truncation"] += "truncate_from=" in line
        counted["election"] += words[2:4] == ["role", "leader"]
        counted["write_lost"] += words[2] == "crash" and words[-1] != "lost_writes=0"
    return counted


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("node_count", NODE_COUNTS)
def test_run_keeps_invariants(node_count: int, seed: int) -> None:
    """Under any mixture of faults every invariant holds, and calm brings the cluster back."""
    cluster = run_seed(node_count, seed)
    _tally.update(tally_of(cluster))
    _tally.update({"runs": 1, "events": cluster.turn_count})


def test_runs_reached_corners(capsys: pytest.CaptureFixture[str]) -> None:
    """Taken together, the runs met every fault and every outcome that they are there to meet."""
    runs = _tally["runs"]
    if runs < len(SEEDS) * len(NODE_COUNTS):
        pytest.skip("needs all the runs above")
    with capsys.disabled():
        shown = ", ".join(f"{_tally[goal]} {goal}" for goal in GOALS)
        print(f"\n{runs} runs, {_tally['events']} events: {shown}")
    assert not [goal for goal in GOALS if not _tally[goal]]
