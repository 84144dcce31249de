"""The random runs of Multi-Paxos can fail: each planted bug is found by some of their seeds."""

from __future__ import annotations

import pytest
from multipaxos_bugs import BUGS, Bug
from multipaxos_runs import run_seed

from replog.testing.checks import Violation

pytestmark = pytest.mark.slow

SEEDS_MAX = 120


def first_seed_that_finds(bug: Bug, patch: pytest.MonkeyPatch) -> int | None:
    """The first seed whose run ends in a violation; ``None``: none does."""
    bug(patch)
    for seed in range(SEEDS_MAX):
        try:
            run_seed(5 if seed % 2 else 3, seed)
        except Violation:
            return seed
    return None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_planted_bug_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with one broken rule ends in a violation within the first 120 seeds."""
    assert first_seed_that_finds(bug, monkeypatch) is not None
