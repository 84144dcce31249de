"""Flexible quorums in the model: what must be durable, and where, is the engine's trial's word."""

from __future__ import annotations

import pytest

from replog.plugins import find_engine
from replog.quorum import Majority
from replog.testing.model import Bounds, explore
from replog_multipaxos import MultiPaxosOptions


@pytest.mark.parametrize("sizes", [(3, 1), (1, 3)])
def test_flexible_quorums_complete(sizes: tuple[int, int]) -> None:
    """With quorums of one and of all three (FPaxos §3) no rule is broken, and leaders change."""
    options = MultiPaxosOptions(phase1_quorum=sizes[0], phase2_quorum=sizes[1])
    found = explore(find_engine("multipaxos"), Bounds(crashes=0), options=options)
    assert (found.is_complete, found.violation) == (True, None)
    assert found.goals["command committed, leader changed"] > 0


def test_flexible_quorum_is_no_majority() -> None:
    """One node commits alone where that was agreed; judged by a majority that is a violation."""
    options = MultiPaxosOptions(phase1_quorum=3, phase2_quorum=1)
    found = explore(
        find_engine("multipaxos"),
        Bounds(crashes=0),
        options=options,
        quorum=Majority((1, 2, 3)),
    )
    assert found.violation is not None
    assert found.violation.problem.startswith("I5: ")
