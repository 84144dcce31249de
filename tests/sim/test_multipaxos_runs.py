"""Random runs of Multi-Paxos: faults, then calm, then the cluster must work again.

A run is a function of its number of nodes and its seed; a run that fails is replayed by its test's
name, as in ``pytest "tests/sim/test_multipaxos_runs.py::test_run_keeps_invariants[5-17]"``.
"""

from __future__ import annotations

from collections import Counter

import pytest
from multipaxos_runs import run_seed

from replog.testing.cluster import Cluster

pytestmark = pytest.mark.slow

SEEDS = range(50)
NODE_COUNTS = (3, 5)

GOALS = (
    "crash",
    "done",
    "unknown",
    "transfer",
    "election",
    "nack",
    "learn",
    "noop",
    "adopted",
    "paged_promise",
    "hole",
    "lost_end",
    "two_ballots",
)
"""What must have happened in some run, or the runs prove little."""

_tally: Counter[str] = Counter()
"""How often each event happened in the runs so far."""


def tally_of(cluster: Cluster) -> Counter[str]:
    """How often each event of the trace happened, and a few details of them."""
    counted: Counter[str] = Counter()
    next_indexes: dict[str, int] = {}
    for line in cluster.trace.lines():
        words = line.split()
        event = words[2]
        counted[event] += 1
        counted["election"] += words[2:4] == ["role", "leader"]
        if event == "send":
            kind = words[5]
            counted[kind] += 1
            counted["paged_promise"] += kind == "promise" and "upto_slot=" in line
            counted["hole"] += kind == "accepted" and "," in words[-1]
            runs = [word for word in words if word.startswith("entries=")]
            counted["adopted"] += kind == "promise" and bool(runs)
        counted["noop"] += event == "apply" and words[-1] == "noop"
        if event == "progress":
            peer = words[1] + words[3]
            next_index = int(words[-1].removeprefix("next="))
            counted["lost_end"] += next_index < next_indexes.get(peer, 0)
            next_indexes[peer] = next_index
    disks = [node.disk.entries for node in cluster.nodes.values()]
    for index in disks[0]:
        terms = {disk[index].term for disk in disks if index in disk}
        counted["two_ballots"] += len(terms) > 1
    return counted


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("node_count", NODE_COUNTS)
def test_run_keeps_invariants(node_count: int, seed: int) -> None:
    """Under any mixture of faults every invariant holds, and calm brings the cluster back."""
    cluster = run_seed(node_count, seed)
    _tally.update(tally_of(cluster))
    _tally.update({"runs": 1, "events": cluster.turn_count})


def test_runs_reached_corners(capsys: pytest.CaptureFixture[str]) -> None:
    """Taken together, the runs met everything that they are there to meet."""
    runs = _tally["runs"]
    if runs < len(SEEDS) * len(NODE_COUNTS):
        pytest.skip("needs all the runs above")
    with capsys.disabled():
        shown = ", ".join(f"{_tally[goal]} {goal}" for goal in GOALS)
        print(f"\n{runs} runs, {_tally['events']} events: {shown}")
    assert not [goal for goal in GOALS if not _tally[goal]]
